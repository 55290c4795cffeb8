// SPDX-License-Identifier: Apache-2.0

#include "control/startup/deadline.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace sallyport::control {
namespace {

using std::chrono::seconds;

TEST(DeadlineDeathTest, WhatHangsIsEnded) {
    EXPECT_EXIT(
        {
            end_at_latest_in(seconds(1));
            while (true) pause();
        },
        testing::ExitedWithCode(1), "the stop takes too long");
}

TEST(DeadlineDeathTest, WhatEndsBeforeIsNot) {
    EXPECT_EXIT(
        {
            end_at_latest_in(seconds(100));
            _exit(0);
        },
        testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace sallyport::control
