// SPDX-License-Identifier: Apache-2.0
//
// The mirror against the running kernel, in network namespaces of our own. Where the kernel has no
// ESP, states are larval; what needs whole ones is skipped there.

#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "control/xfrm/mirror_socket.h"
#include "tests/control/xfrm/builder.h"
#include "tests/support/new_namespace.h"

namespace sallyport::xfrm {
namespace {

using namespace test;
using sallyport::test::succeeds;

double cpu_ms() {
    rusage usage{};
    getrusage(RUSAGE_THREAD, &usage);
    const auto ms = [](const timeval& t) {
        return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_usec) / 1e3;
    };
    return ms(usage.ru_utime) + ms(usage.ru_stime);
}

class XfrmRegisterKernel : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "needs root: network namespaces and xfrm";
    }
    static void in_new_namespace(const std::function<void()>& body) {
        sallyport::test::in_new_namespace([&] {
            std::ofstream("/proc/sys/net/core/xfrm_acq_expires") << "86400\n";
            body();
        });
    }
};

// A mirror that follows the kernel.
struct Follower {
    RegisterSocket socket;
    RegisterMirror mirror;
    RegisterChanges changes;

    static Follower start() {
        auto socket = RegisterSocket::open();
        EXPECT_TRUE(socket) << socket.error();
        Follower out{std::move(*socket), RegisterMirror(), {}};
        out.mirror.set_own_port(out.socket.own_port());
        EXPECT_NE(out.socket.own_port(), 0u);
        out.dump();
        return out;
    }
    void dump() {
        const auto result = socket.dump(mirror, changes);
        EXPECT_TRUE(result) << result.error();
    }
    // Notifications are there when the command that caused them is done.
    RegisterChanges& receive() {
        changes = {};
        const auto result = socket.receive(mirror, changes);
        EXPECT_TRUE(result) << result.error();
        return changes;
    }
};

std::vector<SaName> state_order(const RegisterMirror& mirror) {
    std::vector<std::pair<uint64_t, SaName>> order;
    for (const auto& [name, state] : mirror.states()) order.emplace_back(state.arrival, name);
    std::ranges::sort(order);
    std::vector<SaName> out;
    for (const auto& entry : order) out.push_back(entry.second);
    return out;
}

// What was followed is what a fresh dump shows, states in the same order.
void expect_as_dumped(const RegisterMirror& followed) {
    Follower fresh = Follower::start();
    EXPECT_EQ(followed.policies(), fresh.mirror.policies());
    EXPECT_EQ(state_order(followed), state_order(fresh.mirror));
    for (const auto& [name, state] : fresh.mirror.states()) {
        const KernelSa* known = followed.find(name);
        ASSERT_NE(known, nullptr);
        EXPECT_EQ(known->reqid, state.reqid);
        EXPECT_EQ(known->source, state.source);
        EXPECT_EQ(known->larval, state.larval);
        EXPECT_EQ(known->key, state.key);
        EXPECT_EQ(known->pcpu, state.pcpu);
        EXPECT_EQ(known->direction, state.direction);
        EXPECT_EQ(known->limits, state.limits);
        EXPECT_EQ(known->replay, state.replay);
    }
}

const std::string kPolicy = "src 10.1.0.0/16 dst 10.2.0.0/16 dir out";
const std::string kTemplate = " tmpl src 192.0.2.9 dst 192.0.2.1 proto esp mode tunnel reqid 7";

TEST_F(XfrmRegisterKernel, PoliciesAreFollowed) {
    in_new_namespace([] {
        ASSERT_TRUE(succeeds("ip xfrm policy add " + kPolicy + " priority 100" + kTemplate));
        Follower follower = Follower::start();
        EXPECT_FALSE(follower.changes.policies.empty());
        ASSERT_EQ(follower.mirror.policies().size(), 1u);
        const auto first = [&]() -> const KernelPolicy& {
            return follower.mirror.policies().begin()->second;
        };
        EXPECT_EQ(first().row.priority, 100u);
        ASSERT_EQ(first().templates.size(), 1u);
        EXPECT_EQ(first().templates[0].reqid, 7u);
        EXPECT_EQ(first().templates[0].destination, ip("192.0.2.1"));
        EXPECT_TRUE(follower.receive().empty());

        for (const std::string& command : std::vector<std::string>{
                 "add src 10.1.0.0/16 dst 10.3.0.0/16 dir in priority 5 mark 3 mask 0xff" +
                     kTemplate,
                 "add src 2001:db8:1::/64 dst 2001:db8:2::/64 dir fwd priority 6 if_id 9" +
                     kTemplate,
                 std::string("add src 10.1.0.0/16 dst 10.4.0.0/16 proto udp dport 53 dir out "
                             "action block priority 100"),
                 "update " + kPolicy + " priority 70" + kTemplate,
                 "update " + kPolicy + " priority 100" + kTemplate,
                 "delete src 10.1.0.0/16 dst 10.3.0.0/16 dir in mark 3 mask 0xff"}) {
            ASSERT_TRUE(succeeds("ip xfrm policy " + command)) << command;
            EXPECT_FALSE(follower.receive().policies.empty()) << command;
            EXPECT_FALSE(follower.changes.resync) << command;
            expect_as_dumped(follower.mirror);
        }
        EXPECT_EQ(follower.mirror.policies().size(), 3u);
        const uint32_t index = first().row.index;
        ASSERT_TRUE(succeeds("ip xfrm policy delete dir " +
                             std::string(index % 8 == 0   ? "in"
                                         : index % 8 == 1 ? "out"
                                                          : "fwd") +
                             " index " + std::to_string(index) +
                             (first().if_id != 0 ? " if_id 9" : "")));
        EXPECT_FALSE(follower.receive().policies.empty());
        EXPECT_EQ(follower.mirror.policies().size(), 2u);
        expect_as_dumped(follower.mirror);
        ASSERT_TRUE(succeeds("ip xfrm policy flush"));
        EXPECT_FALSE(follower.receive().policies.empty());
        EXPECT_TRUE(follower.mirror.policies().empty());
        EXPECT_EQ(follower.mirror.counters().malformed, 0u);
    });
}

TEST_F(XfrmRegisterKernel, OurOwnPoliciesAreLeftOut) {
    in_new_namespace([] {
        Follower follower = Follower::start();
        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(socket);
        const PolicyRow row{.selector = {.source = *parse_ip_prefix("10.1.0.0/16"),
                                         .destination = *parse_ip_prefix("10.2.0.0/16")},
                            .priority = 20000,
                            .index = 0x53000001};
        ASSERT_TRUE(socket->exchange(encode_update_policy(row, socket->next_sequence())));
        EXPECT_TRUE(follower.receive().empty());
        EXPECT_EQ(follower.mirror.counters().own, 1u);
        follower.dump();
        EXPECT_TRUE(follower.changes.empty());
        EXPECT_EQ(follower.mirror.counters().own, 2u);
    });
}

// The kernel quotes the port that stands in the request, which need not be the sender's.
TEST_F(XfrmRegisterKernel, NotificationsCarryTheSignatureOfTheRequest) {
    in_new_namespace([] {
        const UniqueFd listener(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM));
        sockaddr_nl address{};
        address.nl_family = AF_NETLINK;
        address.nl_groups = 1u << (XFRMNLGRP_POLICY - 1);
        ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(socket);
        const PolicyRow row{.selector = {.source = *parse_ip_prefix("10.1.0.0/16"),
                                         .destination = *parse_ip_prefix("10.2.0.0/16")}};
        ASSERT_TRUE(socket->exchange(encode_update_policy(row, socket->next_sequence())));
        Buffer buffer(4096);
        const ssize_t received = recv(listener.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
        ASSERT_GT(received, 0);
        std::span<const std::byte> rest(buffer.data(), static_cast<size_t>(received));
        const auto message = netlink::next_message(rest);
        ASSERT_TRUE(message && *message);
        EXPECT_NE(socket->port(), 0u);
        EXPECT_EQ((*message)->port, socket->port());
    });
}

// Registers larval states; random SPIs, since sequential ones make the kernel slow.
std::vector<NewState> allocate_states(netlink::Socket& socket, size_t pairs) {
    std::mt19937 random(4711);
    const auto random_spi = [&random] {
        return Spi{0x100u + (static_cast<uint32_t>(random()) & 0x7fffffffu)};
    };
    std::vector<NewState> states;
    for (size_t i = 0; i < pairs * 2; ++i) {
        const bool inbound = i % 2 == 0;
        // One CPU is everywhere; the kernel refuses numbers of others.
        states.push_back({.id = {random_spi(), ip(inbound ? "192.0.2.1" : "192.0.2.9")},
                          .source = ip(inbound ? "192.0.2.9" : "192.0.2.1"),
                          .reqid = static_cast<uint32_t>(i / 2 + 1),
                          .direction = inbound ? StateDirection::inbound : StateDirection::outbound,
                          .pcpu = i % 4 == 0 ? std::optional<uint32_t>(0) : std::nullopt});
    }
    StateAttributes attributes = StateAttributes::all;  // as far as this kernel knows them
    for (const NewState& state : states) {
        auto made = socket.exchange(encode_allocate_spi(state, attributes, socket.next_sequence()));
        while (!made && made.error().number == EINVAL && attributes != StateAttributes::none) {
            attributes = attributes == StateAttributes::all ? StateAttributes::direction_only
                                                            : StateAttributes::none;
            made = socket.exchange(encode_allocate_spi(state, attributes, socket.next_sequence()));
        }
        EXPECT_TRUE(made) << made.error().text;
        if (!made) break;
    }
    return states;
}

TEST_F(XfrmRegisterKernel, TenThousandPairsAreMirroredAndRemoved) {
    in_new_namespace([] {
        constexpr size_t kPairs = 10000;
        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(socket);
        const std::vector<NewState> states = allocate_states(*socket, kPairs);
        Follower follower = Follower::start();
        EXPECT_EQ(follower.changes.added.size(), states.size());
        ASSERT_EQ(follower.mirror.states().size(), states.size());

        std::vector<SaName> creation_order;
        for (const NewState& made : states) {
            const SaName name{.spi = made.id.spi, .destination = made.id.destination};
            creation_order.push_back(name);
            const KernelSa* known = follower.mirror.find(name);
            ASSERT_NE(known, nullptr);
            ASSERT_TRUE(known->larval);
            ASSERT_EQ(known->reqid, made.reqid);
            ASSERT_EQ(known->source, made.source);
        }
        EXPECT_EQ(state_order(follower.mirror), creation_order);
        // An independent reader of the same dump.
        size_t read = 0;
        ASSERT_TRUE(socket->exchange(encode_dump_states(socket->next_sequence()),
                                     [&](const Message& message) {
                                         const auto info = decode_kernel_sa(message.payload);
                                         ASSERT_TRUE(info);
                                         const KernelSa* known = follower.mirror.find(info->name);
                                         ASSERT_NE(known, nullptr);
                                         ASSERT_EQ(known->pcpu, info->pcpu);
                                         ++read;
                                     }));
        EXPECT_EQ(read, states.size());

        follower.changes = {};
        const double before = cpu_ms();
        follower.dump();
        std::fprintf(stderr, "dump of %zu states, kernel and mirror: %.1f ms of CPU\n",
                     states.size(), cpu_ms() - before);
        EXPECT_TRUE(follower.changes.empty());

        size_t removed = 0;
        for (size_t i = 0; i < states.size(); ++i) {
            ASSERT_TRUE(
                socket->exchange(encode_delete_state(states[i].id, socket->next_sequence())));
            if (i % 1000 == 999) {
                removed += follower.receive().removed.size();
                EXPECT_FALSE(follower.changes.resync);
            }
        }
        EXPECT_EQ(removed, states.size());
        EXPECT_TRUE(follower.mirror.states().empty());
        EXPECT_EQ(follower.mirror.counters().malformed, 0u);
    });
}

TEST_F(XfrmRegisterKernel, FlushTakesAllStates) {
    in_new_namespace([] {
        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(socket);
        allocate_states(*socket, 10);
        Follower follower = Follower::start();
        ASSERT_EQ(follower.mirror.states().size(), 20u);
        ASSERT_TRUE(succeeds("ip xfrm state flush proto ah"));
        EXPECT_TRUE(follower.receive().empty());
        ASSERT_TRUE(succeeds("ip xfrm state flush"));
        EXPECT_EQ(follower.receive().removed.size(), 20u);
        EXPECT_TRUE(follower.mirror.states().empty());
    });
}

TEST_F(XfrmRegisterKernel, LostNotificationsAreMadeGood) {
    in_new_namespace([] {
        Follower follower = Follower::start();
        const int tiny = 1;  // the kernel makes it its least
        ASSERT_EQ(setsockopt(follower.socket.fd(), SOL_SOCKET, SO_RCVBUF, &tiny, sizeof tiny), 0);
        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(socket);
        for (uint32_t round = 0; round < 3; ++round) {
            for (uint32_t i = 0; i < 500; ++i) {
                PolicyRow row{.selector = {.source = *parse_ip_prefix("10.1.0.0/16"),
                                           .destination = *parse_ip_prefix("10.2.0.0/24")},
                              .priority = round};
                row.selector.destination.address.bytes[1] = static_cast<uint8_t>(i / 256);
                row.selector.destination.address.bytes[2] = static_cast<uint8_t>(i % 256);
                ASSERT_TRUE(socket->exchange(encode_update_policy(row, socket->next_sequence())));
            }
            EXPECT_TRUE(follower.receive().resync);
            EXPECT_LT(follower.mirror.policies().size(), 500u + round);
            follower.dump();
            EXPECT_FALSE(follower.changes.resync);
            EXPECT_FALSE(follower.changes.policies.empty());
            EXPECT_EQ(follower.mirror.policies().size(), 500u);
            expect_as_dumped(follower.mirror);
            EXPECT_TRUE(follower.receive().empty());
        }
        EXPECT_EQ(follower.mirror.counters().resyncs, 3u);
    });
}

TEST_F(XfrmRegisterKernel, TrafficWithoutStateIsAnAcquire) {
    in_new_namespace([] {
        ASSERT_TRUE(succeeds(
            "ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up && "
            "ip addr add 192.0.2.9/24 dev v0 && ip addr add 10.1.0.1/16 dev v0 && "
            "ip route add 10.2.0.0/16 via 10.1.0.2"));
        ASSERT_TRUE(succeeds("ip xfrm policy add " + kPolicy + kTemplate));
        Follower follower = Follower::start();
        succeeds("ping -c 1 -W 1 -I 10.1.0.1 10.2.0.1");
        follower.receive();
        ASSERT_FALSE(follower.changes.acquires.empty());
        const RegisterChanges::Acquire& acquire = follower.changes.acquires[0];
        EXPECT_EQ(acquire.source, ip("192.0.2.9"));
        EXPECT_EQ(acquire.destination, ip("192.0.2.1"));
        EXPECT_EQ(acquire.policy.row.index, follower.mirror.policies().begin()->first);
        // The kernel's placeholder has no SPI.
        follower.changes = {};
        follower.dump();
        EXPECT_TRUE(follower.changes.empty());
        EXPECT_TRUE(follower.mirror.states().empty());
    });
}

TEST_F(XfrmRegisterKernel, OneStateIsReadAlone) {
    in_new_namespace([] {
        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(socket);
        const std::vector<NewState> states = allocate_states(*socket, 1);
        Follower follower = Follower::start();
        const SaName name{.spi = states[0].id.spi, .destination = states[0].id.destination};
        const auto state = follower.socket.get(name);
        ASSERT_TRUE(state) << state.error().text;
        EXPECT_EQ(state->name, name);
        EXPECT_EQ(state->reqid, states[0].reqid);
        const auto none = follower.socket.get({.spi = Spi{0x99}, .destination = name.destination});
        ASSERT_FALSE(none);
        EXPECT_EQ(none.error().number, ESRCH);
        // A state without keys takes no counters.
        const auto written = follower.socket.write_counters(*state, {});
        ASSERT_FALSE(written);
        EXPECT_EQ(written.error().number, EINVAL);
        const auto expired = follower.socket.expire(*state, false);
        ASSERT_FALSE(expired);
        EXPECT_EQ(expired.error().number, EINVAL);
    });
}

}  // namespace
}  // namespace sallyport::xfrm
