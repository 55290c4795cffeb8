// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/publication.h"

#include <netinet/in.h>

#include <algorithm>
#include <memory>

namespace sallyport::control {

std::expected<Publication::Draft, Publication::Misfit> Publication::draft(const Adoption& now) {
    compiler_.drop();
    Draft out;
    const size_t entries = std::max(now.outbound.size(), now.inbound.size());
    auto open = open_rows_of(now);
    if (!open) return std::unexpected(Misfit{.text = open.error(), .entries_fit = entries / 2});
    out.open_rows = std::move(*open);
    auto compiled = now.edits
                        ? compiler_.change(*now.edits)
                        : compiler_.change(compiler_.edits_to(now.outbound_places, now.outbound,
                                                              now.inbound_places, now.inbound));
    if (!compiled) {
        // Rows may grow faster than entries: the next try tells. Where it is not their number, it
        // begins with the largest peer.
        const double share = compiled.error().share;
        size_t fit = entries - std::min<size_t>(entries, 1);
        if (share > 1) {
            fit = static_cast<size_t>(static_cast<double>(entries) * std::max(0.5, 0.97 / share));
        }
        return std::unexpected(Misfit{.text = compiled.error().text, .entries_fit = fit});
    }
    out.spd = std::move(*compiled);
    return out;
}

// Whose owners the programs are told: after a failure all of them.
std::vector<PolicyId> Publication::groups_of(const OwnerChanges& owners) const {
    std::vector<PolicyId> groups;
    if (owners_known_) {
        for (const auto& [group, workers] : owners) groups.push_back(group);
    } else {
        for (uint32_t group = 0; group < owners_.size(); ++group) groups.push_back(PolicyId{group});
    }
    return groups;
}

std::expected<void, std::string> Publication::tell_programs(Draft& draft, const Adoption& now,
                                                            const OwnerChanges& owners) {
    const std::vector<PolicyId> groups = groups_of(owners);
    if (!draft.spd) {
        if (groups.empty()) return {};
        return programs_->update_owners(owners_, groups);
    }
    if (owners_.size() < now.group_count) owners_.resize(now.group_count);
    const auto switched = [&] {
        spd_ = draft.spd->spd.get();
        commands_.publish(std::move(draft.spd->spd));
    };
    auto done = programs_->publish(*draft.spd, owners_, groups, now.if_id_by_group, switched);
    if (done) {
        compiler_.commit();
    } else {
        compiler_.roll_back();
    }
    return done;
}

// `owners` has the earlier ones afterwards.
void Publication::swap_owners(OwnerChanges& owners) {
    for (auto& [group, workers] : owners) {
        const size_t index = to_index(group);
        if (index >= owners_.size()) owners_.resize(index + 1);
        std::swap(owners_[index], workers);
    }
}

std::expected<void, std::string> Publication::publish(Draft draft, const Adoption& now,
                                                      const OwnerChanges& owners,
                                                      const OuterTunnels& outer) {
    std::set<OuterPair> covered =
        covered_by(draft.spd ? *draft.spd->spd : *spd_, draft, now, outer);
    const std::vector<xfrm::PolicyRow> outer_rows = outer_rows_of(covered);
    // What either SPD leaves to the kernel ends there until it is certain which one is in use.
    std::vector<xfrm::PolicyRow> both = draft.open_rows;
    for (const xfrm::PolicyRow& row : open_rows_) {
        const auto is_same = [&](const xfrm::PolicyRow& other) {
            return other.selector == row.selector;
        };
        if (std::ranges::none_of(draft.open_rows, is_same)) both.push_back(row);
    }
    if (auto told = tell_kernel(outer_rows, both); !told) {
        compiler_.drop();
        return std::unexpected(told.error());
    }
    OwnerChanges swapped = owners;
    swap_owners(swapped);
    const auto done = tell_programs(draft, now, owners);
    owners_known_ = done.has_value();
    if (!done) {
        swap_owners(swapped);
        return std::unexpected(done.error());
    }
    covered_ = std::move(covered);
    open_rows_ = std::move(draft.open_rows);
    if (const auto told = tell_kernel(outer_rows, open_rows_); !told) {
        notices_.error("xfrm policies of an earlier SPD are left: " + told.error());
    }
    return {};
}

std::expected<void, std::string> Publication::keep(const OwnerChanges& owners) {
    if (owners.empty() && owners_known_) return {};
    OwnerChanges swapped = owners;
    swap_owners(swapped);
    auto done = programs_->update_owners(owners_, groups_of(owners));
    owners_known_ = done.has_value();
    if (!done) swap_owners(swapped);
    return done;
}

// A worker's ESP packet that needs the kernel's help (no neighbour yet) must not be taken for
// traffic to protect, where a policy is wide enough to cover the tunnel's own addresses. Where the
// SPD is another only the pairs that changed entries may cover are looked up, and those that were
// covered.
std::set<OuterPair> Publication::covered_by(const Spd& spd, const Draft& draft, const Adoption& now,
                                            const OuterTunnels& outer) const {
    std::set<OuterPair> covered = covered_;
    const auto look_up = [&](const OuterPair& pair) {
        const SpdVerdict verdict =
            spd.lookup(SpdDirection::outbound,
                       {.family = pair.destination.family,
                        .source = std::as_bytes(std::span(pair.source.bytes)).data(),
                        .destination = std::as_bytes(std::span(pair.destination.bytes)).data(),
                        .protocol = IPPROTO_ESP});
        if (verdict.kind != SpdVerdict::Kind::no_match && outer.pairs().contains(pair)) {
            covered.insert(pair);
        } else {
            covered.erase(pair);
        }
    };
    for (const OuterPair& pair : outer.changed()) look_up(pair);
    if (!draft.spd) return covered;
    if (!now.edits) {
        for (const auto& [pair, count] : outer.pairs()) look_up(pair);
        return covered;
    }
    for (const OuterPair& pair : covered_) look_up(pair);
    for (const SpdEdit& edit : now.edits->outbound) {
        if (!edit.entry) continue;
        const IpPrefix& to = edit.entry->destination;
        const OuterPair first{.destination = to.address, .source = {}};
        for (auto it = outer.pairs().lower_bound(first);
             it != outer.pairs().end() && to.contains(it->first.destination); ++it) {
            if (edit.entry->source.contains(it->first.source)) look_up(it->first);
        }
    }
    return covered;
}

std::vector<xfrm::PolicyRow> Publication::outer_rows_of(const std::set<OuterPair>& covered) {
    std::vector<std::pair<IpAddress, IpAddress>> pairs;
    for (const OuterPair& pair : covered) pairs.emplace_back(pair.source, pair.destination);
    return xfrm::outer_esp_rows(pairs);
}

std::expected<std::vector<xfrm::PolicyRow>, std::string> Publication::open_rows_of(
    const Adoption& now) const {
    std::vector<xfrm::LeftOpen> open;
    for (const AddressPair& pair : now.left_open) {
        open.push_back({.source = pair.source, .destination = pair.destination});
    }
    return xfrm::left_open_rows(open, setup_.policies);
}

// Those of outer packets may be refused, where an IKE daemon has the same policy, which a peer can
// bring about: then the others go without them.
std::expected<void, std::string> Publication::tell_kernel(
    const std::vector<xfrm::PolicyRow>& outer, const std::vector<xfrm::PolicyRow>& open) {
    std::vector<xfrm::PolicyRow> all = outer;
    all.insert(all.end(), open.begin(), open.end());
    if (all == kernel_rows_) return {};
    kernel_rows_.reset();  // some may be there
    auto done = kernel_path_.replace(all);
    if (done) {
        outer_refused_.clear();
        kernel_rows_ = std::move(all);
        return {};
    }
    if (outer.empty()) return done;
    if (std::exchange(outer_refused_, done.error()) != done.error()) {
        notices_.error("ESP packets that need the kernel's help may be encrypted twice: " +
                       done.error());
    }
    if (open.empty() && open_rows_.empty()) return {};
    return kernel_path_.replace(open);
}

}  // namespace sallyport::control
