// SPDX-License-Identifier: Apache-2.0
// Which SAs of the kernel's register go to workers, by whom and in what order.

#include "control/adoption/decide.h"

#include <gtest/gtest.h>

#include <functional>

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
    other.algorithm = "rfc7539esp(chacha20,poly1305)";
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
    for (const PolicyView& view : adoption.policies) {
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
    for (const PolicyView& view : adoption.policies) EXPECT_EQ(view.reason, "xfrm interface 42");
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

// ---- numbers -----------------------------------------------------------------------------------

TEST(GroupNumbers, KeepTheirPlaceAndAreFreedAfterTheRound) {
    GroupNumbers numbers(3);
    const auto name = [](uint32_t reqid) { return GroupNumbers::Name{.reqid = reqid}; };
    numbers.begin();
    const auto first = numbers.number(name(1));
    const auto second = numbers.number(name(2));
    EXPECT_EQ(numbers.number(name(1)), first);
    EXPECT_NE(first, second);
    numbers.end();
    numbers.begin();
    EXPECT_EQ(numbers.number(name(2)), second);
    const auto third = numbers.number(name(3));
    ASSERT_TRUE(third);
    EXPECT_NE(*third, *first);  // 1 is not forgotten before the end of the round
    EXPECT_EQ(numbers.number(name(4)), std::nullopt);
    numbers.end();
    numbers.begin();
    EXPECT_EQ(numbers.number(name(4)), first);
    EXPECT_EQ(numbers.number(name(3)), third);
    EXPECT_EQ(numbers.number(name(2)), second);
    numbers.end();
    EXPECT_EQ(numbers.upper_bound(), 3u);
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
    EXPECT_EQ(adoption.policies[0].reason, "");
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
