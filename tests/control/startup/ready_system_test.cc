// SPDX-License-Identifier: Apache-2.0
// What may be right later is waited for, and nothing else.

#include "control/startup/ready_system.h"

#include <gtest/gtest.h>

#include <string>

namespace sallyport::control {
namespace {

using config::Error;
using std::chrono::milliseconds;

const Error kMissing{
    .file = "f", .line = 3, .text = "no device 'lan0'", .kind = Error::Kind::not_yet};
const Error kWrong{.file = "f", .line = 5, .text = "no CPU 9"};

class ReadySystem : public ::testing::Test {
  protected:
    // The first `missing_looks` looks find `errors`, those behind nothing.
    std::vector<Error> wait(std::vector<Error> errors, int missing_looks,
                            milliseconds at_most = milliseconds(5000)) {
        return wait_for_system(
            [&, errors] { return ++looks_ <= missing_looks ? errors : std::vector<Error>{}; }, log_,
            at_most);
    }

    Log log_;
    int looks_ = 0;
};

TEST_F(ReadySystem, IsNotWaitedForWhereAllIsWell) {
    EXPECT_TRUE(wait({}, 0).empty());
    EXPECT_EQ(looks_, 1);
}

TEST_F(ReadySystem, AMissingDeviceIsWaitedFor) {
    EXPECT_TRUE(wait({kMissing}, 3).empty());
    EXPECT_EQ(looks_, 4);
}

TEST_F(ReadySystem, NotForEver) {
    EXPECT_EQ(wait({kMissing}, 1000, milliseconds(1000)).size(), 1u);
    EXPECT_LE(looks_, 12) << "ten times a second";
}

TEST_F(ReadySystem, WhatIsWrongIsWrongAtOnce) {
    EXPECT_EQ(wait({kMissing, kWrong}, 1000).size(), 2u);
    EXPECT_EQ(looks_, 1);
    EXPECT_FALSE(may_heal({kMissing, kWrong}));
    EXPECT_TRUE(may_heal({kMissing}));
    EXPECT_FALSE(may_heal({}));
}

}  // namespace
}  // namespace sallyport::control
