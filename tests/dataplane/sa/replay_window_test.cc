// SPDX-License-Identifier: Apache-2.0
// The replay window against a naive reference that keeps every number in a set, and the inference
// of extended sequence numbers against the closest one to the window.

#include "dataplane/sa/replay_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <vector>

namespace sallyport {
namespace {

struct Window {
    explicit Window(uint32_t size, uint64_t top = 0)
        : words(std::max<size_t>(ReplayWindow::word_count(size), 1)) {
        window.init(words.data(), size, top);
    }
    std::vector<uint64_t> words;
    ReplayWindow window;
};

// RFC 4303 3.4.3 by the word: the highest number seen, and which below it were seen.
class Naive {
  public:
    Naive(uint32_t window, uint64_t top) : window_(window), top_(top), first_unknown_(top) {}

    [[nodiscard]] ReplayVerdict verdict(uint64_t sequence) const {
        if (window_ == 0) return ReplayVerdict::fresh;
        if (sequence == 0) return ReplayVerdict::before_window;
        if (sequence > top_) return ReplayVerdict::fresh;
        if (top_ - sequence >= window_) return ReplayVerdict::before_window;
        // After a takeover nobody knows what came below the top: all of it counts as seen.
        if (sequence <= first_unknown_) return ReplayVerdict::replayed;
        return seen_.contains(sequence) ? ReplayVerdict::replayed : ReplayVerdict::fresh;
    }
    ReplayVerdict commit(uint64_t sequence) {
        const ReplayVerdict result = verdict(sequence);
        if (result == ReplayVerdict::fresh) {
            seen_.insert(sequence);
            top_ = std::max(top_, sequence);
        }
        return result;
    }

  private:
    uint32_t window_;
    uint64_t top_;
    uint64_t first_unknown_;
    std::set<uint64_t> seen_;
};

constexpr uint32_t kWindows[] = {0,   32,  33,  63,   64,   65,   96,   127,  128,
                                 129, 500, 960, 1000, 1024, 2047, 3000, 4033, 4096};

TEST(ConformanceC1, EqualsNaiveUnderRandomReordering) {
    std::mt19937_64 random(1);
    uint64_t fresh = 0;
    uint64_t replayed = 0;
    uint64_t before = 0;
    for (const uint32_t size : kWindows) {
        for (const uint64_t start :
             {uint64_t{0}, uint64_t{1}, uint64_t{63}, uint64_t{64}, uint64_t{1000003},
              (uint64_t{1} << 32) - 40, (uint64_t{7} << 32) + 5}) {
            Window real(size, start);
            Naive naive(size, start);
            uint64_t centre = start;
            for (int step = 0; step < 4000; ++step) {
                switch (random() % 16) {
                    case 0:
                        centre += random() % (size + 70);  // about one window
                        break;
                    case 1:
                        centre += random() % 64 == 0 ? random() % 100000 : 0;  // a long gap
                        break;
                    default:
                        centre += random() % 3;
                }
                // Reordered by up to a window and a half, both ways.
                const uint64_t reach = size + size / 2 + 3;
                const uint64_t back = random() % reach;
                const uint64_t sequence = centre >= back ? centre - back : random() % 3;
                const ReplayVerdict expected = naive.verdict(sequence);
                ASSERT_EQ(real.window.would_accept(sequence), expected)
                    << "window " << size << ", start " << start << ", sequence " << sequence
                    << ", top " << real.window.top();
                // Some packets fail their ICV: asked, but never committed.
                if (random() % 8 == 0) continue;
                ASSERT_EQ(real.window.commit(sequence), naive.commit(sequence));
                fresh += expected == ReplayVerdict::fresh ? 1u : 0u;
                replayed += expected == ReplayVerdict::replayed ? 1u : 0u;
                before += expected == ReplayVerdict::before_window ? 1u : 0u;
            }
        }
    }
    EXPECT_GT(fresh, 10000u);
    EXPECT_GT(replayed, 10000u);
    EXPECT_GT(before, 10000u);
}

// Every jump around the sizes of words and window, then every number of the window.
TEST(ConformanceC1, EveryJumpAndEveryNumberOfTheWindow) {
    for (const uint32_t size : {32u, 63u, 64u, 65u, 100u, 4096u}) {
        for (uint64_t jump = 1; jump <= size + 130; jump += size > 1000 ? 61 : 1) {
            Window real(size);
            Naive naive(size, 0);
            for (uint64_t sequence = 1; sequence <= 80; sequence += 3) {
                real.window.commit(sequence);
                naive.commit(sequence);
            }
            real.window.commit(80 + jump);
            naive.commit(80 + jump);
            for (uint64_t sequence = 0; sequence <= 82 + jump; ++sequence) {
                ASSERT_EQ(real.window.would_accept(sequence), naive.verdict(sequence))
                    << size << " " << jump << " " << sequence;
            }
        }
    }
}

TEST(ConformanceB3, AskingChangesNothing) {
    Window real(64);
    real.window.commit(100);
    const auto words = real.words;
    for (uint64_t sequence = 0; sequence < 400; ++sequence) {
        (void)real.window.would_accept(sequence);
        (void)real.window.infer_esn(static_cast<uint32_t>(sequence));
    }
    EXPECT_EQ(real.window.top(), 100u);
    EXPECT_EQ(real.words, words);
}

TEST(ConformanceB3, SecondCopyIsRefusedAtCommit) {
    Window real(64);
    EXPECT_EQ(real.window.would_accept(7), ReplayVerdict::fresh);
    EXPECT_EQ(real.window.would_accept(7), ReplayVerdict::fresh);  // both copies are in the burst
    EXPECT_EQ(real.window.commit(7), ReplayVerdict::fresh);
    EXPECT_EQ(real.window.commit(7), ReplayVerdict::replayed);
}

// Of all numbers with these low bits, the one that RFC 4303 appendix A2 picks: in the window
// [top - window + 1, top] if one lies there, else the first above it. Numbers start at 0.
uint64_t expected_esn(uint64_t top, uint32_t window, uint32_t low) {
    const uint64_t bottom = top >= window - 1 ? top - (window - 1) : 0;
    uint64_t candidate = (bottom & ~uint64_t{0xffffffff}) | low;
    if (candidate < bottom) candidate += uint64_t{1} << 32;
    return candidate;
}

TEST(ConformanceB4, EsnCasesAandBAtBothWraps) {
    std::mt19937_64 random(2);
    int case_a_up = 0;
    int case_b_down = 0;
    for (const uint32_t size : kWindows) {
        if (size == 0) continue;
        for (const uint64_t high : {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{0xfffffffe}}) {
            for (int probe = 0; probe < 3000; ++probe) {
                // Tops crowd around both ends of the 32-bit range and the window's length.
                constexpr uint64_t kAll = uint64_t{1} << 32;
                const uint64_t near = random() % (2 * uint64_t{size} + 4);
                const uint64_t top_low = probe % 3 == 0   ? near
                                         : probe % 3 == 1 ? kAll - 1 - near
                                                          : random() % kAll;
                const uint64_t top = high << 32 | top_low;
                const Window real(size, top);
                const uint64_t offset = random() % (3 * uint64_t{size});
                const auto low =
                    static_cast<uint32_t>(probe % 2 == 0 ? top - offset : top + random() % 100000);
                const uint64_t expected = expected_esn(top, size, low);
                ASSERT_EQ(real.window.infer_esn(low), expected)
                    << "top " << top << ", window " << size << ", low " << low;
                case_a_up += expected >> 32 > high ? 1 : 0;
                case_b_down += expected >> 32 < high ? 1 : 0;
            }
        }
    }
    EXPECT_GT(case_a_up, 1000);
    EXPECT_GT(case_b_down, 1000);
}

// A stream across two wraps, reordered within the window, by low halves alone.
TEST(ConformanceB4, AStreamAcrossTwoWraps) {
    std::mt19937_64 random(3);
    for (const uint32_t size : {32u, 64u, 500u, 4096u}) {
        for (const uint64_t wrap : {uint64_t{1} << 32, uint64_t{2} << 32}) {
            const uint64_t first = wrap - 5000;
            Window real(size, first - 1);
            std::vector<uint64_t> stream;
            for (uint64_t i = 0; i < 10000; ++i) stream.push_back(first + i);
            for (size_t i = 0; i + size / 2 < stream.size(); i += size / 2) {
                std::shuffle(stream.begin() + static_cast<ptrdiff_t>(i),
                             stream.begin() + static_cast<ptrdiff_t>(i + size / 2), random);
            }
            for (const uint64_t sequence : stream) {
                const uint64_t inferred = real.window.infer_esn(static_cast<uint32_t>(sequence));
                ASSERT_EQ(inferred, sequence);
                ASSERT_EQ(real.window.commit(inferred), ReplayVerdict::fresh);
            }
        }
    }
}

// With replay protection off there is no window to be in, so the closest number is meant.
TEST(ConformanceB4, EsnWithoutWindowToleratesReordering) {
    Window real(0);
    for (const uint64_t sequence :
         {uint64_t{10}, uint64_t{9}, uint64_t{0x70000000}, uint64_t{0xe0000000},
          uint64_t{0x100000005}, uint64_t{0xfffffff5}, uint64_t{0x100000004}}) {
        EXPECT_EQ(real.window.infer_esn(static_cast<uint32_t>(sequence)), sequence);
        real.window.commit(sequence);
    }
}

TEST(ConformanceB2, TheEndOfExtendedNumbersIsNotPassed) {
    Window real(64, ~uint64_t{0} - 10);
    // Low half 5 would be number 2^64 + 5: the window refuses what wraps.
    const uint64_t inferred = real.window.infer_esn(5);
    EXPECT_EQ(real.window.would_accept(inferred), ReplayVerdict::before_window);
}

TEST(ReplayWindow, MemoryIsAPowerOfTwoWithOneWordMore) {
    EXPECT_EQ(ReplayWindow::word_count(0), 0u);
    for (uint32_t size = 32; size <= kReplayWindowMax; ++size) {
        const uint32_t words = ReplayWindow::word_count(size);
        EXPECT_EQ(words & (words - 1), 0u);
        EXPECT_GE(words * 64, size + 64);
    }
}

// The SA goes on in another object. With a window of the same size nobody can tell.
TEST(TakeOver, SameSizeGoesOnAsIfNothingHadHappened) {
    std::mt19937_64 random(21);
    for (const uint32_t size : kWindows) {
        for (const uint64_t start : {uint64_t{0}, uint64_t{100}, (uint64_t{1} << 32) - 50}) {
            std::vector<std::unique_ptr<Window>> objects;
            objects.push_back(std::make_unique<Window>(size, start));
            Naive naive(size, start);
            uint64_t top = start;
            for (int step = 0; step < 3000; ++step) {
                if (random() % 50 == 0) {
                    // Control may have built the new one with a top that it read before.
                    const uint64_t read_before =
                        random() % 2 == 0 ? 0 : top - random() % 3 * (top / 3);
                    objects.push_back(std::make_unique<Window>(size, read_before));
                    objects.back()->window.take_over(objects[objects.size() - 2]->window);
                    ASSERT_EQ(objects.back()->window.top(), top);
                }
                const uint64_t ahead = random() % 20 == 0 ? random() % 5000 : random() % 4;
                const uint64_t sequence =
                    random() % 2 == 0 ? top + ahead : top - std::min(top, random() % 5000);
                ReplayWindow& window = objects.back()->window;
                ASSERT_EQ(window.would_accept(sequence), naive.verdict(sequence))
                    << size << " " << sequence << " " << top;
                ASSERT_EQ(window.commit(sequence), naive.commit(sequence));
                top = std::max(top, sequence);
                ASSERT_EQ(window.top(), top);
            }
        }
    }
}

// With another size: nothing at or below the top is accepted any more, all above is.
TEST(TakeOver, OtherSizeKeepsTheTopAndCountsAllBelowAsReceived) {
    for (const uint32_t before : kWindows) {
        for (const uint32_t after : kWindows) {
            if (before == after || after == 0) continue;
            Window old(before, 1000);
            for (const uint64_t sequence : {uint64_t{1003}, uint64_t{1030}, uint64_t{1010}}) {
                ASSERT_EQ(old.window.commit(sequence), ReplayVerdict::fresh);
            }
            Window next(after);
            next.window.take_over(old.window);
            ASSERT_EQ(next.window.top(), 1030u);
            for (uint64_t sequence = 0; sequence <= 1030; ++sequence) {
                ASSERT_NE(next.window.would_accept(sequence), ReplayVerdict::fresh) << sequence;
            }
            for (uint64_t sequence = 1031; sequence < 1200; ++sequence) {
                ASSERT_EQ(next.window.would_accept(sequence), ReplayVerdict::fresh);
            }
        }
    }
    // Nothing was received yet: nothing is forbidden.
    Window old(64);
    Window next(128);
    next.window.take_over(old.window);
    EXPECT_EQ(next.window.would_accept(1), ReplayVerdict::fresh);
}

// The kernel has received packets with the same SA meanwhile: its top is the higher one.
// Above, at and below the top, in windows that are full, half full and new.
TEST(ReplayWindow, WhatIsSkippedCountsAsReceived) {
    for (const uint32_t size : {0u, 32u, 64u, 65u, 128u}) {
        for (uint64_t top = 0; top < 300; top += 7) {
            for (uint64_t last = 0; last < 400; last += 3) {
                Window made(size);
                ReplayWindow& window = made.window;
                for (uint64_t sequence = 1; sequence <= top; sequence += 2) window.commit(sequence);
                std::vector<ReplayVerdict> before;
                for (uint64_t n = 0; n < 500; ++n) before.push_back(window.would_accept(n));
                const uint64_t top_before = window.top();
                window.skip(last);
                ASSERT_EQ(window.top(), std::max(top_before, last));
                for (uint64_t n = 0; n < 500 && size != 0; ++n) {
                    const bool fresh = window.would_accept(n) == ReplayVerdict::fresh;
                    ASSERT_EQ(fresh, n > last && before[n] == ReplayVerdict::fresh)
                        << size << " " << top << " " << last << " " << n;
                }
            }
        }
    }
}

TEST(TakeOver, AHigherTopStands) {
    for (const uint32_t after : {64u, 128u}) {
        Window old(64, 10);
        Window next(after, 50);
        next.window.take_over(old.window);
        EXPECT_EQ(next.window.top(), 50u);
        for (uint64_t sequence = 0; sequence <= 50; ++sequence) {
            EXPECT_NE(next.window.would_accept(sequence), ReplayVerdict::fresh);
        }
        EXPECT_EQ(next.window.would_accept(51), ReplayVerdict::fresh);
    }
}

}  // namespace
}  // namespace sallyport
