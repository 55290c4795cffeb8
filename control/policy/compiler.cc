// SPDX-License-Identifier: Apache-2.0
#include "control/policy/compiler.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sallyport::control {

namespace {

// Runs out of use that wait together. To wait costs milliseconds (a grace period of the kernel),
// whatever it is for; more would take room from what is in use.
constexpr size_t kRestingMax = 1024;

std::vector<std::pair<SpdPlace, SpdEntry>> changed_items(const std::map<SpdPlace, SpdListed>& list,
                                                         std::span<const SpdEdit> edits) {
    std::vector<std::pair<SpdPlace, SpdEntry>> items;
    auto edit = edits.begin();
    const auto take_edits_before = [&](const SpdPlace& place) {
        for (; edit != edits.end() && edit->place < place; ++edit) {
            if (edit->entry) items.emplace_back(edit->place, *edit->entry);
        }
    };
    for (const auto& [place, listed] : list) {
        take_edits_before(place);
        if (edit != edits.end() && edit->place == place) {
            if (edit->entry) items.emplace_back(place, *edit->entry);
            ++edit;
        } else {
            items.emplace_back(place, listed.entry);
        }
    }
    for (; edit != edits.end(); ++edit) {
        if (edit->entry) items.emplace_back(edit->place, *edit->entry);
    }
    return items;
}

}  // namespace

double SpdCompiler::State::share_of(const SpdRoom& room) const {
    const auto share = [](size_t need, size_t there_is) {
        return static_cast<double>(need) / static_cast<double>(std::max<size_t>(there_is, 1));
    };
    const size_t destinations = outbound.classes().size() + inbound.classes().size();
    return std::max({share(destinations, room.destinations),
                     share(outbound.source_count() + inbound.source_count(), room.sources),
                     share(outbound.entry_count() + inbound.entry_count(), room.entries)});
}

SpdCompiler::Misfit SpdCompiler::no_room(double share) {
    return {.text = "the policies compile to " + std::to_string(std::lround(share * 100)) +
                    " % of the rows that the XDP maps have room for",
            .share = share};
}

std::expected<SpdUpdate, SpdCompiler::Misfit> SpdCompiler::compile_items(const Items& outbound,
                                                                         const Items& inbound) {
    auto made = std::make_unique<State>();
    if (auto built = made->outbound.build(outbound); !built) {
        return std::unexpected(Misfit{.text = "outbound policies: " + built.error()});
    }
    if (auto built = made->inbound.build(inbound); !built) {
        return std::unexpected(Misfit{.text = "inbound policies: " + built.error()});
    }
    if (const double share = made->share_of(room_); share > 1) {
        return std::unexpected(no_room(share));
    }
    made->runs.set_room(static_cast<uint32_t>(std::min(room_.entries, kSpdRowsMax)));
    SpdUpdate::Whole rows{.outbound = made->outbound.compiled(),
                          .inbound = made->inbound.compiled()};
    made->spd = Spd(rows.outbound, rows.inbound);
    auto spd = std::make_unique<const Spd>(made->spd);
    whole_ = std::move(made);
    return SpdUpdate{.rows = std::move(rows), .spd = std::move(spd)};
}

namespace {

std::vector<SpdEdit> edits_between(const std::map<SpdPlace, SpdListed>& from,
                                   std::span<const SpdPlace> places,
                                   std::span<const SpdEntry> entries) {
    std::vector<SpdEdit> edits;
    auto old = from.begin();
    for (size_t i = 0; i < places.size(); ++i) {
        for (; old != from.end() && old->first < places[i]; ++old) {
            edits.push_back({.place = old->first, .entry = std::nullopt});
        }
        const bool is_there = old != from.end() && old->first == places[i];
        if (!is_there || old->second.entry != entries[i]) {
            edits.push_back({.place = places[i], .entry = entries[i]});
        }
        if (is_there) ++old;
    }
    for (; old != from.end(); ++old) edits.push_back({.place = old->first, .entry = std::nullopt});
    return edits;
}

}  // namespace

SpdEdits SpdCompiler::edits_to(std::span<const SpdPlace> outbound_places,
                               std::span<const SpdEntry> outbound,
                               std::span<const SpdPlace> inbound_places,
                               std::span<const SpdEntry> inbound) const {
    static const std::map<SpdPlace, SpdListed> kEmpty;
    const auto& from_outbound = in_force_ ? in_force_->outbound.list() : kEmpty;
    const auto& from_inbound = in_force_ ? in_force_->inbound.list() : kEmpty;
    return {.outbound = edits_between(from_outbound, outbound_places, outbound),
            .inbound = edits_between(from_inbound, inbound_places, inbound)};
}

// Both directions or none.
std::optional<SpdRowChanges> SpdCompiler::change_rows(const SpdEdits& edits) {
    State& state = *in_force_;
    auto outbound = state.outbound.apply(edits.outbound);
    if (!outbound) return std::nullopt;
    auto inbound = state.inbound.apply(edits.inbound);
    if (!inbound) {
        state.outbound.roll_back();
        return std::nullopt;
    }
    const size_t resting = state.outbound.resting() + state.inbound.resting();
    return SpdRowChanges{.outbound = std::move(*outbound),
                         .inbound = std::move(*inbound),
                         .rest = resting > std::min(kRestingMax, room_.entries / 8)};
}

std::expected<std::optional<SpdUpdate>, SpdCompiler::Misfit> SpdCompiler::change(
    const SpdEdits& edits) {
    if (!in_force_)
        return compile_items(changed_items({}, edits.outbound), changed_items({}, edits.inbound));
    if (edits.outbound.empty() && edits.inbound.empty() && !whole_next_) return std::nullopt;
    State& state = *in_force_;
    std::optional<SpdRowChanges> rows;
    if (!whole_next_) rows = change_rows(edits);
    if (!rows) {
        return compile_items(changed_items(state.outbound.list(), edits.outbound),
                             changed_items(state.inbound.list(), edits.inbound));
    }
    rest_ = rows->rest;
    next_spd_ = state.spd;
    if (const double share = state.share_of(room_); share > 1) {
        drop();
        return std::unexpected(no_room(share));
    }
    next_spd_->change(SpdDirection::outbound, state.outbound);
    next_spd_->change(SpdDirection::inbound, state.inbound);
    return SpdUpdate{.rows = std::move(*rows), .spd = std::make_unique<const Spd>(*next_spd_)};
}

void SpdCompiler::commit() {
    if (whole_) {
        in_force_ = std::move(whole_);
        whole_next_ = false;
    } else if (next_spd_) {
        in_force_->outbound.commit(rest_);
        in_force_->inbound.commit(rest_);
        in_force_->spd = std::move(*next_spd_);
        next_spd_.reset();
    }
}

void SpdCompiler::drop() {
    whole_.reset();
    if (!next_spd_) return;
    in_force_->outbound.roll_back();
    in_force_->inbound.roll_back();
    next_spd_.reset();
}

void SpdCompiler::roll_back() {
    whole_next_ = whole_next_ || next_spd_;
    drop();
}

}  // namespace sallyport::control
