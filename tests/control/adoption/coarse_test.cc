// SPDX-License-Identifier: Apache-2.0
// What there is no room for is left to the kernel in the large (control/adoption/coarse.h): by
// peers that negotiate whatever helps them to be in the way.

#include "control/adoption/coarse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>

#include "bpf/abi.h"
#include "control/policy/compile.h"
#include "dataplane/spd/classes.h"
#include "dataplane/wire/ip_packet.h"
#include "tests/control/adoption/support.h"

namespace sallyport::control {
namespace {

using adoption::Claim;
using adoption::Region;
using adoption::regions_of;
using adoption::with_regions;
using adoption_test::address;
using adoption_test::inbound_sa;
using adoption_test::outbound_sa;
using adoption_test::owners_of;
using adoption_test::prefix;
using adoption_test::Register;
using adoption_test::Tunnel;
using xfrm::KernelPolicy;
using xfrm::PolicyAction;
using xfrm::PolicyDirection;

constexpr uint8_t kTcp = 6;
constexpr uint8_t kUdp = 17;
constexpr PolicyId kKernels{999};

// A CHILD_SA of `tunnel` narrowed to one port of the far side. A reqid of its own, as strongSwan
// has it.
struct Child {
    Tunnel tunnel;
    xfrm::SaName outbound;
    xfrm::SaName inbound;
};
Child add_child(Register& reg, Tunnel tunnel, uint16_t port, uint8_t protocol = kTcp) {
    tunnel.reqid = tunnel.reqid * 1000 + port;
    reg.add_policies(tunnel, [&](KernelPolicy& policy) {
        const bool outbound = policy.row.direction == PolicyDirection::out;
        auto& selector = policy.row.selector;
        selector.protocol = protocol;
        if (port == 0) return;
        (outbound ? selector.destination_port : selector.source_port) = port;
        (outbound ? selector.destination_port_mask : selector.source_port_mask) = 0xffff;
    });
    return {.tunnel = tunnel,
            .outbound = reg.add(outbound_sa(tunnel, 0x20000 + tunnel.reqid)),
            .inbound = reg.add(inbound_sa(tunnel, 0x10000 + tunnel.reqid))};
}

Tunnel peer(uint8_t number, const char* local_net, const char* remote_net) {
    Tunnel tunnel;
    tunnel.reqid = number;
    tunnel.remote.bytes[3] = number;
    tunnel.local_net = prefix(local_net);
    tunnel.remote_net = prefix(remote_net);
    return tunnel;
}

struct Flow {
    IpAddress source;
    IpAddress destination;
    uint8_t protocol = kTcp;
    uint16_t source_port = 0;
    uint16_t destination_port = 0;
    bool is_later_fragment = false;
};

SpdVerdict look_up(const Spd& spd, SpdDirection direction, const Flow& packet) {
    const bool has_ports = wire::has_port_numbers(packet.protocol) && !packet.is_later_fragment;
    return spd.lookup(
        direction,
        {.family = packet.source.family,
         .source = reinterpret_cast<const std::byte*>(packet.source.bytes.data()),
         .destination = reinterpret_cast<const std::byte*>(packet.destination.bytes.data()),
         .protocol = packet.protocol,
         .ports_known = has_ports,
         .source_port = has_ports ? packet.source_port : uint16_t{0},
         .destination_port = has_ports ? packet.destination_port : uint16_t{0}});
}

// What becomes of a packet.
enum class Fate : uint8_t { worker, kernel, bypass, discard, no_policy, dropped_fragment };
struct Published {
    Adoption adoption;
    std::unique_ptr<const Spd> spd;
    std::vector<std::vector<WorkerId>> owners;

    [[nodiscard]] Fate fate(const Flow& packet,
                            SpdDirection direction = SpdDirection::outbound) const {
        const SpdVerdict verdict = look_up(*spd, direction, packet);
        if (verdict.kind == SpdVerdict::Kind::ports_unknown) return Fate::dropped_fragment;
        if (verdict.kind == SpdVerdict::Kind::no_match) return Fate::no_policy;
        if (verdict.action == SpdAction::bypass) return Fate::bypass;
        if (verdict.action == SpdAction::discard) return Fate::discard;
        return owners[to_index(verdict.policy)].empty() ? Fate::kernel : Fate::worker;
    }
    [[nodiscard]] const std::string& reason_of(const xfrm::SaName& name) const {
        return adoption.sas.at(name).reason;
    }
};

std::optional<Published> publish(const Register& reg) {
    Published out{.adoption = reg.decide(), .spd = nullptr, .owners = {}};
    auto compiled = compile_entries(out.adoption.outbound, out.adoption.inbound);
    if (!compiled) {
        ADD_FAILURE() << compiled.error();
        return std::nullopt;
    }
    out.spd = std::move(compiled->spd);
    out.owners = owners_of(out.adoption);
    return out;
}

// ---- one address pair ---------------------------------------------------------------------------

TEST(Coarse, SeventeenNarrowedChildrenStopNobody) {
    Register reg;
    const Tunnel honest = peer(1, "10.1.0.0/24", "10.3.0.0/24");
    reg.add_policies(honest);
    const auto honest_out = reg.add(outbound_sa(honest, 0x2001));
    const Tunnel greedy = peer(2, "10.1.0.0/24", "10.2.0.0/24");
    std::vector<Child> children;
    for (uint16_t port = 1001; port <= 1017; ++port) {
        children.push_back(add_child(reg, greedy, port));
        if (port == 1016) {
            const auto fits = publish(reg);
            EXPECT_EQ(fits->reason_of(children.front().outbound), "") << "16 still fit";
            EXPECT_TRUE(fits->adoption.left_open.empty());
        }
    }
    const auto now = publish(reg);
    ASSERT_TRUE(now);
    EXPECT_EQ(now->reason_of(honest_out), "");
    EXPECT_EQ(now->fate({address("10.1.0.5"), address("10.3.0.5"), 1}), Fate::worker);

    const std::string why = "more than 16 policies for 10.1.0.0/24 to 10.2.0.0/24";
    for (const Child& child : children) {
        EXPECT_EQ(now->reason_of(child.outbound), "its policy: " + why);
        EXPECT_EQ(now->reason_of(child.inbound), "") << "what comes in needs no SPD entry";
    }
    for (const auto& [index, view] : now->adoption.policies) {
        const auto& policy = reg.policies.at(view.index);
        const bool is_honest = policy.templates.front().reqid == honest.reqid;
        const bool outbound = policy.row.direction == PolicyDirection::out;
        const std::string expected =
            outbound ? why : "more than 16 policies for 10.2.0.0/24 to 10.1.0.0/24";
        EXPECT_EQ(view.reason, is_honest ? "" : expected);
    }
    // The kernel has all of it, and drops what none of its policies covers there.
    const Flow some{address("10.1.0.5"), address("10.2.0.5"), kTcp, 5, 1001};
    EXPECT_EQ(now->fate(some), Fate::kernel);
    EXPECT_EQ(now->fate({address("10.1.0.5"), address("10.2.0.5"), 1}), Fate::kernel);
    const std::vector<AddressPair> open = {{prefix("10.1.0.0/24"), prefix("10.2.0.0/24")}};
    EXPECT_EQ(now->adoption.left_open, open);
    // It sees no ports of fragments, and might find another policy for them.
    Flow fragment = some;
    fragment.is_later_fragment = true;
    EXPECT_EQ(now->fate(fragment), Fate::dropped_fragment);
    // Nothing of it enters in clear.
    const Flow back{address("10.2.0.5"), address("10.1.0.5"), kTcp, 1001, 5};
    EXPECT_EQ(now->fate(back, SpdDirection::inbound), Fate::kernel) << "PROTECT";
}

TEST(Coarse, BothFamiliesAtOnce) {
    Register reg;
    Tunnel v6 = peer(2, "2001:db8:1::/64", "2001:db8:2::/64");
    const Tunnel v4 = peer(2, "10.1.0.0/24", "10.2.0.0/24");
    Child one_v4;
    Child one_v6;
    for (uint16_t port = 1; port <= 20; ++port) {
        one_v4 = add_child(reg, v4, port, port % 2 == 0 ? kTcp : kUdp);
        v6.reqid = 3;
        one_v6 = add_child(reg, v6, port);
    }
    const auto now = publish(reg);
    ASSERT_TRUE(now);
    EXPECT_EQ(now->adoption.left_open.size(), 2u);
    EXPECT_NE(now->reason_of(one_v4.outbound), "");
    EXPECT_NE(now->reason_of(one_v6.outbound), "");
    EXPECT_EQ(now->fate({address("2001:db8:1::1"), address("2001:db8:2::1"), 58}), Fate::kernel);
    Flow fragment{address("10.1.0.1"), address("10.2.0.1"), kUdp};
    fragment.is_later_fragment = true;
    EXPECT_EQ(now->fate(fragment), Fate::dropped_fragment);
}

// The address pair that is full is the intersection of wider ones; beside it all stays exact.
TEST(Coarse, OnlyTheIntersectionOfNestedPrefixesIsCoarse) {
    Register reg;
    const Tunnel wide = peer(2, "10.1.0.0/16", "10.2.0.0/16");
    const Tunnel near = peer(3, "10.1.7.0/24", "10.0.0.0/8");
    Child of_wide;
    Child of_near;
    for (uint16_t port = 1; port <= 10; ++port) of_wide = add_child(reg, wide, port);
    for (uint16_t port = 101; port <= 109; ++port) of_near = add_child(reg, near, port);
    const auto now = publish(reg);
    ASSERT_TRUE(now);
    const std::vector<AddressPair> open = {{prefix("10.1.7.0/24"), prefix("10.2.0.0/16")}};
    EXPECT_EQ(now->adoption.left_open, open);
    EXPECT_EQ(now->fate({address("10.1.7.1"), address("10.2.0.1"), kTcp, 9, 3}), Fate::kernel);
    // Their SAs are the kernel's then, also elsewhere: it sends by them there.
    EXPECT_EQ(now->fate({address("10.1.8.1"), address("10.2.0.1"), kTcp, 9, 3}), Fate::kernel);
    EXPECT_EQ(now->fate({address("10.1.8.1"), address("10.2.0.1"), kTcp, 9, 99}), Fate::no_policy);
    EXPECT_NE(now->reason_of(of_wide.outbound), "");
    EXPECT_NE(now->reason_of(of_near.outbound), "") << "behind the larger party's";
}

TEST(Coarse, WhoStandsInFrontOfTheLargestPartyKeepsItsWorkers) {
    Register reg;
    Tunnel honest = peer(1, "10.1.0.0/24", "10.2.0.0/24");
    honest.priority = 10;
    const Child first = add_child(reg, honest, 443);
    const Tunnel greedy = peer(2, "10.1.0.0/24", "10.2.0.0/24");
    Child last_of_greedy;
    for (uint16_t port = 1001; port <= 1030; ++port) last_of_greedy = add_child(reg, greedy, port);
    Tunnel other = peer(3, "10.1.0.0/24", "10.2.0.0/16");
    other.priority = 2000;
    reg.add_policies(other);
    const auto behind = reg.add(outbound_sa(other, 0x2003));
    const auto now = publish(reg);
    ASSERT_TRUE(now);
    EXPECT_EQ(now->reason_of(first.outbound), "");
    EXPECT_EQ(now->fate({address("10.1.0.1"), address("10.2.0.1"), kTcp, 9, 443}), Fate::worker);
    EXPECT_NE(now->reason_of(last_of_greedy.outbound), "");
    EXPECT_NE(now->reason_of(behind), "") << "the kernel sends by it in between";
}

TEST(Coarse, FiltersAmongThemAreTheKernelsToo) {
    Register reg;
    const Tunnel greedy = peer(2, "10.1.0.0/24", "10.2.0.0/24");
    for (uint16_t port = 1; port <= 12; ++port) add_child(reg, greedy, port);
    for (uint16_t port = 101; port <= 108; ++port) {
        const auto action = port % 2 == 0 ? PolicyAction::allow : PolicyAction::block;
        reg.add_filter(PolicyDirection::out, action, "10.1.0.0/24", "10.2.0.0/24", 1500,
                       [port](KernelPolicy& policy) {
                           policy.row.selector.protocol = kTcp;
                           policy.row.selector.destination_port = port;
                           policy.row.selector.destination_port_mask = 0xffff;
                       });
    }
    const auto now = publish(reg);
    ASSERT_TRUE(now);
    for (const uint16_t port : {uint16_t{101}, uint16_t{102}}) {
        EXPECT_EQ(now->fate({address("10.1.0.1"), address("10.2.0.1"), kTcp, 9, port}),
                  Fate::kernel);
    }
    const auto hidden = std::ranges::count_if(now->adoption.policies, [&](const auto& item) {
        return reg.policies.at(item.first).templates.empty() && !item.second.reason.empty();
    });
    EXPECT_EQ(hidden, 8) << "and they say so";
}

config::Policy of_config(SpdAction action, const char* local, const char* remote,
                         std::optional<uint16_t> remote_port = std::nullopt) {
    config::Policy policy;
    policy.action = action;
    policy.local = {prefix(local)};
    policy.remote = {prefix(remote)};
    if (remote_port) {
        policy.protocol = kTcp;
        policy.remote_ports = {*remote_port, *remote_port};
    }
    return policy;
}

// They are no party: what is coarse begins with the register's, and beside it they hold.
TEST(Coarse, PoliciesOfTheConfigurationAreNotWidened) {
    Register reg;
    for (uint16_t port = 1; port <= 15; ++port) {
        reg.config.push_back(of_config(port % 2 == 0 ? SpdAction::bypass : SpdAction::discard,
                                       "10.0.0.0/8", "10.2.0.0/24", port));
    }
    const Tunnel small = peer(2, "10.1.0.0/24", "10.2.0.0/24");
    Child one = add_child(reg, small, 443);
    EXPECT_TRUE(publish(reg)->adoption.left_open.empty());
    one = add_child(reg, small, 444);
    const auto now = publish(reg);
    ASSERT_TRUE(now);
    const std::vector<AddressPair> open = {{prefix("10.1.0.0/24"), prefix("10.2.0.0/24")}};
    EXPECT_EQ(now->adoption.left_open, open);
    EXPECT_EQ(now->fate({address("10.9.0.1"), address("10.2.0.1"), kTcp, 9, 2}), Fate::bypass);
    EXPECT_EQ(now->fate({address("10.9.0.1"), address("10.2.0.1"), kTcp, 9, 1}), Fate::discard);
    EXPECT_EQ(now->fate({address("10.1.0.1"), address("10.2.0.1"), kTcp, 9, 1}), Fate::kernel);
    EXPECT_NE(now->reason_of(one.outbound), "");
}

// ---- the whole list -----------------------------------------------------------------------------

TEST(Coarse, WithoutRoomTheLargestPeersGoFirst) {
    Register reg;
    std::vector<xfrm::SaName> honest;
    for (uint8_t i = 1; i <= 100; ++i) {
        Tunnel tunnel = peer(i, "10.1.0.0/16", "10.2.0.0/24");
        tunnel.remote_net.address.bytes[2] = i;
        reg.add_policies(tunnel);
        honest.push_back(reg.add(outbound_sa(tunnel, 0x2000u + i)));
    }
    Tunnel greedy = peer(200, "10.1.0.0/16", "10.200.0.0/32");
    std::vector<xfrm::SaName> greedys;
    for (uint32_t i = 0; i < 900; ++i) {
        greedy.reqid = 1000 + i;
        greedy.remote_net.address.bytes[2] = static_cast<uint8_t>(i >> 8);
        greedy.remote_net.address.bytes[3] = static_cast<uint8_t>(i);
        reg.add_policies(greedy);
        greedys.push_back(reg.add(outbound_sa(greedy, 0x4000 + i)));
    }
    reg.entries_max = 400;
    const auto now = publish(reg);
    ASSERT_TRUE(now);
    EXPECT_LE(now->adoption.outbound.size(), 400u);
    EXPECT_LE(now->adoption.inbound.size(), 400u);
    for (const xfrm::SaName& name : honest) EXPECT_EQ(now->reason_of(name), "");
    for (const xfrm::SaName& name : greedys) {
        EXPECT_EQ(now->reason_of(name), "its policy: no room for the 900 policies of its peer");
    }
    EXPECT_EQ(now->fate({address("10.1.0.5"), address("10.2.7.5"), 1}), Fate::worker);
    EXPECT_EQ(now->fate({address("10.1.0.5"), address("10.200.1.5"), 1}), Fate::kernel);
}

TEST(Coarse, WithoutAnyRoomAllIsTheKernels) {
    for (const size_t room : {size_t{0}, size_t{1}, size_t{7}, size_t{30}}) {
        Register reg;
        reg.entries_max = room;
        for (uint8_t i = 1; i <= 50; ++i) {
            Tunnel tunnel = peer(i, "10.1.0.0/16", "10.2.0.0/24");
            tunnel.remote_net.address.bytes[2] = i;
            tunnel.priority = i;
            reg.add_policies(tunnel);
            reg.add(outbound_sa(tunnel, 0x2000u + i));
        }
        const auto now = publish(reg);
        ASSERT_TRUE(now);
        EXPECT_LE(now->adoption.outbound.size(), std::max<size_t>(room, 8));
        EXPECT_EQ(now->fate({address("10.1.0.5"), address("10.2.50.5"), 1}), Fate::kernel);
        EXPECT_EQ(now->fate({address("10.1.0.5"), address("10.2.1.5"), 1}),
                  room == 30 ? Fate::worker : Fate::kernel)
            << "the first of the list come last";
        EXPECT_EQ(now->fate({address("2001:db8::1"), address("2001:db8::2"), 1}), Fate::kernel);
    }
}

// ---- properties ---------------------------------------------------------------------------------

struct Chance {
    std::mt19937 random;
    uint32_t below(uint32_t bound) { return static_cast<uint32_t>(random() % bound); }
    IpAddress any_address() {
        IpAddress out = address("10.0.0.0");
        out.bytes[3] = static_cast<uint8_t>(below(8));
        return out;
    }
    IpPrefix any_prefix() {
        return shortened({any_address(), 32}, static_cast<uint8_t>(29 + below(4)));
    }
};

// Whatever stands in a list, it compiles; what is exact in it stays exact or becomes the kernel's,
// and what the regions cover begins with an entry of the register.
TEST(CoarseProperty, EveryListFitsAndOnlyLosesToTheKernel) {
    Chance dice{std::mt19937(5)};
    int coarse = 0;
    int exact = 0;
    for (int round = 0; round < 600; ++round) {
        std::vector<Claim> list;
        const uint32_t of_register = 10 + dice.below(60);
        const uint32_t size = of_register + dice.below(10);
        for (uint32_t i = 0; i < size; ++i) {
            SpdEntry entry{.policy = PolicyId{i},
                           .action = static_cast<SpdAction>(dice.below(3)),
                           .source = dice.any_prefix(),
                           .destination = dice.any_prefix()};
            if (i >= of_register && entry.action == SpdAction::protect) {
                entry.action = SpdAction::discard;
            }
            if (dice.below(20) != 0) {
                entry.protocol = static_cast<uint8_t>(dice.below(3) == 0   ? 50 + dice.below(30)
                                                      : dice.below(2) == 0 ? 6
                                                                           : 17);
                if (entry.protocol < 50 && dice.below(4) != 0) {
                    entry.has_ports = true;
                    entry.destination_port_lo = entry.destination_port_hi =
                        static_cast<uint16_t>(dice.below(20));
                }
            }
            list.push_back({.entry = entry,
                            .party = i < of_register ? dice.below(4) : Claim::kConfiguration,
                            .place = {.index = i}});
        }
        const size_t entries_max = dice.below(3) == 0 ? dice.below(60) : 1000;
        const auto regions = regions_of(list, entries_max);
        const auto [entries, places] =
            with_regions(list, regions, SpdDirection::outbound, kKernels);
        ASSERT_EQ(places.size(), entries.size());
        ASSERT_EQ(std::ranges::adjacent_find(places, std::ranges::greater_equal{}), places.end());
        const auto spd = compile_entries(entries, {});
        ASSERT_TRUE(spd) << "round " << round << ": " << spd.error();
        for (int probe = 0; probe < 200; ++probe) {
            const Flow packet{
                .source = dice.any_address(),
                .destination = dice.any_address(),
                .protocol = static_cast<uint8_t>(dice.below(3) == 0   ? 50 + dice.below(30)
                                                 : dice.below(2) == 0 ? 6
                                                                      : 17),
                .source_port = 1,
                .destination_port = static_cast<uint16_t>(dice.below(20))};
            // The list itself, in order.
            const auto asked = std::ranges::find_if(list, [&](const Claim& claim) {
                const SpdEntry& entry = claim.entry;
                return entry.source.contains(packet.source) &&
                       entry.destination.contains(packet.destination) &&
                       (entry.protocol == 0 || entry.protocol == packet.protocol) &&
                       (!entry.has_ports || entry.destination_port_lo == packet.destination_port);
            });
            const auto place = static_cast<size_t>(asked - list.begin());
            const bool is_coarse = std::ranges::any_of(regions, [&](const Region& region) {
                return region.position <= place && region.source.contains(packet.source) &&
                       region.destination.contains(packet.destination);
            });
            const SpdVerdict verdict = look_up(*spd->spd, SpdDirection::outbound, packet);
            if (is_coarse) {
                ASSERT_EQ(verdict.kind, SpdVerdict::Kind::matched);
                ASSERT_EQ(verdict.policy, kKernels) << "round " << round;
                ++coarse;
            } else if (asked == list.end()) {
                ASSERT_EQ(verdict.kind, SpdVerdict::Kind::no_match) << "round " << round;
            } else {
                ASSERT_EQ(verdict.kind, SpdVerdict::Kind::matched);
                ASSERT_EQ(verdict.policy, asked->entry.policy) << "round " << round;
                ASSERT_EQ(verdict.action, asked->entry.action);
                ++exact;
            }
        }
    }
    EXPECT_GT(coarse, 1000);
    EXPECT_GT(exact, 1000);
}

// Few addresses inside each other, and entries that take all between those that do not: what a
// class reads does not end where the list does.
TEST(CoarseProperty, WhatFitsCompiles) {
    Chance dice{std::mt19937(7)};
    int with_regions_in_it = 0;
    for (int round = 0; round < 4000; ++round) {
        std::vector<Claim> list;
        const uint32_t size = 17 + dice.below(30);
        for (uint32_t i = 0; i < size; ++i) {
            SpdEntry entry{.policy = PolicyId{i}, .action = SpdAction::protect};
            entry.source =
                shortened(prefix("10.1.0.0/32"), static_cast<uint8_t>(30 - dice.below(2)));
            entry.destination =
                shortened(prefix("10.2.0.0/32"), static_cast<uint8_t>(30 - dice.below(3)));
            if (dice.below(12) != 0) {
                entry.protocol = kTcp;
                entry.has_ports = true;
                entry.destination_port_lo = entry.destination_port_hi = static_cast<uint16_t>(i);
            }
            list.push_back({.entry = entry, .party = dice.below(3), .place = {.index = i}});
        }
        const auto regions = regions_of(list, 1000);
        with_regions_in_it += regions.empty() ? 0 : 1;
        const SpdList with = with_regions(list, regions, SpdDirection::outbound, kKernels);
        std::vector<std::pair<SpdPlace, SpdEntry>> items;
        for (size_t i = 0; i < with.entries.size(); ++i) {
            items.emplace_back(with.places[i], with.entries[i]);
        }
        SpdRuns runs(1 << 16);
        const auto built = SpdClasses(runs).build(items);
        ASSERT_TRUE(built) << "round " << round << ": " << built.error();
    }
    EXPECT_GT(with_regions_in_it, 100);
    EXPECT_LT(with_regions_in_it, 3900);
}

// Thirteen in front of one of a wider destination that takes all, and four behind it.
TEST(Coarse, OneWiderThatTakesAllDoesNotHideWhatIsBehindIt) {
    std::vector<Claim> list;
    const auto add = [&](const char* destination, uint16_t port) {
        SpdEntry entry{.policy = PolicyId{static_cast<uint32_t>(list.size())},
                       .action = SpdAction::protect,
                       .source = prefix("10.1.0.0/24"),
                       .destination = prefix(destination)};
        if (port != 0) {
            entry.protocol = kTcp;
            entry.has_ports = true;
            entry.destination_port_lo = entry.destination_port_hi = port;
        }
        list.push_back(
            {.entry = entry, .party = 1, .place = {.index = static_cast<uint32_t>(list.size())}});
    };
    for (uint16_t port = 1; port <= 13; ++port) add("10.2.0.0/16", port);
    add("10.2.0.0/15", 0);
    for (uint16_t port = 21; port <= 24; ++port) add("10.2.0.0/16", port);
    const auto regions = regions_of(list, 1000);
    ASSERT_EQ(regions.size(), 1u);
    EXPECT_EQ(regions[0].destination, prefix("10.2.0.0/16"));
    EXPECT_TRUE(
        compile_entries(with_regions(list, regions, SpdDirection::outbound, kKernels).entries, {}));
}

// Two senders would use the numbers of one SA: what the kernel may send by, no worker has.
TEST(CoarseProperty, NoSaHasTwoSenders) {
    Chance dice{std::mt19937(6)};
    int left = 0;
    int adopted = 0;
    for (int round = 0; round < 200; ++round) {
        Register reg;
        std::vector<Child> children;
        const uint32_t size = 17 + dice.below(30);
        for (uint16_t i = 0; i < size; ++i) {
            Tunnel tunnel;
            tunnel.reqid = 1 + dice.below(3);
            tunnel.remote.bytes[3] = static_cast<uint8_t>(tunnel.reqid);
            tunnel.local_net = dice.any_prefix();
            tunnel.remote_net = dice.any_prefix();
            tunnel.priority = dice.below(5);
            children.push_back(add_child(reg, tunnel, static_cast<uint16_t>(100 + i)));
        }
        const auto now = publish(reg);
        ASSERT_TRUE(now);
        for (const Child& child : children) {
            Flow packet{.source = child.tunnel.local_net.address,
                        .destination = child.tunnel.remote_net.address,
                        .source_port = 1,
                        .destination_port = static_cast<uint16_t>(child.tunnel.reqid % 1000)};
            for (int probe = 0; probe < 16; ++probe) {
                packet.source.bytes[3] = static_cast<uint8_t>(dice.below(8));
                packet.destination.bytes[3] = static_cast<uint8_t>(dice.below(8));
                if (!child.tunnel.local_net.contains(packet.source) ||
                    !child.tunnel.remote_net.contains(packet.destination)) {
                    continue;
                }
                // The port is of this child alone.
                const bool is_adopted = now->adoption.sas.at(child.outbound).adopted();
                ASSERT_EQ(now->fate(packet), is_adopted ? Fate::worker : Fate::kernel);
                (is_adopted ? adopted : left) += 1;
            }
        }
    }
    EXPECT_GT(left, 1000);
    EXPECT_GT(adopted, 1000);
}

// ---- time ---------------------------------------------------------------------------------------

TEST(CoarseProperty, ThousandsThatAreInEachOthersWay) {
    std::vector<Claim> list;
    constexpr uint32_t kEach = 8000;
    for (uint32_t i = 0; i < 2 * kEach; ++i) {
        IpPrefix one = prefix("10.0.0.0/32");
        one.address.bytes[2] = static_cast<uint8_t>(i >> 8);
        one.address.bytes[3] = static_cast<uint8_t>(i);
        const IpPrefix all = prefix("10.0.0.0/8");
        SpdEntry entry{.policy = PolicyId{i},
                       .action = SpdAction::protect,
                       .source = i < kEach ? one : all,
                       .destination = i < kEach ? all : one,
                       .protocol = kTcp,
                       .has_ports = true,
                       .destination_port_lo = static_cast<uint16_t>(i),
                       .destination_port_hi = static_cast<uint16_t>(i)};
        list.push_back({.entry = entry, .party = i % 3});
    }
    const std::clock_t start = std::clock();
    const auto regions = regions_of(list, 100000);
    const auto entries = with_regions(list, regions, SpdDirection::outbound, kKernels).entries;
    std::printf("%zu entries: %zu regions, %zu entries, %.0f ms\n", list.size(), regions.size(),
                entries.size(),
                1000.0 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    EXPECT_TRUE(compile_entries(entries, {}));
}

}  // namespace
}  // namespace sallyport::control
