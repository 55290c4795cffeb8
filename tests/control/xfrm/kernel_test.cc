// SPDX-License-Identifier: Apache-2.0
//
// The registry and the policy guard against the running kernel, in network namespaces of our own.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/xfrm.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <thread>

#include "control/xfrm/announcer.h"
#include "control/xfrm/guard.h"
#include "control/xfrm/interface.h"
#include "control/xfrm/messages.h"
#include "control/xfrm/mirror_socket.h"
#include "tests/support/new_namespace.h"

namespace sallyport::xfrm {
namespace {

using sallyport::test::in_new_namespace;
using sallyport::test::output_of;
using sallyport::test::succeeds;

constexpr char kExpiry[] = "/proc/sys/net/core/xfrm_acq_expires";

std::string read_expiry() {
    std::ifstream in(kExpiry);
    std::string line;
    std::getline(in, line);
    return line;
}

class XfrmKernel : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "needs root: network namespaces and xfrm";
        dir_ = std::filesystem::temp_directory_path() /
               ("sallyport-xfrm-test-" + std::to_string(getpid()));
        std::filesystem::create_directories(dir_);
    }
    void TearDown() override {
        if (!dir_.empty()) std::filesystem::remove_all(dir_);
    }

    static NewState inbound(uint32_t spi, const char* destination, uint32_t cpu) {
        static const std::vector<std::byte> kKey(20, std::byte{0x33});
        return {.id = {Spi{spi}, *parse_ip_address(destination)},
                .source = *parse_ip_address(
                    std::string_view(destination).contains(':') ? "2001:db8::9" : "192.0.2.9"),
                .direction = StateDirection::inbound,
                .suite = crypto::find_suite("aes-gcm-16-128"),
                .key = kKey,
                .esn = false,
                .replay_window = 64,
                .pcpu = cpu};
    }

    std::filesystem::path dir_;
};

TEST_F(XfrmKernel, StatesAreThereWithTheirCpuAndGoWithTheRegistry) {
    in_new_namespace([&] {
        const std::string before = read_expiry();
        {
            auto registry = SaRegistry::open(dir_);
            ASSERT_TRUE(registry) << registry.error();
            std::vector<NewState> states = {inbound(0x1001, "192.0.2.1", 0),
                                            inbound(0x89abcdef, "2001:db8::1", 1)};
            for (const auto& result : registry->add(states)) {
                EXPECT_TRUE(result) << result.error();
            }
            std::fprintf(stderr, "method: %s\n", registry->reason().c_str());
            EXPECT_NE(registry->method(), SaRegistry::Method::undecided);
            EXPECT_EQ(read_expiry(), before) << "raised only while states are made";
            const std::string shown = output_of("ip xfrm state");
            EXPECT_TRUE(shown.contains("0x00001001")) << shown;
            EXPECT_TRUE(shown.contains("0x89abcdef")) << shown;

            auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
            ASSERT_TRUE(socket);
            std::vector<KernelSa> found;
            ASSERT_TRUE(socket->exchange(encode_dump_states(socket->next_sequence()),
                                         [&](const Message& message) {
                                             auto state = decode_kernel_sa(message.payload);
                                             ASSERT_TRUE(state) << state.error();
                                             found.push_back(std::move(*state));
                                         }));
            ASSERT_EQ(found.size(), 2u);
            for (const KernelSa& state : found) {
                EXPECT_EQ(state.pcpu, state.name.spi == Spi{0x1001} ? 0u : 1u);
            }
            // Larval states would be gone after 30 s: the limit stands in what ip shows.
            if (registry->method() == SaRegistry::Method::larval) {
                EXPECT_TRUE(output_of("ip -s xfrm state").contains("hard 315360000(sec)"));
            }
            registry->remove({Spi{0x1001}, *parse_ip_address("192.0.2.1")});
            EXPECT_FALSE(output_of("ip xfrm state").contains("0x00001001"));
        }
        EXPECT_EQ(output_of("ip xfrm state"), "");
    });
}

// SPIs are unique for each destination (RFC 4301 4.1); Linux allocates each once since 6.17 and its
// stable back-ports.
TEST_F(XfrmKernel, OneSpiOnTwoAddressesIsNoError) {
    using enum SaRegistry::Registered;
    in_new_namespace([&] {
        ASSERT_TRUE(
            succeeds("ip xfrm state allocspi src 192.0.2.9 dst 198.51.100.7 proto esp "
                     "reqid 7 mode tunnel min 0x2001 max 0x2001"));
        {
            auto registry = SaRegistry::open(dir_);
            ASSERT_TRUE(registry) << registry.error();
            std::vector<NewState> states = {
                inbound(0x1001, "192.0.2.1", 0), inbound(0x1001, "198.51.100.1", 1),
                inbound(0x1001, "2001:db8::1", 1), inbound(0x2001, "192.0.2.1", 0)};
            const auto results = registry->add(states);
            for (const auto& result : results) ASSERT_TRUE(result) << result.error();
            EXPECT_EQ(*results[0], in_xfrm);
            const bool larval = registry->method() == SaRegistry::Method::larval;
            for (size_t i = 1; i < results.size(); ++i) {
                EXPECT_EQ(*results[i], larval ? beside_another : in_xfrm) << i;
            }
            // One that was left without an SPI would stay for years.
            EXPECT_FALSE(output_of("ip xfrm state").contains("spi 0x00000000"));
        }
        const std::string shown = output_of("ip xfrm state");
        EXPECT_TRUE(shown.contains("reqid 7")) << shown;
        EXPECT_FALSE(shown.contains("reqid 1397")) << "ours are gone:\n" << shown;
    });
}

TEST_F(XfrmKernel, OutboundSaIsNeverUsableByTheKernel) {
    in_new_namespace([&] {
        auto registry = SaRegistry::open(dir_);
        ASSERT_TRUE(registry) << registry.error();
        std::vector<NewState> states = {inbound(0x1001, "192.0.2.1", 0)};
        states[0].direction = StateDirection::outbound;
        const auto results = registry->add(states);
        ASSERT_TRUE(results[0]) << results[0].error();
        const bool shown = output_of("ip xfrm state").contains("0x00001001");
        EXPECT_EQ(shown, registry->method() == SaRegistry::Method::full);
        if (shown) {
            EXPECT_TRUE(output_of("ip -s xfrm state").contains("oseq 0xffffffff"));
        }
    });
}

TEST_F(XfrmKernel, StatesOfAKilledRunAreReplacedAndForeignOnesAreNot) {
    in_new_namespace([&] {
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            auto registry = SaRegistry::open(dir_);
            std::vector<NewState> states = {inbound(0x1001, "192.0.2.1", 0),
                                            inbound(0x1002, "192.0.2.1", 0)};
            if (registry) registry->add(states);
            raise(SIGKILL);
        }
        int status = 0;
        waitpid(child, &status, 0);
        ASSERT_TRUE(output_of("ip xfrm state").contains("0x00001002"));
        ASSERT_TRUE(
            succeeds("ip xfrm state allocspi src 192.0.2.9 dst 192.0.2.1 proto esp "
                     "reqid 7 mode tunnel min 0x2001 max 0x2001"));

        auto registry = SaRegistry::open(dir_);
        ASSERT_TRUE(registry) << registry.error();
        EXPECT_FALSE(output_of("ip xfrm state").contains("0x00001002"));
        std::vector<NewState> states = {inbound(0x1001, "192.0.2.1", 1),
                                        inbound(0x2001, "192.0.2.1", 1)};
        const auto results = registry->add(states);
        EXPECT_TRUE(results[0]) << results[0].error();
        ASSERT_FALSE(results[1]);
        EXPECT_TRUE(results[1].error().contains("another program (reqid 7)")) << results[1].error();
        EXPECT_TRUE(output_of("ip xfrm state").contains("0x00002001"));
    });
}

TEST_F(XfrmKernel, OneDaemonPerNamespace) {
    in_new_namespace([&] {
        const auto first = NamespaceLock::acquire();
        ASSERT_TRUE(first) << first.error();
        const auto second = NamespaceLock::acquire();
        ASSERT_FALSE(second);
        EXPECT_TRUE(second.error().contains("another sallyportd")) << second.error();
        in_new_namespace([] { EXPECT_TRUE(NamespaceLock::acquire()); });
    });
}

// Any local user can take an abstract name, and keep it.
TEST_F(XfrmKernel, NoNameThatAnyUserCanTakeKeepsTheDaemonOut) {
    in_new_namespace([&] {
        const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        constexpr std::string_view kName = "sallyport-xfrm";
        std::ranges::copy(kName, address.sun_path + 1);
        const auto size = offsetof(sockaddr_un, sun_path) + 1 + kName.size();
        ASSERT_EQ(
            bind(fd, reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(size)), 0);
        EXPECT_TRUE(NamespaceLock::acquire());
        close(fd);
    });
}

TEST_F(XfrmKernel, RaisedExpiryOfAKilledRunIsPutBack) {
    in_new_namespace([&] {
        std::ofstream(kExpiry) << "77\n";
        ASSERT_EQ(read_expiry(), "77");
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            const auto raised = RaisedAcquireExpiry::raise(dir_ / "xfrm_acq_expires");
            ::raise(SIGKILL);
        }
        int status = 0;
        waitpid(child, &status, 0);
        EXPECT_NE(read_expiry(), "77");
        {
            auto registry = SaRegistry::open(dir_);
            ASSERT_TRUE(registry) << registry.error();
            EXPECT_EQ(read_expiry(), "77");
        }
        EXPECT_EQ(read_expiry(), "77");
        EXPECT_FALSE(std::filesystem::exists(dir_ / "xfrm_acq_expires"));
    });
}

TEST_F(XfrmKernel, NoteOfAnotherNamespaceChangesNothing) {
    in_new_namespace([&] {
        std::ofstream(dir_ / "xfrm_acq_expires") << "some-other-boot 4026531840 5\n";
        const std::string before = read_expiry();
        auto registry = SaRegistry::open(dir_);
        ASSERT_TRUE(registry) << registry.error();
        EXPECT_EQ(read_expiry(), before);
    });
}

// near (10.1.0.2) --- gateway --- far (10.2.0.2), plain forwarding by the kernel.
class ForwardingLab {
  public:
    ForwardingLab() : tag_("spg" + std::to_string(getpid())) {
        for (const char* end : {"n", "g", "f"}) {
            run("ip netns add " + name(end));
            run("ip -n " + name(end) + " link set lo up");
        }
        connect("n", "near0", "10.1.0.", "fd01::");
        connect("f", "far0", "10.2.0.", "fd02::");
        run("ip netns exec " + name("g") +
            " sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    }
    ~ForwardingLab() {
        for (const char* end : {"n", "g", "f"}) run("ip netns del " + name(end));
    }
    ForwardingLab(const ForwardingLab&) = delete;

    [[nodiscard]] std::string name(const char* end) const { return tag_ + end; }
    [[nodiscard]] bool ping(const char* from, const std::string& to) const {
        return succeeds("ip netns exec " + name(from) + " ping -c 1 -W 1 " + to);
    }
    // The answer takes a moment while the first neighbours are found.
    [[nodiscard]] bool ping_soon(const char* from, const std::string& to) const {
        for (int attempt = 0; attempt < 5; ++attempt) {
            if (ping(from, to)) return true;
        }
        return false;
    }
    // Runs `body` on a thread inside the gateway.
    void in_gateway(const std::function<void()>& body) const {
        std::thread([&] {
            const int fd = open(("/run/netns/" + name("g")).c_str(), O_RDONLY | O_CLOEXEC);
            ASSERT_GE(fd, 0);
            ASSERT_EQ(setns(fd, CLONE_NEWNET), 0);
            close(fd);
            body();
        }).join();
    }

  private:
    static void run(const std::string& command) {
        if (!succeeds(command)) ADD_FAILURE() << command << ": " << output_of(command);
    }
    void connect(const char* end, const std::string& device, const std::string& v4,
                 const std::string& v6) const {
        run("ip -n " + name(end) + " link add eth0 type veth peer name " + device + " netns " +
            name("g"));
        run("ip -n " + name(end) + " addr add " + v4 + "2/24 dev eth0");
        run("ip -n " + name(end) + " addr add " + v6 + "2/64 dev eth0 nodad");
        run("ip -n " + name("g") + " addr add " + v4 + "1/24 dev " + device);
        run("ip -n " + name("g") + " addr add " + v6 + "1/64 dev " + device + " nodad");
        run("ip -n " + name(end) + " link set eth0 up");
        run("ip -n " + name("g") + " link set " + device + " up");
        run("ip -n " + name(end) + " route add default via " + v4 + "1");
        run("ip -n " + name(end) + " route add default via " + v6 + "1");
    }

    std::string tag_;
};

config::Policy protect(const char* local, const char* remote) {
    config::Policy out;
    out.name = local;
    out.action = config::SpdAction::protect;
    out.local = {*parse_ip_prefix(local)};
    out.remote = {*parse_ip_prefix(remote)};
    return out;
}

TEST_F(XfrmKernel, GuardBlocksCleartextBothWaysUntilItGoes) {
    const ForwardingLab lab;
    ASSERT_TRUE(lab.ping_soon("n", "10.2.0.2"));
    ASSERT_TRUE(lab.ping_soon("n", "fd02::2"));
    config::Policy bypass = protect("10.1.0.0/24", "10.2.0.1/32");
    bypass.action = config::SpdAction::bypass;
    const std::vector<config::Policy> policies = {bypass, protect("10.1.0.0/24", "10.2.0.0/24"),
                                                  protect("fd01::/64", "fd02::/64")};
    lab.in_gateway([&] {
        auto guard = PolicyGuard::install(*guard_rows(policies, {}));
        ASSERT_TRUE(guard) << guard.error();
        EXPECT_FALSE(lab.ping("n", "10.2.0.2"));
        EXPECT_FALSE(lab.ping("n", "fd02::2"));
        EXPECT_FALSE(lab.ping("f", "10.1.0.2"));
        EXPECT_FALSE(lab.ping("f", "fd01::2"));
        EXPECT_FALSE(lab.ping("g", "-I 10.1.0.1 10.2.0.2"));
        EXPECT_TRUE(lab.ping_soon("n", "10.2.0.1")) << "BYPASS stands before PROTECT";
        // What comes out of a device with disable_policy was checked by workers: fwd lets it in,
        // and disable_xfrm lets the answer out there.
        ASSERT_TRUE(
            succeeds("sysctl -qw net.ipv4.conf.far0.disable_policy=1 "
                     "net.ipv4.conf.far0.disable_xfrm=1"));
        EXPECT_TRUE(lab.ping_soon("f", "10.1.0.2"));
        ASSERT_TRUE(
            succeeds("sysctl -qw net.ipv4.conf.far0.disable_policy=0 "
                     "net.ipv4.conf.far0.disable_xfrm=0"));
        EXPECT_FALSE(lab.ping("f", "10.1.0.2"));
    });
    EXPECT_TRUE(lab.ping_soon("n", "10.2.0.2"));
    EXPECT_TRUE(lab.ping_soon("f", "fd01::2"));
    EXPECT_EQ(output_of("ip -n " + lab.name("g") + " xfrm policy"), "");
}

// An ICMP error quotes the packet that it is about and comes from the address of the way out, which
// no policy names: what came out of a tunnel would leave in clear.
TEST_F(XfrmKernel, GuardHoldsBackIcmpErrorsAboutDecryptedPackets) {
    const ForwardingLab lab;
    const auto answered = [&](const char* destination) {
        return output_of("ip netns exec " + lab.name("f") + " ping -n -c 1 -W 1 -t 1 " +
                         destination)
            .contains("Time ");
    };
    ASSERT_TRUE(lab.ping_soon("f", "10.1.0.2") && lab.ping_soon("f", "fd01::2"));
    ASSERT_TRUE(answered("10.1.0.2"));
    ASSERT_TRUE(answered("fd01::2"));
    const std::vector<config::Policy> policies = {protect("10.1.0.0/24", "10.2.0.0/24"),
                                                  protect("fd01::/64", "fd02::/64")};
    lab.in_gateway([&] {
        const auto guard = PolicyGuard::install(*guard_rows(policies, {}));
        ASSERT_TRUE(guard) << guard.error();
        // As on sp0: what comes from there was checked by workers.
        ASSERT_TRUE(
            succeeds("sysctl -qw net.ipv4.conf.far0.disable_policy=1 "
                     "net.ipv6.conf.far0.disable_policy=1"));
        EXPECT_FALSE(answered("10.1.0.2"));
        EXPECT_FALSE(answered("fd01::2"));

        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(socket);
        size_t count = 0;
        ASSERT_TRUE(socket->exchange(
            encode_dump_policies(socket->next_sequence()), [&](const Message& message) {
                const auto policy = decode_kernel_policy(message.payload);
                ASSERT_TRUE(policy && *policy);
                const PolicyRow& row = (*policy)->row;
                EXPECT_EQ(row.icmp_errors, row.direction == PolicyDirection::out &&
                                               row.action == PolicyAction::block);
                ++count;
            }));
        EXPECT_EQ(count, 6u + 9u) << "policies, neighbour discovery";
    });
    EXPECT_TRUE(answered("10.1.0.2")) << "the guard has gone";
    EXPECT_TRUE(answered("fd01::2"));
}

// It had blocked the advertisements by which the hosts of the LAN find the gateway.
TEST_F(XfrmKernel, GuardLeavesNeighbourDiscoveryOnTheLinkAlone) {
    const ForwardingLab lab;
    ASSERT_TRUE(lab.ping_soon("n", "fd02::2"));
    const std::vector<config::Policy> policies = {protect("fd01::/64", "::/0")};
    const auto found = [&](const char* end, const char* address) {
        static_cast<void>(output_of("ip -n " + lab.name(end) + " neigh flush dev eth0"));
        for (int attempt = 0; attempt < 5; ++attempt) {
            static_cast<void>(lab.ping(end, address));
            const std::string entry =
                output_of("ip -n " + lab.name(end) + " neigh show " + std::string(address));
            if (entry.contains("lladdr")) return true;
        }
        return false;
    };
    // A router solicitation to a host behind the gateway.
    const auto sent_through = [&](int tenths) {
        const auto received = [&] {
            return output_of("ip netns exec " + lab.name("f") +
                             " grep -w Icmp6InType133 /proc/net/snmp6");
        };
        const std::string before = received();
        EXPECT_TRUE(succeeds("ip netns exec " + lab.name("n") +
                             " /usr/bin/python3 -c 'import socket; socket.socket(10, 3, 58)"
                             ".sendto(bytes([133]) + bytes(31), (\"fd02::2\", 0))'"));
        for (int i = 0; i < tenths; ++i) {
            usleep(100'000);
            if (received() != before) return true;
        }
        return false;
    };
    EXPECT_TRUE(sent_through(100));
    lab.in_gateway([&] {
        const auto guard = PolicyGuard::install(*guard_rows(policies, {}));
        ASSERT_TRUE(guard) << guard.error();
        EXPECT_TRUE(found("n", "fd01::1"));
        EXPECT_FALSE(lab.ping("n", "fd02::2"));
        EXPECT_FALSE(sent_through(5));
    });
}

TEST_F(XfrmKernel, GuardOfAKilledRunStaysAndIsReplacedWithoutAGap) {
    in_new_namespace([&] {
        const std::vector<config::Policy> old = {protect("10.1.0.0/24", "10.2.0.0/24"),
                                                 protect("10.1.0.0/24", "10.3.0.0/24")};
        const std::vector<config::Policy> current = {protect("10.9.0.0/24", "10.2.0.0/24"),
                                                     protect("10.1.0.0/24", "10.2.0.0/24")};
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            const auto guard = PolicyGuard::install(*guard_rows(old, {}));
            raise(SIGKILL);
        }
        int status = 0;
        waitpid(child, &status, 0);
        ASSERT_TRUE(output_of("ip xfrm policy").contains("10.3.0.0/24"));
        {
            auto guard = PolicyGuard::install(*guard_rows(current, {}));
            ASSERT_TRUE(guard) << guard.error();
            const std::string shown = output_of("ip xfrm policy");
            EXPECT_FALSE(shown.contains("10.3.0.0/24")) << shown;
            EXPECT_TRUE(shown.contains("10.9.0.0/24")) << shown;
            EXPECT_TRUE(shown.contains("src 10.1.0.0/24 dst 10.2.0.0/24")) << shown;
        }
        // That start went no further: the gateway that was killed still may not be walked past.
        EXPECT_TRUE(output_of("ip xfrm policy").contains("src 10.1.0.0/24 dst 10.2.0.0/24"));
        {
            auto guard = PolicyGuard::install(*guard_rows(current, {}));
            ASSERT_TRUE(guard) << guard.error();
            guard->at_end(PolicyGuard::AtEnd::remove);  // started, and stopped in good order
        }
        EXPECT_EQ(output_of("ip xfrm policy"), "");
    });
}

TEST_F(XfrmKernel, GuardRefusesAPolicyOfAnotherProgram) {
    in_new_namespace([&] {
        ASSERT_TRUE(
            succeeds("ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir out "
                     "priority 300000"));
        const std::vector<config::Policy> policies = {protect("10.1.0.0/24", "10.2.0.0/24")};
        const auto guard = PolicyGuard::install(*guard_rows(policies, {}));
        ASSERT_FALSE(guard);
        EXPECT_TRUE(guard.error().contains("10.1.0.0/24 to 10.2.0.0/24")) << guard.error();
        EXPECT_TRUE(output_of("ip xfrm policy").contains("priority 300000"));
    });
}

config::Policy of_config(config::SpdAction action, const char* local, const char* remote) {
    config::Policy policy = protect(local, remote);
    policy.action = action;
    return policy;
}

// What is left to the kernel as a whole ends as the SPD would: behind all others, and no program's
// policy is taken for one of ours.
TEST_F(XfrmKernel, WhatIsLeftOpenEndsAsTheSpdWould) {
    in_new_namespace([&] {
        auto guard = PolicyGuard::install({});
        ASSERT_TRUE(guard) << guard.error();
        std::vector<config::Policy> policies = {
            of_config(config::SpdAction::discard, "10.1.0.0/16", "10.2.0.9/32"),
            of_config(config::SpdAction::bypass, "10.1.0.0/16", "10.2.0.0/16"),
            of_config(config::SpdAction::bypass, "10.1.0.0/16", "10.0.0.0/8"),
            of_config(config::SpdAction::bypass, "10.9.0.0/16", "10.2.0.0/16")};
        policies[2].ct_mark = 1;
        policies[2].ct_mark_mask = 1;
        const LeftOpen open[] = {
            {*parse_ip_prefix("10.1.0.0/24"), *parse_ip_prefix("10.2.0.0/24")},
            {*parse_ip_prefix("10.1.0.0/24"), *parse_ip_prefix("10.7.0.0/24")}};
        auto rows = left_open_rows(open, policies);
        ASSERT_TRUE(rows) << rows.error();
        struct Expected {
            const char* destination;
            PolicyAction action;
        };
        const Expected expected[] = {{"10.2.0.9/32", PolicyAction::block},
                                     {"10.2.0.0/24", PolicyAction::allow},
                                     {"10.7.0.0/24", PolicyAction::block}};
        // The block for 10.2.0.0/24 would never be asked behind the allow: one selector, one row.
        ASSERT_EQ(rows->size(), std::size(expected));
        for (size_t i = 0; i < rows->size(); ++i) {
            EXPECT_EQ(to_string((*rows)[i].selector.source), "10.1.0.0/24");
            EXPECT_EQ(to_string((*rows)[i].selector.destination), expected[i].destination);
            EXPECT_EQ((*rows)[i].action, expected[i].action);
            EXPECT_EQ((*rows)[i].direction, PolicyDirection::out);
        }
        const auto done = guard->replace(*rows);
        ASSERT_TRUE(done) << done.error();
        // A daemon adds one with the same selector, and replaces and deletes its own alone.
        const std::string selector = "src 10.1.0.0/24 dst 10.7.0.0/24 dir out";
        EXPECT_TRUE(succeeds("ip xfrm policy add " + selector + " priority 1000"));
        EXPECT_TRUE(guard->replace(*rows)) << "beside it";
        std::string shown = output_of("ip xfrm policy");
        EXPECT_TRUE(shown.contains("priority 1000")) << shown;
        EXPECT_TRUE(succeeds("ip xfrm policy delete " + selector));
        shown = output_of("ip xfrm policy");
        EXPECT_FALSE(shown.contains("priority 1000")) << shown;
        EXPECT_TRUE(shown.contains("action block priority 4293918724")) << shown;
        ASSERT_TRUE(guard->replace({}));
        EXPECT_EQ(output_of("ip xfrm policy"), "");
    });
}

// However many there are.
TEST_F(XfrmKernel, GuardWritesOnlyRowsThatAreOthers) {
    in_new_namespace([&] {
        auto guard = PolicyGuard::install({});
        auto socket = RegisterSocket::open();
        ASSERT_TRUE(guard && socket);
        RegisterMirror mirror(socket->own_port());
        RegisterChanges changes;
        const auto messages_of = [&](std::vector<PolicyRow> rows) {
            const uint64_t before = mirror.counters().own;
            const auto done = guard->replace(std::move(rows));
            EXPECT_TRUE(done) << done.error();
            EXPECT_TRUE(socket->receive(mirror, changes));
            return mirror.counters().own - before;
        };
        std::vector<std::pair<IpAddress, IpAddress>> tunnels;
        for (uint8_t i = 1; i <= 4; ++i) {
            tunnels.emplace_back(*parse_ip_address("192.0.2.1"),
                                 IpAddress{.bytes = {198, 51, 100, i}});
        }
        const std::span all(tunnels);
        EXPECT_EQ(messages_of(outer_esp_rows(all.first(3))), 3u);
        EXPECT_EQ(messages_of(outer_esp_rows(all.first(3))), 0u);
        EXPECT_EQ(messages_of(outer_esp_rows(all)), 1u);
        EXPECT_EQ(messages_of(outer_esp_rows(all.last(3))), 1u) << "one has gone";
        auto rows = outer_esp_rows(all.last(3));
        rows[1].action = PolicyAction::block;
        EXPECT_EQ(messages_of(rows), 1u);
        const std::string shown = output_of("ip xfrm policy");
        for (const char* peer : {"198.51.100.2/32", "198.51.100.3/32", "198.51.100.4/32"}) {
            EXPECT_TRUE(shown.contains(peer)) << shown;
        }
        EXPECT_FALSE(shown.contains("198.51.100.1/32")) << shown;
        EXPECT_TRUE(shown.contains("action block")) << shown;
    });
}

TEST_F(XfrmKernel, GuardRestoresWhatOthersRemoveOrChange) {
    in_new_namespace([&] {
        const config::Policy policy = protect("10.1.0.0/24", "10.2.0.0/24");
        auto rows = guard_rows({&policy, 1}, {});
        ASSERT_TRUE(rows);
        auto guard = PolicyGuard::install(std::move(*rows));
        ASSERT_TRUE(guard) << guard.error();
        constexpr std::array<int, 1> kGroups = {XFRMNLGRP_POLICY};
        auto news = netlink::Notifications::open(netlink::Protocol::xfrm, kGroups);
        ASSERT_TRUE(news) << news.error();
        const auto concerns = [&] {
            bool any = false;
            EXPECT_TRUE(news->receive(
                [&](const netlink::Message& message) { any = any || guard->concerns(message); },
                [] { ADD_FAILURE() << "messages are lost"; }));
            return any;
        };
        const size_t all = guard->row_count();
        EXPECT_EQ(guard->restore().value(), 0u);
        EXPECT_FALSE(concerns());
        const std::string kForeign = "ip xfrm policy add src 10.7.0.0/24 dst 10.8.0.0/24 dir out";
        ASSERT_EQ(output_of(kForeign), "");
        EXPECT_FALSE(concerns()) << "another's policy";

        const std::string kRow = " src 10.1.0.0/24 dst 10.2.0.0/24 dir out";
        ASSERT_EQ(output_of("ip xfrm policy delete" + kRow), "");
        EXPECT_TRUE(concerns());
        EXPECT_EQ(guard->restore().value(), 1u);
        EXPECT_FALSE(concerns()) << "our own doing";
        ASSERT_EQ(output_of("ip xfrm policy update" + kRow + " action allow"), "");
        EXPECT_TRUE(concerns());
        EXPECT_EQ(guard->restore().value(), 1u);
        ASSERT_EQ(output_of("ip xfrm policy flush"), "");
        EXPECT_TRUE(concerns());
        EXPECT_EQ(guard->restore().value(), all);
        EXPECT_EQ(guard->restore().value(), 0u);

        // In the place of ours is one that we do not touch: that is said.
        ASSERT_EQ(output_of("ip xfrm policy flush && ip xfrm policy add" + kRow), "");
        const auto refused = guard->restore();
        ASSERT_FALSE(refused);
        EXPECT_NE(refused.error().find("10.1.0.0/24 to 10.2.0.0/24"), std::string::npos)
            << refused.error();
        EXPECT_EQ(output_of("ip xfrm policy | grep -c ^src"), std::to_string(all) + "\n")
            << "the others block beside it";
        ASSERT_EQ(output_of("ip xfrm policy delete" + kRow), "");
        EXPECT_EQ(guard->restore().value(), 1u);
    });
}

// The guest's cases have the interface at work; what a kernel without it says can be seen here too.
TEST_F(XfrmKernel, InterfaceIsMadeTakenOverAndRemovedOrSaidToBeMissing) {
    in_new_namespace([&] {
        auto first = Interface::open("ipsec0", 1400);
        if (!first) {
            EXPECT_TRUE(first.error().unsupported) << first.error().text;
            EXPECT_TRUE(first.error().text.contains("CONFIG_XFRM_INTERFACE")) << first.error().text;
            EXPECT_FALSE(output_of("ip link").contains("ipsec0"));
            return;
        }
        EXPECT_EQ(first->origin(), Interface::Origin::made);
        EXPECT_TRUE(output_of("ip link show ipsec0").contains("mtu 1400"));
        first->keep(true);
        {
            const auto ifindex = first->ifindex();
            auto second = Interface::open("ipsec0", 1300);
            ASSERT_TRUE(second) << second.error().text;
            EXPECT_EQ(second->origin(), Interface::Origin::left_by_killed_run);
            EXPECT_EQ(second->ifindex(), ifindex);
            second->keep(false);
        }
        EXPECT_FALSE(output_of("ip link").contains("ipsec0"));
    });
}

TEST_F(XfrmKernel, InterfaceWithTheNameOfAnotherDeviceIsRefused) {
    in_new_namespace([&] {
        ASSERT_TRUE(succeeds("ip link add ipsec0 type veth peer name other0"));
        const auto interface = Interface::open("ipsec0", 1400);
        ASSERT_FALSE(interface);
        EXPECT_FALSE(interface.error().unsupported);
        EXPECT_TRUE(interface.error().text.contains("no xfrm interface")) << interface.error().text;
        EXPECT_TRUE(output_of("ip link").contains("ipsec0"));
    });
}

TEST_F(XfrmKernel, GuardRowForTheInterfaceHasItsDevice) {
    in_new_namespace([&] {
        ASSERT_TRUE(succeeds("ip link add other0 type veth peer name other1"));
        std::vector<config::Policy> policies = {protect("fd00:1::/64", "fd00:9::/64")};
        policies[0].if_id = 7;
        const auto index =
            static_cast<uint32_t>(std::atoi(output_of("ip -o link show other0").c_str()));
        for (int round = 0; round < 2; ++round) {
            auto guard = PolicyGuard::install(*guard_rows(policies, {}, index));
            ASSERT_TRUE(guard) << guard.error();
            EXPECT_EQ(guard->row_count(), 4u + 9u);  // neighbour discovery
            const std::string shown = output_of("ip xfrm policy");
            EXPECT_TRUE(shown.contains("src ::/0 dst ::/0 dev other0")) << shown;
            guard->at_end(round == 0 ? PolicyGuard::AtEnd::keep : PolicyGuard::AtEnd::remove);
        }
        EXPECT_EQ(output_of("ip xfrm policy"), "");
    });
}

}  // namespace
}  // namespace sallyport::xfrm
