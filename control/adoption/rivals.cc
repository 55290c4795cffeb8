// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/rivals.h"

#include <algorithm>

#include "control/adoption/names.h"

namespace sallyport::control::adoption {

namespace {

// What only the kernel can judge it may also leave to the other.
bool do_the_same(const JudgedPolicy& a, const JudgedPolicy& b) {
    if (!a.exact() || !b.exact() || a.entry.action != b.entry.action) return false;
    if (a.policy->if_id != b.policy->if_id) return false;
    return a.entry.action != SpdAction::protect || group_name(a) == group_name(b);
}

}  // namespace

std::vector<bool> find_rivals(std::span<const Row> rows) {
    std::vector<bool> found(rows.size());
    const auto place = [&](size_t i) { return place_of(rows[i].judged); };
    for (size_t first = 0, last = 0; first < rows.size(); first = last) {
        while (last < rows.size() && of_one_priority(place(first), place(last))) ++last;
        std::vector<SpdEntry> entries;
        for (const Row& row : rows.subspan(first, last - first)) {
            entries.push_back(row.judged.entry);
        }
        const OverlapIndex index(entries);
        for (uint32_t i = 0; i < entries.size() && entries.size() > 1; ++i) {
            found[first + i] = std::ranges::any_of(index.overlapping(i), [&](uint32_t other) {
                return other != i &&
                       !do_the_same(rows[first + i].judged, rows[first + other].judged);
            });
        }
    }
    return found;
}

}  // namespace sallyport::control::adoption
