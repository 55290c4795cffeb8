// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/inbound_selectors.h"

#include <algorithm>
#include <map>

#include "control/adoption/names.h"
#include "control/adoption/rivals.h"

namespace sallyport::control::adoption {

namespace {

// Pieces of one selector, before further policies take some of them away.
constexpr size_t kPartsMax = 8 * kSelectorsMax;

std::vector<SpdEntry> entries_of(std::span<const Row> rows) {
    std::vector<SpdEntry> entries;
    entries.reserve(rows.size());
    for (const Row& row : rows) entries.push_back(row.judged.entry);
    return entries;
}

std::string too_many() {
    return "more than " + std::to_string(kSelectorsMax) + " selectors";
}

using Line = InboundList::Line;

// A line with what is asked of it often.
struct Seen {
    Line line = 0;
    InboundList::View view;
};

// Where a selector stands first in either list.
struct Places {
    std::optional<Seen> in;
    std::optional<Seen> forward;

    void note(const Seen& seen) {
        std::optional<Seen>& first = seen.view.forward ? forward : in;
        if (!first || seen.view.place < first->view.place) first = seen;
    }
    [[nodiscard]] const Seen& first() const {
        if (!in) return *forward;
        return !forward || in->view.place < forward->view.place ? *in : *forward;
    }
    // In a list that has no such policy, every other one may be asked first.
    [[nodiscard]] bool may_follow(const Seen& other) const {
        const std::optional<Seen>& own = other.view.forward ? forward : in;
        return !own || other.view.place < own->view.place || is_beside(other);
    }
    // Or asked before the other.
    [[nodiscard]] bool is_beside(const Seen& other) const {
        const std::optional<Seen>& own = other.view.forward ? forward : in;
        return own && of_one_priority(other.view.place, own->view.place);
    }
};

// Those that may be asked before the policies at `places`, wide ones first.
std::vector<Seen> before(const InboundList& list, const Places& places) {
    std::vector<Seen> found;
    for (const Line other : list.overlapping(places.first().line)) {
        const Seen seen{.line = other, .view = list.view(other)};
        if (places.may_follow(seen)) found.push_back(seen);
    }
    // They take away what narrow ones would only cut into pieces.
    std::ranges::sort(found, {}, [](const Seen& seen) {
        const SpdEntry& entry = *seen.view.entry;
        return std::tuple(entry.protocol != 0, entry.source.bits + entry.destination.bits,
                          seen.view.place);
    });
    return found;
}

// What a packet by the SA may be to pass the policies at `places`.
std::expected<std::vector<Selector>, std::string> past(const InboundList& list,
                                                       std::span<const uint32_t> fitting,
                                                       const Places& places) {
    std::vector<Selector> parts{selector_of(*places.first().view.entry)};
    for (const Seen& other : before(list, places)) {
        const InboundList::View& view = other.view;
        if (view.template_class && std::ranges::binary_search(fitting, *view.template_class)) {
            continue;
        }
        if (view.of_interface) continue;
        if (view.obstacle != nullptr) {
            return std::unexpected("a policy before its own: " + *view.obstacle);
        }
        if (places.is_beside(other)) return std::unexpected("its policy: " + has_rivals());
        std::vector<Selector> left;
        for (const Selector& part : parts) {
            const auto rest = without(part, *view.entry);
            if (!rest) return std::unexpected("a policy before its own has a protocol");
            left.insert(left.end(), rest->begin(), rest->end());
        }
        parts = std::move(left);
        if (parts.size() > kPartsMax) return std::unexpected(too_many());
    }
    return parts;
}

}  // namespace

std::expected<std::vector<Selector>, std::string> selectors_past_others(
    const InboundList& list, std::span<const uint32_t> fitting, std::span<const Line> lines) {
    // `in` and `fwd` policies with one selector are one selector.
    std::map<SelectorKey, Places> by_selector;
    for (const Line line : lines) {
        const Seen seen{.line = line, .view = list.view(line)};
        by_selector[selector_key(*seen.view.entry)].note(seen);
    }
    std::vector<Selector> selectors;
    for (const auto& [key, places] : by_selector) {
        const auto parts = past(list, fitting, places);
        if (!parts) return std::unexpected(parts.error());
        selectors.insert(selectors.end(), parts->begin(), parts->end());
        if (selectors.size() > kSelectorsMax) return std::unexpected(too_many());
    }
    if (selectors.empty()) return std::unexpected("other policies stand before its own");
    return selectors;
}

ListedRows::ListedRows(std::span<const Row> rows)
    : rows_(rows), entries_(entries_of(rows)), index_(entries_) {}

InboundList::View ListedRows::view(Line line) const {
    const JudgedPolicy& judged = rows_[line].judged;
    return {.entry = &entries_[line],
            .forward = judged.policy->row.direction == xfrm::PolicyDirection::forward,
            .place = place_of(judged),
            .template_class = rows_[line].template_class,
            .of_interface = judged.policy->if_id != 0,
            .obstacle = judged.may_pass_on ? &judged.obstacle : nullptr};
}

}  // namespace sallyport::control::adoption
