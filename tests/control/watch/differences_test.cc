// SPDX-License-Identifier: Apache-2.0
//
// What must be true of devices against what is.

#include "control/watch/differences.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace sallyport::watch {
namespace {

using Names = std::set<std::string>;

PortShould lan() {
    return {.port = "inside",
            .device = "lan0",
            .ifindex = 7,
            .mac = {2, 0, 0, 0, 0, 1},
            .mtu = 1500,
            .queues = 2};
}

DeviceNow as_it_was() {
    return {.ifindex = 7,
            .name = "lan0",
            .mac = {2, 0, 0, 0, 0, 1},
            .mtu = 1500,
            .up = true,
            .queues = 2,
            .has_program = true,
            .has_kernel_out = true};
}

std::string text_of(const std::vector<Difference>& differences) {
    std::string out;
    for (const Difference& difference : differences) out += difference.text + "\n";
    return out;
}

TEST(WatchPort, NothingIsSaidOfOneThatIsAsItWas) {
    const PortVerdict verdict = judge_port(lan(), as_it_was(), 7);
    EXPECT_TRUE(verdict.differences.empty()) << text_of(verdict.differences);
    EXPECT_TRUE(verdict.closed.empty());
    EXPECT_FALSE(verdict.attach);
    EXPECT_FALSE(verdict.attach_out);
    EXPECT_FALSE(verdict.lost);
}

// What comes in is judged all the same: nothing is closed.
TEST(WatchPort, OneWithoutItsTcProgramGetsIt) {
    DeviceNow now = as_it_was();
    now.has_kernel_out = false;
    const PortVerdict verdict = judge_port(lan(), now, 7);
    EXPECT_TRUE(verdict.attach_out);
    EXPECT_FALSE(verdict.attach);
    EXPECT_TRUE(verdict.closed.empty());
    EXPECT_TRUE(text_of(verdict.differences).contains("TC program was removed from lan0"));
}

struct Row {
    const char* name;
    DeviceNow now;
    uint32_t namesake;
    Names closed;
    bool attach;
    bool lost;
    const char* says;
};

std::vector<Row> rows() {
    const auto with = [](auto change) {
        DeviceNow now = as_it_was();
        change(now);
        return now;
    };
    return {
        {"removed", {}, 0, {"lan0"}, false, true, "gone from this network namespace"},
        {"made again", {}, 9, {"lan0"}, false, true, "made again"},
        {"renamed",
         with([](DeviceNow& now) { now.name = "eth9"; }),
         0,
         {"lan0"},
         false,
         false,
         "is called eth9 now"},
        {"renamed, without a program",
         with([](DeviceNow& now) {
             now.name = "eth9";
             now.has_program = false;
         }),
         0,
         {"eth9", "lan0"},
         true,
         false,
         "removed from eth9"},
        {"program removed",
         with([](DeviceNow& now) { now.has_program = false; }),
         7,
         {"lan0"},
         true,
         false,
         "XDP program was removed"},
        {"down", with([](DeviceNow& now) { now.up = false; }), 7, {}, false, false, "is down"},
        {"takes tags off",
         with([](DeviceNow& now) { now.keeps_tags = false; }),
         7,
         {},
         false,
         false,
         "ethtool -K lan0 rxvlan off"},
        {"without carrier",
         with([](DeviceNow& now) { now.has_carrier = false; }),
         7,
         {},
         false,
         false,
         "has no carrier; what is sent there is lost"},
        // Followed, so nothing is wrong.
        {"MTU", with([](DeviceNow& now) { now.mtu = 1400; }), 7, {}, false, false, nullptr},
        {"in a bridge",
         with([](DeviceNow& now) { now.slave_kind = "bridge"; }),
         7,
         {},
         false,
         false,
         "belongs to a bridge now"},
        {"queues",
         with([](DeviceNow& now) { now.queues = 4; }),
         7,
         {},
         false,
         false,
         "4 receive queues now and 2"},
        {"queues that cannot be read",
         with([](DeviceNow& now) { now.queues = 0; }),
         7,
         {},
         false,
         false,
         nullptr},
    };
}

TEST(WatchPort, EachChangeHasItsVerdict) {
    for (const Row& row : rows()) {
        SCOPED_TRACE(row.name);
        const PortVerdict verdict = judge_port(lan(), row.now, row.namesake);
        EXPECT_EQ(verdict.closed, row.closed);
        EXPECT_EQ(verdict.attach, row.attach);
        EXPECT_FALSE(verdict.attach_out);
        EXPECT_EQ(verdict.lost, row.lost);
        const std::string text = text_of(verdict.differences);
        if (row.says == nullptr) {
            EXPECT_EQ(text, "");
        } else {
            EXPECT_NE(text.find(row.says), std::string::npos) << text;
            EXPECT_TRUE(text.starts_with("port inside: ")) << text;
        }
    }
}

// Its sockets went with it, so packets for workers would get nowhere.
TEST(WatchPort, OneThatWasAwayStaysClosedUnderBothNames) {
    PortShould should = lan();
    should.lost = true;
    DeviceNow now = as_it_was();
    now.name = "eth9";
    const PortVerdict verdict = judge_port(should, now, 0);
    EXPECT_EQ(verdict.closed, (Names{"lan0", "eth9"}));
    EXPECT_FALSE(verdict.attach);
    EXPECT_TRUE(verdict.lost);
    EXPECT_NE(text_of(verdict.differences).find("is back"), std::string::npos);
}

TEST(WatchPort, WhatIsBelowAnUnprotectedPortStaysClosedUnderBothNames) {
    PortShould should = lan();
    should.below = {{.ifindex = 3, .name = "eth0"}};
    DeviceNow now = as_it_was();
    now.below = {"eth0"};
    EXPECT_EQ(judge_port(should, now, 7).closed, Names{"eth0"});
    now.below = {"uplink"};
    const PortVerdict renamed = judge_port(should, now, 7);
    EXPECT_EQ(renamed.closed, (Names{"eth0", "uplink"}));
    EXPECT_TRUE(renamed.differences.empty()) << text_of(renamed.differences);
    now = {};
    EXPECT_EQ(judge_port(should, now, 0).closed, (Names{"eth0", "lan0"}));
}

TEST(WatchPort, WhatHoldsOnHasTheSameKey) {
    DeviceNow now = as_it_was();
    now.queues = 3;
    const auto first = judge_port(lan(), now, 7).differences;
    now.queues = 4;
    const auto second = judge_port(lan(), now, 7).differences;
    ASSERT_EQ(first.size(), 1u);
    ASSERT_EQ(second.size(), 1u);
    EXPECT_EQ(first[0].key, second[0].key);
    EXPECT_NE(first[0].text, second[0].text);
}

TEST(WatchInner, IsSetUpAndAttachedAgainAndSaysWhenItIsGone) {
    const InnerShould tap{.device = "sp0", .ifindex = 7, .needed_by = "what workers send"};
    DeviceNow now = as_it_was();
    now.name = "sp0";
    EXPECT_TRUE(judge_inner(tap, now).differences.empty());
    now.up = false;
    now.has_program = false;
    const InnerVerdict verdict = judge_inner(tap, now);
    EXPECT_TRUE(verdict.set_up);
    EXPECT_TRUE(verdict.attach);
    EXPECT_TRUE(verdict.close);
    EXPECT_EQ(verdict.differences.size(), 2u);
    const InnerVerdict gone = judge_inner(tap, {});
    EXPECT_FALSE(gone.set_up);
    EXPECT_FALSE(gone.attach);
    EXPECT_NE(text_of(gone.differences).find("stands still what workers send: restart sallyportd"),
              std::string::npos);
}

}  // namespace
}  // namespace sallyport::watch
