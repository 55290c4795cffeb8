// SPDX-License-Identifier: Apache-2.0
//
// Which kernel settings a configuration asks for.

#include <gtest/gtest.h>

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "control/startup/kernel_settings.h"

namespace sallyport::control {
namespace {

std::string value_of(const std::vector<Setting>& settings, const std::string& name) {
    const auto found = std::ranges::find(settings, name, &Setting::name);
    return found == settings.end() ? "" : found->value;
}

config::Policy protect(const char* local, const char* remote) {
    return {.name = "web",
            .action = SpdAction::protect,
            .local = {*parse_ip_prefix(local)},
            .remote = {*parse_ip_prefix(remote)}};
}

TEST(KernelSettings, ForwardingIsOnAndSaidAndApartFromWhatIsSetBeforeTheProgramsAreThere) {
    config::Config config;  // follows xfrm
    config.ports.push_back({.name = "inside", .device = "lan0"});
    const auto settings = forwarding_settings(config);
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
    config.policies.push_back(protect("10.1.0.0/24", "10.2.0.0/24"));
    EXPECT_EQ(value_of(host_settings(config, false), name), "");
}

TEST(KernelSettings, ConnectionsThatPassTheKernelAreNoReasonToDropTheirEnd) {
    const std::string name = "net/netfilter/nf_conntrack_tcp_be_liberal";
    EXPECT_EQ(value_of(host_settings({}, false), name), "");
    EXPECT_EQ(value_of(host_settings({}, true), name), "1");
}

bool mentions_ipv6_forwarding(const std::vector<Setting>& settings) {
    return std::ranges::any_of(settings, [](const Setting& setting) {
        return setting.name.starts_with("net/ipv6") && setting.name.ends_with("/forwarding");
    });
}

// Else the host would be a router, and forget the default route that it has from one.
TEST(KernelSettings, WithoutIpv6InTheFileTheHostsIpv6StaysAsItIs) {
    config::Config config;
    config.xfrm_interface = "spx0";
    config.ports.push_back({.name = "inside", .device = "lan0"});
    config.policies.push_back(protect("10.1.0.0/24", "10.2.0.0/24"));
    const auto mentioned = [&] {
        return std::vector<bool>{mentions_ipv6_forwarding(forwarding_settings(config)),
                                 mentions_ipv6_forwarding(tap_settings(config)),
                                 mentions_ipv6_forwarding(interface_settings(config))};
    };
    EXPECT_EQ(mentioned(), std::vector<bool>(3, false));
    EXPECT_TRUE(router_settings(config).empty());
    config.policies.push_back(protect("2001:db8:1::/48", "2001:db8:2::/48"));
    EXPECT_EQ(mentioned(), std::vector<bool>(3, true));
    config.policies.pop_back();
    config::StaticSa outer;
    outer.source = *parse_ip_address("2001:db8::1");
    config.sas.push_back(std::move(outer));
    EXPECT_EQ(mentioned(), std::vector<bool>(3, true)) << "the outer packets are IPv6";
}

TEST(KernelSettings, RoutersAreBelievedWhereTheyWereAndOnNoProtectedPort) {
    config::Config config;  // follows xfrm
    config.ports.push_back({.name = "outside", .device = "wan0"});
    config.ports.push_back(
        {.name = "inside", .device = "lan0", .role = config::PortRole::protected_side});
    bool skipped = false;
    std::vector<Setting> settings;
    std::thread([&] {  // its network namespace ends with it
        skipped =
            unshare(CLONE_NEWNET) != 0 || std::system(
                                              "ip link add wan0 type veth peer name lan0 &&"
                                              " ip link add far0 type veth peer name else0") != 0;
        if (skipped) return;
        for (const char* device : {"default", "wan0", "lan0", "far0", "else0"}) {
            const std::string folder = std::string("/proc/sys/net/ipv6/conf/") + device + "/";
            std::ofstream(folder + "forwarding") << "0\n";
            std::ofstream(folder + "accept_ra") << (folder.contains("else0") ? "0\n" : "1\n");
        }
        settings = router_settings(config);
    })
        .join();
    if (skipped) GTEST_SKIP() << "needs root, for a network namespace with veths";
    EXPECT_EQ(value_of(settings, "net/ipv6/conf/wan0/accept_ra"), "2");
    EXPECT_EQ(value_of(settings, "net/ipv6/conf/far0/accept_ra"), "2");
    for (const char* device : {"lan0", "else0", "default", "all", "lo"}) {
        EXPECT_EQ(value_of(settings, std::string("net/ipv6/conf/") + device + "/accept_ra"), "");
    }
    for (const Setting& setting : settings) EXPECT_EQ(setting.insist, Sysctls::Insist::no);
}

TEST(KernelSettings, WhatForwardsIpv6IsKnownToARunThatDoesNot) {
    config::Config config;  // follows xfrm
    config.xfrm_interface = "spx0";
    config.ports.push_back({.name = "inside", .device = "lan0"});
    const auto names = ipv6_forwarding(config);
    for (const auto& settings :
         {forwarding_settings(config), tap_settings(config), interface_settings(config)}) {
        for (const Setting& setting : settings) {
            const bool is_one =
                setting.name.starts_with("net/ipv6") && setting.name.ends_with("/forwarding");
            EXPECT_EQ(std::ranges::find(names, setting.name) != names.end(), is_one)
                << setting.name;
        }
    }
}

// The TAP carries packets that workers have judged; the xfrm interface asks for policies itself.
TEST(KernelSettings, PoliciesAreNotAskedTwiceOnTheTapAndOnceOnTheInterface) {
    config::Config config;
    config.xfrm_interface = "spx0";
    EXPECT_EQ(value_of(tap_settings(config), "net/ipv4/conf/sp0/disable_policy"), "1");
    EXPECT_EQ(value_of(interface_settings(config), "net/ipv4/conf/spx0/disable_policy"), "");
    EXPECT_EQ(value_of(interface_settings(config), "net/ipv4/conf/spx0/disable_xfrm"), "1");
}

}  // namespace
}  // namespace sallyport::control
