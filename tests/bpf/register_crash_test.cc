// SPDX-License-Identifier: Apache-2.0
// Register mode on real devices when the daemon is killed: the programs stay, the kernel empties
// the XSKMAPs, and without help from any process ESP reaches the kernel, PROTECT meets the kernel's
// policies, cleartext is judged as before, and nothing leaves in clear.
//
// A forked process plays the daemon: it loads and attaches by BpfObjects and holds the sockets.
// Here are only wires (raw sockets on the other ends) and the kernel.

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <ctime>
#include <fstream>

#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/file_descriptor.h"
#include "tests/bpf/packet_builder.h"

namespace sallyport::bpf_objects {
namespace {

using packet::Bytes;
using packet::eth;
using packet::ip4;

constexpr PortId kWan{0};
constexpr PortId kLan{1};
constexpr packet::Mac kWanMac = {0x02, 0, 0, 0, 1, 1};
constexpr packet::Mac kLanMac = {0x02, 0, 0, 0, 2, 1};
constexpr uint32_t kSpi = 0x7a01c301;
constexpr int kFrames = 5;
constexpr uint64_t kLeaseNs = 500'000'000;

void run(const std::string& command) {
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

CompiledSpd spd_of(const std::vector<SpdEntry>& entries) {
    CompiledSpd spd;
    for (const SpdEntry& entry : entries) {
        const uint32_t number = spd.class_count++;
        spd.destinations.push_back({entry.destination, number});
        spd.sources.push_back({number, entry.source, number, 1});
        spd.entries.push_back({.entry = entry});
    }
    return spd;
}

SpdEntry entry(uint32_t policy, SpdAction action, const char* source, const char* destination) {
    return {.policy = PolicyId{policy},
            .action = action,
            .source = *parse_ip_prefix(source),
            .destination = *parse_ip_prefix(destination)};
}

// Everything a daemon does before traffic; its sockets live in `sockets`.
bool become_gateway(BpfObjects& objects, std::vector<FileDescriptor>& sockets) {
    for (const PortId id : {kWan, kLan}) {
        const char* const device = id == kWan ? "wan0" : "lan0";
        PortSetup setup{.id = id,
                        .device = device,
                        .ifindex = if_nametoindex(device),
                        .role = id == kWan ? config::PortRole::unprotected_side
                                           : config::PortRole::protected_side,
                        .mac = id == kWan ? kWanMac : kLanMac,
                        .register_mode = true,
                        .egress_deny = {}};
        if (!objects.add_port(setup)) return false;
        sockets.emplace_back(::socket(AF_XDP, SOCK_RAW, 0));
        if (!objects.set_socket(id, QueueId{0}, WorkerId{0}, sockets.back().get())) return false;
    }
    // Policy 0: the worker's. Policy 1: the kernel's.
    const auto outbound = spd_of({entry(0, SpdAction::protect, "10.1.0.0/24", "10.2.0.0/24"),
                                  entry(1, SpdAction::protect, "10.1.0.0/24", "10.2.1.0/24"),
                                  entry(2, SpdAction::bypass, "10.1.0.0/24", "10.2.7.0/24")});
    const auto inbound = spd_of({entry(0, SpdAction::protect, "10.2.0.0/16", "10.1.0.0/24")});
    return objects.publish_spd(outbound, inbound,
                               std::vector<std::vector<WorkerId>>{{WorkerId{0}}}) &&
           objects.insert_owner(Spi{kSpi}, *parse_ip_address("192.0.2.1"), WorkerId{0}) &&
           objects.attach_port(kWan) && objects.attach_port(kLan);
}

class RegisterCrash : public ::testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "loading XDP programs needs root";
        ASSERT_EQ(unshare(CLONE_NEWNET), 0);
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.default.disable_ipv6=1 "
            "net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
        run("ip link set lo up");
        for (const char* name : {"wan", "lan"}) {
            const std::string device = name;
            run("ip link add " + device + "0 type veth peer name " + device + "p");
            run("ip link set " + device + "0 address 02:00:00:00:0" +
                (device == "wan" ? "1" : "2") + ":01 up && ip link set " + device + "p up");
            // Without NAPI on the peer, redirected frames vanish.
            run("ethtool -K " + device + "p gro on 2>/dev/null");
        }
        run("ip addr add 192.0.2.1/24 dev wan0 && ip addr add 10.1.0.1/24 dev lan0");
        run("ip neigh add 192.0.2.2 lladdr 02:00:00:00:01:02 dev wan0 nud permanent");
        run("ip neigh add 10.1.0.10 lladdr 02:00:00:00:02:02 dev lan0 nud permanent");
        run("ip route add 10.2.0.0/16 via 192.0.2.2");
        for (const char* net : {"10.2.0.0/24", "10.2.1.0/24"}) protect_in_kernel(net);

        wan = wire("wanp");
        lan = wire("lanp");
        esp = FileDescriptor(::socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK, IPPROTO_ESP));
        acquires = FileDescriptor(::socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_XFRM));
        sockaddr_nl address{};
        address.nl_family = AF_NETLINK;
        address.nl_groups = XFRMGRP_ACQUIRE;
        ASSERT_EQ(bind(acquires.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
        start_daemon();
    }
    void TearDown() override {
        if (daemon > 0) kill_daemon();
    }

    static void protect_in_kernel(const std::string& destination) {
        run("ip xfrm policy add src 10.1.0.0/24 dst " + destination +
            " dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel");
    }
    static FileDescriptor wire(const char* device) {
        FileDescriptor socket(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL)));
        sockaddr_ll address{};
        address.sll_family = AF_PACKET;
        address.sll_protocol = htons(ETH_P_ALL);
        address.sll_ifindex = static_cast<int>(if_nametoindex(device));
        EXPECT_EQ(bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
        return socket;
    }
    void start_daemon() {
        int ready[2];
        ASSERT_EQ(pipe(ready), 0);
        daemon = fork();
        if (daemon == 0) {
            auto objects = BpfObjects::create(
                {.inbound_sas = 64, .spd_destinations = 64, .spd_sources = 64, .spd_entries = 64});
            std::vector<FileDescriptor> sockets;
            // With a lease before the first packet: without one BYPASS would be believed for ever.
            const char answer =
                objects && become_gateway(*objects, sockets) && extend_lease(*objects) ? 'y' : 'n';
            if (write(ready[1], &answer, 1) == 1) keep_lease(*objects);
            _exit(1);
        }
        char answer = 0;
        ASSERT_EQ(read(ready[0], &answer, 1), 1);
        close(ready[0]);
        close(ready[1]);
        ASSERT_EQ(answer, 'y');
    }
    static bool extend_lease(BpfObjects& objects) {
        timespec now{};
        clock_gettime(CLOCK_MONOTONIC, &now);
        const uint64_t ns =
            static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
        return objects.set_bypass_until(ns + kLeaseNs).has_value();
    }
    // As control does, for as long as it runs.
    [[noreturn]] static void keep_lease(BpfObjects& objects) {
        for (;;) {
            if (!extend_lease(objects)) _exit(1);
            usleep(10'000);
        }
    }
    // Stops, and waits until nothing that it said last holds any more.
    void stop_daemon() {
        kill(daemon, SIGSTOP);
        int status = 0;
        ASSERT_EQ(waitpid(daemon, &status, WUNTRACED), daemon);
        timespec over{};
        clock_gettime(CLOCK_MONOTONIC, &over);
        over.tv_nsec += static_cast<long>(kLeaseNs);
        if (over.tv_nsec >= 1'000'000'000) {
            over.tv_nsec -= 1'000'000'000;
            ++over.tv_sec;
        }
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &over, nullptr) != 0) {
        }
    }
    void kill_daemon() {
        kill(daemon, SIGKILL);
        waitpid(daemon, nullptr, 0);
        daemon = -1;
    }

    // Counters of a port, found as nobody's daemon must find them: by the program on its device.
    static sp_port_counters counters(const char* device, uint32_t port) {
        sp_port_counters sum{};
        uint32_t program_id = 0;
        EXPECT_EQ(bpf_xdp_query_id(static_cast<int>(if_nametoindex(device)), 0, &program_id), 0);
        const FileDescriptor program(bpf_prog_get_fd_by_id(program_id));
        std::array<uint32_t, 64> ids{};
        bpf_prog_info info{};
        info.map_ids = reinterpret_cast<uintptr_t>(ids.data());
        info.nr_map_ids = ids.size();
        uint32_t size = sizeof info;
        EXPECT_EQ(bpf_obj_get_info_by_fd(program.get(), &info, &size), 0) << "no program there";
        for (uint32_t i = 0; i < info.nr_map_ids; ++i) {
            const FileDescriptor map(bpf_map_get_fd_by_id(ids[i]));
            bpf_map_info map_info{};
            uint32_t map_size = sizeof map_info;
            if (bpf_obj_get_info_by_fd(map.get(), &map_info, &map_size) != 0 ||
                std::string(map_info.name) != "port_counters") {
                continue;
            }
            std::vector<sp_port_counters> cpus(static_cast<size_t>(libbpf_num_possible_cpus()));
            EXPECT_EQ(bpf_map_lookup_elem(map.get(), &port, cpus.data()), 0);
            for (const sp_port_counters& cpu : cpus) {
#define SP_ADD(name) sum.name += cpu.name;
                SP_PORT_COUNTERS(SP_ADD)
#undef SP_ADD
            }
        }
        return sum;
    }

    static void put(const FileDescriptor& socket, const Bytes& frame) {
        for (int i = 0; i < kFrames; ++i) {
            ASSERT_EQ(send(socket.get(), frame.data(), frame.size(), 0),
                      static_cast<ssize_t>(frame.size()));
        }
    }
    // What arrives within the time and fits.
    template <typename Fits>
    static int count(const FileDescriptor& socket, const Fits& fits) {
        int count = 0;
        for (int quiet = 0; quiet < 4;) {
            pollfd poller{.fd = socket.get(), .events = POLLIN, .revents = 0};
            if (poll(&poller, 1, 50) <= 0) {
                ++quiet;
                continue;
            }
            Bytes bytes(2048);
            const ssize_t size = recv(socket.get(), bytes.data(), bytes.size(), 0);
            if (size <= 0) continue;
            bytes.resize(static_cast<size_t>(size));
            if (fits(bytes)) ++count;
        }
        return count;
    }
    static int from_to(const FileDescriptor& socket, const char* source, const char* destination) {
        return count(socket, [&](const Bytes& frame) {
            sockaddr_in from{};
            sockaddr_in to{};
            inet_pton(AF_INET, source, &from.sin_addr);
            inet_pton(AF_INET, destination, &to.sin_addr);
            return frame.size() >= 34 && frame[12] == 8 && frame[13] == 0 &&
                   std::memcmp(&frame[26], &from.sin_addr, 4) == 0 &&
                   std::memcmp(&frame[30], &to.sin_addr, 4) == 0;
        });
    }
    int received_esp() const {
        return count(esp, [](const Bytes&) { return true; });
    }
    int acquired() const {
        return count(acquires, [](const Bytes& message) {
            nlmsghdr header{};
            std::memcpy(&header, message.data(), sizeof header);
            return header.nlmsg_type == XFRM_MSG_ACQUIRE;
        });
    }
    void send_esp(uint32_t spi) const {
        put(wan,
            eth(ip4({.src = "192.0.2.2", .dst = "192.0.2.1"}, packet::esp(spi)), {.dst = kWanMac}));
    }
    void send_out(const char* destination) const {
        put(lan, eth(ip4({.src = "10.1.0.10", .dst = destination}, packet::udp({.dst = 9})),
                     {.dst = kLanMac}));
        EXPECT_EQ(from_to(lan, "10.1.0.10", destination), 0) << "our own frames came back";
    }
    int left_in_clear(const char* destination) const {
        return from_to(wan, "10.1.0.10", destination);
    }

    FileDescriptor wan;
    FileDescriptor lan;
    FileDescriptor esp;
    FileDescriptor acquires;
    pid_t daemon = -1;
};

TEST_F(RegisterCrash, inbound_falls_to_the_kernel) {
    send_esp(kSpi);
    EXPECT_EQ(received_esp(), 0) << "the kernel got what belongs to a worker";
    EXPECT_EQ(counters("wan0", 0).steered, uint64_t{kFrames});
    kill_daemon();
    send_esp(kSpi);
    EXPECT_EQ(received_esp(), kFrames);
    EXPECT_EQ(counters("wan0", 0).steered, uint64_t{kFrames});
    EXPECT_EQ(counters("wan0", 0).passed_esp, uint64_t{kFrames});
}

// The kernel asks the IKE daemon for an SA and drops what it cannot encrypt.
TEST_F(RegisterCrash, outbound_meets_the_kernels_policies) {
    send_out("10.2.0.9");
    EXPECT_EQ(acquired(), 0) << "the kernel got what belongs to a worker";
    EXPECT_EQ(counters("lan0", 1).steered, uint64_t{kFrames});
    EXPECT_EQ(left_in_clear("10.2.0.9"), 0);
    // While the daemon lives, of a policy without a worker's SA as well.
    send_out("10.2.1.9");
    EXPECT_GE(acquired(), 1);
    EXPECT_EQ(counters("lan0", 1).passed_protect, uint64_t{kFrames});
    EXPECT_EQ(left_in_clear("10.2.1.9"), 0);

    kill_daemon();
    run("ip xfrm state flush");  // what has been acquired is not asked for twice
    send_out("10.2.0.9");
    EXPECT_GE(acquired(), 1);
    EXPECT_EQ(counters("lan0", 1).steered, uint64_t{kFrames});
    EXPECT_EQ(counters("lan0", 1).passed_protect, uint64_t{2 * kFrames});
    EXPECT_EQ(left_in_clear("10.2.0.9"), 0);
}

TEST_F(RegisterCrash, cleartext_that_must_be_protected_stays_outside) {
    for (int round = 0; round < 2; ++round) {
        put(wan, eth(ip4({.src = "10.2.0.9", .dst = "10.1.0.10"}, packet::udp({.dst = 9})),
                     {.dst = kWanMac}));
        EXPECT_EQ(from_to(lan, "10.2.0.9", "10.1.0.10"), 0);
        EXPECT_EQ(counters("wan0", 0).dropped, static_cast<uint64_t>((round + 1) * kFrames));
        if (round == 0) kill_daemon();
    }
}

// The copy of the SPD is as old as the crash, the kernel's policies are not.
TEST_F(RegisterCrash, BYPASS_follows_the_kernels_policies_of_today) {
    send_out("10.2.7.9");
    EXPECT_EQ(left_in_clear("10.2.7.9"), kFrames);
    EXPECT_EQ(counters("lan0", 1).redirected, uint64_t{kFrames});
    kill_daemon();
    send_out("10.2.7.9");
    EXPECT_EQ(left_in_clear("10.2.7.9"), kFrames) << "the kernel forwards it";
    EXPECT_EQ(counters("lan0", 1).redirected, uint64_t{kFrames});
    protect_in_kernel("10.2.7.0/24");
    send_out("10.2.7.9");
    EXPECT_EQ(left_in_clear("10.2.7.9"), 0) << "a new tunnel's traffic left by an old BYPASS";
    EXPECT_GE(acquired(), 1);
}

// It lives, its sockets too, but it hears of nothing.
TEST_F(RegisterCrash, BYPASS_of_a_daemon_that_stands_still_is_the_kernels) {
    stop_daemon();
    protect_in_kernel("10.2.7.0/24");
    send_out("10.2.7.9");
    EXPECT_EQ(left_in_clear("10.2.7.9"), 0) << "a trap policy's traffic left by an old BYPASS";
    EXPECT_EQ(counters("lan0", 1).redirected, 0u);
    EXPECT_GE(acquired(), 1);
}

}  // namespace
}  // namespace sallyport::bpf_objects
