// SPDX-License-Identifier: Apache-2.0
// HostTraffic against the running kernel, each test in a network namespace of its own.

#include "control/host_traffic/host_traffic.h"

#include <fcntl.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "control/host_traffic/messages.h"
#include "tests/dataplane/io/support.h"
#include "tests/support/own_address.h"

namespace sallyport::control {
namespace {

using host_traffic::kRulePriority;
using test::run;

std::string said(const std::string& command) {
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
    std::string text;
    std::array<char, 256> part{};
    while (fgets(part.data(), part.size(), pipe.get()) != nullptr) text += part.data();
    return text;
}

host_traffic::Policies policies(const char* local, const char* remote) {
    return {.outbound = {{.policy = PolicyId{0},
                          .action = SpdAction::protect,
                          .source = parse_ip_prefix(local).value(),
                          .destination = parse_ip_prefix(remote).value()}},
            .served = {true},
            .near_ends = {},
            .far_ends = {}};
}

// va is the tunnel's device, lo has the addresses inside; vc leads to everything else.
class HostTrafficKernel : public test::NamespaceTest {
  protected:
    HostTrafficKernel() { no_ipv6_ = false; }
    void SetUp() override {
        NamespaceTest::SetUp();
        if (IsSkipped()) return;
        test::make_veth(1);
        run("ip link add vc type veth peer name vd; ip link set vc up; ip link set vd up");
        run("ip addr add 10.1.0.1/24 dev lo; ip addr add 192.0.2.1/24 dev vc");
        run("ip addr add fd00:1::1/64 dev lo nodad; ip addr add 2001:db8::1/64 dev vc nodad");
        for (const char* address : {"fd00:1::1", "2001:db8::1"}) {
            run(test::until_own_address6(address));
        }
        run("ip route add default via 192.0.2.2; ip -6 route add default via 2001:db8::2");
        host_.emplace(context_, log_);
        ASSERT_TRUE(host_->open(if_nametoindex("va")));
    }
    void TearDown() override { host_.reset(); }

    // Where a packet goes: "va 10.1.0.1".
    static std::string way(const std::string& to, const std::string& from = {}) {
        const std::string text =
            said("ip route get " + to + (from.empty() ? "" : " from " + from) + " 2>&1");
        const auto word_after = [&](const char* name) {
            const size_t at = text.find(name);
            if (at == std::string::npos) return std::string();
            const size_t begin = at + std::string(name).size();
            return text.substr(begin, text.find_first_of(" \n", begin) - begin);
        };
        const std::string source = word_after(" src ");
        return word_after(" dev ") + (source.empty() ? "" : " " + source);
    }
    static std::string rules() {
        return said("ip rule show priority 210; ip -6 rule show priority 210");
    }
    // Lets it hear of changes until `done`; the test fails when that does not come.
    void until(const std::function<bool()>& done) {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (!done()) {
            ASSERT_LT(std::chrono::steady_clock::now(), deadline) << rules();
            context_.run_for(std::chrono::milliseconds(20));
        }
    }

    boost::asio::io_context context_;
    Log log_;
    std::optional<HostTraffic> host_;
};

TEST_F(HostTrafficKernel, OnlyWhatThePolicyCoversGoesIntoTheDevice) {
    static_assert(kRulePriority == 210);
    host_->follow(policies("10.1.0.0/24", "10.2.0.0/24"));
    EXPECT_EQ(way("10.2.0.5"), "va 10.1.0.1");
    EXPECT_EQ(way("10.2.0.5", "10.1.0.1"), "va");
    EXPECT_EQ(way("10.2.0.5", "192.0.2.1"), "vc");
    EXPECT_EQ(way("10.3.0.5"), "vc 192.0.2.1");
    EXPECT_EQ(host_->route_count(), 2u);
    host_->follow(policies("10.1.0.0/24", "10.3.0.0/24"));
    EXPECT_EQ(way("10.2.0.5", "10.1.0.1"), "vc");
    EXPECT_EQ(way("10.3.0.5", "10.1.0.1"), "va");
    host_->follow({});
    EXPECT_EQ(rules(), "");
    EXPECT_EQ(way("10.3.0.5", "10.1.0.1"), "vc");
}

TEST_F(HostTrafficKernel, Ipv6IsRefused) {
    host_->follow(policies("fd00:1::/64", "fd00:2::/64"));
    const auto refused = [](const std::string& from) {
        return said("ip route get fd00:2::5 " + from + " 2>&1").contains("Permission denied");
    };
    EXPECT_TRUE(refused(""));
    EXPECT_TRUE(refused("from fd00:1::1"));
    EXPECT_EQ(host_->refused_count(), 2u);
    EXPECT_EQ(way("fd00:2::5", "2001:db8::1"), "vc 2001:db8::1");
    host_->close();
    EXPECT_EQ(rules(), "");
    EXPECT_TRUE(way("fd00:2::5", "fd00:1::1").starts_with("vc"));
}

TEST_F(HostTrafficKernel, PeersAndHolesKeepTheirWay) {
    host_traffic::Policies wide = policies("10.1.0.0/24", "0.0.0.0/0");
    wide.far_ends.insert(parse_ip_address("198.51.100.7").value());
    host_->follow(wide);
    EXPECT_EQ(way("203.0.113.5", "10.1.0.1"), "va");
    EXPECT_EQ(way("198.51.100.7", "10.1.0.1"), "vc");
    EXPECT_EQ(way("203.0.113.5"), "vc 192.0.2.1");
}

TEST_F(HostTrafficKernel, WhatOthersRemoveIsPutBack) {
    host_->follow(policies("10.1.0.0/24", "10.2.0.0/24"));
    const auto led = [] {
        return way("10.2.0.5") == "va 10.1.0.1" && way("10.2.0.5", "10.1.0.1") == "va";
    };
    for (const char* command :
         {"ip rule del priority 210", "ip rule flush; ip rule add lookup main pref 32766",
          "ip route flush table 1397751808", "ip route flush table 1397751809",
          "ip link set va down; ip link set va up"}) {
        SCOPED_TRACE(command);
        ASSERT_TRUE(led());
        run(command);
        ASSERT_FALSE(led());
        until(led);
    }
    run("ip addr del 10.1.0.1/24 dev lo");
    until([] { return rules().empty(); });
    run("ip addr add 10.1.0.7/24 dev lo");
    until([] { return way("10.2.0.5") == "va 10.1.0.7"; });
}

// It is gone without having removed anything; the next one begins with other policies.
TEST_F(HostTrafficKernel, WhatAKilledRunLeftGoes) {
    const std::string before = said("ip route show table all; ip -6 route show table all; ip rule");
    run("ip rule add from 0.0.0.0/32 iif lo priority 210 lookup 1397751808 protocol 83");
    run("ip rule add from 10.1.0.1 iif lo priority 210 lookup 1397751815 protocol 83");
    run("ip route add throw 10.2.0.9 table 1397751815 proto 83");
    run("ip -6 rule add from fd00:1::1 iif lo priority 210 lookup 1397751815 protocol 83");
    run("ip -6 route add throw fd00:2::9 table 1397751815 proto 83");
    HostTraffic next(context_, log_);
    ASSERT_TRUE(next.open(if_nametoindex("va")));
    EXPECT_EQ(said("ip route show table all; ip -6 route show table all; ip rule"), before);
}

// Another tool has removed the rules before.
TEST_F(HostTrafficKernel, WhatAKilledRunLeftGoesWithoutItsRulesToo) {
    const std::string before = said("ip route show table all; ip -6 route show table all");
    run("ip route add throw 10.2.0.9 table 1397751815 proto 83");
    run("ip -6 route add prohibit fd00:2::/64 table 1397751809 proto 83");
    HostTraffic next(context_, log_);
    ASSERT_TRUE(next.open(if_nametoindex("va")));
    EXPECT_EQ(said("ip route show table all; ip -6 route show table all"), before);
}

// sp0 is taken down by hand: the log does not fill with it, and all comes back.
TEST_F(HostTrafficKernel, WhatIsRefusedIsSaidOnce) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    Log log(ends[1]);
    HostTraffic one(context_, log);
    ASSERT_TRUE(one.open(if_nametoindex("va")));
    host_traffic::Policies wanted = policies("10.1.0.0/24", "10.2.0.0/24");
    wanted.outbound.push_back(policies("10.1.0.0/24", "10.3.0.0/24").outbound.front());
    one.follow(wanted);
    EXPECT_EQ(way("10.2.0.5"), "va 10.1.0.1");
    run("ip link set va down");
    context_.run_for(std::chrono::milliseconds(1500));
    run("ip link set va up");
    until([] { return way("10.2.0.5") == "va 10.1.0.1" && way("10.3.0.5") == "va 10.1.0.1"; });
    one.close();
    std::array<char, 65536> text{};
    const ssize_t bytes = read(ends[0], text.data(), text.size());
    const std::string_view seen(text.data(), static_cast<size_t>(std::max<ssize_t>(bytes, 0)));
    EXPECT_EQ(std::ranges::count(seen, '\n'), 1) << seen;
    close(ends[0]);
    close(ends[1]);
}

TEST_F(HostTrafficKernel, RulesOfOthersStay) {
    run("ip rule add from 10.1.0.1 iif lo priority 210 lookup 7");
    run("ip rule add from 10.1.0.1 iif lo priority 211 lookup 1397751809");
    const std::string before = said("ip rule");
    HostTraffic next(context_, log_);
    ASSERT_TRUE(next.open(if_nametoindex("va")));
    next.follow(policies("10.1.0.0/24", "10.2.0.0/24"));
    next.close();
    EXPECT_EQ(said("ip rule"), before);
}

}  // namespace
}  // namespace sallyport::control
