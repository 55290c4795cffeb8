// SPDX-License-Identifier: Apache-2.0
// Policies that are right one by one, and together too many: `--check` says so, before a start
// does.

#include "control/startup/policy_check.h"

#include <gtest/gtest.h>

#include <string>

namespace sallyport::control {
namespace {

config::Policy policy(const std::string& name, const std::string& local,
                      const std::string& remote) {
    config::Policy out;
    out.name = name;
    out.action = config::SpdAction::protect;
    out.local = {*parse_ip_prefix(local)};
    out.remote = {*parse_ip_prefix(remote)};
    return out;
}

// What is said, and that it is one thing.
std::string refusal(const config::Config& config) {
    const auto errors = check_policies(config);
    EXPECT_LE(errors.size(), 1u);
    return errors.empty() ? "" : errors.front().text;
}

config::Config with_ports(size_t count) {
    config::Config config;
    for (size_t i = 0; i < count; ++i) {
        auto one = policy("p" + std::to_string(i), "10.1.0.0/24", "10.2.0.0/24");
        one.protocol = 6;
        const auto port = static_cast<uint16_t>(1000 + i);
        one.remote_ports = {{port, port}};
        config.policies.push_back(one);
    }
    return config;
}

TEST(PolicyCheck, WhatAnAddressPairHasRoomForIsRight) {
    EXPECT_EQ(refusal(with_ports(16)), "");
}

TEST(PolicyCheck, TooManyForOneAddressPair) {
    // Both directions are one policy's: the first that does not fit is said.
    EXPECT_NE(refusal(with_ports(17)).find("10.1.0.0/24 -> 10.2.0.0/24"), std::string::npos);
}

TEST(PolicyCheck, TooManyRowsInAll) {
    config::Config config;
    for (int i = 0; i < 16; ++i) {
        config::Policy one = policy("p" + std::to_string(i), "10.0.0.0/24", "172.16.0.0/24");
        one.local.clear();
        one.remote.clear();
        for (int net = 0; net < 256; ++net) {
            const std::string n = std::to_string(net);
            one.local.push_back(*parse_ip_prefix("10." + std::to_string(i) + "." + n + ".0/24"));
            one.remote.push_back(
                *parse_ip_prefix("172." + std::to_string(16 + i) + "." + n + ".0/24"));
        }
        config.policies.push_back(one);
    }
    const auto errors = check_policies(config);
    ASSERT_FALSE(errors.empty());
    EXPECT_NE(errors.front().text.find("[[policy]]"), std::string::npos);
}

TEST(PolicyCheck, TooManyPoliciesOfXfrm) {
    config::Config config;
    for (int i = 0; i < 250; ++i) {
        auto one =
            policy("p" + std::to_string(i), "10.1." + std::to_string(i) + ".0/24", "10.2.0.0/24");
        one.protocol = 17;
        one.local_ports = {{1, 65534}};
        one.remote_ports = {{1, 65534}};
        config.policies.push_back(one);
    }
    EXPECT_NE(refusal(config).find("xfrm"), std::string::npos);
}

}  // namespace
}  // namespace sallyport::control
