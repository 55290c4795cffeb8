// SPDX-License-Identifier: Apache-2.0
// Why SAs and policies stay with the kernel, one row for each reason.

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
        {"ChaCha20",
         [=](KernelSa& sa) {
             sa.algorithm = "rfc7539esp(chacha20,poly1305)";
             sa.key = key_of(36, 7);
         },
         "", nullptr},
        {"CCM",
         [=](KernelSa& sa) {
             sa.algorithm = "rfc4309(ccm(aes))";
             sa.key = key_of(19, 7);
         },
         "", nullptr},
        {"CCM of 192 bits",
         [=](KernelSa& sa) {
             sa.algorithm = "rfc4309(ccm(aes))";
             sa.key = key_of(27, 7);
         },
         "key of 27 bytes", nullptr},
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
    EXPECT_EQ(decision.suite, crypto::find_suite("aes-gcm-16-256"));
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
        EXPECT_TRUE(owners_of(adoption)[to_index(adoption.outbound[0].policy)].empty());
        ASSERT_EQ(adoption.inbound.size(), 1u);
        EXPECT_EQ(adoption.inbound[0].action, SpdAction::protect);
        ASSERT_EQ(adoption.policies.size(), 3u);
        for (const auto& [index, view] : adoption.policies) EXPECT_EQ(view.reason, row.reason);
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

}  // namespace
}  // namespace sallyport::control
