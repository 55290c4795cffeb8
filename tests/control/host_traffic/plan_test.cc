// SPDX-License-Identifier: Apache-2.0
// Which destinations of this host's own packets lead into sp0: kinds of policies, and against the
// SPD itself packet by packet.

#include "control/host_traffic/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace sallyport::host_traffic {
namespace {

IpPrefix prefix(const char* text) {
    return parse_ip_prefix(text).value();
}
IpAddress address(const char* text) {
    return parse_ip_address(text).value();
}

constexpr uint32_t kServed = 1;  // a worker sends for this group
constexpr uint32_t kOther = 0;   // and not for this one

SpdEntry entry(const char* source, const char* destination, SpdAction action = SpdAction::protect,
               uint32_t group = kServed) {
    return {.policy = PolicyId{group},
            .action = action,
            .source = prefix(source),
            .destination = prefix(destination)};
}

SpdEntry only_tcp(SpdEntry one) {
    one.protocol = 6;
    return one;
}

// "10.1.0.1 10.2.0.0/24 from 10.1.0.1", "- 10.2.0.0/24 as before"; "-": without a source.
std::vector<std::string> lines(const Plan& plan) {
    std::vector<std::string> out;
    for (const auto& [name, way] : plan.ways) {
        const bool none = name.source == IpAddress{.family = name.source.family};
        out.push_back((none ? "-" : to_string(name.source)) + " " + to_string(name.to) +
                      (way.leads == Leads::into_tunnel ? " from " + to_string(way.from)
                       : way.leads == Leads::refused   ? " refused"
                                                       : " as before"));
    }
    return out;
}

struct Case {
    const char* what;
    std::vector<SpdEntry> outbound;
    std::vector<const char*> own;
    std::vector<std::string> ways;
    size_t left = 0;
    std::vector<const char*> near_ends = {"192.0.2.1"};
    std::vector<const char*> far_ends = {"192.0.2.2"};
};

TEST(HostTrafficPlan, Kinds) {
    constexpr SpdAction kBypass = SpdAction::bypass;
    constexpr SpdAction kDiscard = SpdAction::discard;
    constexpr SpdAction kProtect = SpdAction::protect;
    const std::vector<Case> cases = {
        {"an address inside",
         {entry("10.1.0.0/24", "10.2.0.0/24")},
         {"127.0.0.1", "192.0.2.1", "10.1.0.1"},
         {"- 10.2.0.0/24 from 10.1.0.1", "10.1.0.1 10.2.0.0/24 from 10.1.0.1"}},
        {"IPv6, not by link-local or loopback addresses",
         {entry("::/0", "fd00:2::/64")},
         {"::1", "fe80::1", "fd00:1::1"},
         {"- fd00:2::/64 refused", "fd00:1::1 fd00:2::/64 refused"}},
        {"an IPv6 hole",
         {entry("fd00:1::/64", "fd00:2::8/125", kBypass), entry("fd00:1::/64", "fd00:2::/64")},
         {"fd00:1::1"},
         {"- fd00:2::/64 refused", "- fd00:2::8/125 as before", "fd00:1::1 fd00:2::/64 refused",
          "fd00:1::1 fd00:2::8/125 as before"}},
        {"no address inside", {entry("10.1.0.0/24", "10.2.0.0/24")}, {"192.0.2.1"}, {}},
        {"no worker sends",
         {entry("10.1.0.0/24", "10.2.0.0/24", kProtect, kOther)},
         {"10.1.0.1"},
         {}},
        {"each address has the destinations of its own policies",
         {entry("10.1.0.0/24", "10.2.0.0/24"), entry("10.9.0.0/24", "10.3.0.0/24")},
         {"10.1.0.1", "10.9.0.1"},
         {"- 10.2.0.0/24 from 10.1.0.1", "- 10.3.0.0/24 from 10.9.0.1",
          "10.1.0.1 10.2.0.0/24 from 10.1.0.1", "10.9.0.1 10.3.0.0/24 from 10.9.0.1"}},
        {"an outer address is the last that is chosen",
         {entry("0.0.0.0/0", "10.8.0.5/32")},
         {"192.0.2.1", "10.1.0.1"},
         {"- 10.8.0.5/32 from 10.1.0.1", "10.1.0.1 10.8.0.5/32 from 10.1.0.1",
          "192.0.2.1 10.8.0.5/32 from 192.0.2.1"}},
        {"a hole that the kernel forwards",
         {entry("10.1.0.0/24", "10.2.0.64/26", kBypass), entry("10.1.0.0/24", "10.2.0.0/24")},
         {"10.1.0.1"},
         {"- 10.2.0.0/24 from 10.1.0.1", "- 10.2.0.64/26 as before",
          "10.1.0.1 10.2.0.0/24 from 10.1.0.1", "10.1.0.1 10.2.0.64/26 as before"}},
        {"a hole behind it is none",
         {entry("10.1.0.0/24", "10.2.0.0/24"), entry("10.1.0.0/24", "10.2.0.64/26", kBypass)},
         {"10.1.0.1"},
         {"- 10.2.0.0/24 from 10.1.0.1", "- 10.2.0.64/26 from 10.1.0.1",
          "10.1.0.1 10.2.0.0/24 from 10.1.0.1", "10.1.0.1 10.2.0.64/26 from 10.1.0.1"}},
        {"one protocol, and nothing behind",
         {only_tcp(entry("10.1.0.0/24", "10.2.0.0/24"))},
         {"10.1.0.1"},
         {"- 10.2.0.0/24 from 10.1.0.1", "10.1.0.1 10.2.0.0/24 from 10.1.0.1"}},
        {"one protocol, and the rest is discarded",
         {only_tcp(entry("10.1.0.0/24", "10.2.0.0/24")),
          entry("10.1.0.0/24", "10.2.0.0/24", kDiscard)},
         {"10.1.0.1"},
         {"- 10.2.0.0/24 from 10.1.0.1", "10.1.0.1 10.2.0.0/24 from 10.1.0.1"}},
        {"one protocol, and the kernel has the rest",
         {only_tcp(entry("10.1.0.0/24", "10.2.0.0/24")),
          entry("10.1.0.0/24", "10.0.0.0/8", kBypass)},
         {"10.1.0.1"},
         {},
         1},
        {"one protocol of another tunnel that the kernel serves",
         {only_tcp(entry("10.1.0.0/24", "10.2.0.0/24", kProtect, kOther)),
          entry("10.1.0.0/24", "10.2.0.0/24")},
         {"10.1.0.1"},
         {},
         1},
        {"everything: peers are not led into it, nor is what has no source",
         {entry("10.1.0.0/24", "0.0.0.0/0")},
         {"10.1.0.1"},
         {"10.1.0.1 0.0.0.0/0 from 10.1.0.1", "10.1.0.1 192.0.2.2/32 as before"}},
        {"everything from everywhere: not from the outer address",
         {entry("0.0.0.0/0", "0.0.0.0/0")},
         {"10.1.0.1", "192.0.2.1"},
         {"10.1.0.1 0.0.0.0/0 from 10.1.0.1", "10.1.0.1 192.0.2.2/32 as before"},
         1},
        {"from gateway to gateway: IKE goes there too",
         {entry("192.0.2.1/32", "192.0.2.2/32")},
         {"192.0.2.1"},
         {},
         2},
    };
    for (const Case& one : cases) {
        SCOPED_TRACE(one.what);
        Policies policies{.outbound = one.outbound, .served = {false, true}};
        for (const char* end : one.near_ends) policies.near_ends.insert(address(end));
        for (const char* end : one.far_ends) policies.far_ends.insert(address(end));
        std::vector<IpAddress> own;
        for (const char* each : one.own) own.push_back(address(each));
        const Plan plan = plan_ways(policies, own);
        EXPECT_EQ(lines(plan), one.ways);
        EXPECT_EQ(plan.left.size(), one.left);
    }
}

// What the routes of a source say of a destination; nullptr: nothing.
const Way* looked_up(const Plan& plan, const IpAddress& source, const IpAddress& to) {
    const Way* found = nullptr;
    int bits = -1;
    for (const auto& [name, way] : plan.ways) {
        if (name.source != source || !name.to.contains(to) || name.to.bits <= bits) continue;
        found = &way;
        bits = name.to.bits;
    }
    return found;
}

// Into sp0 goes exactly what the first policy that covers it gives to a worker.
TEST(HostTrafficPlan, LeadsWhereTheSpdDoes) {
    std::mt19937 random(1);
    const auto below = [&](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
    const auto any_address = [&] {
        IpAddress one = address("10.0.0.0");
        one.bytes[3] = static_cast<uint8_t>(below(16));
        return one;
    };
    const auto any_prefix = [&](uint8_t shortest) {
        const auto bits = static_cast<uint8_t>(shortest + below(33u - shortest));
        return shortened({.address = any_address(), .bits = 32}, bits);
    };
    int led = 0;
    int not_led = 0;
    for (int round = 0; round < 500; ++round) {
        Policies policies{.outbound = {}, .served = {false, true}};
        const uint32_t size = 1 + below(12);
        for (uint32_t i = 0; i < size; ++i) {
            constexpr SpdAction kActions[] = {SpdAction::protect, SpdAction::protect,
                                              SpdAction::bypass, SpdAction::discard};
            policies.outbound.push_back({.policy = PolicyId{below(2)},
                                         .action = kActions[below(4)],
                                         .source = any_prefix(28),
                                         .destination = any_prefix(28)});
        }
        const std::vector<IpAddress> own = {any_address(), any_address()};
        const Plan plan = plan_ways(policies, own);
        EXPECT_TRUE(plan.left.empty());
        for (const IpAddress& source : own) {
            for (uint8_t last = 0; last < 16; ++last) {
                IpAddress to = address("10.0.0.0");
                to.bytes[3] = last;
                const auto first = std::ranges::find_if(policies.outbound, [&](const auto& one) {
                    return one.source.contains(source) && one.destination.contains(to);
                });
                const bool by_worker = first != policies.outbound.end() &&
                                       first->action == SpdAction::protect &&
                                       first->policy == PolicyId{1};
                const Way* way = looked_up(plan, source, to);
                const bool into_tunnel = way != nullptr && way->leads == Leads::into_tunnel;
                ASSERT_EQ(into_tunnel, by_worker)
                    << "round " << round << ": " << to_string(source) << " to " << to_string(to);
                (into_tunnel ? led : not_led) += 1;
                // One without a source takes one by which it is led there as well.
                const Way* free = looked_up(plan, address("0.0.0.0"), to);
                if (free != nullptr && free->leads == Leads::into_tunnel) {
                    const Way* then = looked_up(plan, free->from, to);
                    ASSERT_TRUE(then != nullptr && then->leads == Leads::into_tunnel)
                        << "round " << round;
                }
            }
        }
    }
    EXPECT_GT(led, 1000);
    EXPECT_GT(not_led, 1000);
}

// Step by step it is what it would be from the beginning, and all that is different is told.
TEST(HostTrafficPlan, IsKeptWhileGroupsAreServed) {
    std::mt19937 random(2);
    const auto below = [&](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
    const auto any_address = [&](bool v6) {
        IpAddress one = address(v6 ? "fd00::" : "10.0.0.0");
        one.bytes[v6 ? 15 : 3] = static_cast<uint8_t>(below(16));
        return one;
    };
    const auto any_prefix = [&](bool v6) {
        const uint8_t most = v6 ? 128 : 32;
        const auto bits = below(12) == 0 ? 0u : most - below(5);
        return shortened({.address = any_address(v6), .bits = most}, static_cast<uint8_t>(bits));
    };
    int changed = 0;
    for (int round = 0; round < 300; ++round) {
        Policies policies;
        const uint32_t size = 1 + below(12);
        for (uint32_t i = 0; i < size; ++i) {
            constexpr SpdAction kActions[] = {SpdAction::protect, SpdAction::protect,
                                              SpdAction::bypass, SpdAction::discard};
            const bool v6 = below(3) == 0;
            SpdEntry one{.policy = PolicyId{below(5)},
                         .action = kActions[below(4)],
                         .source = any_prefix(v6),
                         .destination = any_prefix(v6)};
            policies.outbound.push_back(below(4) == 0 ? only_tcp(one) : one);
        }
        std::vector<IpAddress> own;
        for (int i = 0; i < 3; ++i) own.push_back(any_address(below(3) == 0));
        if (below(2) == 0) policies.near_ends.insert(own.front());
        for (uint32_t i = below(3); i > 0; --i) policies.far_ends.insert(any_address(false));
        Ways ways(policies, own);
        for (int step = 0; step < 20; ++step) {
            const Plan before = ways.plan();
            const std::set<WayName> told = ways.serve(PolicyId{below(5)}, below(2) == 0);
            const Plan anew = plan_ways(ways.policies(), own);
            ASSERT_EQ(lines(ways.plan()), lines(anew)) << "round " << round << ", step " << step;
            ASSERT_EQ(ways.plan(), anew) << "round " << round << ", step " << step;
            for (const Plan* one : {&before, &anew}) {
                const Plan& other = one == &before ? anew : before;
                for (const auto& [name, way] : one->ways) {
                    const auto found = other.ways.find(name);
                    if (found != other.ways.end() && found->second == way) continue;
                    ++changed;
                    ASSERT_TRUE(told.contains(name)) << to_string(name.to);
                }
            }
        }
    }
    EXPECT_GT(changed, 1000);
}

// However many others there are.
TEST(HostTrafficPlan, WhatAGroupCoversIsLookedAtAndNoMore) {
    Policies policies;
    constexpr uint32_t kTunnels = 1000;
    for (uint32_t i = 0; i < kTunnels; ++i) {
        SpdEntry one = entry("10.1.0.0/24", "10.2.0.0/24", SpdAction::protect, i);
        one.destination.address.bytes[1] = static_cast<uint8_t>(64 + i / 256);
        one.destination.address.bytes[2] = static_cast<uint8_t>(i % 256);
        policies.outbound.push_back(one);
    }
    Ways ways(policies, std::vector{address("10.1.0.1")});
    EXPECT_TRUE(ways.plan().ways.empty());
    for (uint32_t i = 0; i < kTunnels; ++i) {
        EXPECT_EQ(ways.serve(PolicyId{i}, true).size(), 2u) << "with a source and without";
    }
    EXPECT_EQ(ways.plan().ways.size(), 2u * kTunnels);
}

}  // namespace
}  // namespace sallyport::host_traffic
