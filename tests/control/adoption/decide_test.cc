// SPDX-License-Identifier: Apache-2.0
// Which SAs of the kernel's register go to workers, by whom and in what order.

#include "control/adoption/decide.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "tests/control/adoption/support.h"

namespace sallyport::control {
namespace {

using adoption_test::address;
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
using xfrm::StateDirection;

// ---- one sender for each SA --------------------------------------------------------------------

TEST(Adoption, NewestOutboundSaWithTheKernelKeepsItsGroupThere) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    const auto old_out = reg.add(outbound_sa(tunnel, 0x2001));
    const auto old_in = reg.add(inbound_sa(tunnel, 0x1001));
    KernelSa larval = outbound_sa(tunnel, 0x2002);
    larval.larval = true;
    reg.add(std::move(larval));
    EXPECT_TRUE(reg.decide().sas.at(old_out).adopted());  // the kernel does not send by a larval SA
    KernelSa other = outbound_sa(tunnel, 0x2003);
    other.algorithm = "rfc4543(gcm(aes))";
    reg.add(std::move(other));
    const Adoption adoption = reg.decide();
    EXPECT_EQ(adoption.sas.at(old_out).reason, "a newer SA of its policy is with the kernel");
    EXPECT_TRUE(adoption.sas.at(old_in).adopted());
    EXPECT_TRUE(owners_of(adoption)[to_index(adoption.outbound[0].policy)].empty());
    // A newer one that workers speak brings the group back.
    const auto newest = reg.add(outbound_sa(tunnel, 0x2004));
    EXPECT_TRUE(reg.decide().sas.at(newest).adopted());
    EXPECT_TRUE(reg.decide().sas.at(old_out).adopted());
}

TEST(Adoption, GroupsBehindAPolicyThatMayPassPacketsOnStayWithTheKernel) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    const auto marked = [](KernelPolicy& policy) { policy.mark = {1, 1}; };
    // Elsewhere, and behind: no matter.
    reg.add_filter(PolicyDirection::out, PolicyAction::allow, "172.16.0.0/16", "10.2.0.0/16", 1,
                   marked);
    reg.add_filter(PolicyDirection::out, PolicyAction::allow, "0.0.0.0/0", "0.0.0.0/0", 9000,
                   marked);
    EXPECT_EQ(reg.decide().sas.at(out).reason, "");
    reg.add_filter(PolicyDirection::out, PolicyAction::allow, "10.1.7.0/24", "10.2.0.0/16", 1,
                   marked);
    const Adoption adoption = reg.decide();
    EXPECT_EQ(adoption.sas.at(out).reason, "its policy: behind one that only the kernel can judge");
    for (const auto& [index, view] : adoption.policies) {
        if (view.index == reg.first_index()) {
            EXPECT_EQ(view.reason, "behind one that only the kernel can judge");
        }
    }
}

TEST(Adoption, AnSaOfTwoGroupsStaysWithTheKernel) {
    Register reg;
    Tunnel tunnel;
    reg.add_policies(tunnel);
    Tunnel any_source = tunnel;
    any_source.local = address("0.0.0.0");
    any_source.local_net = prefix("10.9.0.0/16");
    reg.add_policies(any_source);
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    EXPECT_EQ(reg.decide().sas.at(out).reason, "several groups of policies use it");
}

TEST(Adoption, AnSpiThatTwoSasShareStaysWithTheKernel) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    const auto plain = reg.add(inbound_sa(tunnel, 0x1001));
    KernelSa marked = inbound_sa(tunnel, 0x1001);
    marked.name.mark = {5, 0xffffffff};
    const auto with_mark = reg.add(std::move(marked));
    const Adoption adoption = reg.decide();
    EXPECT_EQ(adoption.sas.at(plain).reason, "another SA with its SPI has a mark");
    EXPECT_EQ(adoption.sas.at(with_mark).reason, "mark 0x5");
}

// ---- templates and direction -------------------------------------------------------------------

TEST(Adoption, TemplatesFitAsInTheKernel) {
    struct Case {
        const char* what;
        std::function<void(xfrm::Template&)> change;
        bool outbound;
        bool inbound;
    };
    const std::vector<Case> cases = {
        {"same", [](xfrm::Template&) {}, true, true},
        {"reqid 0", [](xfrm::Template& t) { t.reqid = 0; }, false, true},
        {"other reqid", [](xfrm::Template& t) { t.reqid = 5; }, false, false},
        {"any source", [](xfrm::Template& t) { t.source = address("0.0.0.0"); }, true, true},
        {"other source", [](xfrm::Template& t) { t.source = address("203.0.113.9"); }, false,
         false},
        {"other destination", [](xfrm::Template& t) { t.destination = address("203.0.113.9"); },
         false, true},
        {"SPI in", [](xfrm::Template& t) { t.spi = Spi{0x1001}; }, false, true},
        {"SPI out", [](xfrm::Template& t) { t.spi = Spi{0x2001}; }, true, false},
        {"AH", [](xfrm::Template& t) { t.protocol = 51; }, false, false},
        {"transport", [](xfrm::Template& t) { t.mode = xfrm::Mode::transport; }, false, false},
    };
    for (const Case& one : cases) {
        SCOPED_TRACE(one.what);
        Register reg;
        const Tunnel tunnel;
        reg.add_policies(tunnel,
                         [&](KernelPolicy& policy) { one.change(policy.templates.front()); });
        KernelSa out_sa = outbound_sa(tunnel, 0x2001);
        KernelSa in_sa = inbound_sa(tunnel, 0x1001);
        out_sa.direction = StateDirection::outbound;
        in_sa.direction = StateDirection::inbound;
        const auto out = reg.add(std::move(out_sa));
        const auto in = reg.add(std::move(in_sa));
        const Adoption adoption = reg.decide();
        EXPECT_EQ(adoption.sas.at(out).reason, one.outbound ? "" : "no policy for it yet");
        EXPECT_EQ(adoption.sas.at(in).reason, one.inbound ? "" : "no policy for it yet");
    }
}

TEST(Adoption, DirectionByAttributeThenPoliciesThenAddresses) {
    const Tunnel tunnel;
    {
        Register reg;  // policies alone
        reg.local.clear();
        reg.add_policies(tunnel);
        const auto out = reg.add(outbound_sa(tunnel, 0x2001));
        const auto in = reg.add(inbound_sa(tunnel, 0x1001));
        const Adoption adoption = reg.decide();
        EXPECT_EQ(adoption.sas.at(out).direction, StateDirection::outbound);
        EXPECT_TRUE(adoption.sas.at(out).adopted());
        EXPECT_EQ(adoption.sas.at(in).direction, StateDirection::inbound);
        EXPECT_TRUE(adoption.sas.at(in).adopted());
    }
    {
        Register reg;  // addresses alone
        const auto out = reg.add(outbound_sa(tunnel, 0x2001));
        const auto in = reg.add(inbound_sa(tunnel, 0x1001));
        EXPECT_EQ(reg.decide().sas.at(out).direction, StateDirection::outbound);
        EXPECT_EQ(reg.decide().sas.at(in).direction, StateDirection::inbound);
        EXPECT_EQ(reg.decide().sas.at(in).reason, "no policy for it yet");
        reg.local.clear();
        EXPECT_EQ(reg.decide().sas.at(out).direction, std::nullopt);
        EXPECT_EQ(reg.decide().sas.at(out).reason, "direction not known");
    }
    {
        Register reg;  // the attribute against both
        reg.add_policies(tunnel);
        KernelSa sa = outbound_sa(tunnel, 0x2001);
        sa.direction = StateDirection::inbound;
        const auto name = reg.add(std::move(sa));
        EXPECT_EQ(reg.decide().sas.at(name).direction, StateDirection::inbound);
        EXPECT_EQ(reg.decide().sas.at(name).reason, "no policy for it yet");
    }
}

// ---- an IKE daemon's register ------------------------------------------------------------------

TEST(Adoption, TwoChildSasWithARekeyUnderWay) {
    Register reg;
    Tunnel first;
    Tunnel second = first;
    second.reqid = 2;
    second.local_net = prefix("10.8.0.0/16");
    reg.add_policies(first);
    reg.add_policies(second);
    const auto in_old = reg.add(inbound_sa(first, 0x1001));
    const auto out_old = reg.add(outbound_sa(first, 0x2001));
    const auto in_new = reg.add(inbound_sa(first, 0x1002));
    const auto out_new = reg.add(outbound_sa(first, 0x2002));
    const auto in_second = reg.add(inbound_sa(second, 0x1003));
    const auto out_second = reg.add(outbound_sa(second, 0x2003));
    GroupNumbers numbers(16);
    const Adoption adoption = reg.decide(numbers);
    for (const auto& [name, decision] : adoption.sas) EXPECT_EQ(decision.reason, "");

    ASSERT_EQ(adoption.outbound.size(), 2u);
    ASSERT_EQ(adoption.inbound.size(), 2u);  // in and fwd are one
    const SaDecision& newer = adoption.sas.at(out_new);
    const SaDecision& older = adoption.sas.at(out_old);
    EXPECT_EQ(newer.group, adoption.outbound[0].policy);
    EXPECT_EQ(older.group, newer.group);
    EXPECT_EQ(adoption.sas.at(in_old).group, newer.group);
    EXPECT_EQ(adoption.sas.at(in_new).group, newer.group);
    EXPECT_GT(newer.rank, older.rank);
    EXPECT_EQ(newer.owner, older.owner);
    EXPECT_EQ(adoption.sas.at(in_new).owner, adoption.sas.at(in_old).owner);
    EXPECT_NE(adoption.sas.at(out_second).group, newer.group);
    ASSERT_EQ(adoption.sas.at(in_second).selectors.size(), 1u);
    const Selector& selector = adoption.sas.at(in_second).selectors[0];
    EXPECT_EQ(selector.source, second.remote_net);
    EXPECT_EQ(selector.destination, second.local_net);
    EXPECT_EQ(owners_of(adoption)[to_index(newer.group)], std::vector{newer.owner});
    EXPECT_EQ(adoption.inbound[0].source, first.remote_net);
    EXPECT_EQ(adoption.inbound[0].policy, newer.group);

    // The same register again, and without the first child: numbers stay.
    EXPECT_EQ(reg.decide(numbers).sas.at(out_new).group, newer.group);
    const PolicyId kept = adoption.sas.at(out_second).group;
    reg.remove_policies(first);
    EXPECT_EQ(reg.decide(numbers).sas.at(out_second).group, kept);
    EXPECT_EQ(reg.decide(numbers).sas.at(out_new).reason, "no policy for it yet");
}

TEST(Adoption, SeveralTrafficSelectorsAreOneGroup) {
    Register reg;
    Tunnel tunnel;
    reg.add_policies(tunnel);
    tunnel.remote_net = prefix("10.77.0.0/16");
    reg.add_policies(tunnel);
    const auto in = reg.add(inbound_sa(tunnel, 0x1001));
    const Adoption adoption = reg.decide();
    ASSERT_EQ(adoption.outbound.size(), 2u);
    EXPECT_EQ(adoption.outbound[0].policy, adoption.outbound[1].policy);
    EXPECT_EQ(adoption.sas.at(in).selectors.size(), 2u);
}

// ---- templates that name the SPI, as strongSwan's out policies do -------------------------------

using Change = Register::Change;

Change names_spi(uint32_t spi) {
    return [spi](KernelPolicy& policy) {
        if (policy.row.direction == PolicyDirection::out) policy.templates.front().spi = Spi{spi};
    };
}

// Of a child with every pair of these, all three directions.
void add_child(Register& reg, Tunnel tunnel, const std::vector<const char*>& local,
               const std::vector<const char*>& remote, const Change& change) {
    for (const char* one : local) {
        for (const char* other : remote) {
            tunnel.local_net = prefix(one);
            tunnel.remote_net = prefix(other);
            if (tunnel.local_net.address.family != tunnel.remote_net.address.family) continue;
            reg.add_policies(tunnel, change);
        }
    }
}

// Those of direction out, in the order of their indices.
std::vector<KernelPolicy*> out_policies(Register& reg) {
    std::vector<KernelPolicy*> found;
    for (auto& [index, policy] : reg.policies) {
        if (policy.row.direction == PolicyDirection::out) found.push_back(&policy);
    }
    return found;
}

const PolicyView& view_of(const Adoption& adoption, const KernelPolicy& policy) {
    return adoption.policies.at(policy.row.index);
}

// Each out policy goes by the SA that its template names, and by no other.
void expect_named_senders(const Adoption& adoption, Register& reg) {
    for (const KernelPolicy* policy : out_policies(reg)) {
        const PolicyView& view = view_of(adoption, *policy);
        EXPECT_EQ(view.reason, "");
        std::vector<Spi> senders;
        for (const auto& [name, decision] : adoption.sas) {
            if (decision.adopted() && decision.direction == StateDirection::outbound &&
                decision.group == view.group) {
                senders.push_back(name.spi);
            }
        }
        EXPECT_EQ(senders, std::vector{policy->templates.front().spi});
    }
}

TEST(Adoption, PoliciesThatNameOneSpiAreOneGroup) {
    struct Case {
        const char* what;
        std::vector<const char*> local;
        std::vector<const char*> remote;
        Change change;
        size_t policies;
    };
    const auto ports = [](KernelPolicy& policy) {
        names_spi(0x2001)(policy);
        xfrm::PolicySelector& selector = policy.row.selector;
        selector.protocol = 6;
        selector.destination_port = static_cast<uint16_t>(80 + policy.row.selector.source.bits);
        selector.destination_port_mask = 0xffff;
    };
    const std::vector<Case> cases = {
        {"one each", {"10.1.0.0/24"}, {"10.2.0.0/24"}, names_spi(0x2001), 1},
        {"two local", {"10.1.0.0/24", "10.1.1.0/24"}, {"10.2.0.0/24"}, names_spi(0x2001), 2},
        {"two remote", {"10.1.0.0/24"}, {"10.2.0.0/24", "10.2.1.0/24"}, names_spi(0x2001), 2},
        {"two each",
         {"10.1.0.0/24", "10.1.1.0/24"},
         {"10.2.0.0/24", "10.2.1.0/24"},
         names_spi(0x2001),
         4},
        {"both families",
         {"10.1.0.0/24", "fd01::/64"},
         {"10.2.0.0/24", "fd02::/64"},
         names_spi(0x2001),
         2},
        {"ports", {"10.1.0.0/24", "10.1.1.0/25"}, {"10.2.0.0/24"}, ports, 2},
    };
    for (const Case& one : cases) {
        SCOPED_TRACE(one.what);
        Register reg;
        const Tunnel tunnel;
        add_child(reg, tunnel, one.local, one.remote, one.change);
        const auto out = reg.add(outbound_sa(tunnel, 0x2001));
        const auto in = reg.add(inbound_sa(tunnel, 0x1001));
        const Adoption adoption = reg.decide();
        EXPECT_EQ(adoption.outbound.size(), one.policies);
        EXPECT_EQ(adoption.sas.at(out).reason, "");
        EXPECT_EQ(adoption.sas.at(in).reason, "");
        expect_named_senders(adoption, reg);
    }
}

// Some of them of a kind that only the kernel can judge: it sends for all.
TEST(AdoptionOfNamedSpis, OnePolicyOfAnIcmpTypeKeepsTheChildWithTheKernel) {
    Register reg;
    const Tunnel tunnel;
    add_child(reg, tunnel, {"10.1.0.0/24", "10.1.1.0/24"}, {"10.2.0.0/24"}, names_spi(0x2001));
    xfrm::PolicySelector& selector = out_policies(reg).back()->row.selector;
    selector.protocol = 1;
    selector.source_port = 8;
    selector.source_port_mask = 0xffff;
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    EXPECT_EQ(reg.decide().sas.at(out).reason, "its policy: ICMP type");
}

// One after another, and the register is looked at after each.
TEST(AdoptionOfNamedSpis, ARekeyChangesOnePolicyAfterAnother) {
    Register reg;
    const Tunnel tunnel;
    add_child(reg, tunnel, {"10.1.0.0/24", "10.1.1.0/24"}, {"10.2.0.0/24", "10.2.1.0/24"},
              names_spi(0x2001));
    const auto before = reg.add(outbound_sa(tunnel, 0x2001));
    GroupNumbers numbers(16);
    const PolicyId group = reg.decide(numbers).sas.at(before).group;
    const auto after = reg.add(outbound_sa(tunnel, 0x2002));
    EXPECT_EQ(reg.decide(numbers).sas.at(after).reason, "no policy for it yet");
    const std::vector<KernelPolicy*> policies = out_policies(reg);
    ASSERT_EQ(policies.size(), 4u);
    std::optional<PolicyId> next;
    for (KernelPolicy* policy : policies) {
        policy->templates.front().spi = Spi{0x2002};
        const Adoption adoption = reg.decide(numbers);
        EXPECT_EQ(adoption.sas.at(after).reason, "");
        if (!next) next = adoption.sas.at(after).group;
        EXPECT_EQ(adoption.sas.at(after).group, *next);
        EXPECT_NE(*next, group);
        const bool is_last = policy == policies.back();
        EXPECT_EQ(adoption.sas.at(before).reason, is_last ? "no policy for it yet" : "");
        if (!is_last) {
            EXPECT_EQ(adoption.sas.at(before).group, group);
        }
        expect_named_senders(adoption, reg);
    }
}

TEST(AdoptionOfNamedSpis, ARekeyBetweenTwoLooksKeepsTheNumberAndTheEntries) {
    Register reg;
    const Tunnel tunnel;
    add_child(reg, tunnel, {"10.1.0.0/24", "10.1.1.0/24"}, {"10.2.0.0/24"}, names_spi(0x2001));
    const auto before = reg.add(outbound_sa(tunnel, 0x2001));
    const auto in = reg.add(inbound_sa(tunnel, 0x1001));
    GroupNumbers numbers(16);
    const Adoption first = reg.decide(numbers);
    const auto after = reg.add(outbound_sa(tunnel, 0x2002));
    for (KernelPolicy* policy : out_policies(reg)) policy->templates.front().spi = Spi{0x2002};
    const Adoption second = reg.decide(numbers);
    EXPECT_EQ(second.sas.at(before).reason, "no policy for it yet");
    EXPECT_EQ(second.sas.at(after).group, first.sas.at(before).group);
    EXPECT_EQ(second.sas.at(in).group, first.sas.at(in).group);
    EXPECT_EQ(second.outbound, first.outbound);
    EXPECT_EQ(second.inbound, first.inbound);
    expect_named_senders(second, reg);
}

// A trap names none; its policies become those of the child.
TEST(AdoptionOfNamedSpis, AChildTakesTheNumberOfItsTrap) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    GroupNumbers numbers(16);
    const Adoption trap = reg.decide(numbers);
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    EXPECT_EQ(reg.decide(numbers).sas.at(out).group, trap.outbound[0].policy);
    out_policies(reg).front()->templates.front().spi = Spi{0x2001};
    const Adoption child = reg.decide(numbers);
    EXPECT_EQ(child.sas.at(out).reason, "");
    EXPECT_EQ(child.sas.at(out).group, trap.outbound[0].policy);
    EXPECT_NE(child.inbound[0].policy, child.outbound[0].policy);
    EXPECT_EQ(reg.decide(numbers).outbound, child.outbound);
    EXPECT_EQ(reg.decide(numbers).inbound, child.inbound);
}

// What a wide trap takes beside the child goes by any SA of the reqid, in the kernel.
TEST(AdoptionOfNamedSpis, PoliciesWithAndWithoutAnSpiAreTwoGroups) {
    Register reg;
    const Tunnel tunnel;
    Tunnel trap = tunnel;
    trap.priority += 1;
    reg.add_policies(trap);
    add_child(reg, tunnel, {"10.1.0.0/24"}, {"10.2.0.0/24"}, names_spi(0x2001));
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    EXPECT_EQ(reg.decide().sas.at(out).reason, "several groups of policies use it");
}

TEST(AdoptionOfNamedSpis, ChildrenOfOneReqidKeepApart) {
    Register reg;
    const Tunnel tunnel;
    add_child(reg, tunnel, {"10.1.0.0/24", "10.1.1.0/24"}, {"10.2.0.0/24"}, names_spi(0x2001));
    add_child(reg, tunnel, {"10.1.2.0/24", "10.1.3.0/24"}, {"10.2.0.0/24"}, names_spi(0x2002));
    const auto first = reg.add(outbound_sa(tunnel, 0x2001));
    const auto second = reg.add(outbound_sa(tunnel, 0x2002));
    GroupNumbers numbers(16);
    const Adoption adoption = reg.decide(numbers);
    EXPECT_NE(adoption.sas.at(first).group, adoption.sas.at(second).group);
    expect_named_senders(adoption, reg);
    // The first is deleted and the second replaced, between two looks: no number of one for
    // another.
    for (KernelPolicy* policy : out_policies(reg)) {
        if (policy->templates.front().spi == Spi{0x2002}) {
            policy->templates.front().spi = Spi{0x2003};
        } else {
            reg.policies.erase(policy->row.index);
        }
    }
    const auto third = reg.add(outbound_sa(tunnel, 0x2003));
    const Adoption later = reg.decide(numbers);
    EXPECT_EQ(later.sas.at(third).group, adoption.sas.at(second).group);
    EXPECT_EQ(later.sas.at(first).reason, "no policy for it yet");
    expect_named_senders(later, reg);
}

// MOBIKE: the same SPI and key by another source, for SA and policies.
TEST(AdoptionOfNamedSpis, AnotherAddressIsAnotherGroup) {
    Register reg;
    Tunnel tunnel;
    add_child(reg, tunnel, {"10.1.0.0/24", "10.1.1.0/24"}, {"10.2.0.0/24"}, names_spi(0x2001));
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    GroupNumbers numbers(16);
    const PolicyId group = reg.decide(numbers).sas.at(out).group;
    tunnel.local = address("192.0.2.11");
    reg.local = {tunnel.local};
    reg.states.clear();
    reg.add(outbound_sa(tunnel, 0x2001));
    EXPECT_EQ(reg.decide(numbers).sas.at(out).reason, "no policy for it yet");
    const std::vector<KernelPolicy*> policies = out_policies(reg);
    policies.front()->templates.front().source = tunnel.local;
    EXPECT_EQ(reg.decide(numbers).sas.at(out).reason, "");
    policies.back()->templates.front().source = tunnel.local;
    const Adoption adoption = reg.decide(numbers);
    EXPECT_NE(adoption.sas.at(out).group, group);
    expect_named_senders(adoption, reg);
}

TEST(Adoption, ThirtyTwoSelectorsAndNotOneMore) {
    Register reg;
    Tunnel tunnel;
    const auto in = reg.add(inbound_sa(tunnel, 0x1001));
    for (size_t i = 0; i < kSelectorsMax; ++i) {
        tunnel.remote_net.address.bytes = {10, 100, static_cast<uint8_t>(i), 0};
        tunnel.remote_net.bits = 24;
        reg.add_policies(tunnel);
    }
    EXPECT_EQ(reg.decide().sas.at(in).reason, "");
    EXPECT_EQ(reg.decide().sas.at(in).selectors.size(), kSelectorsMax);
    tunnel.remote_net = prefix("10.200.0.0/16");
    reg.add_policies(tunnel);
    EXPECT_EQ(reg.decide().sas.at(in).reason, "more than 32 selectors");
    EXPECT_TRUE(reg.decide().sas.at(in).selectors.empty());
}

TEST(Adoption, PerCpuSasAndTheirFallback) {
    Register reg;
    reg.cpus = {4, 6};
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    const auto fallback = reg.add(outbound_sa(tunnel, 0x2000));
    const auto on = [&](uint32_t spi, uint32_t cpu, bool outbound) {
        KernelSa sa = outbound ? outbound_sa(tunnel, spi) : inbound_sa(tunnel, spi);
        sa.pcpu = cpu;
        return reg.add(std::move(sa));
    };
    const auto on_6 = on(0x2006, 6, true);
    const auto in_4 = on(0x1004, 4, false);
    const auto in_6 = on(0x1006, 6, false);
    Adoption adoption = reg.decide();
    const size_t group = to_index(adoption.outbound[0].policy);
    EXPECT_EQ(adoption.sas.at(on_6).owner, WorkerId{1});
    EXPECT_EQ(adoption.sas.at(fallback).owner, WorkerId{0});  // the worker that has none
    EXPECT_EQ(adoption.sas.at(in_4).owner, WorkerId{0});
    EXPECT_EQ(adoption.sas.at(in_6).owner, WorkerId{1});
    EXPECT_EQ(owners_of(adoption)[group], (std::vector{WorkerId{0}, WorkerId{1}}));

    const auto on_4 = on(0x2004, 4, true);
    const auto new_fallback = reg.add(outbound_sa(tunnel, 0x2010));
    const auto stranger = on(0x2063, 63, true);  // no worker runs on that CPU
    adoption = reg.decide();
    const auto rank = [&](const xfrm::SaName& name) { return adoption.sas.at(name).rank; };
    EXPECT_EQ(adoption.sas.at(on_4).owner, WorkerId{0});
    EXPECT_GT(rank(on_4), rank(new_fallback));  // though it is older
    EXPECT_GT(rank(on_6), rank(new_fallback));
    EXPECT_GT(rank(new_fallback), rank(fallback));
    EXPECT_GT(rank(fallback), rank(stranger));  // though that is newest
    EXPECT_TRUE(adoption.sas.at(stranger).adopted());
    EXPECT_EQ(owners_of(adoption)[group], (std::vector{WorkerId{0}, WorkerId{1}}));
}

TEST(Adoption, OwnersSpreadOverWorkers) {
    Register reg;
    reg.cpus = {0, 1, 2, 3};
    std::vector<int> counts(4);
    for (uint8_t i = 0; i < 200; ++i) {
        Tunnel tunnel;
        tunnel.reqid = i + 1u;
        tunnel.remote.bytes[3] = i;
        tunnel.remote_net.address.bytes = {10, 100, i, 0};
        tunnel.remote_net.bits = 24;
        reg.add_policies(tunnel);
        reg.add(outbound_sa(tunnel, 0x2000u + i));
    }
    for (const auto& [name, decision] : reg.decide().sas) ++counts[to_index(decision.owner)];
    for (const int count : counts) EXPECT_GT(count, 25);
}

TEST(Adoption, PoliciesOfXfrmInterfaces) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel, [](KernelPolicy& policy) { policy.if_id = 42; });
    KernelSa sa = outbound_sa(tunnel, 0x2001);
    sa.if_id = 42;
    const auto out = reg.add(std::move(sa));
    const Adoption adoption = reg.decide();
    EXPECT_EQ(adoption.sas.at(out).reason, "xfrm interface 42");
    ASSERT_EQ(adoption.outbound.size(), 1u);
    EXPECT_EQ(adoption.outbound[0].action, SpdAction::protect);
    const auto group = to_index(adoption.outbound[0].policy);
    EXPECT_EQ(adoption.if_id_by_group.at(group), 42u);
    EXPECT_TRUE(owners_of(adoption).at(group).empty());
    EXPECT_TRUE(adoption.inbound.empty());  // they say nothing of what arrives by a port
    for (const auto& [index, view] : adoption.policies) EXPECT_EQ(view.reason, "xfrm interface 42");
}

TEST(Adoption, ConfiguredPoliciesStandBehind) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    config::Policy bypass;
    bypass.action = config::SpdAction::bypass;
    bypass.local = {prefix("0.0.0.0/0")};
    bypass.remote = {prefix("0.0.0.0/0")};
    reg.config = {bypass};
    const Adoption adoption = reg.decide();
    ASSERT_EQ(adoption.outbound.size(), 2u);
    ASSERT_EQ(adoption.inbound.size(), 2u);
    EXPECT_EQ(adoption.outbound[0].action, SpdAction::protect);
    EXPECT_EQ(adoption.outbound[1].action, SpdAction::bypass);
    EXPECT_EQ(adoption.outbound[1].policy, adoption.inbound[1].policy);
    EXPECT_NE(adoption.outbound[1].policy, adoption.outbound[0].policy);
    EXPECT_LT(to_index(adoption.outbound[1].policy), adoption.group_count);
}

TEST(Adoption, AConfiguredPolicyForAMarkDoesNotHideTheOneWithout) {
    Register reg;
    config::Policy marked;
    marked.action = config::SpdAction::discard;
    marked.local = {prefix("10.1.0.0/24")};
    marked.remote = {prefix("0.0.0.0/0")};
    marked.ct_mark = 1;
    marked.ct_mark_mask = 1;
    config::Policy others = marked;
    others.action = config::SpdAction::bypass;
    others.ct_mark.reset();
    others.ct_mark_mask = 0;
    reg.config = {marked, others, marked};
    const Adoption adoption = reg.decide();
    ASSERT_EQ(adoption.outbound.size(), 2u);
    EXPECT_EQ(adoption.outbound[0].action, SpdAction::discard);
    EXPECT_EQ(adoption.outbound[1].action, SpdAction::bypass);
}

TEST(Adoption, AnInPolicyThatAllowsDoesNotOpenWhatFwdForbids) {
    Register reg;
    reg.add_filter(PolicyDirection::in, PolicyAction::allow, "0.0.0.0/0", "10.0.0.0/8", 1);
    reg.add_filter(PolicyDirection::forward, PolicyAction::block, "192.0.2.0/24", "10.0.0.0/8", 2);
    reg.add_filter(PolicyDirection::in, PolicyAction::allow, "172.16.0.0/16", "10.0.0.0/8", 3);
    reg.add_filter(PolicyDirection::forward, PolicyAction::allow, "172.16.0.0/16", "10.0.0.0/8", 3);
    const Adoption adoption = reg.decide();
    ASSERT_EQ(adoption.inbound.size(), 3u);
    EXPECT_EQ(adoption.inbound[0].action, SpdAction::discard);
    EXPECT_EQ(adoption.inbound[1].source, prefix("172.16.0.0/16"));
    EXPECT_EQ(adoption.inbound[2].source, prefix("0.0.0.0/0"));
}

TEST(Adoption, EarlierPoliciesCutSelectorsDown) {
    Register reg;
    Tunnel wide;
    wide.reqid = 2;
    wide.remote = address("198.51.100.2");
    wide.remote_net = prefix("10.0.0.0/8");
    wide.local_net = prefix("172.16.0.0/16");
    wide.priority = 2000;
    Tunnel narrow = wide;
    narrow.reqid = 1;
    narrow.remote = address("198.51.100.1");
    narrow.remote_net = prefix("10.128.0.0/10");
    narrow.priority = 1000;
    reg.add_policies(wide);
    reg.add_policies(narrow);
    const auto wide_in = reg.add(inbound_sa(wide, 0x1001));
    const auto narrow_in = reg.add(inbound_sa(narrow, 0x1002));
    Adoption adoption = reg.decide();
    ASSERT_EQ(adoption.sas.at(wide_in).reason, "");
    ASSERT_EQ(adoption.sas.at(wide_in).selectors.size(), 2u);
    EXPECT_EQ(adoption.sas.at(wide_in).selectors[0].source, prefix("10.0.0.0/9"));
    EXPECT_EQ(adoption.sas.at(wide_in).selectors[1].source, prefix("10.192.0.0/10"));
    EXPECT_EQ(adoption.sas.at(narrow_in).selectors.size(), 1u);

    reg.add_filter(PolicyDirection::forward, PolicyAction::block, "10.0.0.0/8", "172.16.0.0/16",
                   500, [](KernelPolicy& policy) { policy.row.selector.protocol = 17; });
    EXPECT_EQ(reg.decide().sas.at(wide_in).reason, "a policy before its own has a protocol");
    reg.add_filter(PolicyDirection::forward, PolicyAction::block, "10.0.0.0/8", "172.16.0.0/16",
                   400);
    EXPECT_EQ(reg.decide().sas.at(wide_in).reason, "other policies stand before its own");
    reg.add_filter(PolicyDirection::forward, PolicyAction::block, "10.0.0.0/8", "172.16.0.0/16",
                   300, [](KernelPolicy& policy) { policy.mark = {1, 1}; });
    EXPECT_EQ(reg.decide().sas.at(wide_in).reason, "a policy before its own: mark 0x1/0x1");
}

// ---- rivals -----------------------------------------------------------------------------------

constexpr const char* kRivals = "overlaps another of its priority";

TEST(AdoptionOfRivals, WhatEitherCoversIsTheKernels) {
    for (const auto action : {PolicyAction::allow, PolicyAction::block}) {
        Register reg;
        const Tunnel tunnel;
        reg.add_policies(tunnel);
        const auto out = reg.add(outbound_sa(tunnel, 0x2001));
        const auto in = reg.add(inbound_sa(tunnel, 0x1001));
        const uint32_t filter = reg.add_filter(
            PolicyDirection::out, action, "10.1.0.0/24", "10.2.0.0/24", tunnel.priority,
            [](KernelPolicy& policy) { policy.row.selector.protocol = 17; });
        Adoption adoption = reg.decide();
        ASSERT_EQ(adoption.outbound.size(), 2u);
        for (const SpdEntry& entry : adoption.outbound) {
            EXPECT_EQ(entry.action, SpdAction::protect);
            EXPECT_TRUE(owners_of(adoption)[to_index(entry.policy)].empty());
        }
        EXPECT_EQ(adoption.sas.at(out).reason, std::string("its policy: ") + kRivals);
        EXPECT_TRUE(adoption.sas.at(in).adopted()) << "inbound nobody is in its way";
        EXPECT_EQ(adoption.policies.at(filter).reason, kRivals);
        EXPECT_EQ(adoption.policies.at(reg.first_index()).reason, kRivals);

        reg.update(filter, [](KernelPolicy& policy) { ++policy.row.priority; });
        adoption = reg.decide();
        EXPECT_TRUE(adoption.sas.at(out).adopted());
        EXPECT_EQ(adoption.policies.at(filter).reason, "");
        EXPECT_NE(adoption.outbound[1].action, SpdAction::protect);
    }
}

TEST(AdoptionOfRivals, WhatDoesTheSameIsNoRival) {
    Register reg;
    const Tunnel tunnel;
    for (const char* far : {"10.2.0.0/24", "10.2.0.0/25"}) {
        Tunnel each = tunnel;
        each.remote_net = prefix(far);
        reg.add_policies(each);
    }
    Tunnel elsewhere = tunnel;  // another group
    elsewhere.reqid = 8;
    elsewhere.remote_net = prefix("10.2.1.0/24");
    reg.add_policies(elsewhere);
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    const auto in = reg.add(inbound_sa(tunnel, 0x1001));
    for (const char* near : {"10.9.0.0/16", "10.9.0.0/24"}) {
        reg.add_filter(PolicyDirection::out, PolicyAction::allow, near, "10.2.0.0/16",
                       tunnel.priority);
    }
    const Adoption adoption = reg.decide();
    EXPECT_EQ(adoption.sas.at(out).reason, "");
    EXPECT_EQ(adoption.sas.at(in).reason, "");
    for (const auto& [index, view] : adoption.policies) EXPECT_EQ(view.reason, "") << index;
}

TEST(AdoptionOfRivals, TwoTunnelsAreTheKernelsAndAThirdIsNot) {
    Register reg;
    std::vector<xfrm::SaName> names;
    constexpr std::pair<const char*, const char*> kNets[] = {{"10.1.0.0/25", "10.2.0.0/24"},
                                                             {"10.1.0.0/24", "10.2.0.0/25"},
                                                             {"10.1.0.0/24", "10.3.0.0/24"}};
    for (uint32_t i = 0; i < 3; ++i) {
        Tunnel tunnel;
        tunnel.reqid = i + 1;
        tunnel.local_net = prefix(kNets[i].first);
        tunnel.remote_net = prefix(kNets[i].second);
        reg.add_policies(tunnel);
        names.push_back(reg.add(outbound_sa(tunnel, 0x2001 + i)));
        names.push_back(reg.add(inbound_sa(tunnel, 0x1001 + i)));
    }
    const Adoption adoption = reg.decide();
    for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(adoption.sas.at(names[i]).reason, std::string("its policy: ") + kRivals) << i;
    }
    EXPECT_TRUE(adoption.sas.at(names[4]).adopted());
    EXPECT_TRUE(adoption.sas.at(names[5]).adopted());
}

// What only the kernel can judge may be asked first, too.
TEST(AdoptionOfRivals, OneWithAMarkIsARivalWhicheverCameFirst) {
    for (const bool first : {true, false}) {
        Register reg;
        const Tunnel tunnel;
        const auto add_marked = [&] {
            reg.add_filter(PolicyDirection::out, PolicyAction::allow, "10.0.0.0/8", "10.0.0.0/8",
                           tunnel.priority, [](KernelPolicy& policy) { policy.mark = {1, 1}; });
        };
        if (first) add_marked();
        reg.add_policies(tunnel);
        if (!first) add_marked();
        const auto out = reg.add(outbound_sa(tunnel, 0x2001));
        EXPECT_EQ(reg.decide().sas.at(out).reason, std::string("its policy: ") + kRivals);
    }
}

TEST(AdoptionOfRivals, InClearNothingEntersThatOneOfThemForbids) {
    for (const bool first : {true, false}) {
        Register reg;
        const Tunnel tunnel;
        const auto add_open = [&] {
            reg.add_filter(PolicyDirection::forward, PolicyAction::allow, "10.2.0.0/24",
                           "10.1.0.0/24", tunnel.priority,
                           [](KernelPolicy& policy) { policy.row.selector.protocol = 17; });
        };
        if (first) add_open();
        reg.add_policies(tunnel);
        if (!first) add_open();
        const auto in = reg.add(inbound_sa(tunnel, 0x1001));
        const Adoption adoption = reg.decide();
        EXPECT_EQ(adoption.inbound.front().action, SpdAction::protect);
        EXPECT_EQ(adoption.inbound.back().action, SpdAction::bypass);
        EXPECT_EQ(adoption.sas.at(in).reason, std::string("its policy: ") + kRivals);
    }
}

// Of fragments neither is known before the other where only one selects by ports.
TEST(AdoptionOfRivals, ThoseWithPortsStandInFront) {
    Register reg;
    const Tunnel tunnel;
    reg.add_filter(PolicyDirection::out, PolicyAction::allow, "10.0.0.0/8", "10.0.0.0/8",
                   tunnel.priority);
    reg.add_policies(tunnel, [](KernelPolicy& policy) {
        policy.row.selector.protocol = 17;
        policy.row.selector.destination_port = 53;
        policy.row.selector.destination_port_mask = 0xffff;
    });
    EXPECT_TRUE(reg.decide().outbound.front().has_ports);
}

// ---- numbers -----------------------------------------------------------------------------------

GroupNumbers::Name numbered(uint32_t reqid) {
    return {.reqid = reqid};
}

TEST(GroupNumbers, KeepTheirPlaceAndRestBeforeTheyAreGivenAgain) {
    GroupNumbers numbers(3);
    numbers.begin();
    const auto first = numbers.number(numbered(1));
    const auto second = numbers.number(numbered(2));
    EXPECT_EQ(numbers.number(numbered(1)), first);
    EXPECT_NE(first, second);
    numbers.commit();
    numbers.begin();
    EXPECT_EQ(numbers.number(numbered(2)), second);
    const auto third = numbers.number(numbered(3));
    ASSERT_TRUE(third);
    EXPECT_NE(*third, *first);  // 1 is not forgotten before it is published
    EXPECT_EQ(numbers.number(numbered(4)), std::nullopt);
    numbers.commit();
    numbers.begin();
    EXPECT_EQ(numbers.number(numbered(4)), std::nullopt) << "a worker may still read what 1 was";
    EXPECT_EQ(numbers.number(numbered(3)), third);
    EXPECT_EQ(numbers.number(numbered(2)), second);
    numbers.commit();
    numbers.rested();
    numbers.begin();
    EXPECT_EQ(numbers.number(numbered(4)), first);
    numbers.commit();
    EXPECT_EQ(numbers.upper_bound(), 3u);
}

TEST(GroupNumbers, AnotherSpiKeepsTheNumberWhenAllItsPoliciesNameIt) {
    GroupNumbers numbers(8);
    const auto name = [](uint32_t spi) { return GroupNumbers::Name{.reqid = 1, .spi = Spi{spi}}; };
    using Policies = std::vector<std::pair<uint32_t, uint32_t>>;  // SPI, index
    const auto round = [&](const Policies& policies) {
        numbers.begin();
        for (const auto& [spi, index] : policies) numbers.note(name(spi), index);
        std::vector<std::optional<PolicyId>> given;
        for (const auto& [spi, index] : policies) given.push_back(numbers.number(name(spi)));
        numbers.commit();
        return given;
    };
    const auto first = round({{5, 1}, {5, 9}}).front();
    EXPECT_EQ(round({{6, 9}, {6, 1}}).front(), first);
    EXPECT_EQ(round({{0, 1}, {0, 9}}).front(), first);
    EXPECT_EQ(round({{7, 1}, {7, 9}}).front(), first);
    EXPECT_NE(round({{8, 1}, {8, 17}}).front(), first);  // other policies
    const auto other = round({{8, 1}, {8, 17}}).front();
    EXPECT_NE(round({{9, 1}}).front(), other);  // fewer
    const auto both = round({{9, 1}, {10, 17}});
    const auto swapped = round({{10, 1}, {9, 17}});
    EXPECT_EQ(swapped[0], both[1]);  // one that stays keeps its own
    EXPECT_EQ(swapped[1], both[0]);
}

TEST(GroupNumbers, WhatIsNotPublishedHasNeverBeen) {
    GroupNumbers numbers(3);
    numbers.begin();
    const auto first = numbers.number(numbered(1));
    const auto second = numbers.number(numbered(2));
    numbers.commit();
    for (int i = 0; i < 5; ++i) {
        numbers.begin();
        EXPECT_EQ(numbers.number(numbered(2)), second);
        const auto third = numbers.number(numbered(3));
        EXPECT_NE(third, first) << "what is in force says it is 1";
        numbers.begin();  // decided again, in another way
        EXPECT_EQ(numbers.number(numbered(3)), third);
        numbers.roll_back();
    }
    numbers.begin();
    EXPECT_EQ(numbers.number(numbered(1)), first);
    EXPECT_EQ(numbers.number(numbered(2)), second);
    EXPECT_TRUE(numbers.number(numbered(4)));
    numbers.commit();
}

TEST(Adoption, WithoutAnyCapacityTheKernelServesAll) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    reg.add_filter(PolicyDirection::out, PolicyAction::block, "10.1.0.0/16", "10.4.0.0/16", 1);
    const auto out = reg.add(outbound_sa(tunnel, 0x2001));
    GroupNumbers numbers(0);
    const Adoption adoption = reg.decide(numbers);
    EXPECT_FALSE(adoption.sas.at(out).adopted());
    ASSERT_EQ(adoption.outbound.size(), 2u);
    EXPECT_EQ(adoption.outbound[0].action, SpdAction::discard);
    EXPECT_EQ(adoption.policies.rbegin()->second.reason, "");
    EXPECT_TRUE(owners_of(adoption).at(to_index(adoption.outbound[1].policy)).empty());
}

TEST(Adoption, GroupsBeyondCapacityAreServedByTheKernel) {
    Register reg;
    std::vector<xfrm::SaName> names;
    for (uint8_t i = 0; i < 4; ++i) {
        Tunnel tunnel;
        tunnel.reqid = i + 1u;
        tunnel.remote_net.address.bytes = {10, 100, i, 0};
        tunnel.remote_net.bits = 24;
        reg.add_policies(tunnel);
        names.push_back(reg.add(outbound_sa(tunnel, 0x2000u + i)));
        names.push_back(reg.add(inbound_sa(tunnel, 0x1000u + i)));
    }
    GroupNumbers numbers(3);
    const Adoption adoption = reg.decide(numbers);
    EXPECT_EQ(adoption.outbound.size(), 4u);
    EXPECT_EQ(adoption.inbound.size(), 4u);
    size_t adopted = 0;
    for (const xfrm::SaName& name : names) {
        const SaDecision& decision = adoption.sas.at(name);
        adopted += decision.adopted() ? 1u : 0u;
        if (!decision.adopted()) {
            EXPECT_EQ(decision.reason, "its policy: more than 3 groups of policies");
        }
    }
    EXPECT_EQ(adopted, 4u);
    for (const SpdEntry& entry : adoption.outbound) {
        EXPECT_EQ(entry.action, SpdAction::protect);
        EXPECT_LT(to_index(entry.policy), adoption.group_count);
    }
    EXPECT_TRUE(owners_of(adoption)[to_index(adoption.outbound[3].policy)].empty());
}

}  // namespace
}  // namespace sallyport::control
