// SPDX-License-Identifier: Apache-2.0
// Which SAs of the kernel's register go to workers, and why the others do not.

#include "control/adoption.h"

#include <gtest/gtest.h>

#include <functional>

#include "adoption_support.h"
#include "control/policy_control.h"

namespace sallyport::control {
namespace {

using adoption_test::address;
using adoption_test::inbound_sa;
using adoption_test::outbound_sa;
using adoption_test::prefix;
using adoption_test::Register;
using adoption_test::Tunnel;
using xfrm::KernelPolicy;
using xfrm::KernelSa;
using xfrm::PolicyAction;
using xfrm::PolicyDirection;
using xfrm::StateDirection;

// ---- reasons -----------------------------------------------------------------------------------

struct SaRow {
    const char* what;
    std::function<void(KernelSa&)> change;
    const char* inbound_reason;   // empty: adopted
    const char* outbound_reason;  // null: as inbound
};

std::vector<SaRow> sa_rows() {
    const auto key_of = [](size_t bytes, int fill) {
        return SecretBytes(std::vector<std::byte>(bytes, static_cast<std::byte>(fill)));
    };
    return {
        {"as it is", [](KernelSa&) {}, "", nullptr},
        {"key of 192 bits", [=](KernelSa& sa) { sa.key = key_of(28, 7); }, "", nullptr},
        {"key of 256 bits", [=](KernelSa& sa) { sa.key = key_of(36, 7); }, "", nullptr},
        {"larval", [](KernelSa& sa) { sa.larval = true; }, "no keys yet", nullptr},
        {"zero key", [=](KernelSa& sa) { sa.key = key_of(20, 0); },
         "its keys are hidden (lockdown)", nullptr},
        {"empty key", [=](KernelSa& sa) { sa.key = {}; }, "its keys are hidden (lockdown)",
         nullptr},
        {"odd key", [=](KernelSa& sa) { sa.key = key_of(21, 7); }, "key of 21 bytes", nullptr},
        {"AH", [](KernelSa& sa) { sa.name.protocol = 51; }, "AH", nullptr},
        {"IPComp", [](KernelSa& sa) { sa.name.protocol = 108; }, "IPComp", nullptr},
        {"routing header", [](KernelSa& sa) { sa.name.protocol = 43; }, "protocol 43", nullptr},
        {"offloaded", [](KernelSa& sa) { sa.offloaded = true; }, "offloaded to a device", nullptr},
        {"NAT-T", [](KernelSa& sa) { sa.encapsulated = true; }, "UDP encapsulation", nullptr},
        {"transport", [](KernelSa& sa) { sa.mode = xfrm::Mode::transport; }, "transport mode",
         nullptr},
        {"BEET", [](KernelSa& sa) { sa.mode = xfrm::Mode::other; },
         "neither tunnel nor transport mode", nullptr},
        {"CBC",
         [](KernelSa& sa) {
             sa.aead = false;
             sa.algorithm = "cbc(aes) + hmac(sha256)";
             sa.key = {};
         },
         "cipher cbc(aes) + hmac(sha256)", nullptr},
        {"ChaCha20", [](KernelSa& sa) { sa.algorithm = "rfc7539esp(chacha20,poly1305)"; },
         "cipher rfc7539esp(chacha20,poly1305)", nullptr},
        {"GMAC", [](KernelSa& sa) { sa.algorithm = "rfc4543(gcm(aes))"; },
         "cipher rfc4543(gcm(aes))", nullptr},
        {"short ICV", [](KernelSa& sa) { sa.icv_bits = 64; }, "ICV of 64 bits", nullptr},
        {"interface", [](KernelSa& sa) { sa.if_id = 7; }, "xfrm interface 7", nullptr},
        {"mark", [](KernelSa& sa) { sa.name.mark = {0x10, 0xffffffff}; }, "mark 0x10", nullptr},
        {"masked mark", [](KernelSa& sa) { sa.name.mark = {0x10, 0xf0}; }, "mark 0x10/0xf0",
         nullptr},
        {"output mark", [](KernelSa& sa) { sa.output_mark = {1, 0xffffffff}; }, "output mark 0x1",
         nullptr},
        {"own selector", [](KernelSa& sa) { sa.has_selector = true; }, "selector of its own",
         nullptr},
        {"SELinux", [](KernelSa& sa) { sa.has_security_context = true; }, "security context",
         nullptr},
        {"care-of", [](KernelSa& sa) { sa.has_care_of_address = true; }, "care-of address",
         nullptr},
        {"low SPI", [](KernelSa& sa) { sa.name.spi = Spi{255}; }, "reserved SPI", nullptr},
        {"noecn", [](KernelSa& sa) { sa.flags = 1; }, "flag noecn", nullptr},
        {"decap-dscp", [](KernelSa& sa) { sa.flags = 2; }, "flag decap-dscp", nullptr},
        {"nopmtudisc", [](KernelSa& sa) { sa.flags = 4; }, "", nullptr},
        {"wildrecv", [](KernelSa& sa) { sa.flags = 8; }, "flag wildrecv", nullptr},
        {"icmp", [](KernelSa& sa) { sa.flags = 16; }, "", nullptr},
        {"af-unspec", [](KernelSa& sa) { sa.flags = 32; }, "", nullptr},
        {"align4", [](KernelSa& sa) { sa.flags = 64; }, "", nullptr},
        {"esn",
         [](KernelSa& sa) {
             sa.flags = 128;
             sa.esn = true;
         },
         "", nullptr},
        {"dont-encap-dscp", [](KernelSa& sa) { sa.extra_flags = 1; }, "", nullptr},
        {"oseq-may-wrap", [](KernelSa& sa) { sa.extra_flags = 2; }, "flag oseq-may-wrap", nullptr},
        {"flag of the future", [](KernelSa& sa) { sa.extra_flags = 0x10; },
         "unknown extra flags 0x10", nullptr},
        {"no window", [](KernelSa& sa) { sa.replay.window = 0; }, "", nullptr},
        {"window 1", [](KernelSa& sa) { sa.replay.window = 1; }, "replay window of 1", ""},
        {"window 31", [](KernelSa& sa) { sa.replay.window = 31; }, "replay window of 31", ""},
        {"window 32", [](KernelSa& sa) { sa.replay.window = 32; }, "", ""},
        {"window 4096", [](KernelSa& sa) { sa.replay.window = 4096; }, "", ""},
        {"window 4097", [](KernelSa& sa) { sa.replay.window = 4097; }, "replay window of 4097", ""},
        {"TFC", [](KernelSa& sa) { sa.tfc_pad = 1400; }, "", "TFC padding"},
        {"other reqid", [](KernelSa& sa) { sa.reqid = 9; }, "no policy for it yet", nullptr},
    };
}

TEST(Adoption, EachReason) {
    for (const SaRow& row : sa_rows()) {
        SCOPED_TRACE(row.what);
        for (const auto direction : {StateDirection::inbound, StateDirection::outbound}) {
            Register reg;
            const Tunnel tunnel;
            reg.add_policies(tunnel);
            KernelSa sa = direction == StateDirection::inbound ? inbound_sa(tunnel, 0x1001)
                                                               : outbound_sa(tunnel, 0x2001);
            sa.direction = direction;
            row.change(sa);
            const xfrm::SaName name = sa.name;
            reg.add(std::move(sa));
            const Adoption adoption = reg.decide();
            const SaDecision& decision = adoption.sas.at(name);
            const char* expected =
                direction == StateDirection::inbound || row.outbound_reason == nullptr
                    ? row.inbound_reason
                    : row.outbound_reason;
            EXPECT_EQ(decision.reason, expected);
            EXPECT_EQ(decision.direction, direction);
        }
    }
}

TEST(Adoption, AddressesThatNoWorkerCanUse) {
    for (const auto& [source, destination, reason] :
         {std::tuple("0.0.0.0", "198.51.100.1", "no source address"),
          std::tuple("192.0.2.1", "239.1.2.3", "multicast")}) {
        Register reg;
        Tunnel tunnel;
        tunnel.local = address(source);
        tunnel.remote = address(destination);
        reg.add_policies(tunnel);
        const auto name = reg.add(outbound_sa(tunnel, 0x2001));
        EXPECT_EQ(reg.decide().sas.at(name).reason, reason);
    }
}

TEST(Adoption, FlagsThatWorkersHonour) {
    Register reg;
    const Tunnel tunnel;
    reg.add_policies(tunnel);
    KernelSa sa = outbound_sa(tunnel, 0x2001);
    const auto plain = reg.add(std::move(sa));
    EXPECT_EQ(reg.decide().sas.at(plain).df, DfPolicy::copy);
    EXPECT_TRUE(reg.decide().sas.at(plain).copy_dscp);
    sa = outbound_sa(tunnel, 0x2002);
    sa.flags = 4;
    sa.extra_flags = 1;
    sa.key = SecretBytes(std::vector<std::byte>(36, std::byte{3}));
    const auto flagged = reg.add(std::move(sa));
    const SaDecision decision = reg.decide().sas.at(flagged);
    EXPECT_EQ(decision.df, DfPolicy::clear);
    EXPECT_FALSE(decision.copy_dscp);
    EXPECT_EQ(decision.suite, crypto::Suite::aes_gcm_16_256);
}

struct PolicyRow {
    const char* what;
    std::function<void(KernelPolicy&)> change;
    const char* reason;
};

std::vector<PolicyRow> policy_rows() {
    return {
        {"mark", [](KernelPolicy& policy) { policy.mark = {0x10, 0xffffffff}; }, "mark 0x10"},
        {"device", [](KernelPolicy& policy) { policy.selector_ifindex = 3; }, "selects device 3"},
        {"sub", [](KernelPolicy& policy) { policy.main_type = false; }, "policy of type sub"},
        {"context", [](KernelPolicy& policy) { policy.has_security_context = true; },
         "security context"},
        {"offloaded", [](KernelPolicy& policy) { policy.offloaded = true; },
         "offloaded to a device"},
        {"templates",
         [](KernelPolicy& policy) { policy.templates.push_back(policy.templates.front()); },
         "several templates"},
        {"optional", [](KernelPolicy& policy) { policy.templates.front().optional = true; },
         "optional template"},
        {"ICMP type",
         [](KernelPolicy& policy) {
             policy.row.selector.protocol = 1;
             policy.row.selector.source_port = 8;
             policy.row.selector.source_port_mask = 0xffff;
         },
         "ICMP type"},
        {"ports of all",
         [](KernelPolicy& policy) { policy.row.selector.destination_port_mask = 0xffff; },
         "ports of any protocol"},
        {"UDP-Lite",
         [](KernelPolicy& policy) {
             policy.row.selector.protocol = 136;
             policy.row.selector.destination_port_mask = 0xffff;
         },
         "ports of protocol 136"},
        {"holes in the mask",
         [](KernelPolicy& policy) {
             policy.row.selector.protocol = 6;
             policy.row.selector.destination_port_mask = 0x00ff;
         },
         "ports by a mask that is no range"},
    };
}

TEST(Adoption, PoliciesThatOnlyTheKernelCanJudge) {
    for (const PolicyRow& row : policy_rows()) {
        SCOPED_TRACE(row.what);
        Register reg;
        const Tunnel tunnel;
        reg.add_policies(tunnel, row.change);
        const auto out = reg.add(outbound_sa(tunnel, 0x2001));
        const auto in = reg.add(inbound_sa(tunnel, 0x1001));
        const Adoption adoption = reg.decide();
        ASSERT_EQ(adoption.outbound.size(), 1u);
        EXPECT_EQ(adoption.outbound[0].action, SpdAction::protect);
        EXPECT_FALSE(adoption.outbound[0].has_ports);
        EXPECT_TRUE(adoption.owners[to_index(adoption.outbound[0].policy)].empty());
        ASSERT_EQ(adoption.inbound.size(), 1u);
        EXPECT_EQ(adoption.inbound[0].action, SpdAction::protect);
        ASSERT_EQ(adoption.policies.size(), 3u);
        for (const PolicyView& view : adoption.policies) EXPECT_EQ(view.reason, row.reason);
        const std::string expected = std::string("its policy: ") + row.reason;
        EXPECT_EQ(adoption.sas.at(out).reason, expected);
        EXPECT_EQ(adoption.sas.at(in).reason, expected);
    }
}

TEST(Adoption, UnjudgedFiltersFailClosed) {
    Register reg;
    const auto marked = [](KernelPolicy& policy) { policy.mark = {1, 1}; };
    for (const auto direction :
         {PolicyDirection::in, PolicyDirection::out, PolicyDirection::forward}) {
        reg.add_filter(direction, PolicyAction::allow, "10.1.0.0/16", "10.2.0.0/16", 10, marked);
        reg.add_filter(direction, PolicyAction::block, "10.3.0.0/16", "10.4.0.0/16", 10, marked);
    }
    const Adoption adoption = reg.decide();
    ASSERT_EQ(adoption.outbound.size(), 2u);
    EXPECT_EQ(adoption.outbound[0].action, SpdAction::protect);
    EXPECT_EQ(adoption.outbound[1].action, SpdAction::protect);
    ASSERT_EQ(adoption.inbound.size(), 1u);
    EXPECT_EQ(adoption.inbound[0].action, SpdAction::discard);
    EXPECT_EQ(adoption.inbound[0].source, prefix("10.3.0.0/16"));
}

TEST(Adoption, PortMasksBecomeRanges) {
    for (const auto& [value, mask, lo, hi] :
         {std::tuple(443, 0xffff, 443, 443), std::tuple(0x1234, 0xff00, 0x1200, 0x12ff),
          std::tuple(0xffff, 0x8000, 0x8000, 0xffff)}) {
        Register reg;
        reg.add_policies(Tunnel{}, [&, v = value, m = mask](KernelPolicy& policy) {
            policy.row.selector.protocol = 17;
            policy.row.selector.destination_port = static_cast<uint16_t>(v);
            policy.row.selector.destination_port_mask = static_cast<uint16_t>(m);
        });
        const SpdEntry entry = reg.decide().outbound.at(0);
        EXPECT_TRUE(entry.has_ports);
        EXPECT_EQ(entry.destination_port_lo, lo);
        EXPECT_EQ(entry.destination_port_hi, hi);
        EXPECT_EQ(entry.source_port_lo, 0);
        EXPECT_EQ(entry.source_port_hi, 65535);
    }
}

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
    EXPECT_TRUE(adoption.owners[to_index(adoption.outbound[0].policy)].empty());
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
    EXPECT_EQ(adoption.owners[to_index(newer.group)], std::vector{newer.owner});
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
    EXPECT_EQ(adoption.owners[group], (std::vector{WorkerId{0}, WorkerId{1}}));

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
    EXPECT_EQ(adoption.owners[group], (std::vector{WorkerId{0}, WorkerId{1}}));
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
    EXPECT_TRUE(adoption.owners.at(group).empty());
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
    EXPECT_TRUE(adoption.owners[to_index(adoption.outbound[3].policy)].empty());
}

}  // namespace
}  // namespace sallyport::control
