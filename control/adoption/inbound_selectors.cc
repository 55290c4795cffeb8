// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/inbound_selectors.h"

#include <algorithm>
#include <map>

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

}  // namespace

InboundSelectors::InboundSelectors(std::span<const Row> rows)
    : rows_(rows), entries_(entries_of(rows)), index_(entries_) {}

std::expected<std::vector<Selector>, std::string> InboundSelectors::of(
    std::span<const uint32_t> fitting, std::span<const uint32_t> positions) const {
    // `in` and `fwd` policies with one selector are one selector.
    std::map<SelectorKey, Places> by_selector;
    for (const uint32_t position : positions) {
        Places& places = by_selector[selector_key(entries_[position])];
        uint32_t& place = is_forward(position) ? places.forward : places.in;
        place = std::min(place, position);
    }
    std::vector<Selector> selectors;
    for (const auto& [key, places] : by_selector) {
        const auto parts = past(fitting, places);
        if (!parts) return std::unexpected(parts.error());
        selectors.insert(selectors.end(), parts->begin(), parts->end());
        if (selectors.size() > kSelectorsMax) return std::unexpected(too_many());
    }
    if (selectors.empty()) return std::unexpected("other policies stand before its own");
    return selectors;
}

std::vector<uint32_t> InboundSelectors::before(const Places& places) const {
    std::vector<uint32_t> found = index_.overlapping(std::min(places.in, places.forward));
    // In a list that has no such policy, every other one may be asked first.
    std::erase_if(found, [&](uint32_t other) {
        return other >= (is_forward(other) ? places.forward : places.in);
    });
    // They take away what narrow ones would only cut into pieces.
    std::ranges::sort(found, {}, [&](uint32_t other) {
        const SpdEntry& entry = entries_[other];
        return std::tuple(entry.protocol != 0, entry.source.bits + entry.destination.bits, other);
    });
    return found;
}

std::expected<std::vector<Selector>, std::string> InboundSelectors::past(
    std::span<const uint32_t> fitting, const Places& places) const {
    std::vector<Selector> parts{selector_of(entries_[std::min(places.in, places.forward)])};
    for (const uint32_t other : before(places)) {
        const Row& row = rows_[other];
        if (row.template_class && std::ranges::binary_search(fitting, *row.template_class)) {
            continue;
        }
        // Policies of interfaces do not apply to SAs without one.
        if (row.judged.policy->if_id != 0) continue;
        if (row.judged.may_pass_on) {
            return std::unexpected("a policy before its own: " + row.judged.obstacle);
        }
        std::vector<Selector> left;
        for (const Selector& part : parts) {
            const auto rest = without(part, row.judged.entry);
            if (!rest) return std::unexpected("a policy before its own has a protocol");
            left.insert(left.end(), rest->begin(), rest->end());
        }
        parts = std::move(left);
        if (parts.size() > kPartsMax) return std::unexpected(too_many());
    }
    return parts;
}

}  // namespace sallyport::control::adoption
