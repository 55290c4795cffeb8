// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>

#include "control/startup/watchdog.h"

namespace sallyport::control {
namespace {

using std::chrono::seconds;
using Indices = std::vector<size_t>;

class WatchdogTest : public ::testing::Test {
  protected:
    Watchdog::Look after(seconds passed, std::array<uint64_t, 2> loops) {
        now_ += passed;
        return watchdog_.look(loops, now_);
    }
    Watchdog watchdog_;
    Watchdog::Time now_{seconds(1000)};
};

TEST_F(WatchdogTest, WorkersThatMoveAreWell) {
    for (uint64_t turn = 0; turn < 10; ++turn) {
        const auto look = after(seconds(1), {turn, 7 * turn});
        EXPECT_TRUE(look.all_move);
        EXPECT_EQ(look.hung, Indices{});
    }
}

TEST_F(WatchdogTest, OneThatStandsIsSaidOnceAndKeepsAllFromBeingWell) {
    EXPECT_TRUE(after(seconds(0), {5, 5}).all_move);
    EXPECT_TRUE(after(seconds(2), {6, 5}).all_move) << "it may have had no CPU";
    const auto found = after(seconds(1), {7, 5});
    EXPECT_FALSE(found.all_move);
    EXPECT_EQ(found.hung, Indices{1});
    const auto later = after(seconds(1), {8, 5});
    EXPECT_FALSE(later.all_move);
    EXPECT_EQ(later.hung, Indices{}) << "said already";
    const auto again = after(seconds(1), {9, 6});
    EXPECT_TRUE(again.all_move);
    EXPECT_EQ(again.moved, Indices{1});
    EXPECT_EQ(after(seconds(4), {10, 6}).hung, Indices{1}) << "and once more from the start";
}

// Control itself stood still, or looks for the first time: nobody is blamed for that.
TEST_F(WatchdogTest, ALookAfterALongTimeSeesWhoHasMoved) {
    after(seconds(0), {5, 5});
    EXPECT_TRUE(after(seconds(60), {6, 6}).all_move);
}

}  // namespace
}  // namespace sallyport::control
