// SPDX-License-Identifier: Apache-2.0
// The wake board alone, and between two threads that sleep as workers do. ThreadSanitizer runs
// these, too.

#include <gtest/gtest.h>
#include <poll.h>

#include <array>
#include <thread>

#include "dataplane/base/spsc_ring.h"
#include "dataplane/exchange/wake_board.h"

namespace sallyport {
namespace {

constexpr WorkerId kFirst{0};
constexpr WorkerId kSecond{1};
constexpr int kLostMs = 20'000;  // a wake-up that has not come by then is lost

bool readable(int fd, int wait_ms) {
    pollfd look{.fd = fd, .events = POLLIN, .revents = 0};
    return poll(&look, 1, wait_ms) == 1;
}

TEST(WakeBoard, WhoIsAwakeIsNotSignalled) {
    WakeBoard board(2);
    board.wake(kFirst);
    EXPECT_FALSE(readable(board.fd(kFirst), 0));
}

TEST(WakeBoard, WhoSleepsIsSignalledAndNobodyElse) {
    WakeBoard board(2);
    board.fall_asleep(kFirst);
    board.fall_asleep(kSecond);
    EXPECT_FALSE(readable(board.fd(kFirst), 0));
    board.wake(kFirst);
    EXPECT_TRUE(readable(board.fd(kFirst), 0));
    EXPECT_FALSE(readable(board.fd(kSecond), 0));
}

TEST(WakeBoard, TheNextSleepBeginsWithoutASignal) {
    WakeBoard board(1);
    for (int round = 0; round < 3; ++round) {
        board.fall_asleep(kFirst);
        for (int i = 0; i < 3; ++i) board.wake(kFirst);  // more than one is one
        ASSERT_TRUE(readable(board.fd(kFirst), 0));
        board.woke_up(kFirst);
        ASSERT_FALSE(readable(board.fd(kFirst), 0));
        board.wake(kFirst);
        ASSERT_FALSE(readable(board.fd(kFirst), 0)) << "it is awake";
    }
}

// One thread of a pair that plays ball: what comes in one ring goes out by the other.
class Player {
  public:
    Player(WakeBoard& board, WorkerId own, SpscRing<uint32_t>& in)
        : board_(board), own_(own), in_(in) {}

    // The next ball; false: it did not come, or came and the sleep was not ended.
    bool take(uint32_t& ball) {
        while (!in_.pop(ball)) {
            board_.fall_asleep(own_);
            const bool slept = in_.empty();
            const bool woken = !slept || readable(board_.fd(own_), kLostMs);
            board_.woke_up(own_);
            if (!woken) return false;
            sleeps_ += slept ? 1 : 0;
        }
        return true;
    }
    [[nodiscard]] uint32_t sleeps() const { return sleeps_; }

  private:
    WakeBoard& board_;
    WorkerId own_;
    SpscRing<uint32_t>& in_;
    uint32_t sleeps_ = 0;
};

// So long that the other side is met before, in and after its last look.
void dawdle(uint32_t round) {
    for (uint32_t i = 0; i < (round * 37) % 400; ++i) asm volatile("" ::: "memory");
}

// Each ball is sent when the other side is about to sleep: without the fences one is lost soon.
TEST(WakeBoard, NoWakeUpIsLostBetweenTwoThreads) {
    constexpr uint32_t kRounds = 50'000;
    WakeBoard board(2);
    SpscRing<uint32_t> there(4);
    SpscRing<uint32_t> back(4);
    std::array<uint32_t, 2> played{};
    uint32_t slept = 0;

    std::thread other([&] {
        Player player(board, kSecond, there);
        for (uint32_t ball = 0; played[1] < kRounds && player.take(ball); ++played[1]) {
            dawdle(ball);
            (void)back.push(ball);
            board.wake(kFirst);
        }
        slept = player.sleeps();
    });
    Player player(board, kFirst, back);
    for (uint32_t ball = 0; played[0] < kRounds; ++played[0]) {
        dawdle(played[0] * 11);
        (void)there.push(played[0]);
        board.wake(kSecond);
        if (!player.take(ball) || ball != played[0]) break;
    }
    other.join();
    EXPECT_EQ(played[0], kRounds);
    EXPECT_EQ(played[1], kRounds);
    EXPECT_GT(slept + player.sleeps(), 0u) << "nobody ever slept: nothing was tried";
}

}  // namespace
}  // namespace sallyport
