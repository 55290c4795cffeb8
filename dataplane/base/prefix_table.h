// SPDX-License-Identifier: Apache-2.0
#pragma once

// Longest-prefix match over an immutable set of prefixes of both families.
//
// Nested prefixes are flattened into disjoint ranges of addresses when the table is built:
//
//   10.0.0.0/8 -> A, 10.1.0.0/16 -> B      0 ........ miss
//                                          10.0.0.0   A
//                                          10.1.0.0   B
//                                          10.2.0.0   A
//                                          11.0.0.0   miss
//
// so a lookup finds the last range that begins at or before the address. Large IPv4 tables have an
// index over the first 16 bits, and crowded slots of it another over the next 8, which leaves a few
// ranges to search, most often one. Small tables stay small (a DIR-24-8 table takes 64 MB whatever
// it holds) and building takes O(n log n), which matters because every change of the SPD builds
// new ones.

#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "dataplane/base/ip.h"

namespace sallyport {

struct PrefixEntry {
    IpPrefix prefix;
    uint32_t value;  // anything but kPrefixMiss
};
inline constexpr uint32_t kPrefixMiss = 0xffffffff;

// Addresses from `start` up to the next range's start have `value`. Host order.
struct RangeV4 {
    uint32_t start;
    uint32_t value;
};
struct RangeV6 {
    struct Address {
        uint64_t high;
        uint64_t low;
        friend auto operator<=>(const Address&, const Address&) = default;
    };
    Address start;
    uint32_t value;
};

// The ranges of the entries of one family, in order, the first beginning at address 0. Empty when
// there is no entry of that family. Of two entries with the same prefix the first counts.
std::vector<RangeV4> flatten_v4(std::span<const PrefixEntry> entries);
std::vector<RangeV6> flatten_v6(std::span<const PrefixEntry> entries);

inline uint32_t load_v4(const std::byte* address) {
    uint32_t raw = 0;
    std::memcpy(&raw, address, sizeof raw);
    return __builtin_bswap32(raw);
}
inline RangeV6::Address load_v6(const std::byte* address) {
    uint64_t raw[2] = {};
    std::memcpy(raw, address, sizeof raw);
    return {.high = __builtin_bswap64(raw[0]), .low = __builtin_bswap64(raw[1])};
}

// The last of `ranges` (not empty, first start 0) that begins at or before `address`. Branch-free
// halving: the number of steps depends on the size only.
template <typename Range, typename Address>
const Range& find_range(std::span<const Range> ranges, const Address& address) {
    const Range* base = ranges.data();
    size_t count = ranges.size();
    while (count > 1) {
        const size_t half = count / 2;
        base += (base[half].start <= address) ? half : 0;
        count -= half;
    }
    return *base;
}

class PrefixTable {
  public:
    static constexpr uint32_t kMiss = kPrefixMiss;
    using Entry = PrefixEntry;

    PrefixTable() = default;
    explicit PrefixTable(std::span<const Entry> entries);

    // `address`: 4 or 16 bytes in network order, need not be aligned.
    [[nodiscard]] uint32_t lookup_v4(const std::byte* address) const {
        if (v4_.empty()) return kMiss;
        const uint32_t key = load_v4(address);
        if (v4_index_.empty()) return find_range(std::span(v4_), key).value;
        Slot slot = v4_index_[key >> 16];
        if (slot.count == 0) slot = v4_subindex_[slot.first + (key >> 8 & 0xff)];
        return find_range(std::span(v4_).subspan(slot.first, slot.count), key).value;
    }
    [[nodiscard]] uint32_t lookup_v6(const std::byte* address) const {
        if (v6_.empty()) return kMiss;
        return find_range(std::span(v6_), load_v6(address)).value;
    }
    [[nodiscard]] uint32_t lookup(Family family, const std::byte* address) const {
        return family == Family::v4 ? lookup_v4(address) : lookup_v6(address);
    }

  private:
    std::vector<RangeV4> v4_;
    // The ranges that share addresses with one slot of 2^16 or 2^8 addresses. A count of 0 leads
    // to the 256 slots of the subindex that begin at `first`.
    struct Slot {
        uint32_t first;
        uint32_t count;
    };
    [[nodiscard]] Slot slot_of(uint32_t first_address, uint32_t last_address) const;

    std::vector<Slot> v4_index_;  // empty: the table is small enough to be searched whole
    std::vector<Slot> v4_subindex_;
    std::vector<RangeV6> v6_;
};

}  // namespace sallyport
