// SPDX-License-Identifier: Apache-2.0
//
// The gate against the running kernel, in a network namespace of its own.

#include "control/watch/gate.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>
#include <string>

#include "tests/support/new_namespace.h"

namespace sallyport::watch {
namespace {

using Names = std::set<std::string>;

using test::in_new_namespace;
using test::output_of;

class WatchGate : public testing::Test {
  protected:
    void SetUp() override {
        if (geteuid() != 0) GTEST_SKIP() << "needs root: routing rules of a network namespace";
    }
    static Names closed() {
        auto gate = Gate::make();
        if (!gate) return {gate.error()};
        const auto names = gate->closed();
        return names ? *names : Names{names.error()};
    }
};

TEST_F(WatchGate, ClosesAndOpensBothFamiliesAndAgainIsNoError) {
    in_new_namespace([] {
        auto gate = Gate::make();
        ASSERT_TRUE(gate) << gate.error();
        for (int again = 0; again < 2; ++again) {
            ASSERT_TRUE(gate->close("lan0"));
            ASSERT_TRUE(gate->close("wan0"));
        }
        EXPECT_EQ(closed(), (Names{"lan0", "wan0"}));
        for (const char* family : {"-4", "-6"}) {
            const std::string rules = output_of(std::string("ip ") + family + " rule");
            EXPECT_NE(rules.find("1:\tfrom all iif lan0 [detached] blackhole"), std::string::npos)
                << rules;
            EXPECT_EQ(rules.find("lan0"), rules.rfind("lan0")) << "twice: " << rules;
        }
        for (int again = 0; again < 2; ++again) ASSERT_TRUE(gate->open("lan0"));
        EXPECT_EQ(closed(), Names{"wan0"});
        ASSERT_TRUE(gate->open_all());
        EXPECT_EQ(closed(), Names{});
    });
}

// One that somebody removed for one family only is not closed.
TEST_F(WatchGate, IsClosedOnlyWhereEachFamilyIs) {
    in_new_namespace([] {
        auto gate = Gate::make();
        ASSERT_TRUE(gate) << gate.error();
        ASSERT_TRUE(gate->close("lan0"));
        ASSERT_EQ(output_of("ip -6 rule del pref 1"), "");
        EXPECT_EQ(closed(), Names{});
        ASSERT_TRUE(gate->close("lan0"));
        EXPECT_EQ(closed(), Names{"lan0"});
    });
}

TEST_F(WatchGate, KeepsOrOpensAtItsEndAndLeavesRulesOfOthersAlone) {
    in_new_namespace([] {
        ASSERT_EQ(output_of("ip rule add pref 1 iif other0 blackhole"), "");
        {
            auto gate = Gate::make();
            ASSERT_TRUE(gate) << gate.error();
            ASSERT_TRUE(gate->close("lan0"));
        }
        EXPECT_EQ(closed(), Names{"lan0"}) << "kept unless told otherwise";
        {
            auto gate = Gate::make();
            ASSERT_TRUE(gate) << gate.error();
            gate->at_end(Gate::AtEnd::open);
        }
        EXPECT_EQ(closed(), Names{});
        EXPECT_NE(output_of("ip rule").find("other0"), std::string::npos);
    });
}

TEST(WatchGateMessages, AnythingShorterThanARuleIsRefused) {
    const netlink::RequestBuffer request = encode_close(Family::v4, "lan0", 7);
    const netlink::Bytes payload = request.bytes().subspan(16);
    EXPECT_EQ(decode_closed(payload).value().value_or("none"), "lan0");
    for (size_t bytes = 0; bytes + 3 < payload.size(); ++bytes) {  // 3: padding
        // Cut off between attributes it is a rule of others, elsewhere it is none.
        const auto cut = decode_closed(payload.first(bytes));
        EXPECT_TRUE(!cut || !*cut) << bytes;
    }
}

}  // namespace
}  // namespace sallyport::watch
