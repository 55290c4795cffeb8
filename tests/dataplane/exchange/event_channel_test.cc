// SPDX-License-Identifier: Apache-2.0
// The way from a worker to control: what is never lost, what is limited, and when the descriptor
// speaks. ThreadSanitizer runs these, too.

#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <ctime>
#include <thread>

#include "dataplane/exchange/event_channel.h"

namespace sallyport {
namespace {

constexpr int kLostMs = 20'000;  // a signal that has not come by then is lost

class EventChannelTest : public ::testing::Test {
  protected:
    // A request, with a number to know it by.
    void post_numbered(uint64_t number) {
        channel_.post(event::SequenceLow{.id = {}, .next = number});
    }
    // Its number; all ones: another event.
    static uint64_t number_of(const Event& event) {
        const auto* request = std::get_if<event::SequenceLow>(&event);
        return request != nullptr ? request->next : ~uint64_t{0};
    }
    bool readable(int wait_ms = 0) {
        pollfd look{.fd = channel_.fd(), .events = POLLIN, .revents = 0};
        return poll(&look, 1, wait_ms) == 1;
    }
    // Those of the clock that the limit goes by.
    static uint64_t seconds() {
        timespec now{};
        clock_gettime(CLOCK_MONOTONIC, &now);
        return static_cast<uint64_t>(now.tv_sec);
    }
    uint64_t count_left() {
        Event event;
        uint64_t count = 0;
        while (channel_.pop(event)) ++count;
        return count;
    }

    WorkerCounters counters_;
    EventChannel channel_{counters_};
};

TEST_F(EventChannelTest, TheDescriptorSpeaksOncePerLoop) {
    channel_.notify();
    EXPECT_FALSE(readable()) << "nothing was posted";
    post_numbered(1);
    post_numbered(2);
    EXPECT_FALSE(readable()) << "the loop goes on";
    channel_.notify();
    EXPECT_TRUE(readable());
    EXPECT_EQ(count_left(), 2u);
    EXPECT_FALSE(readable());
    channel_.notify();
    EXPECT_FALSE(readable()) << "nothing new";
}

TEST_F(EventChannelTest, WhatMustNotBeLostWaitsForRoom) {
    constexpr uint64_t kCount = 3 * EventChannel::kRingSize + 7;
    for (uint64_t i = 0; i < kCount; ++i) post_numbered(i);
    EXPECT_TRUE(channel_.has_unsent());
    uint64_t next = 0;
    for (int loop = 0; loop < 4; ++loop) {
        channel_.notify();
        ASSERT_TRUE(readable());
        Event event;
        for (; channel_.pop(event); ++next) ASSERT_EQ(number_of(event), next);
    }
    EXPECT_EQ(next, kCount);
    EXPECT_FALSE(channel_.has_unsent());
    EXPECT_EQ(counters_.events_lost.read(), 0u);
}

// What is posted later does not overtake what waits, though there is room by then.
TEST_F(EventChannelTest, OrderIsKeptWhileSomethingWaits) {
    uint64_t posted = 0;
    while (!channel_.has_unsent()) post_numbered(posted++);
    Event event;
    ASSERT_TRUE(channel_.pop(event));
    EXPECT_EQ(number_of(event), 0u);
    post_numbered(posted++);
    uint64_t next = 1;
    while (channel_.has_unsent() || next < posted) {
        channel_.notify();
        for (; channel_.pop(event); ++next) ASSERT_EQ(number_of(event), next);
    }
}

TEST_F(EventChannelTest, RecordsAreLimitedAndCounted) {
    constexpr uint64_t kCount = 10'000;
    const uint64_t began = seconds();
    for (uint64_t i = 0; i < kCount; ++i) channel_.post(event::Audit{});
    const uint64_t reported = count_left();
    EXPECT_GE(reported, EventChannel::kRecordsPerSecond);
    EXPECT_LE(reported, EventChannel::kRecordsPerSecond * (seconds() - began + 1));
    EXPECT_EQ(reported + counters_.audits_suppressed.read(), kCount);
    EXPECT_EQ(counters_.events_lost.read(), 0u);
}

// What anybody can send as often as he likes does not hide what is rare.
TEST_F(EventChannelTest, EachKindOfRecordHasALimitOfItsOwn) {
    for (int i = 0; i < 1000; ++i) {
        channel_.post(event::Audit{.reason = DropReason::unknown_spi});
    }
    channel_.post(event::Audit{.reason = DropReason::icv_mismatch});
    channel_.post(event::SequenceExhausted{});
    int of_another_reason = 0;
    int exhausted = 0;
    for (Event event; channel_.pop(event);) {
        const auto* audit = std::get_if<event::Audit>(&event);
        if (audit == nullptr) {
            exhausted += std::holds_alternative<event::SequenceExhausted>(event) ? 1 : 0;
        } else if (audit->reason == DropReason::icv_mismatch) {
            ++of_another_reason;
        }
    }
    EXPECT_EQ(of_another_reason, 1);
    EXPECT_EQ(exhausted, 1);
}

TEST_F(EventChannelTest, ARecordThatFindsNoRoomIsLostAndCounted) {
    for (uint64_t i = 0; i < EventChannel::kRingSize; ++i) post_numbered(i);
    channel_.post(event::Audit{});
    EXPECT_EQ(counters_.events_lost.read(), 1u);
    EXPECT_EQ(counters_.audits_suppressed.read(), 0u);
    EXPECT_FALSE(channel_.has_unsent());
    EXPECT_EQ(count_left(), EventChannel::kRingSize);
}

// A worker that posts more at once than the ring holds, and control that sleeps until it is told.
TEST_F(EventChannelTest, BetweenTwoThreadsNothingIsLostAndEachSleepEnds) {
    constexpr uint64_t kCount = 300'000;
    std::atomic<bool> ended = false;
    std::thread worker([&] {
        for (uint64_t number = 0; number < kCount;) {
            const uint64_t burst = number % 7 == 0 ? 2 * EventChannel::kRingSize : number % 61 + 1;
            for (uint64_t i = 0; i < burst && number < kCount; ++i) {
                post_numbered(number++);
                if (i % 1000 == 0) channel_.post(event::Audit{});
            }
            channel_.notify();
            if (number % 3 == 0) std::this_thread::yield();
        }
        while (channel_.has_unsent()) {
            channel_.notify();
            std::this_thread::yield();
        }
        ended = true;
    });
    uint64_t next = 0;
    bool in_order = true;
    bool told = true;
    while (next < kCount && in_order && told) {
        told = readable(kLostMs);
        Event event;
        while (in_order && channel_.pop(event)) {
            if (is_record(event)) continue;
            in_order = number_of(event) == next++;
        }
    }
    // Whatever was found, the worker must be able to end.
    while (!ended) {
        (void)count_left();
        std::this_thread::yield();
    }
    worker.join();
    EXPECT_TRUE(told) << "a signal was lost at event " << next;
    EXPECT_TRUE(in_order) << "an event was lost or came twice at " << next;
    EXPECT_EQ(next, kCount);
}

}  // namespace
}  // namespace sallyport
