// SPDX-License-Identifier: Apache-2.0
// decide_adoption() against what the kernel would do with random policies, SAs and packets, asked
// policy by policy. And its time with many of them.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>

#include "control/policy/compile.h"
#include "dataplane/wire/ip_packet.h"
#include "tests/control/adoption/support.h"

namespace sallyport::control {
namespace {

// Of each list: one for each entry, none twice, in its order.
void expect_places(const Adoption& adoption) {
    EXPECT_EQ(adoption.outbound_places.size(), adoption.outbound.size());
    EXPECT_EQ(adoption.inbound_places.size(), adoption.inbound.size());
    for (const auto* places : {&adoption.outbound_places, &adoption.inbound_places}) {
        EXPECT_EQ(std::ranges::adjacent_find(*places, std::ranges::greater_equal{}), places->end());
    }
}

using adoption_test::inbound_sa;
using adoption_test::outbound_sa;
using adoption_test::owners_of;
using adoption_test::prefix;
using adoption_test::Register;
using adoption_test::Tunnel;
using xfrm::KernelPolicy;
using xfrm::KernelSa;
using xfrm::PolicyAction;
using xfrm::PolicyDirection;

// ---- the kernel, policy by policy --------------------------------------------------------------

struct Packet {
    IpAddress source;
    IpAddress destination;
    uint8_t protocol = 0;
    uint16_t source_port = 0;  // of ICMP: type
    uint16_t destination_port = 0;
    uint32_t mark = 0;  // what netfilter would give it
};

bool kernel_matches(const KernelPolicy& policy, const Packet& packet) {
    const xfrm::PolicySelector& selector = policy.row.selector;
    return (packet.mark & policy.mark.mask) == policy.mark.value && policy.if_id == 0 &&
           policy.selector_ifindex == 0 && selector.source.contains(packet.source) &&
           selector.destination.contains(packet.destination) &&
           (selector.protocol == 0 || selector.protocol == packet.protocol) &&
           ((packet.source_port ^ selector.source_port) & selector.source_port_mask) == 0 &&
           ((packet.destination_port ^ selector.destination_port) &
            selector.destination_port_mask) == 0;
}

// Those of the direction of which one decides: which one of them nobody can tell. None: no policy
// covers the packet.
std::vector<const KernelPolicy*> kernel_asks(const Register& reg, PolicyDirection direction,
                                             const Packet& packet) {
    std::vector<const KernelPolicy*> first;
    for (const auto& [index, policy] : reg.policies) {
        if (policy.row.direction != direction || !kernel_matches(policy, packet)) continue;
        if (!first.empty() && policy.row.priority < first[0]->row.priority) first.clear();
        if (first.empty() || policy.row.priority == first[0]->row.priority) {
            first.push_back(&policy);
        }
    }
    return first;
}

SpdAction kernel_action(const KernelPolicy& policy) {
    if (policy.row.action == PolicyAction::block) return SpdAction::discard;
    return policy.templates.empty() ? SpdAction::bypass : SpdAction::protect;
}

bool lets_pass(const KernelPolicy* policy) {
    return kernel_action(*policy) == SpdAction::bypass;
}

// May a decrypted packet that came by the SA pass?
bool kernel_accepts(const KernelPolicy& policy, const KernelSa& sa) {
    if (kernel_action(policy) != SpdAction::protect) return false;
    const xfrm::Template& wanted = policy.templates.front();
    return (wanted.reqid == 0 || wanted.reqid == sa.reqid) &&
           (wanted.source == IpAddress{} || wanted.source == sa.source);
}

// ---- random registers --------------------------------------------------------------------------

class Dice {
  public:
    explicit Dice(uint32_t seed) : random_(seed) {}
    uint32_t below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }
    bool one_in(uint32_t bound) { return below(bound) == 0; }

    IpAddress any_address() {
        IpAddress address = adoption_test::address("10.0.0.0");
        address.bytes[3] = static_cast<uint8_t>(below(16));
        return address;
    }
    IpPrefix any_prefix() {
        IpPrefix made{.address = any_address(), .bits = static_cast<uint8_t>(28 + below(5))};
        const unsigned kept = 0xffu << (32 - made.bits);
        made.address.bytes[3] = static_cast<uint8_t>(made.address.bytes[3] & kept);
        if (one_in(8)) made = prefix("0.0.0.0/0");
        return made;
    }
    Packet any_packet() {
        constexpr uint8_t kProtocols[] = {1, 6, 17};
        return {.source = any_address(),
                .destination = any_address(),
                .protocol = kProtocols[below(3)],
                .source_port = static_cast<uint16_t>(below(8)),
                .destination_port = static_cast<uint16_t>(below(8)),
                .mark = below(4)};
    }

  private:
    std::mt19937 random_;
};

Tunnel tunnel_of(uint32_t reqid) {
    Tunnel tunnel;
    tunnel.reqid = reqid;
    tunnel.remote.bytes[3] = static_cast<uint8_t>(reqid);
    return tunnel;
}

constexpr uint32_t kTunnels = 4;

struct Kind {
    bool unjudged = false;   // marks and port masks that are no ranges
    bool protocols = false;  // and ports
    bool spis = false;       // out templates name one of the two SAs of their tunnel
};

// Of its SAs: add_sas().
Spi any_spi(Dice& dice, const Tunnel& tunnel) {
    return Spi{(dice.one_in(2) ? 0x2000 : 0x3000) + tunnel.reqid};
}

KernelPolicy any_policy(Dice& dice, PolicyDirection direction, Kind kind) {
    KernelPolicy policy;
    policy.row.direction = direction;
    policy.row.action = dice.one_in(5) ? PolicyAction::block : PolicyAction::allow;
    policy.row.priority = dice.below(4);
    policy.row.selector.source = dice.any_prefix();
    policy.row.selector.destination = dice.any_prefix();
    if (kind.protocols && dice.one_in(3)) {
        constexpr uint16_t kMasks[] = {0, 0xffff, 0xfffe, 0xfffc};
        auto& selector = policy.row.selector;
        selector.protocol = dice.one_in(2) ? 6 : 17;
        selector.source_port_mask = kMasks[dice.below(4)];
        selector.source_port = static_cast<uint16_t>(dice.below(8) & selector.source_port_mask);
        selector.destination_port_mask = kMasks[dice.below(4)];
        selector.destination_port =
            static_cast<uint16_t>(dice.below(8) & selector.destination_port_mask);
    }
    if (kind.unjudged && dice.one_in(6)) {
        policy.mark.mask = 1 + dice.below(3);
        policy.mark.value = dice.below(4) & policy.mark.mask;
    }
    if (kind.unjudged && dice.one_in(6)) {
        auto& selector = policy.row.selector;
        selector.protocol = dice.one_in(2) ? 1 : 6;
        selector.source_port_mask = 5;
        selector.source_port = static_cast<uint16_t>(dice.below(8) & 5);
    }
    if (!dice.one_in(4)) {
        const Tunnel tunnel = tunnel_of(1 + dice.below(kTunnels));
        const bool outbound = direction == PolicyDirection::out;
        policy.templates.push_back({.source = outbound ? tunnel.local : tunnel.remote,
                                    .destination = outbound ? tunnel.remote : tunnel.local,
                                    .spi = kind.spis && outbound ? any_spi(dice, tunnel) : Spi{},
                                    .reqid = tunnel.reqid});
    }
    return policy;
}

void add_sas(Register& reg) {
    for (uint32_t reqid = 1; reqid <= kTunnels; ++reqid) {
        reg.add(outbound_sa(tunnel_of(reqid), 0x3000 + reqid));
        reg.add(outbound_sa(tunnel_of(reqid), 0x2000 + reqid));
        reg.add(inbound_sa(tunnel_of(reqid), 0x1000 + reqid));
    }
}

SpdVerdict look_up(const Spd& spd, SpdDirection direction, const Packet& packet) {
    const bool has_ports = wire::has_port_numbers(packet.protocol);
    return spd.lookup(
        direction,
        {.source = reinterpret_cast<const std::byte*>(packet.source.bytes.data()),
         .destination = reinterpret_cast<const std::byte*>(packet.destination.bytes.data()),
         .protocol = packet.protocol,
         .ports_known = has_ports,
         .source_port = has_ports ? packet.source_port : uint16_t{0},
         .destination_port = has_ports ? packet.destination_port : uint16_t{0}});
}

bool worker_accepts(const SaDecision& sa, const Packet& packet) {
    return std::ranges::any_of(sa.selectors, [&](const Selector& selector) {
        return selector.source.contains(packet.source) &&
               selector.destination.contains(packet.destination) &&
               (selector.protocol == 0 || selector.protocol == packet.protocol) &&
               (!selector.has_ports || (packet.source_port >= selector.source_port_lo &&
                                        packet.source_port <= selector.source_port_hi &&
                                        packet.destination_port >= selector.destination_port_lo &&
                                        packet.destination_port <= selector.destination_port_hi));
    });
}

// The view of the policy with this index.
const PolicyView& view_of(const Adoption& adoption, uint32_t index) {
    return adoption.policies.at(index);
}

struct Counts {
    int bypass = 0;
    int discard = 0;
    int protect = 0;
    int kernel = 0;
    int none = 0;
    int several = 0;  // the kernel may ask one or another
};

// ---- properties --------------------------------------------------------------------------------

// Outbound: what XDP and workers decide by themselves, the kernel would decide as well, whatever
// mark a packet may get there. And what is left to the kernel never meets a worker's SA there.
TEST(AdoptionProperty, OutboundVerdictsAreTheKernels) {
    Dice dice(1);
    Counts counts;
    int adopted = 0;
    for (int round = 0; round < 400; ++round) {
        Register reg;
        const Kind kind{
            .unjudged = round % 4 == 0, .protocols = round % 2 == 0, .spis = round % 8 >= 4};
        const uint32_t size = 1 + dice.below(24);
        for (uint32_t i = 0; i < size; ++i) {
            reg.add(any_policy(dice, PolicyDirection::out, kind));
        }
        add_sas(reg);
        const Adoption adoption = reg.decide();
        const auto spd = compile_entries(adoption.outbound, adoption.inbound);
        ASSERT_TRUE(spd) << spd.error();
        expect_places(adoption);
        for (const auto& [name, sa] : adoption.sas) adopted += sa.adopted() ? 1 : 0;
        const auto owners_by_group = owners_of(adoption);
        for (int probe = 0; probe < 300; ++probe) {
            const Packet packet = dice.any_packet();
            const SpdVerdict verdict = look_up(*spd->spd, SpdDirection::outbound, packet);
            const auto asked = kernel_asks(reg, PolicyDirection::out, packet);
            if (verdict.kind == SpdVerdict::Kind::no_match) {
                ASSERT_TRUE(asked.empty()) << "round " << round;
                ++counts.none;
                continue;
            }
            // The kernel's match of a fragment's ports is none of this test's business.
            ASSERT_EQ(verdict.kind, SpdVerdict::Kind::matched);
            const auto& owners = owners_by_group[to_index(verdict.policy)];
            if (verdict.action == SpdAction::protect && owners.empty()) {
                ++counts.kernel;
                if (asked.size() > 1) ++counts.several;
                for (const KernelPolicy* policy : asked) {
                    if (kernel_action(*policy) != SpdAction::protect) continue;
                    const xfrm::Template& wanted = policy->templates.front();
                    for (const auto& [name, sa] : adoption.sas) {
                        if (sa.direction != xfrm::StateDirection::outbound) continue;
                        if (reg.states.at(name).reqid != wanted.reqid) continue;
                        if (wanted.spi != Spi{} && wanted.spi != name.spi) continue;
                        ASSERT_FALSE(sa.adopted()) << "round " << round << ": two senders";
                    }
                }
                continue;
            }
            ASSERT_FALSE(asked.empty()) << "round " << round;
            ASSERT_TRUE(
                std::ranges::any_of(asked,
                                    [&](const KernelPolicy* policy) {
                                        return view_of(adoption, policy->row.index).reason.empty();
                                    }))
                << "round " << round;
            for (const KernelPolicy* policy : asked) {
                ASSERT_EQ(verdict.action, kernel_action(*policy)) << "round " << round;
                if (verdict.action != SpdAction::protect) continue;
                ASSERT_EQ(verdict.policy, view_of(adoption, policy->row.index).group);
                const xfrm::Template& wanted = policy->templates.front();
                for (const auto& [name, sa] : adoption.sas) {
                    if (!sa.adopted() || sa.direction != xfrm::StateDirection::outbound ||
                        sa.group != verdict.policy) {
                        continue;
                    }
                    ASSERT_EQ(reg.states.at(name).reqid, wanted.reqid) << "round " << round;
                    ASSERT_TRUE(wanted.spi == Spi{} || wanted.spi == name.spi)
                        << "round " << round << ": not the SA that the template names";
                }
            }
            (verdict.action == SpdAction::protect  ? counts.protect
             : verdict.action == SpdAction::bypass ? counts.bypass
                                                   : counts.discard) += 1;
        }
    }
    EXPECT_GT(counts.bypass, 1000);
    EXPECT_GT(counts.discard, 1000);
    EXPECT_GT(counts.protect, 1000);
    EXPECT_GT(counts.kernel, 1000);
    EXPECT_GT(counts.none, 1000);
    EXPECT_GT(counts.several, 1000);
    EXPECT_GT(adopted, 100);
}

// Inbound, with `in` and `fwd` as IKE daemons make them: verdicts for cleartext are the kernel's,
// and a worker accepts of an SA what the kernel would accept.
TEST(AdoptionProperty, InboundVerdictsAndSelectorsAreTheKernels) {
    Dice dice(2);
    Counts counts;
    int accepted = 0;
    int refused = 0;
    for (int round = 0; round < 400; ++round) {
        Register reg;
        const Kind kind{.protocols = round % 2 == 0};
        const uint32_t size = 1 + dice.below(16);
        for (uint32_t i = 0; i < size; ++i) {
            KernelPolicy policy = any_policy(dice, PolicyDirection::in, kind);
            reg.add(policy);
            policy.row.direction = PolicyDirection::forward;
            reg.add(policy);
        }
        add_sas(reg);
        const Adoption adoption = reg.decide();
        const auto spd = compile_entries(adoption.outbound, adoption.inbound);
        ASSERT_TRUE(spd) << spd.error();
        expect_places(adoption);
        for (int probe = 0; probe < 300; ++probe) {
            Packet packet = dice.any_packet();
            if (packet.protocol == 1) packet.source_port = packet.destination_port = 0;
            const auto asked = kernel_asks(reg, PolicyDirection::forward, packet);
            const SpdVerdict verdict = look_up(*spd->spd, SpdDirection::inbound, packet);
            const auto does = [&](const KernelPolicy* policy) {
                return kernel_action(*policy) == verdict.action;
            };
            if (asked.empty()) {
                ASSERT_EQ(verdict.kind, SpdVerdict::Kind::no_match) << "round " << round;
                ++counts.none;
            } else {
                ASSERT_EQ(verdict.kind, SpdVerdict::Kind::matched) << "round " << round;
                ASSERT_TRUE(std::ranges::any_of(asked, does)) << "round " << round;
                if (!std::ranges::all_of(asked, does)) {
                    ASSERT_NE(verdict.action, SpdAction::bypass) << "round " << round;
                    ++counts.several;
                }
                (verdict.action == SpdAction::bypass    ? counts.bypass
                 : verdict.action == SpdAction::discard ? counts.discard
                                                        : counts.protect) += 1;
            }
            for (const auto& [name, decision] : adoption.sas) {
                if (!decision.adopted() || decision.direction != xfrm::StateDirection::inbound) {
                    continue;
                }
                const auto accepts = [&](const KernelPolicy* policy) {
                    return kernel_accepts(*policy, reg.states.at(name));
                };
                const bool expected = std::ranges::any_of(asked, accepts);
                ASSERT_TRUE(!expected || std::ranges::all_of(asked, accepts))
                    << "round " << round << ": only the kernel knows";
                ASSERT_EQ(worker_accepts(decision, packet), expected) << "round " << round;
                (expected ? accepted : refused) += 1;
            }
        }
    }
    EXPECT_GT(counts.bypass, 1000);
    EXPECT_GT(counts.discard, 1000);
    EXPECT_GT(counts.protect, 1000);
    EXPECT_GT(counts.none, 1000);
    EXPECT_GT(counts.several, 1000);
    EXPECT_GT(accepted, 1000);
    EXPECT_GT(refused, 1000);
}

// Inbound, `in` and `fwd` without regard to each other, and with what workers cannot judge: never
// more open than the kernel.
TEST(AdoptionProperty, InboundOpensNoMoreThanTheKernel) {
    Dice dice(3);
    int opened = 0;
    int closed = 0;
    int accepted = 0;
    for (int round = 0; round < 600; ++round) {
        Register reg;
        const Kind kind{.unjudged = round % 3 != 0, .protocols = round % 2 == 0};
        const uint32_t size = 1 + dice.below(16);
        for (uint32_t i = 0; i < size; ++i) {
            reg.add(any_policy(
                dice, dice.one_in(2) ? PolicyDirection::in : PolicyDirection::forward, kind));
        }
        add_sas(reg);
        const Adoption adoption = reg.decide();
        const auto spd = compile_entries(adoption.outbound, adoption.inbound);
        ASSERT_TRUE(spd) << spd.error();
        expect_places(adoption);
        for (int probe = 0; probe < 300; ++probe) {
            const Packet packet = dice.any_packet();
            const auto forward = kernel_asks(reg, PolicyDirection::forward, packet);
            const auto local = kernel_asks(reg, PolicyDirection::in, packet);
            const SpdVerdict verdict = look_up(*spd->spd, SpdDirection::inbound, packet);
            if (verdict.kind == SpdVerdict::Kind::matched && verdict.action == SpdAction::bypass) {
                ASSERT_TRUE(std::ranges::all_of(forward, lets_pass)) << "round " << round;
                ++opened;
            } else {
                ++closed;
            }
            for (const auto& [name, decision] : adoption.sas) {
                if (!decision.adopted() || decision.direction != xfrm::StateDirection::inbound ||
                    !worker_accepts(decision, packet)) {
                    continue;
                }
                const auto accepts = [&](const KernelPolicy* policy) {
                    return kernel_accepts(*policy, reg.states.at(name));
                };
                ASSERT_TRUE(std::ranges::all_of(forward, accepts));
                ASSERT_TRUE(std::ranges::all_of(local, accepts));
                ASSERT_FALSE(local.empty() && forward.empty());
                ++accepted;
            }
        }
    }
    EXPECT_GT(opened, 1000);
    EXPECT_GT(closed, 1000);
    EXPECT_GT(accepted, 1000);
}

// The same register gives the same answer, also to numbers that have been in use.
TEST(AdoptionProperty, TheSameRegisterGivesTheSameAnswer) {
    Dice dice(4);
    Register reg;
    for (int i = 0; i < 60; ++i) {
        reg.add(any_policy(dice, static_cast<PolicyDirection>(dice.below(3)), {.unjudged = true}));
    }
    add_sas(reg);
    GroupNumbers numbers(1024);
    const Adoption first = reg.decide(numbers);
    const Adoption second = reg.decide(numbers);
    EXPECT_EQ(first.group_count, second.group_count);
    EXPECT_EQ(owners_of(first), owners_of(second));
    ASSERT_EQ(first.outbound.size(), second.outbound.size());
    for (size_t i = 0; i < first.outbound.size(); ++i) {
        EXPECT_EQ(first.outbound[i].policy, second.outbound[i].policy);
    }
    for (const auto& [name, decision] : first.sas) {
        EXPECT_EQ(decision.reason, second.sas.at(name).reason);
        EXPECT_EQ(decision.group, second.sas.at(name).group);
        EXPECT_EQ(decision.owner, second.sas.at(name).owner);
        EXPECT_EQ(decision.rank, second.sas.at(name).rank);
    }
}

// ---- time --------------------------------------------------------------------------------------

// CPU time: other processes do not count.
double milliseconds_of(const Register& reg, GroupNumbers& numbers, size_t expected_adopted) {
    const std::clock_t start = std::clock();
    const Adoption adoption = reg.decide(numbers);
    const std::clock_t end = std::clock();
    const auto adopted =
        std::ranges::count_if(adoption.sas, [](const auto& item) { return item.second.adopted(); });
    EXPECT_EQ(static_cast<size_t>(adopted), expected_adopted);
    return 1000.0 * static_cast<double>(end - start) / CLOCKS_PER_SEC;
}

TEST(AdoptionProperty, TenThousandTunnels) {
    constexpr uint32_t kCount = 10000;
    for (const bool one_reqid : {false, true}) {
        Register reg;
        reg.cpus = {0, 1, 2, 3};
        for (uint32_t i = 0; i < kCount; ++i) {
            Tunnel tunnel;
            tunnel.reqid = one_reqid ? 0 : i + 1;
            tunnel.remote.bytes = {198, 18, static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i)};
            tunnel.local_net = prefix("172.16.0.0/12");
            tunnel.remote_net.address.bytes = {10, static_cast<uint8_t>(i >> 8),
                                               static_cast<uint8_t>(i), 0};
            tunnel.remote_net.bits = 24;
            reg.add_policies(tunnel);
            reg.add(inbound_sa(tunnel, 0x10000 + i));
            reg.add(outbound_sa(tunnel, 0x20000 + i));
        }
        GroupNumbers numbers(kCount + 1);
        const double first = milliseconds_of(reg, numbers, size_t{2} * kCount);
        const double again = milliseconds_of(reg, numbers, size_t{2} * kCount);
        std::printf("20000 SAs, 30000 policies, %s: first %.0f ms, again %.0f ms\n",
                    one_reqid ? "one reqid" : "a reqid each", first, again);
    }
}

}  // namespace
}  // namespace sallyport::control
