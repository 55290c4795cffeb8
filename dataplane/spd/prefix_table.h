// SPDX-License-Identifier: Apache-2.0
#pragma once

// Longest-prefix match over an immutable set of prefixes of both families.
//
// Nested prefixes are flattened into disjoint ranges of addresses when the table is built, so a
// lookup is a search for one range: an index over the first 16 bits narrows it to a few ranges,
// most often one. Small tables stay small (a full DIR-24-8 table takes 64 MB whatever it holds),
// and building is O(n log n), which matters because every reload builds new ones.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dataplane/base/ip.h"

namespace sallyport {

class PrefixTable {
  public:
    static constexpr uint32_t kMiss = 0xffffffff;

    struct Entry {
        IpPrefix prefix;
        uint32_t value;  // anything but kMiss
    };

    PrefixTable() = default;
    // Of two entries with the same prefix the first counts.
    explicit PrefixTable(std::span<const Entry> entries);

    // `address`: 4 or 16 bytes in network order, need not be aligned.
    [[nodiscard]] uint32_t lookup_v4(const std::byte* address) const;
    [[nodiscard]] uint32_t lookup_v6(const std::byte* address) const;
    [[nodiscard]] uint32_t lookup(Family family, const std::byte* address) const {
        return family == Family::v4 ? lookup_v4(address) : lookup_v6(address);
    }

  private:
    struct V6 {
        uint64_t high;
        uint64_t low;
        friend auto operator<=>(const V6&, const V6&) = default;
    };
    // Range i begins at starts[i] and ends before starts[i + 1].
    std::vector<uint32_t> v4_starts_;
    std::vector<uint32_t> v4_values_;
    std::vector<uint32_t> v4_index_;  // first 16 bits -> last range that begins at or before them
    std::vector<V6> v6_starts_;
    std::vector<uint32_t> v6_values_;
};

}  // namespace sallyport
