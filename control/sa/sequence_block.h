// SPDX-License-Identifier: Apache-2.0
#pragma once

// How many sequence numbers are reserved at once for a worker, on disk or in the kernel's state.
//
//     first ........... low water ........... end      at the low water the worker asks for the
//       |   used   |   free to use             |       next block; at the end it stops
//
// A larger block means fewer writes (one per half block), but a crash wastes up to one block of the
// range: with 2^20 of 2^32 numbers that is 1/4096 of a key's life, and at 1 Mpps one fsync in half
// a second; ESN has no such worry, so its blocks are 2^24.
//
// In the kernel's state, which may take numbers itself at any time, a block is what the SA sends in
// kBlockTime: the worker asks at half of it, so control may be late by seconds at any rate, and
// what is wasted of a slow SA is little.

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "dataplane/sa/sa.h"

namespace sallyport::control {

inline constexpr uint64_t kSequenceBlock32 = uint64_t{1} << 20;
inline constexpr uint64_t kSequenceBlockEsn = uint64_t{1} << 24;

inline constexpr std::chrono::seconds kBlockTime{10};
// Less, and a burst on an SA that was idle stands still while control is busy: 2^18 is 0.26 s of 1
// Mpps. More at most, and a few hand-overs use up a key: 2^24 is 1/256 of it, and 4 s of 4 Mpps.
inline constexpr uint64_t kSequenceBlockMin32 = uint64_t{1} << 18;
inline constexpr uint64_t kSequenceBlockMax32 = uint64_t{1} << 24;
inline constexpr uint64_t kSequenceBlockMaxEsn = uint64_t{1} << 32;

// Of an SA that has sent `packets` in `time`.
constexpr uint64_t sequence_block(bool esn, uint64_t packets, std::chrono::nanoseconds time) {
    const std::chrono::nanoseconds at_least = std::chrono::milliseconds(1);
    const double rate = static_cast<double>(packets) /
                        std::chrono::duration<double>(std::max(time, at_least)).count();
    const uint64_t least = esn ? kSequenceBlockEsn : kSequenceBlockMin32;
    const uint64_t most = esn ? kSequenceBlockMaxEsn : kSequenceBlockMax32;
    const double wanted = rate * static_cast<double>(kBlockTime.count());
    return wanted >= static_cast<double>(most) ? most
                                               : std::max(least, static_cast<uint64_t>(wanted));
}

struct SequenceRange {
    uint64_t first = 0;
    uint64_t end = 0;  // first number behind the range
};

// Past the last number.
constexpr uint64_t sequence_end(bool esn) {
    return esn ? kSequenceEndEsn : kSequenceEnd32;
}

constexpr uint64_t sequence_block(bool esn) {
    return esn ? kSequenceBlockEsn : kSequenceBlock32;
}

// The next block of `size`, cut where the protocol ends.
constexpr SequenceRange next_block(uint64_t first, bool esn, uint64_t size) {
    return {.first = first, .end = first + std::min(size, sequence_end(esn) - first)};
}

// The number at which the next block is asked for: half way. Behind the last block there is nothing
// to ask for, so the low water is its end, where the worker stops.
constexpr uint64_t low_water(const SequenceRange& range, uint64_t end) {
    return range.end >= end ? range.end : range.first + (range.end - range.first) / 2;
}

// Less than this left of what a worker has been given: more is due, also where it has not asked
// (its event was lost). A worker asks once.
constexpr uint64_t sequence_left_min(bool esn) {
    return sequence_block(esn) / 4;
}

}  // namespace sallyport::control
