// SPDX-License-Identifier: Apache-2.0
#pragma once

// Replay protection (RFC 4303 3.4.3) with extended sequence numbers (appendix A2).
//
// The bitmap is a ring of 64-bit words indexed by sequence number (RFC 6479): advancing clears the
// words that are entered, nothing is ever shifted. One word more than the window needs, so that
// the word being entered never holds numbers still inside the window.
//
// Two calls, because several packets of one SA, even two copies of one packet, can be in one
// burst: would_accept() before the ICV is checked, commit() after, and commit() asks again.

#include <cstdint>
#include <cstring>

namespace sallyport {

inline constexpr uint32_t kReplayWindowMax = 4096;

enum class ReplayVerdict : uint8_t { fresh, replayed, before_window };

// State of one inbound SA. The words follow the object in memory: the owner reserves word_bytes().
class ReplayWindow {
  public:
    // `window`: 0 (off) or 32 .. 4096, in packets.
    static constexpr uint32_t word_count(uint32_t window) {
        return window == 0 ? 0 : ceil_power_of_two((window + 63) / 64 + 1);
    }
    static constexpr size_t word_bytes(uint32_t window) { return word_count(window) * 8u; }

    // `top`: highest sequence number already received (0 for a new SA).
    void init(uint64_t* words, uint32_t window, uint64_t top) {
        words_ = words;
        window_ = window;
        mask_ = word_count(window) == 0 ? 0 : word_count(window) - 1;
        set_top(top);
        if (window == 0) return;
        std::memset(words_, top == 0 ? 0 : 0xff, word_bytes(window));
        // What lies below `top` is unknown after a takeover: treat it as received. What lies above
        // is not, and advance() does not clear the word that `top` itself is in.
        if (top != 0) word(top) = ~uint64_t{0} >> (63 - (top & 63));
    }

    // Goes on where `before` stopped, which was the same SA's: in no case does a number become
    // fresh again. With a window of the same size the state is the same; with another size only
    // the top is kept, and what lies at or below it counts as received. A window that was made
    // with a higher top than `before` has reached stays as it is.
    void take_over(const ReplayWindow& before) {
        if (top_ > before.top_) return;
        if (window_ != before.window_) return init(words_, window_, before.top_);
        if (window_ != 0) std::memcpy(words_, before.words_, word_bytes(window_));
        set_top(before.top_);
    }

    // The full sequence number of a packet whose low 32 bits are `low` (RFC 4303 A2.2).
    [[nodiscard]] uint64_t infer_esn(uint32_t low) const {
        const auto top_low = static_cast<uint32_t>(top_);
        const auto top_high = static_cast<uint32_t>(top_ >> 32);
        // Without a window the closest number is meant, or one packet overtaking another would
        // count as a turn of the low half.
        const uint32_t window = window_ == 0 ? uint32_t{1} << 31 : window_;
        uint32_t high = top_high;
        const uint32_t bottom = top_low - (window - 1);  // wraps in case B
        if (top_low >= window - 1) {
            // Case A: the window lies within one 2^32 range.
            if (low < bottom) high = top_high + 1;
        } else {
            // Case B: it spans two. Before the first there is none: a large number is a jump ahead.
            if (low >= bottom && top_high != 0) high = top_high - 1;
        }
        return static_cast<uint64_t>(high) << 32 | low;
    }

    [[nodiscard]] ReplayVerdict would_accept(uint64_t sequence) const {
        if (window_ == 0) return ReplayVerdict::fresh;
        if (sequence == 0) return ReplayVerdict::before_window;  // never sent (RFC 4303 3.3.3)
        if (sequence > top_) return ReplayVerdict::fresh;
        if (top_ - sequence >= window_) return ReplayVerdict::before_window;
        return (word(sequence) & bit(sequence)) != 0 ? ReplayVerdict::replayed
                                                     : ReplayVerdict::fresh;
    }

    // Marks an authenticated sequence number as received, unless it is not fresh any more.
    ReplayVerdict commit(uint64_t sequence) {
        if (window_ == 0) {
            if (sequence > top_) set_top(sequence);
            return ReplayVerdict::fresh;
        }
        const ReplayVerdict verdict = would_accept(sequence);
        if (verdict != ReplayVerdict::fresh) return verdict;
        if (sequence > top_) advance(sequence);
        word(sequence) |= bit(sequence);
        return ReplayVerdict::fresh;
    }

    // Another has accepted numbers up to `last` meanwhile: all of them count as received.
    void skip(uint64_t last) {
        if (last >= top_) return init(words_, window_, last);
        if (window_ == 0) return;
        const uint64_t first = top_ >= window_ ? top_ - window_ + 1 : 0;
        for (uint64_t sequence = first; sequence <= last; ++sequence) {
            word(sequence) |= bit(sequence);
        }
    }

    // Highest number that was authenticated (or given to init()). Any thread: commit() is the one
    // place that raises it, after the ICV, and the store is whole, so a reader is never ahead.
    [[nodiscard]] uint64_t top() const { return __atomic_load_n(&top_, __ATOMIC_RELAXED); }
    [[nodiscard]] uint32_t window() const { return window_; }
    [[nodiscard]] const uint64_t* words() const { return words_; }

  private:
    static constexpr uint32_t ceil_power_of_two(uint32_t value) {
        uint32_t power = 1;
        while (power < value) power *= 2;
        return power;
    }
    static uint64_t bit(uint64_t sequence) { return uint64_t{1} << (sequence & 63); }
    [[nodiscard]] uint64_t& word(uint64_t sequence) { return words_[(sequence >> 6) & mask_]; }
    [[nodiscard]] const uint64_t& word(uint64_t sequence) const {
        return words_[(sequence >> 6) & mask_];
    }
    void advance(uint64_t sequence) {
        const uint64_t from = top_ >> 6;
        uint64_t steps = (sequence >> 6) - from;
        if (steps > mask_) steps = mask_ + 1;
        for (uint64_t step = 1; step <= steps; ++step) words_[(from + step) & mask_] = 0;
        set_top(sequence);
    }
    void set_top(uint64_t top) { __atomic_store_n(&top_, top, __ATOMIC_RELAXED); }

    uint64_t top_ = 0;  // writer: worker; reader: control, through top()
    uint64_t* words_ = nullptr;
    uint32_t window_ = 0;
    uint32_t mask_ = 0;
};

}  // namespace sallyport
