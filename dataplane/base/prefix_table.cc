// SPDX-License-Identifier: Apache-2.0
#include "dataplane/base/prefix_table.h"

#include <algorithm>

namespace sallyport {
namespace {

__extension__ using Wide = unsigned __int128;  // room for either family's addresses

struct Interval {
    Wide first;
    Wide last;
    uint32_t value;
};

struct Step {
    Wide start;
    uint32_t value;
};

Wide wide_address(const IpAddress& address) {
    Wide value = 0;
    for (unsigned i = 0; i < address.bit_count() / 8; ++i) value = value << 8 | address.bytes[i];
    return value;
}

// Prefixes nest or are disjoint, so a stack of the open ones gives the innermost at every point.
std::vector<Step> flatten(std::span<const PrefixEntry> entries, Family family) {
    const unsigned width = family == Family::v4 ? 32 : 128;
    const Wide all_ones = family == Family::v4 ? Wide{0xffffffff} : ~Wide{0};
    std::vector<Interval> intervals;
    for (const PrefixEntry& entry : entries) {
        if (entry.prefix.address.family != family) continue;
        const Wide first = wide_address(entry.prefix.address);
        const unsigned host_bits = width - entry.prefix.bits;
        const Wide span_mask = host_bits == 128 ? ~Wide{0} : (Wide{1} << host_bits) - 1;
        intervals.push_back({.first = first, .last = first | span_mask, .value = entry.value});
    }
    if (intervals.empty()) return {};
    std::ranges::stable_sort(intervals, [](const Interval& a, const Interval& b) {
        return a.first != b.first ? a.first < b.first : a.last > b.last;
    });

    std::vector<Step> steps = {{.start = 0, .value = kPrefixMiss}};
    const auto begin_range = [&](Wide start, uint32_t value) {
        if (steps.back().start == start) {
            steps.back().value = value;
        } else {
            steps.push_back({.start = start, .value = value});
        }
    };
    std::vector<Interval> open;
    const auto close_until = [&](auto still_open) {
        while (!open.empty() && !still_open(open.back())) {
            const Wide last = open.back().last;
            open.pop_back();
            if (last != all_ones) {
                begin_range(last + 1, open.empty() ? kPrefixMiss : open.back().value);
            }
        }
    };
    for (const Interval& interval : intervals) {
        close_until([&](const Interval& top) { return top.last >= interval.first; });
        if (!open.empty() && open.back().first == interval.first &&
            open.back().last == interval.last) {
            continue;  // the same prefix again: the first counts
        }
        begin_range(interval.first, interval.value);
        open.push_back(interval);
    }
    close_until([](const Interval&) { return false; });

    const auto same_value = [](const Step& a, const Step& b) { return a.value == b.value; };
    const auto rest = std::ranges::unique(steps, same_value);
    steps.erase(rest.begin(), rest.end());
    return steps;
}

// Below this many ranges a search is as fast as the index and the index is not worth its memory.
constexpr size_t kIndexFromRanges = 32;
constexpr uint32_t kCrowdedFromRanges = 4;

}  // namespace

std::vector<RangeV4> flatten_v4(std::span<const PrefixEntry> entries) {
    std::vector<RangeV4> ranges;
    for (const Step& step : flatten(entries, Family::v4)) {
        ranges.push_back({.start = static_cast<uint32_t>(step.start), .value = step.value});
    }
    return ranges;
}

std::vector<RangeV6> flatten_v6(std::span<const PrefixEntry> entries) {
    std::vector<RangeV6> ranges;
    for (const Step& step : flatten(entries, Family::v6)) {
        ranges.push_back({.start = {.high = static_cast<uint64_t>(step.start >> 64),
                                    .low = static_cast<uint64_t>(step.start)},
                          .value = step.value});
    }
    return ranges;
}

PrefixTable::PrefixTable(std::span<const Entry> entries)
    : v4_(flatten_v4(entries)), v6_(flatten_v6(entries)) {
    if (v4_.size() < kIndexFromRanges) return;
    v4_index_.resize(size_t{1} << 16);
    for (uint32_t high = 0; high < v4_index_.size(); ++high) {
        const uint32_t base = high << 16;
        Slot slot = slot_of(base, base | 0xffff);
        if (slot.count >= kCrowdedFromRanges) {
            slot = {.first = static_cast<uint32_t>(v4_subindex_.size()), .count = 0};
            for (uint32_t next = 0; next < 256; ++next) {
                const uint32_t sub_base = base | next << 8;
                v4_subindex_.push_back(slot_of(sub_base, sub_base | 0xff));
            }
        }
        v4_index_[high] = slot;
    }
}

PrefixTable::Slot PrefixTable::slot_of(uint32_t first_address, uint32_t last_address) const {
    const RangeV4* first = &find_range(std::span(v4_), first_address);
    const RangeV4* last = &find_range(std::span(v4_), last_address);
    return {.first = static_cast<uint32_t>(first - v4_.data()),
            .count = static_cast<uint32_t>(last - first) + 1};
}

}  // namespace sallyport
