// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/rekey_pacer.h"

#include <gtest/gtest.h>

namespace sallyport::control {
namespace {

constexpr PolicyId kGroup{7};
constexpr RekeyPacer::When kPaced = RekeyPacer::When::paced;
constexpr RekeyPacer::Time kStart{std::chrono::hours(1)};

xfrm::SaName name(uint32_t spi) {
    xfrm::SaName out;
    out.spi = Spi{spi};
    return out;
}

TEST(RekeyPacer, KeepsTheOrder) {
    RekeyPacer pacer(2);
    EXPECT_TRUE(pacer.ask(name(1), kGroup, kStart, kPaced));
    EXPECT_TRUE(pacer.ask(name(2), kGroup, kStart, kPaced));
    EXPECT_EQ(pacer.waiting(), 2u);
    EXPECT_EQ(pacer.next(), name(1));
    EXPECT_EQ(pacer.next(), name(2));
    EXPECT_EQ(pacer.next(), std::nullopt);
}

TEST(RekeyPacer, OneThatWaitsIsNotAskedTwice) {
    RekeyPacer pacer(1);
    EXPECT_TRUE(pacer.ask(name(1), kGroup, kStart, kPaced));
    EXPECT_TRUE(pacer.ask(name(1), kGroup, kStart, RekeyPacer::When::always));
    EXPECT_EQ(pacer.waiting(), 1u);
    EXPECT_EQ(pacer.next(), name(1));
    EXPECT_TRUE(pacer.ask(name(1), kGroup, kStart, kPaced));
    EXPECT_EQ(pacer.waiting(), 1u);
}

TEST(RekeyPacer, AGroupIsAskedForTwoOfEachWorkerAndFallback) {
    RekeyPacer pacer(2);
    for (uint32_t i = 0; i < 6; ++i) EXPECT_TRUE(pacer.ask(name(i), kGroup, kStart, kPaced));
    EXPECT_FALSE(pacer.ask(name(6), kGroup, kStart, kPaced));
    EXPECT_EQ(pacer.waiting(), 6u);
    EXPECT_TRUE(pacer.ask(name(7), PolicyId{8}, kStart, kPaced));  // another group
}

TEST(RekeyPacer, AfterAPauseAGroupIsAskedAgain) {
    RekeyPacer pacer(1);
    for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(pacer.ask(name(i), kGroup, kStart, kPaced));
    EXPECT_FALSE(pacer.ask(name(4), kGroup, kStart + RekeyPacer::kPause, kPaced));
    while (pacer.next()) {
    }
    const auto later = kStart + RekeyPacer::kPause + std::chrono::seconds(1);
    for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(pacer.ask(name(i), kGroup, later, kPaced));
    EXPECT_FALSE(pacer.ask(name(4), kGroup, later, kPaced));
}

TEST(RekeyPacer, WhatIsAboutToEndIsAskedForAlways) {
    RekeyPacer pacer(1);
    for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(pacer.ask(name(i), kGroup, kStart, kPaced));
    EXPECT_FALSE(pacer.ask(name(4), kGroup, kStart, kPaced));
    EXPECT_TRUE(pacer.ask(name(5), kGroup, kStart, RekeyPacer::When::always));
    EXPECT_EQ(pacer.waiting(), 5u);
}

}  // namespace
}  // namespace sallyport::control
