// SPDX-License-Identifier: Apache-2.0
//
// The watch on real devices of a network namespace, with a stand-in for the programs on them.

#include "control/watch/watch.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "control/netlink/addresses.h"
#include "control/watch/look.h"
#include "dataplane/base/ip.h"
#include "tests/support/new_namespace.h"

namespace sallyport::watch {
namespace {

using test::in_new_namespace;

void run_command(const std::string& command) {
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
}

class StandIn : public Host {
  public:
    explicit StandIn(Gate& gate) : gate_(gate) {}

    [[nodiscard]] bool is_attached(size_t /*port*/, Hook hook) const override {
        if (hook == Hook::out) ++looks_at_filter;
        return hook == Hook::in ? attached : attached_out;
    }
    std::expected<void, std::string> attach(size_t /*port*/, Hook hook) override {
        if (hook == Hook::out) {
            ++attempts_out;
            if (!refusal.empty()) return std::unexpected(refusal);
            attached_out = true;
            return {};
        }
        ++attempts;
        closed_when_attached = gate_.closed().value_or(std::set<std::string>{});
        if (!refusal.empty()) return std::unexpected(refusal);
        attached = true;
        return {};
    }
    [[nodiscard]] bool keeps_tags(const std::string& /*device*/) const override { return tags; }
    bool set_mtu(size_t /*port*/, uint32_t value) override {
        mtu = value;
        return true;
    }
    bool set_mac(size_t /*port*/, const netlink::MacAddress& /*mac*/) override { return true; }
    [[nodiscard]] bool is_attached(Inner /*device*/) const override { return true; }
    std::expected<void, std::string> attach(Inner /*device*/) override { return {}; }
    std::expected<void, std::string> set_up(Inner /*device*/) override { return {}; }
    std::expected<void, std::string> follow_addresses() override {
        addresses = netlink::local_and_broadcast_addresses().value();
        if (!addresses_refusal.empty()) return std::unexpected(addresses_refusal);
        return {};
    }
    std::vector<ChangedSetting> mend_settings() override {
        ++looks;
        std::vector<ChangedSetting> out = changed;
        std::erase_if(changed, [](const ChangedSetting& each) { return each.error.empty(); });
        return out;
    }

    bool tags = true;
    bool attached = true;
    bool attached_out = true;
    std::string refusal;
    int attempts = 0;
    int attempts_out = 0;
    int looks = 0;  // at settings
    mutable int looks_at_filter = 0;
    uint32_t mtu = 0;
    std::set<std::string> closed_when_attached;
    std::vector<IpAddress> addresses;
    std::string addresses_refusal;
    std::vector<ChangedSetting> changed;

  private:
    Gate& gate_;
};

// A port "inside" on lan0, and sp0.
struct Bench {
    boost::asio::io_context context{1};
    int lines = memfd_create("log", MFD_CLOEXEC);
    control::Log log{lines};
    Gate gate{Gate::make().value()};
    xfrm::PolicyGuard guard{xfrm::PolicyGuard::install({}).value()};
    StandIn host{gate};
    Watch watch{context, log, host, gate, guard};

    explicit Bench(const std::optional<netlink::LinkInfo>& below = {}) {
        make_device();
        run_command("ip link add sp0 type veth peer name sp1 && ip link set sp0 up");
        const uint32_t ifindex = if_nametoindex("lan0");
        const DeviceNow now = look_at(ifindex);
        const auto started = watch.start(
            {{.port = "inside",
              .device = "lan0",
              .ifindex = ifindex,
              .mac = now.mac,
              .mtu = now.mtu,
              .queues = now.queues,
              .below = below ? std::vector{*below} : std::vector<netlink::LinkInfo>{}}},
            {.device = "sp0", .ifindex = if_nametoindex("sp0"), .needed_by = "what workers send"},
            {});
        EXPECT_TRUE(started) << started.error();
        EXPECT_EQ(said(), "") << "all is as it should be";
    }
    ~Bench() {
        watch.stop();
        context.poll();
        close(lines);
    }

    static void make_device() {
        run_command(
            "ip link add lan0 type veth peer name lan1 && ip link set lan0 up && ip link set lan1 "
            "up");
    }
    [[nodiscard]] std::string said() const {
        std::string out;
        for (const std::string& sentence : watch.degraded()) out += sentence + "\n";
        return out;
    }
    // Of the log.
    [[nodiscard]] size_t lines_about(const std::string& words) const {
        std::string text(1 << 16, '\0');
        const ssize_t bytes = pread(lines, text.data(), text.size(), 0);
        text.resize(static_cast<size_t>(std::max<ssize_t>(bytes, 0)));
        size_t count = 0;
        for (size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) {
            ++count;
        }
        return count;
    }
    [[nodiscard]] std::set<std::string> closed() {
        return gate.closed().value_or(std::set<std::string>{"cannot be read"});
    }
    // Lets the watch run until then.
    void until(const std::function<bool()>& condition) {
        const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (!condition()) {
            ASSERT_LT(std::chrono::steady_clock::now(), limit) << "it says: " << said();
            context.run_for(std::chrono::milliseconds(5));
        }
    }
};

class WatchOnDevices : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "needs root: devices of a network namespace";
    }
};

using Names = std::set<std::string>;

TEST_F(WatchOnDevices, APortWithoutItsProgramIsClosedBeforeItIsMendedAndOpensThen) {
    in_new_namespace([] {
        Bench bench;
        bench.host.attached = false;
        bench.until([&] { return bench.host.attempts > 0; });
        EXPECT_EQ(bench.host.closed_when_attached, Names{"lan0"});
        bench.until([&] { return bench.closed().empty(); });
        EXPECT_EQ(bench.said(), "");
        EXPECT_EQ(bench.host.attempts, 1);
    });
}

TEST_F(WatchOnDevices, WhatCannotBeAttachedStaysClosedAndSaysWhy) {
    in_new_namespace([] {
        Bench bench;
        bench.host.refusal = "somebody else is there";
        bench.host.attached = false;
        bench.until([&] { return bench.said().contains("somebody else is there"); });
        EXPECT_EQ(bench.closed(), Names{"lan0"});
        // A rule that others remove is back.
        run_command("ip rule del pref 1");
        bench.until([&] { return bench.closed() == Names{"lan0"}; });
        bench.host.refusal.clear();
        bench.until([&] { return bench.said().empty() && bench.closed().empty(); });
    });
}

TEST_F(WatchOnDevices, APortWithoutItsTcProgramGetsItAgainAndIsNotClosed) {
    in_new_namespace([] {
        Bench bench;
        bench.host.refusal = "somebody else is there";
        bench.host.attached_out = false;
        bench.until(
            [&] { return bench.said().contains("the TC program cannot be attached again"); });
        EXPECT_TRUE(bench.said().contains("may leave there in clear")) << bench.said();
        EXPECT_TRUE(bench.said().contains("somebody else is there")) << bench.said();
        EXPECT_EQ(bench.closed(), Names{});
        bench.host.refusal.clear();
        bench.until([&] { return bench.said().empty(); });
        EXPECT_TRUE(bench.host.attached_out);
        EXPECT_EQ(bench.host.attempts, 0) << "the other program was there";
    });
}

// At once, each time: an audit may look in between now and then.
TEST_F(WatchOnDevices, ATcFilterThatGoesIsHeardOf) {
    in_new_namespace([] {
        Bench bench;
        for (int i = 0; i < 5; ++i) {
            run_command(
                "tc qdisc add dev lan0 clsact && "
                "tc filter add dev lan0 egress prio 1 bpf da bytecode '1,6 0 0 4294967295'");
            for (const char* command :
                 {"tc filter del dev lan0 egress prio 1", "tc qdisc del dev lan0 clsact"}) {
                bench.context.poll();
                const int before = bench.host.looks_at_filter;
                run_command(command);
                bench.context.poll();
                EXPECT_GT(bench.host.looks_at_filter, before) << command;
            }
        }
    });
}

TEST_F(WatchOnDevices, ADeviceThatWasMadeAgainStaysClosed) {
    in_new_namespace([] {
        Bench bench;
        run_command("ip link del lan0");
        bench.until([&] { return bench.said().contains("gone from this network namespace"); });
        EXPECT_EQ(bench.closed(), Names{"lan0"});
        EXPECT_EQ(bench.lines_about("mended: "), 0u);
        Bench::make_device();
        bench.until([&] { return bench.said().contains("made again"); });
        EXPECT_EQ(bench.closed(), Names{"lan0"});
        EXPECT_EQ(bench.host.attempts, 0) << "its sockets are gone";
    });
}

TEST_F(WatchOnDevices, ABridgeAndAMissingCarrierAreSaidAsLongAsTheyAreThere) {
    in_new_namespace([] {
        Bench bench;
        run_command("ip link add br0 type bridge && ip link set lan0 master br0");
        bench.until([&] { return bench.said().contains("lan0 belongs to a bridge now"); });
        run_command("ip link set lan0 nomaster && ip link set lan1 down");
        bench.until([&] { return bench.said().contains("lan0 has no carrier"); });
        EXPECT_FALSE(bench.said().contains("bridge"));
        EXPECT_EQ(bench.lines_about("mended: port inside: the device lan0 belongs to a bridge now"),
                  1u);
        run_command("ip link set lan1 up");
        bench.until([&] { return bench.said().empty(); });
        EXPECT_EQ(bench.closed(), Names{});
    });
}

TEST_F(WatchOnDevices, WhatIsBelowAPortIsClosedAlwaysAndAgain) {
    in_new_namespace([] {
        Bench bench(netlink::LinkInfo{.ifindex = 1, .name = "lo"});
        EXPECT_EQ(bench.closed(), Names{"lo"});
        run_command("ip rule del pref 1 iif lo");
        bench.until([&] { return bench.closed() == Names{"lo"}; });
        EXPECT_EQ(bench.said(), "");
    });
}

TEST_F(WatchOnDevices, AnMtuIsFollowedAndNothingIsWrongWithIt) {
    in_new_namespace([] {
        Bench bench;
        run_command("ip link set lan0 mtu 1400");
        bench.until([&] { return bench.host.mtu == 1400; });
        EXPECT_EQ(bench.said(), "");
        EXPECT_EQ(bench.closed(), Names{});
        run_command("ip link set lan0 mtu 1600");
        bench.until([&] { return bench.host.mtu == 1600; });
    });
}

TEST_F(WatchOnDevices, ASettingThatOthersChangeIsSaidUntilALookFindsItAsItShouldBe) {
    in_new_namespace([] {
        Bench bench;
        bench.host.changed = {{.name = "net/ipv4/ip_forward", .found = "0", .error = ""}};
        bench.until(
            [&] { return bench.said().contains("net/ipv4/ip_forward was changed to '0'"); });
        bench.until([&] { return bench.said().empty(); });
    });
}

TEST_F(WatchOnDevices, ASettingThatCannotBeSetBackIsSaidOnceAndStandsAsLongAsItIsSo) {
    in_new_namespace([] {
        Bench bench;
        bench.host.changed = {
            {.name = "net/ipv4/ip_forward", .found = "0", .error = "Read-only file system"}};
        const auto stands = [&] {
            return bench.said().contains("cannot be set back: Read-only file system");
        };
        bench.until(stands);
        // Some more looks.
        const int before = bench.host.looks;
        bench.until([&] { return bench.host.looks >= before + 2; });
        EXPECT_TRUE(stands());
        EXPECT_FALSE(bench.said().contains("our value again"));
        EXPECT_EQ(bench.lines_about("cannot be set back"), 1u);
        bench.host.changed.clear();
        bench.until([&] { return bench.said().empty(); });
        EXPECT_EQ(bench.lines_about("mended: the setting net/ipv4/ip_forward"), 1u);
    });
}

TEST_F(WatchOnDevices, AddressesAreToldToTheProgramsAsTheyComeAndGo) {
    in_new_namespace([] {
        Bench bench;
        const auto knows = [&](const char* text) {
            const IpAddress address = parse_ip_address(text).value();
            return std::ranges::find(bench.host.addresses, address) != bench.host.addresses.end();
        };
        run_command("ip addr add 192.0.2.1/24 dev lan0");
        bench.until([&] { return knows("192.0.2.1"); });
        EXPECT_TRUE(knows("192.0.2.255"));
        run_command("ip addr add 2001:db8::1/64 dev lan0");
        bench.until([&] { return knows("2001:db8::1"); });
        run_command("ip addr del 192.0.2.1/24 dev lan0");
        bench.until([&] { return !knows("192.0.2.1") && !knows("192.0.2.255"); });
        EXPECT_TRUE(knows("2001:db8::1"));
        EXPECT_EQ(bench.said(), "");

        bench.host.addresses_refusal = "there is no room";
        bench.until([&] { return bench.said().contains("there is no room"); });
        bench.host.addresses_refusal.clear();
        bench.until([&] { return bench.said().empty(); });
    });
}

}  // namespace
}  // namespace sallyport::watch
