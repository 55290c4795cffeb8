// SPDX-License-Identifier: Apache-2.0
// What a device allows by what it is. That ports deliver in the modes chosen:
// tests/lab/cases/ports.py and tests/vm/cases/ports.py.
#include "control/startup/port_modes.h"

#include <gtest/gtest.h>

namespace sallyport::control {
namespace {

using config::BindMode;
using config::XdpMode;

struct Row {
    const char* kind;
    const char* slave_kind;
    XdpMode wanted;
    XdpMode mode;
    const char* refusal;  // what the error says; empty: none
    BindMode bind = BindMode::automatic;
};

TEST(PortModes, RulesByKind) {
    constexpr auto kAuto = XdpMode::automatic;
    constexpr auto kNative = XdpMode::native;
    constexpr auto kGeneric = XdpMode::generic;
    const Row rows[] = {
        {"", "", kAuto, kAuto, ""},
        {"", "", kNative, kNative, ""},
        {"", "", kGeneric, kGeneric, ""},
        {"vlan", "", kAuto, kAuto, ""},  // tried, not known
        {"veth", "", kNative, kNative, ""},
        {"bond", "", kAuto, kGeneric, ""},
        {"bond", "", kGeneric, kGeneric, ""},
        {"bond", "", kNative, kNative, "Write xdp_mode = \"auto\""},
        {"bond", "", kAuto, kGeneric, "", BindMode::copy},
        {"bond", "", kAuto, kAuto, "Write bind_mode = \"auto\"", BindMode::zero_copy},
        {"bond", "", kGeneric, kGeneric, "zero-copy\" does not work on dev0", BindMode::zero_copy},
        {"", "", kAuto, kAuto, "", BindMode::zero_copy},
        {"", "bond", kAuto, kAuto, "belongs to a bond"},
        {"bond", "bridge", kAuto, kAuto, "belongs to a bridge"},
        {"veth", "team", kGeneric, kGeneric, "ip link set dev0 nomaster"},
        {"", "vrf", kAuto, kAuto, "is in a VRF"},
        {"macvtap", "", kGeneric, kGeneric, "take a macvlan"},
        {"ipvtap", "", kAuto, kAuto, "take a macvlan"},
        {"ipvlan", "", kGeneric, kGeneric, "only packets for its own addresses"},
    };
    for (const Row& row : rows) {
        SCOPED_TRACE(std::string(row.kind) + " of " + row.slave_kind);
        config::Port port;
        port.name = "wan";
        port.device = "dev0";
        port.xdp_mode = row.wanted;
        port.bind_mode = row.bind;
        netlink::LinkInfo link;
        link.kind = row.kind;
        link.slave_kind = row.slave_kind;
        const auto rule = rule_of(port, link);
        if (*row.refusal != '\0') {
            ASSERT_FALSE(rule);
            EXPECT_NE(rule.error().find(row.refusal), std::string::npos) << rule.error();
            EXPECT_EQ(rule.error().find("port wan: "), 0u) << rule.error();
            continue;
        }
        ASSERT_TRUE(rule) << rule.error();
        EXPECT_EQ(rule->mode, row.mode);
        EXPECT_EQ(rule->reason.empty(), row.mode == row.wanted);
    }
}

TEST(PortModes, TagsAreLostBelowWhatGetsFramesFromOtherDevicesButAVlan) {
    for (const char* kind : {"bond", "team", "bridge", "macvlan", "veth"}) {
        EXPECT_TRUE(loses_tags_below(kind)) << kind;
    }
    for (const char* kind : {"", "tun", "vlan"}) EXPECT_FALSE(loses_tags_below(kind));
}

}  // namespace
}  // namespace sallyport::control
