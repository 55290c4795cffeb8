// SPDX-License-Identifier: Apache-2.0
#pragma once

// A worker as it runs: its thread, AF_XDP on a veth, its queue of a TAP, in a network namespace
// that goes with the test's thread. Only the way out is the test's own: it keeps what would leave.
// When the worker has stopped, every frame of packet memory is accounted for.

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <thread>

#include "dataplane/base/unique_fd.h"
#include "dataplane/egress/egress.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/port_sockets.h"
#include "dataplane/io/tap.h"
#include "dataplane/worker/worker.h"
#include "tests/dataplane/io/tap_support.h"
#include "tests/support/bpf_instruction.h"
#include "tests/support/tunnel_world.h"

namespace sallyport::test {

inline constexpr uint32_t kWorkerTestFrames = 2048;
inline constexpr WorkerId kOnlyWorker{0};
inline constexpr QueueId kOnlyQueue{0};

// Keeps the frames and gives their buffers back.
class KeepingEgress final : public egress::Egress {
  public:
    explicit KeepingEgress(io::PacketMemory& memory) : memory_(memory) {}
    void send(std::span<OutgoingFrame> frames) override {
        const std::lock_guard lock(mutex_);
        for (const auto& outgoing : frames) {
            std::byte* data = outgoing.frame.data;
            kept_.emplace_back(data + 14, data + outgoing.frame.bytes);
            memory_.give({&data, 1});
        }
    }
    void flush() override {}
    uint32_t in_flight() const override { return 0; }

    std::vector<Bytes> kept() {
        const std::lock_guard lock(mutex_);
        return kept_;
    }

  private:
    io::PacketMemory& memory_;
    std::mutex mutex_;
    std::vector<Bytes> kept_;
};

// Sends frames into a device, as the host at its other end does.
class Sender {
  public:
    explicit Sender(const std::string& device)
        : fd_(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)) {
        address_.sll_family = AF_PACKET;
        address_.sll_ifindex = static_cast<int>(if_nametoindex(device.c_str()));
    }
    void send(const std::vector<Bytes>& frames) {
        for (const Bytes& frame : frames) {
            ASSERT_EQ(sendto(fd_.get(), frame.data(), frame.size(), 0,
                             reinterpret_cast<const sockaddr*>(&address_), sizeof address_),
                      static_cast<ssize_t>(frame.size()))
                << std::strerror(errno);
        }
    }

  private:
    UniqueFd fd_;
    sockaddr_ll address_{};
};

class WorkerTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "needs root to make a network namespace";
        if (unshare(CLONE_NEWNET) != 0) {
            GTEST_SKIP() << "cannot make a network namespace: " << std::strerror(errno);
        }
        // No neighbour discovery and no MLD between the frames we count.
        std::ofstream("/proc/sys/net/ipv6/conf/default/disable_ipv6") << "1";
        ASSERT_EQ(std::system("ip link add va type veth peer name vb && ip link set va up && "
                              "ip link set vb up"),
                  0);
        static const auto eal = io::start_eal(kWorkerTestFrames, false);
        ASSERT_TRUE(eal) << eal.error();
        memory_.emplace(io::PacketMemory::create(kWorkerTestFrames, false).value());
        auto port = io::PortSockets::create({.device = "va",
                                             .ifindex = if_nametoindex("va"),
                                             .fill_entries = 256,
                                             .rx_entries = 256,
                                             .tx_entries = 0},
                                            *memory_);
        ASSERT_TRUE(port) << port.error();
        port_ = std::move(*port);
        auto tap = test::make_tap(1);
        ASSERT_TRUE(tap) << tap.error();
        tap_.emplace(std::move(*tap));
        steer();
        wire_.emplace("vb");
        kernel_.emplace("sp0");
    }

    void TearDown() override {
        if (worker_) stop();
        worker_.reset();
        port_.reset();
    }

    // XDP on the port: everything to the worker's socket.
    void steer() {
        map_ = UniqueFd(bpf_map_create(BPF_MAP_TYPE_XSKMAP, "xsks", 4, 4, 1, nullptr));
        const uint32_t key = 0;
        const int fd = port_->fd(kOnlyQueue, kOnlyWorker);
        ASSERT_EQ(bpf_map_update_elem(map_.get(), &key, &fd, BPF_ANY), 0);
        const bpf_insn program[] = {
            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 0),
            instruction(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map_.get()),
            instruction(0, 0, 0, 0, 0),
            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 3, 0, 0, XDP_DROP),
            instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
            instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        };
        program_ = UniqueFd(
            bpf_prog_load(BPF_PROG_TYPE_XDP, "steer", "GPL", program, std::size(program), nullptr));
        ASSERT_TRUE(program_);
        ASSERT_EQ(bpf_xdp_attach(static_cast<int>(if_nametoindex("va")), program_.get(),
                                 XDP_FLAGS_DRV_MODE, nullptr),
                  0);
    }

    void start(uint32_t hold_frames, uint32_t hold_ms) {
        cpu_set_t cpus;
        ASSERT_EQ(sched_getaffinity(0, sizeof cpus, &cpus), 0);
        uint16_t cpu = 0;
        while (!CPU_ISSET(cpu, &cpus)) ++cpu;
        wake_board_.emplace(uint16_t{1});
        WorkerSetup setup;
        setup.id = kOnlyWorker;
        setup.cpu = cpu;
        setup.spin_us = 0;
        setup.max_sas = 16;
        setup.max_policies = 4;
        setup.hold_frames = hold_frames;
        setup.hold_ms = hold_ms;
        setup.wake_board = &*wake_board_;
        setup.memory = &*memory_;
        setup.ports = {{.sockets = port_.get(), .unprotected_side = true}};
        setup.tap = &tap_->queue(0);
        auto egress = std::make_unique<KeepingEgress>(*memory_);
        egress_ = egress.get();
        setup.egress = std::move(egress);
        auto worker = Worker::create(std::move(setup));
        ASSERT_TRUE(worker) << worker.error();
        worker_ = std::move(*worker);
        const auto started = worker_->start();
        ASSERT_TRUE(started) << started.error();
        ASSERT_TRUE(reached([&] { return port_->fill_level(kOnlyQueue) > 100; }));
    }

    // Ends the worker; every frame is in the pool or in the kernel's rings, and counters add up.
    void stop() {
        ASSERT_EQ(
            bpf_xdp_detach(static_cast<int>(if_nametoindex("va")), XDP_FLAGS_DRV_MODE, nullptr), 0);
        worker_->stop();
        EXPECT_EQ(memory_->available() + port_->frames_in_kernel(), kWorkerTestFrames);
        const WorkerCounters& counters = worker_->counters();
        uint64_t drops = 0;
        for (const Counter& counter : counters.drops) drops += counter.read();
        EXPECT_EQ(counters.inbound.frames.read() + counters.outbound.frames.read(),
                  counters.inbound.delivered.read() + counters.outbound.delivered.read() + drops);
        EXPECT_EQ(counters.inbound.on_hold.read() + counters.outbound.on_hold.read(), 0u);
    }

    template <typename Condition>
    static bool reached(Condition condition,
                        std::chrono::milliseconds limit = std::chrono::seconds(10)) {
        const auto end = std::chrono::steady_clock::now() + limit;
        while (!condition()) {
            if (std::chrono::steady_clock::now() > end) return false;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return true;
    }
    [[nodiscard]] uint64_t dropped(DropReason reason) const {
        return worker_->counters().drops[static_cast<size_t>(reason)].read();
    }
    bool waits_for_kept(size_t count) {
        return reached([&] { return egress_->kept().size() >= count; }) &&
               egress_->kept().size() == count;
    }
    // The next event that is no audit.
    std::optional<Event> next_event() {
        Event event;
        bool found = false;
        (void)reached([&] {
            while (!found && worker_->next_event(event))
                found = !std::holds_alternative<event::Audit>(event);
            return found;
        });
        return found ? std::optional(event) : std::nullopt;
    }
    void submit(const Command& command) { ASSERT_TRUE(worker_->submit(command)); }
    void publish_spd() {
        spd_ = std::make_unique<Spd>(compile_spd(std::vector{protect_entry(Family::v4, 1)}).value(),
                                     CompiledSpd{});
        submit(command::PublishSpd{spd_.get()});
    }

    static Bytes numbered(uint32_t number) {
        Bytes packet = ipv4({}, udp(1000, 2000));
        put32(packet, 28, number);
        return packet;
    }
    static std::vector<Bytes> arrivals(const TestSa& sa, std::initializer_list<uint32_t> numbers) {
        std::vector<Bytes> frames;
        for (const uint32_t n : numbers) frames.push_back(esp_frame(sa, n, numbered(n)));
        return frames;
    }
    // As the kernel routes them into sp0.
    static std::vector<Bytes> departures(uint32_t count) { return {count, ethernet(numbered(0))}; }
    // Numbers of the inner packets that left, from `first` on.
    std::vector<uint32_t> kept_numbers(size_t first = 0) {
        std::vector<uint32_t> numbers;
        const auto kept = egress_->kept();
        for (size_t i = first; i < kept.size(); ++i) {
            numbers.push_back(get32(kept[i], 28));
        }
        return numbers;
    }

    TunnelWorld makes_;  // owns the SAs; its pipelines are not used
    std::unique_ptr<Spd> spd_;
    std::optional<io::PacketMemory> memory_;
    std::unique_ptr<io::PortSockets> port_;
    std::optional<io::Tap> tap_;
    std::optional<WakeBoard> wake_board_;
    KeepingEgress* egress_ = nullptr;
    std::unique_ptr<Worker> worker_;
    std::optional<Sender> wire_;
    std::optional<Sender> kernel_;
    UniqueFd map_;
    UniqueFd program_;
};

}  // namespace sallyport::test
