// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <netinet/in.h>

#include <chrono>
#include <map>
#include <thread>

#include "dataplane/egress/direct_egress.h"
#include "dataplane/egress/tap_egress.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/port_sockets.h"
#include "dataplane/io/tap.h"
#include "tests/dataplane/io/support.h"
#include "tests/dataplane/io/tap_support.h"
#include "tests/support/bpf_instruction.h"

namespace sallyport::io {
namespace {

using test::Bytes;
using test::Capture;
using test::instruction;
using test::make_veth;
using test::run;

constexpr uint16_t kTestEthertype = 0x88b5;  // IEEE: for local experiments

// XDP: frames of the test ethertype go to socket [queue * workers + byte 14], the rest is passed.
class Steering {
  public:
    Steering(const std::string& device, PortSockets& port)
        : ifindex_(static_cast<int>(if_nametoindex(device.c_str()))) {
        const uint32_t size = uint32_t{port.queues()} * port.workers();
        map_ = UniqueFd(bpf_map_create(BPF_MAP_TYPE_XSKMAP, "xsks", 4, 4, size, nullptr));
        for (uint16_t queue = 0; queue < port.queues(); ++queue) {
            for (uint16_t worker = 0; worker < port.workers(); ++worker) {
                const uint32_t key = uint32_t{queue} * port.workers() + worker;
                const int fd = port.fd(QueueId{queue}, WorkerId{worker});
                EXPECT_EQ(bpf_map_update_elem(map_.get(), &key, &fd, BPF_ANY), 0);
            }
        }
        const std::array program = {
            instruction(BPF_LDX | BPF_MEM | BPF_W, 2, 1, 0, 0),  // data
            instruction(BPF_LDX | BPF_MEM | BPF_W, 3, 1, 4, 0),  // data_end
            instruction(BPF_ALU64 | BPF_MOV | BPF_X, 4, 2, 0, 0),
            instruction(BPF_ALU64 | BPF_ADD | BPF_K, 4, 0, 0, 15),
            instruction(BPF_JMP | BPF_JGT | BPF_X, 4, 3, 12, 0),
            instruction(BPF_LDX | BPF_MEM | BPF_H, 5, 2, 12, 0),
            instruction(BPF_JMP | BPF_JNE | BPF_K, 5, 0, 10, Be16(kTestEthertype).raw()),
            instruction(BPF_LDX | BPF_MEM | BPF_B, 5, 2, 14, 0),  // worker
            instruction(BPF_LDX | BPF_MEM | BPF_W, 0, 1, 16, 0),  // rx_queue_index
            instruction(BPF_ALU64 | BPF_MUL | BPF_K, 0, 0, 0, port.workers()),
            instruction(BPF_ALU64 | BPF_ADD | BPF_X, 0, 5, 0, 0),
            instruction(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map_.get()),
            instruction(0, 0, 0, 0, 0),
            instruction(BPF_ALU64 | BPF_MOV | BPF_X, 2, 0, 0, 0),
            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 3, 0, 0, XDP_PASS),
            instruction(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
            instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
            instruction(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, XDP_PASS),
            instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        };
        std::array<char, 65536> log{};
        LIBBPF_OPTS(bpf_prog_load_opts, options, .log_level = 1, .log_size = log.size(),
                    .log_buf = log.data());
        program_ = UniqueFd(bpf_prog_load(BPF_PROG_TYPE_XDP, "steer", "GPL", program.data(),
                                          program.size(), &options));
        EXPECT_TRUE(program_) << log.data();
        EXPECT_EQ(bpf_xdp_attach(ifindex_, program_.get(), XDP_FLAGS_DRV_MODE, nullptr), 0);
    }
    Steering(const Steering&) = delete;
    ~Steering() { bpf_xdp_detach(ifindex_, XDP_FLAGS_DRV_MODE, nullptr); }

  private:
    int ifindex_;
    UniqueFd map_;
    UniqueFd program_;
};

class IoTest : public test::NamespaceTest {
  protected:
    static constexpr uint32_t kFrames = 4096;

    static void SetUpTestSuite() {
        static const auto started = start_eal(kFrames, false);
        ASSERT_TRUE(started) << started.error();
    }
    void SetUp() override {
        NamespaceTest::SetUp();
        if (IsSkipped()) return;
        auto memory = PacketMemory::create(kFrames, false);
        ASSERT_TRUE(memory) << memory.error();
        memory_.emplace(std::move(*memory));
    }

    PortSocketsSetup setup(const std::string& device) {
        return {.device = device,
                .ifindex = if_nametoindex(device.c_str()),
                .queues = 2,
                .workers = 2,
                .fill_entries = 256,
                .rx_entries = 256,
                .tx_entries = 128};
    }

    std::unique_ptr<PortSockets> open_port(const PortSocketsSetup& setup) {
        auto port = PortSockets::create(setup, *memory_);
        EXPECT_TRUE(port) << port.error();
        return port ? std::move(*port) : nullptr;
    }

    Frame make_frame(const Bytes& content) {
        std::byte* data = nullptr;
        EXPECT_TRUE(memory_->take({&data, 1}));
        std::ranges::copy(std::as_bytes(std::span(content)), data);
        return {.data = data, .bytes = static_cast<uint32_t>(content.size())};
    }
    static Bytes content_of(const Frame& frame) {
        const auto* begin = reinterpret_cast<const uint8_t*>(frame.data);
        return {begin, begin + frame.bytes};
    }
    // A frame that Steering sends to `worker`, 60 bytes, with a number in it.
    static Bytes test_frame(uint8_t worker, uint32_t number) {
        Bytes bytes(60, 0xee);
        test::put16(bytes, 12, kTestEthertype);
        bytes[14] = worker;
        std::memcpy(&bytes[16], &number, sizeof number);
        return bytes;
    }
    // Sends test frames on a queue of `port` with the given worker's socket.
    void send(PortSockets& port, QueueId queue, WorkerId sender, uint8_t to, uint32_t count) {
        for (uint32_t i = 0; i < count; ++i) {
            const Frame frame = make_frame(test_frame(to, i));
            ASSERT_EQ(port.transmit(queue, sender, {&frame, 1}), 1u);
        }
        port.kick_transmit(queue, sender);
    }
    // Waits until `reached` holds; NAPI runs in its own time.
    template <typename Condition>
    static bool eventually(Condition reached) {
        for (int i = 0; i < 200; ++i) {
            if (reached()) return true;
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        return false;
    }

    std::optional<PacketMemory> memory_;
};

// ---- PortSockets ------------------------------------------------------------------------------

TEST_F(IoTest, EachFrameReachesTheSocketOfItsQueueAndWorker) {
    make_veth(2);
    uint64_t held_by_kernel = 0;
    {
        auto a = open_port(setup("va"));
        ASSERT_TRUE(a);
        auto b = open_port(setup("vb"));  // another device on the same packet memory
        ASSERT_TRUE(b);
        EXPECT_FALSE(a->zero_copy());
        EXPECT_EQ(a->home(QueueId{1}), WorkerId{1});
        const Steering steering("va", *a);
        for (const QueueId queue : {QueueId{0}, QueueId{1}}) {
            EXPECT_EQ(a->fill_level(queue), 0u);
            EXPECT_EQ(a->refill(queue), 256u);
            EXPECT_EQ(a->fill_level(queue), 256u);
            EXPECT_EQ(a->refill(queue), 0u);
        }
        EXPECT_EQ(a->frames_in_kernel(), 512u);
        EXPECT_EQ(memory_->available() + 512u, kFrames);

        for (uint16_t queue = 0; queue < 2; ++queue) {
            for (uint8_t worker = 0; worker < 2; ++worker) {
                SCOPED_TRACE("queue " + std::to_string(queue) + " worker " +
                             std::to_string(worker));
                const uint32_t count = 40u + 10u * queue + worker;
                send(*b, QueueId{queue}, WorkerId{worker}, worker, count);
                std::vector<Frame> got;
                EXPECT_TRUE(eventually([&] {
                    std::array<Frame, kBurstMax> burst;
                    const uint32_t n = a->receive(QueueId{queue}, WorkerId{worker}, burst);
                    got.insert(got.end(), burst.begin(), burst.begin() + n);
                    return got.size() >= count;
                }));
                ASSERT_EQ(got.size(), count);
                for (uint32_t i = 0; i < count; ++i) {
                    ASSERT_EQ(content_of(got[i]), test_frame(worker, i));
                    ASSERT_EQ(got[i].data - frame_base(got[i].data), kFrameDataOffset);
                }
                for (uint16_t q = 0; q < 2; ++q) {
                    for (uint16_t w = 0; w < 2; ++w) {
                        std::array<Frame, 8> other;
                        EXPECT_EQ(a->receive(QueueId{q}, WorkerId{w}, other), 0u)
                            << "also at " << q << "," << w;
                    }
                }
                EXPECT_EQ(memory_->available() + a->frames_in_kernel() + b->frames_in_kernel() +
                              got.size(),
                          kFrames);
                for (const Frame& frame : got) memory_->give({&frame.data, 1});
                // The sender's buffers come back through the queue's COMPLETION ring.
                EXPECT_EQ(b->completion_level(QueueId{queue}), count);
                EXPECT_EQ(b->reclaim(QueueId{queue}), count);
                EXPECT_EQ(b->frames_in_kernel(), 0u);
            }
        }
        EXPECT_EQ(memory_->available() + a->frames_in_kernel(), kFrames);
        held_by_kernel = a->frames_in_kernel() + b->frames_in_kernel();
    }
    // What the counters say the kernel held is exactly what is missing in the pool.
    EXPECT_EQ(memory_->recover(), held_by_kernel);
    EXPECT_EQ(memory_->available(), kFrames);
}

// Nobody refills: the queue runs dry for all its workers, says so, and recovers.
TEST_F(IoTest, ADryFillRingIsSeenAndRecovers) {
    make_veth(2);
    auto a = open_port(setup("va"));
    ASSERT_TRUE(a);
    auto b = open_port(setup("vb"));
    ASSERT_TRUE(b);
    const Steering steering("va", *a);
    const QueueId queue{0};
    ASSERT_EQ(a->refill(queue), 256u);
    ASSERT_EQ(a->home(queue), WorkerId{0});
    ASSERT_EQ(a->fill_low_water(queue), 64u);

    // Worker 1 is busy on the queue, its home sleeps.
    std::array<Frame, kBurstMax> burst;
    uint32_t received = 0;
    bool low_seen = false;
    const auto drain = [&] {
        while (const uint32_t n = a->receive(queue, WorkerId{1}, burst)) {
            for (uint32_t i = 0; i < n; ++i) memory_->give({&burst[i].data, 1});
            received += n;
        }
    };
    for (int round = 0; round < 8; ++round) {
        send(*b, queue, WorkerId{0}, 1, 50);
        eventually([&] {
            return drain(),
                   received >= 50u * static_cast<uint32_t>(round + 1) || a->fill_level(queue) == 0;
        });
        low_seen = low_seen || (received < 256 && a->fill_level(queue) < a->fill_low_water(queue));
        EXPECT_EQ(b->reclaim(queue), 50u);
    }
    EXPECT_TRUE(
        eventually([&] { return drain(), a->statistics(queue).fill_misses == 400u - 256u; }));
    EXPECT_EQ(received, 256u) << "as many as there were buffers";
    EXPECT_TRUE(low_seen) << "the low-water mark shows before the ring is dry";
    EXPECT_EQ(a->fill_level(queue), 0u);
    // 400 were sent to one of the two sockets that share the ring. Each is lost once.
    QueueStatistics statistics = a->statistics(queue);
    EXPECT_EQ(statistics.fill_ring_empty, 400u - 256u);
    EXPECT_EQ(statistics.no_frame + statistics.too_big + statistics.rx_ring_full, 0u);

    EXPECT_EQ(a->refill(queue), 256u);  // the home wakes up
    send(*b, queue, WorkerId{0}, 1, 50);
    EXPECT_TRUE(eventually([&] { return drain(), received == 306u; })) << received;
    b->reclaim(queue);
    EXPECT_EQ(memory_->available() + a->frames_in_kernel() + b->frames_in_kernel(), kFrames);
}

// The same with packet memory used up: another reason, and the two are not mixed.
TEST_F(IoTest, ALossWithoutFreeFramesIsNotTheRings) {
    make_veth(2);
    auto a = open_port(setup("va"));
    ASSERT_TRUE(a);
    auto b = open_port(setup("vb"));
    ASSERT_TRUE(b);
    const Steering steering("va", *a);
    const QueueId queue{0};
    ASSERT_EQ(a->refill(queue), 256u);
    std::array<Frame, kBurstMax> burst;
    std::vector<std::byte*> taken;
    const auto receive_all = [&](uint32_t count, WorkerId worker) {
        const size_t before = taken.size();
        EXPECT_TRUE(eventually([&] {
            const uint32_t n = a->receive(queue, worker, burst);
            for (uint32_t i = 0; i < n; ++i) taken.push_back(burst[i].data);
            return taken.size() - before >= count;
        }));
    };
    const auto lost = [&](uint64_t count) {
        EXPECT_TRUE(eventually([&] { return a->statistics(queue).fill_misses == count; }))
            << a->statistics(queue).fill_misses;
    };
    const auto send_some = [&](uint32_t count, uint8_t to) {
        send(*b, queue, WorkerId{0}, to, count);
        EXPECT_TRUE(eventually([&] { return b->completion_level(queue) == count; }));
        b->reclaim(queue);
    };
    for (const uint8_t to : {uint8_t{0}, uint8_t{1}}) {
        for (int round = 0; round < 2; ++round) {
            send_some(64, to);
            receive_all(64, WorkerId{to});
        }
    }
    send_some(10, 1);
    lost(10);
    QueueStatistics statistics = a->statistics(queue);
    EXPECT_EQ(statistics.fill_ring_empty, 10u);
    EXPECT_EQ(statistics.no_frame, 0u);

    // All but a few frames are somewhere else, and the home has seen that.
    std::vector<std::byte*> elsewhere(memory_->available() - 100);
    for (std::byte*& frame : elsewhere) ASSERT_TRUE(memory_->take({&frame, 1}));
    EXPECT_EQ(a->refill(queue), 100u);
    for (std::byte* frame : std::span(elsewhere).first(40)) memory_->give({&frame, 1});
    send_some(40, 0);
    receive_all(40, WorkerId{0});
    for (std::byte* frame : std::span(taken).last(40)) memory_->give({&frame, 1});
    taken.resize(taken.size() - 40);
    send_some(40, 0);
    receive_all(40, WorkerId{0});
    for (std::byte* frame : std::span(taken).last(40)) memory_->give({&frame, 1});
    taken.resize(taken.size() - 40);
    send_some(40, 1);  // 20 of the 100 are left
    receive_all(20, WorkerId{1});
    lost(30);
    statistics = a->statistics(queue);
    EXPECT_EQ(statistics.fill_ring_empty, 10u);
    EXPECT_EQ(statistics.no_frame, 20u);

    // Memory has frames again; what is lost from now on is the ring's affair.
    for (std::byte* frame : taken) memory_->give({&frame, 1});
    for (std::byte* frame : std::span(elsewhere).subspan(40)) memory_->give({&frame, 1});
    EXPECT_EQ(a->refill(queue), 256u);
    statistics = a->statistics(queue);
    EXPECT_EQ(statistics.no_frame, 20u);
    for (int round = 0; round < 4; ++round) {
        send_some(64, 0);
        receive_all(64, WorkerId{0});
    }
    send_some(5, 0);
    lost(35);
    statistics = a->statistics(queue);
    EXPECT_EQ(statistics.no_frame, 20u);
    EXPECT_EQ(statistics.fill_ring_empty, 15u);
    EXPECT_EQ(statistics.too_big + statistics.rx_ring_full, 0u);
}

TEST_F(IoTest, EveryWorkerTransmitsOnEveryQueue) {
    make_veth(2);
    auto a = open_port(setup("va"));
    ASSERT_TRUE(a);
    Capture peer("vb");
    for (uint16_t queue = 0; queue < 2; ++queue) {
        for (uint16_t worker = 0; worker < 2; ++worker) {
            // More than the kernel sends on one kick.
            send(*a, QueueId{queue}, WorkerId{worker}, 7, 100);
            for (uint32_t i = 0; i < 100; ++i) ASSERT_EQ(peer.next(), test_frame(7, i));
            EXPECT_EQ(a->reclaim(QueueId{queue}), 100u);
        }
    }
    EXPECT_TRUE(peer.next(20).empty());
    EXPECT_EQ(memory_->available(), kFrames);
}

TEST_F(IoTest, AFullTxRingTakesWhatFits) {
    make_veth(2);
    auto a = open_port(setup("va"));
    ASSERT_TRUE(a);
    std::vector<Frame> frames;
    for (uint32_t i = 0; i < 200; ++i) frames.push_back(make_frame(test_frame(0, i)));
    EXPECT_EQ(a->transmit(QueueId{0}, WorkerId{1}, frames), 128u);
    EXPECT_EQ(a->transmit(QueueId{0}, WorkerId{1}, std::span(frames).subspan(128)), 0u);
    EXPECT_EQ(a->frames_in_kernel(), 128u);
    a->kick_transmit(QueueId{0}, WorkerId{1});
    EXPECT_EQ(a->transmit(QueueId{0}, WorkerId{1}, std::span(frames).subspan(128)), 72u);
    a->kick_transmit(QueueId{0}, WorkerId{1});
    EXPECT_EQ(a->reclaim(QueueId{0}), 200u);
    EXPECT_EQ(memory_->available(), kFrames);
}

TEST_F(IoTest, PortSocketErrorsSayWhatToDo) {
    make_veth(2);
    const auto error = [&](const PortSocketsSetup& wanted) {
        auto port = PortSockets::create(wanted, *memory_);
        return port ? std::string("created") : port.error();
    };
    PortSocketsSetup wanted = setup("va");
    wanted.bind = Bind::zero_copy;
    EXPECT_NE(error(wanted).find("no zero-copy AF_XDP: set bind_mode"), std::string::npos)
        << error(wanted);
    wanted = setup("va");
    wanted.queues = 3;
    EXPECT_NE(error(wanted).find("no such queue"), std::string::npos) << error(wanted);
    wanted = setup("va");
    wanted.fill_entries = 1000;
    EXPECT_NE(error(wanted).find("powers of two"), std::string::npos) << error(wanted);
    {
        auto first = open_port(setup("va"));
        ASSERT_TRUE(first);
        EXPECT_NE(error(setup("va")).find("another program has AF_XDP sockets on it"),
                  std::string::npos);
    }
    // A daemon that starts while the kernel still cleans up after the last one gets its queues.
    EXPECT_EQ(error(setup("va")), "created");
}

// ---- TAP --------------------------------------------------------------------------------------

TEST_F(IoTest, TapIsMadeAndGoesAway) {
    {
        auto tap = test::make_tap(2);
        ASSERT_TRUE(tap) << tap.error();
        EXPECT_EQ(tap->ifindex(), if_nametoindex("sp0"));
        run("ip link show sp0 | grep -q 'UP.* mtu 1500'");
        run("ip link show sp0 | grep -q 02:53:50:00:01:00");
        run("ip -d link show sp0 | grep -q 'addrgenmode none'");

        const auto second = Tap::create("sp0", 1, netlink::move_link);
        ASSERT_FALSE(second);
        EXPECT_NE(second.error().find("exists already"), std::string::npos) << second.error();
    }
    EXPECT_EQ(if_nametoindex("sp0"), 0u);
    EXPECT_FALSE(Tap::create("a-name-that-is-too-long", 1, netlink::move_link));
}

TEST_F(IoTest, TapEgressWritesWhatXdpAndKernelSee) {
    auto tap = test::make_tap(2);
    ASSERT_TRUE(tap) << tap.error();
    auto egress = egress::make_tap_egress(tap->queue(1), Tap::kMac, *memory_);
    ASSERT_TRUE(egress) << egress.error();
    Capture capture("sp0");

    std::vector<OutgoingFrame> frames;
    for (uint32_t i = 0; i < 150; ++i) {  // more than two batches
        Bytes content = test_frame(0, i);
        content.resize(60 + i * 9, 0x55);
        frames.push_back({.frame = make_frame(content),
                          .kind = i % 2 == 0 ? FrameKind::originated : FrameKind::transit});
    }
    (*egress)->send(frames);
    (*egress)->flush();
    EXPECT_EQ((*egress)->in_flight(), 0u);
    EXPECT_EQ((*egress)->sent().read(), 150u);
    EXPECT_EQ(memory_->available(), kFrames);
    for (uint32_t i = 0; i < 150; ++i) {
        Bytes expected = test_frame(0, i);
        expected.resize(60 + i * 9, 0x55);
        const uint8_t kind = i % 2 == 0 ? SP_KIND_ORIGINATED : SP_KIND_TRANSIT;
        const std::array<uint8_t, 12> addresses = {0x02, 0x53, 0x50, 0x00, 0x01, 0x00,
                                                   0x02, 0x53, 0x50, 0x00, 0x00, kind};
        std::ranges::copy(addresses, expected.begin());
        ASSERT_EQ(capture.next(), expected) << i;
    }

    run("ip link set sp0 down");
    frames.assign(3, {});
    for (OutgoingFrame& out : frames) out.frame = make_frame(test_frame(0, 0));
    (*egress)->send(frames);
    (*egress)->flush();
    EXPECT_EQ((*egress)->sent().read(), 150u);
    EXPECT_EQ((*egress)->drops()[SP_DROP_injector_full].read(), 3u);
    EXPECT_EQ(memory_->available(), kFrames);
}

TEST_F(IoTest, WhatTheKernelRoutesIntoTheTapIsRead) {
    auto tap = test::make_tap(2);
    ASSERT_TRUE(tap) << tap.error();
    run("ip addr add 10.9.0.1/24 dev sp0");
    run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:99 dev sp0");
    const UniqueFd udp(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = Be16(4242).raw();
    inet_pton(AF_INET, "10.9.0.2", &to.sin_addr);
    for (uint8_t i = 0; i < 20; ++i) {
        const Bytes payload(100, i);
        ASSERT_EQ(sendto(udp.get(), payload.data(), payload.size(), 0,
                         reinterpret_cast<sockaddr*>(&to), sizeof to),
                  100);
    }
    std::array<std::byte*, 32> buffers{};
    ASSERT_TRUE(memory_->take(buffers));
    std::array<Frame, 32> frames;
    std::vector<Frame> got;
    for (uint16_t queue = 0; queue < 2; ++queue) {
        const auto rest = std::span(buffers).subspan(got.size());
        const uint32_t n = tap->queue(queue).read(rest, frames);
        got.insert(got.end(), frames.begin(), frames.begin() + n);
    }
    ASSERT_EQ(got.size(), 20u);
    for (uint8_t i = 0; i < 20; ++i) {
        const Bytes frame = content_of(got[i]);
        ASSERT_EQ(frame.size(), 14u + 20u + 8u + 100u);
        EXPECT_EQ(Bytes(frame.begin(), frame.begin() + 6), (Bytes{2, 0, 0, 0, 0, 0x99}));
        EXPECT_EQ(frame.back(), i);
    }
    // Small reads leave the rest for the next call.
    memory_->give(buffers);
}

// ---- direct egress ----------------------------------------------------------------------------

class DirectEgressTest : public IoTest {
  protected:
    static constexpr std::array<uint8_t, 6> kSourceMac = {2, 0, 0, 0, 0, 0x0a};
    static constexpr std::array<uint8_t, 6> kPeerMac = {2, 0, 0, 0, 0, 0x0b};

    void SetUp() override {
        IoTest::SetUp();
        if (IsSkipped()) return;
        make_veth(2);
        port_ = open_port(setup("va"));
        ASSERT_TRUE(port_);
        auto tap = test::make_tap(1);
        ASSERT_TRUE(tap) << tap.error();
        tap_.emplace(std::move(*tap));
        ASSERT_NO_FATAL_FAILURE(make_egress({true}));
        wire_.emplace("vb");
        kernel_.emplace("sp0");
    }
    void TearDown() override {
        egress_.reset();
        port_.reset();
        if (memory_) memory_->recover();
    }

    void make_egress(std::vector<bool> protected_side) {
        auto fallback = egress::make_tap_egress(tap_->queue(0), Tap::kMac, *memory_);
        ASSERT_TRUE(fallback) << fallback.error();
        egress_ = egress::make_direct_egress({.worker = WorkerId{1},
                                              .memory = &*memory_,
                                              .ports = {port_.get()},
                                              .protected_side = std::move(protected_side),
                                              .fallback = std::move(*fallback),
                                              .wake = {}});
    }
    void publish(std::vector<sp_egress_rule> deny = {}) {
        const auto prefix = [](const char* text) { return parse_ip_prefix(text).value(); };
        const std::vector<PrefixTable::Entry> routes = {
            {.prefix = prefix("10.2.0.0/16"), .value = 0},
            {.prefix = prefix("10.2.9.0/24"), .value = 1},  // neighbour not resolved
            {.prefix = prefix("10.2.0.1/32"), .value = NextHops::kLeaveToKernel},
            {.prefix = prefix("2001:db8:2::/48"), .value = 0},
        };
        NextHop hop{.port = PortId{0},
                    .source_mac = kSourceMac,
                    .destination_mac = kPeerMac,
                    .mtu = 1300,
                    .resolved = true};
        NextHop unresolved = hop;
        unresolved.resolved = false;
        next_hops_ = std::make_unique<NextHops>(routes, std::vector{hop, unresolved},
                                                std::vector{EgressFilter{std::move(deny)}});
        egress_->set_next_hops(next_hops_.get());
    }

    // UDP in IPv4 or IPv6 behind 14 bytes for the Ethernet header.
    static Bytes v4(const char* to, uint8_t ttl, size_t ip_bytes = 60, bool df = false) {
        Bytes frame(14 + ip_bytes, 0xab);
        test::put16(frame, 12, 0x0800);
        frame[14] = 0x45;
        frame[15] = 0;
        test::put16(frame, 16, static_cast<uint16_t>(ip_bytes));
        test::put16(frame, 20, df ? 0x4000 : 0);
        frame[22] = ttl;
        frame[23] = IPPROTO_UDP;
        test::put16(frame, 24, 0);
        inet_pton(AF_INET, "10.1.0.5", &frame[26]);
        inet_pton(AF_INET, to, &frame[30]);
        test::put16(frame, 34, 1111);
        test::put16(frame, 36, 2222);
        test::put16(frame, 24, test::checksum(&frame[14], 20));
        return frame;
    }
    static Bytes v6(const char* to, uint8_t hops, size_t ip_bytes = 80) {
        Bytes frame(14 + ip_bytes, 0xcd);
        test::put16(frame, 12, 0x86dd);
        frame[14] = 0x60;
        test::put16(frame, 18, static_cast<uint16_t>(ip_bytes - 40));
        frame[20] = IPPROTO_UDP;
        frame[21] = hops;
        inet_pton(AF_INET6, "2001:db8:1::5", &frame[22]);
        inet_pton(AF_INET6, to, &frame[38]);
        test::put16(frame, 54, 1111);
        test::put16(frame, 56, 2222);
        return frame;
    }
    void send(const Bytes& content, FrameKind kind) {
        OutgoingFrame out{.frame = make_frame(content), .kind = kind};
        egress_->send({&out, 1});
        egress_->flush();
    }
    static Bytes on_wire(Bytes frame) {
        std::ranges::copy(kPeerMac, frame.begin());
        std::ranges::copy(kSourceMac, frame.begin() + 6);
        return frame;
    }
    Bytes through_kernel(Bytes frame, FrameKind kind) const {
        const std::array<uint8_t, 6> source = {2, 0x53, 0x50, 0, 0, static_cast<uint8_t>(kind)};
        std::ranges::copy(Tap::kMac, frame.begin());
        std::ranges::copy(source, frame.begin() + 6);
        return frame;
    }
    uint64_t drops(DropReason reason) const {
        return egress_->drops()[static_cast<size_t>(reason)].read();
    }
    void expect_on_wire(const Bytes& frame) {
        EXPECT_EQ(wire_->next(), frame);
        EXPECT_TRUE(kernel_->next(10).empty());
        // Worker 1 is the home of queue 1, where it sends: its buffers are back.
        EXPECT_EQ(memory_->available(), kFrames);
    }
    void expect_in_kernel(const Bytes& frame) {
        EXPECT_EQ(kernel_->next(), frame);
        EXPECT_TRUE(wire_->next(10).empty());
        EXPECT_EQ(memory_->available(), kFrames);
    }
    void expect_dropped(DropReason reason) {
        EXPECT_EQ(drops(reason), 1u);
        EXPECT_TRUE(wire_->next(10).empty());
        EXPECT_TRUE(kernel_->next(10).empty());
        EXPECT_EQ(egress_->sent().read(), 0u);
        EXPECT_EQ(memory_->available(), kFrames);
    }

    std::unique_ptr<PortSockets> port_;
    std::optional<Tap> tap_;
    std::unique_ptr<NextHops> next_hops_;
    std::unique_ptr<egress::Egress> egress_;
    std::optional<Capture> wire_;
    std::optional<Capture> kernel_;
};

// The table of addresses is that of the programs, and has its test there.
TEST_F(DirectEgressTest, MartiansInTransitAreNotForwarded) {
    publish();
    Bytes from_loopback = v4("10.2.3.4", 64);
    inet_pton(AF_INET, "127.0.0.1", &from_loopback[26]);
    send(from_loopback, FrameKind::transit);
    expect_dropped(DropReason::martian);
    Bytes from_the_link = v6("2001:db8:2::1", 64);
    inet_pton(AF_INET6, "fe80::5", &from_the_link[22]);
    send(from_the_link, FrameKind::transit);
    EXPECT_EQ(drops(DropReason::martian), 2u);
    send(v4("10.2.3.4", 64), FrameKind::transit);
    EXPECT_FALSE(wire_->next().empty());
}

TEST_F(DirectEgressTest, OriginatedFramesKeepTheirTtl) {
    publish();
    send(v4("10.2.3.4", 64), FrameKind::originated);
    expect_on_wire(on_wire(v4("10.2.3.4", 64)));
    send(v6("2001:db8:2::1", 64), FrameKind::originated);
    expect_on_wire(on_wire(v6("2001:db8:2::1", 64)));
    send(v4("10.2.3.4", 1), FrameKind::originated);
    expect_on_wire(on_wire(v4("10.2.3.4", 1)));
    EXPECT_EQ(egress_->sent().read(), 3u);
    EXPECT_EQ(egress_->in_flight(), 0u);
}

// The expected frame is built with the lower TTL and a checksum from scratch.
TEST_F(DirectEgressTest, TransitFramesLoseOneHop) {
    publish();
    for (int ttl = 2; ttl < 256; ++ttl) {
        send(v4("10.2.3.4", static_cast<uint8_t>(ttl)), FrameKind::transit);
        ASSERT_EQ(wire_->next(), on_wire(v4("10.2.3.4", static_cast<uint8_t>(ttl - 1)))) << ttl;
    }
    send(v6("2001:db8:2::1", 2), FrameKind::transit);
    expect_on_wire(on_wire(v6("2001:db8:2::1", 1)));
}

TEST_F(DirectEgressTest, WhatOnlyTheKernelCanAnswerGoesThere) {
    const auto to_kernel = [&](const Bytes& frame, FrameKind kind) {
        send(frame, kind);
        expect_in_kernel(through_kernel(frame, kind));
    };
    to_kernel(v4("10.2.3.4", 64), FrameKind::originated);  // nothing published yet
    publish();
    to_kernel(v4("10.7.0.1", 64), FrameKind::originated);  // no route
    to_kernel(v4("10.2.0.1", 64), FrameKind::transit);     // left to the kernel
    to_kernel(v4("10.2.9.1", 64), FrameKind::transit);     // neighbour unresolved
    to_kernel(v4("10.2.3.4", 1), FrameKind::transit);      // TTL ends here
    to_kernel(v6("2001:db8:2::1", 1), FrameKind::transit);
    to_kernel(v4("10.2.3.4", 64, 1301, true), FrameKind::transit);      // too big: ICMP
    to_kernel(v4("10.2.3.4", 64, 1301, false), FrameKind::originated);  // may be fragmented
    EXPECT_EQ(egress_->sent().read(), 8u);
    send(v4("10.2.3.4", 64, 1300, true), FrameKind::transit);
    expect_on_wire(on_wire(v4("10.2.3.4", 63, 1300, true)));
}

// RFC 4301 5.1: what one tunnel brought must not continue in clear where another one belongs. The
// program on sp0 asks the outbound SPD; the TX ring of a port asks nobody.
TEST_F(DirectEgressTest, TransitTowardsAnUnprotectedPortMeetsTheProgramOnSp0) {
    for (const std::vector<bool>& protected_side : {std::vector<bool>{false}, {}}) {
        make_egress(protected_side);
        publish();
        send(v4("10.2.3.4", 64), FrameKind::transit);
        expect_in_kernel(through_kernel(v4("10.2.3.4", 64), FrameKind::transit));
        send(v6("2001:db8:2::1", 64), FrameKind::transit);
        expect_in_kernel(through_kernel(v6("2001:db8:2::1", 64), FrameKind::transit));
        send(v4("10.2.3.4", 64), FrameKind::originated);
        expect_on_wire(on_wire(v4("10.2.3.4", 64)));
    }
}

TEST_F(DirectEgressTest, OwnFramesThatDoNotFitAreDropped) {
    publish();
    send(v4("10.2.3.4", 64, 1301, true), FrameKind::originated);
    expect_dropped(DropReason::too_big);
}

TEST_F(DirectEgressTest, MalformedFramesAreDropped) {
    publish();
    Bytes frame = v4("10.2.3.4", 64);
    test::put16(frame, 12, 0x0806);
    send(frame, FrameKind::transit);
    expect_dropped(DropReason::unsupported_packet);
    frame = v4("10.2.3.4", 64);
    frame[14] = 0x44;
    send(frame, FrameKind::transit);
    expect_dropped(DropReason::malformed_ip);
}

TEST_F(DirectEgressTest, EveryTruncationIsDropped) {
    publish();
    uint64_t dropped = 0;
    for (const Bytes& whole : {v4("10.2.3.4", 64), v6("2001:db8:2::1", 64)}) {
        for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
            send(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(bytes)),
                 FrameKind::transit);
            ASSERT_EQ(drops(DropReason::truncated) + drops(DropReason::malformed_ip), ++dropped)
                << bytes;
        }
    }
    EXPECT_EQ(memory_->available(), kFrames);
}

TEST_F(DirectEgressTest, FilterDeniesByEachSelector) {
    const auto v4_of = [](const char* text) {
        std::array<uint8_t, 16> bytes{};
        inet_pton(AF_INET, text, bytes.data());
        return bytes;
    };
    const auto rule = [&](uint8_t family, uint8_t protocol, const char* dst, uint8_t bits,
                          uint16_t lo, uint16_t hi) {
        sp_egress_rule r{};
        r.family = family;
        r.protocol = protocol;
        r.dst_bits = bits;
        r.dst_port_lo = lo;
        r.dst_port_hi = hi;
        std::ranges::copy(v4_of(dst), r.dst);
        return r;
    };
    struct Row {
        const char* what;
        sp_egress_rule rule;
        bool denied;
    };
    const std::array rows = {
        Row{"any", rule(0, 0, "0.0.0.0", 0, 0, 65535), true},
        Row{"other family", rule(AF_INET6, 0, "0.0.0.0", 0, 0, 65535), false},
        Row{"protocol", rule(0, IPPROTO_UDP, "0.0.0.0", 0, 0, 65535), true},
        Row{"other protocol", rule(0, IPPROTO_TCP, "0.0.0.0", 0, 0, 65535), false},
        Row{"prefix", rule(AF_INET, 0, "10.2.3.0", 29, 0, 65535), true},
        Row{"other prefix", rule(AF_INET, 0, "10.2.3.0", 30, 0, 65535), false},
        Row{"port", rule(0, IPPROTO_UDP, "0.0.0.0", 0, 2222, 2222), true},
        Row{"port range end", rule(0, IPPROTO_UDP, "0.0.0.0", 0, 1, 2221), false},
    };
    uint64_t denied = 0;
    for (const Row& row : rows) {
        SCOPED_TRACE(row.what);
        // The rule stands behind one that does not match: the first match decides, not the first.
        publish({rule(0, IPPROTO_SCTP, "0.0.0.0", 0, 0, 65535), row.rule});
        send(v4("10.2.3.4", 64), FrameKind::originated);
        if (row.denied) {
            EXPECT_TRUE(wire_->next(10).empty());
            ++denied;
        } else {
            EXPECT_EQ(wire_->next(), on_wire(v4("10.2.3.4", 64)));
        }
        EXPECT_EQ(drops(DropReason::egress_denied), denied);
    }
    // A later fragment has no ports, but it has addresses.
    Bytes fragment = v4("10.2.3.4", 64);
    test::put16(fragment, 20, 0x0010);
    test::put16(fragment, 24, 0);
    test::put16(fragment, 24, test::checksum(&fragment[14], 20));
    publish({rule(0, IPPROTO_UDP, "0.0.0.0", 0, 1, 65535)});
    send(fragment, FrameKind::originated);
    EXPECT_EQ(wire_->next(), on_wire(fragment));
    publish({rule(AF_INET, IPPROTO_UDP, "10.2.0.0", 16, 0, 65535)});
    send(fragment, FrameKind::originated);
    EXPECT_TRUE(wire_->next(10).empty());
    EXPECT_EQ(drops(DropReason::egress_denied), ++denied);
    // Denied is denied, also where the kernel would have to resolve the neighbour first.
    publish({rule(0, 0, "0.0.0.0", 0, 0, 65535)});
    send(v4("10.2.9.1", 64), FrameKind::transit);
    EXPECT_TRUE(kernel_->next(10).empty());
    EXPECT_EQ(drops(DropReason::egress_denied), denied + 1);
    EXPECT_EQ(memory_->available(), kFrames);
}

TEST_F(DirectEgressTest, BurstsAreConservedAndInOrder) {
    publish();
    constexpr uint32_t kCount = 500;
    std::vector<OutgoingFrame> burst;
    for (uint32_t i = 0; i < kCount; ++i) {
        Bytes frame = v4(i % 5 == 0 ? "10.7.0.1" : "10.2.3.4", 64);
        std::memcpy(&frame[50], &i, sizeof i);
        burst.push_back({.frame = make_frame(frame), .kind = FrameKind::originated});
    }
    // Four times the TX ring at once: what the kernel does not take in time is counted.
    egress_->send(burst);
    egress_->flush();
    const uint64_t full = drops(DropReason::injector_full);
    EXPECT_EQ(egress_->sent().read() + full, kCount);
    uint32_t last = 0;
    uint32_t on_wire_count = 0;
    while (true) {
        const Bytes frame = wire_->next(50);
        if (frame.empty()) break;
        uint32_t number = 0;
        std::memcpy(&number, &frame[50], sizeof number);
        EXPECT_TRUE(on_wire_count == 0 || number > last);
        last = number;
        ++on_wire_count;
    }
    uint32_t in_kernel = 0;
    while (!kernel_->next(50).empty()) ++in_kernel;
    EXPECT_EQ(in_kernel, kCount / 5);
    EXPECT_EQ(on_wire_count + full, kCount - kCount / 5);
    EXPECT_EQ(memory_->available(), kFrames);
}

}  // namespace
}  // namespace sallyport::io
