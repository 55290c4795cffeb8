// SPDX-License-Identifier: Apache-2.0
//
// Which kernel settings a configuration asks for.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "control/startup/kernel_settings.h"

namespace sallyport::control {
namespace {

std::string value_of(const std::vector<Setting>& settings, const std::string& name) {
    const auto found = std::ranges::find(settings, name, &Setting::name);
    return found == settings.end() ? "" : found->value;
}

TEST(KernelSettings, ForwardingIsOnAndSaidAndApartFromWhatIsSetBeforeTheProgramsAreThere) {
    const std::vector<config::Port> ports{{.name = "inside", .device = "lan0"}};
    const auto settings = forwarding_settings(ports);
    EXPECT_EQ(value_of(settings, "net/ipv4/ip_forward"), "1");
    EXPECT_EQ(value_of(settings, "net/ipv6/conf/all/forwarding"), "1");
    EXPECT_EQ(value_of(settings, "net/ipv4/conf/lan0/forwarding"), "1");
    EXPECT_EQ(value_of(settings, "net/ipv6/conf/lan0/forwarding"), "1");
    for (const bool asks_conntrack : {false, true}) {
        for (const Setting& setting : host_settings({}, asks_conntrack)) {
            EXPECT_EQ(setting.name.find("forward"), std::string::npos) << setting.name;
        }
    }
}

TEST(KernelSettings, PacketsWaitForAnSaWhereTheKernelAsksForIt) {
    const std::string name = "net/core/xfrm_larval_drop";
    config::Config config;
    EXPECT_EQ(value_of(host_settings(config, false), name), "0");
    config.policies.push_back({.name = "web", .action = SpdAction::protect});
    EXPECT_EQ(value_of(host_settings(config, false), name), "");
}

TEST(KernelSettings, ConnectionsThatPassTheKernelAreNoReasonToDropTheirEnd) {
    const std::string name = "net/netfilter/nf_conntrack_tcp_be_liberal";
    EXPECT_EQ(value_of(host_settings({}, false), name), "");
    EXPECT_EQ(value_of(host_settings({}, true), name), "1");
}

// The TAP carries packets that workers have judged; the xfrm interface asks for policies itself.
TEST(KernelSettings, PoliciesAreNotAskedTwiceOnTheTapAndOnceOnTheInterface) {
    EXPECT_EQ(value_of(tap_settings("sp0"), "net/ipv4/conf/sp0/disable_policy"), "1");
    EXPECT_EQ(value_of(interface_settings("spx0"), "net/ipv4/conf/spx0/disable_policy"), "");
    EXPECT_EQ(value_of(interface_settings("spx0"), "net/ipv4/conf/spx0/disable_xfrm"), "1");
}

}  // namespace
}  // namespace sallyport::control
