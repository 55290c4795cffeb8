// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <thread>

#include "dataplane/base/spsc_ring.h"

namespace sallyport {
namespace {

TEST(SpscRing, CapacityIsRoundedUpToAPowerOfTwo) {
    EXPECT_EQ(SpscRing<int>(1).capacity(), 2u);
    EXPECT_EQ(SpscRing<int>(2).capacity(), 2u);
    EXPECT_EQ(SpscRing<int>(5).capacity(), 8u);
    EXPECT_EQ(SpscRing<int>(1024).capacity(), 1024u);
}

TEST(SpscRing, EmptyAndFull) {
    SpscRing<int> ring(4);
    int value = -1;
    EXPECT_FALSE(ring.pop(value));
    EXPECT_EQ(value, -1);
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(ring.push(i)) << i;
    EXPECT_FALSE(ring.push(99));
    EXPECT_EQ(ring.size(), 4u);
    EXPECT_TRUE(ring.pop(value));
    EXPECT_EQ(value, 0);
    EXPECT_TRUE(ring.push(4));
    EXPECT_FALSE(ring.push(99));
    for (int expected = 1; expected <= 4; ++expected) {
        ASSERT_TRUE(ring.pop(value));
        EXPECT_EQ(value, expected);
    }
    EXPECT_TRUE(ring.empty());
    EXPECT_FALSE(ring.pop(value));
}

// Every fill level at every position of the ring.
TEST(SpscRing, AllLevelsAtAllPositions) {
    SpscRing<uint32_t> ring(8);
    uint32_t next_in = 0;
    uint32_t next_out = 0;
    for (uint32_t position = 0; position < 16; ++position) {
        for (uint32_t level = 1; level <= 8; ++level) {
            for (uint32_t i = 0; i < level; ++i) ASSERT_TRUE(ring.push(next_in++));
            ASSERT_EQ(ring.size(), level);
            for (uint32_t i = 0; i < level; ++i) {
                uint32_t value = 0;
                ASSERT_TRUE(ring.pop(value));
                ASSERT_EQ(value, next_out++);
            }
            ASSERT_TRUE(ring.empty());
        }
        uint32_t value = 0;
        ASSERT_TRUE(ring.push(next_in++));
        ASSERT_TRUE(ring.pop(value));
        ASSERT_EQ(value, next_out++);
    }
}

// Two threads; each element has a second word that depends on the first, so a torn or early read
// shows. A small ring makes both full and empty happen all the time.
TEST(SpscRing, OrderBetweenTwoThreads) {
    struct Element {
        uint64_t number;
        uint64_t check;
    };
    constexpr uint64_t kCount = 2'000'000;
    constexpr uint64_t kMix = 0x9e3779b97f4a7c15u;
    SpscRing<Element> ring(16);
    uint64_t full = 0;
    std::thread producer([&ring, &full] {
        for (uint64_t i = 0; i < kCount;) {
            if (ring.push({.number = i, .check = i * kMix})) {
                ++i;
            } else {
                ++full;
                std::this_thread::yield();
            }
        }
    });
    uint64_t wrong = 0;
    for (uint64_t expected = 0; expected < kCount;) {
        Element element{};
        if (!ring.pop(element)) {
            std::this_thread::yield();
            continue;
        }
        if (element.number != expected || element.check != expected * kMix) ++wrong;
        ++expected;
    }
    producer.join();
    EXPECT_EQ(wrong, 0u);
    EXPECT_GT(full, 0u);
    EXPECT_TRUE(ring.empty());
}

}  // namespace
}  // namespace sallyport
