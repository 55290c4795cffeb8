// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/publication.h"

#include <netinet/in.h>

#include <algorithm>
#include <cmath>
#include <memory>

namespace sallyport::control {

namespace {

// Of those that are known to be in force but for its edits.
bool has_no_edits(const Adoption& now) {
    return now.edits && now.edits->outbound.empty() && now.edits->inbound.empty();
}

}  // namespace

std::expected<Publication::Draft, Publication::Misfit> Publication::draft(
    const Adoption& now) const {
    Draft out;
    const size_t entries = std::max(now.outbound.size(), now.inbound.size());
    auto open = open_rows_of(now);
    if (!open) return std::unexpected(Misfit{.text = open.error(), .entries_fit = entries / 2});
    out.open_rows = std::move(*open);
    if (spd_ != nullptr && has_no_edits(now) && now.if_id_by_group == if_ids_) return out;
    auto compiled = compile_entries(now.outbound, now.inbound);
    if (!compiled) {
        return std::unexpected(Misfit{.text = compiled.error(), .entries_fit = entries / 2});
    }
    const double share = programs_->share_of_room(compiled->outbound, compiled->inbound);
    if (share > 1) {
        // Rows may grow faster than entries: the next try tells.
        const double fit = static_cast<double>(entries) * std::max(0.5, 0.97 / share);
        return std::unexpected(Misfit{.text = "the policies compile to " +
                                              std::to_string(std::lround(share * 100)) +
                                              " % of the rows that the XDP maps have room for",
                                      .entries_fit = static_cast<size_t>(fit)});
    }
    out.spd = std::move(*compiled);
    return out;
}

std::expected<void, std::string> Publication::publish(Draft draft, const Adoption& now,
                                                      GroupOwners owners, const OuterPairs& outer) {
    const std::vector<xfrm::PolicyRow> outer_rows =
        outer_rows_of(outer, draft.spd ? *draft.spd->spd : *spd_);
    // What either SPD leaves to the kernel ends there until it is certain which one is in use.
    std::vector<xfrm::PolicyRow> both = draft.open_rows;
    for (const xfrm::PolicyRow& row : open_rows_) {
        const auto is_same = [&](const xfrm::PolicyRow& other) {
            return other.selector == row.selector;
        };
        if (std::ranges::none_of(draft.open_rows, is_same)) both.push_back(row);
    }
    if (auto told = tell_kernel(outer_rows, both); !told) return told;
    if (draft.spd) {
        const auto switched = [&] {
            spd_ = draft.spd->spd.get();
            commands_.publish(std::move(draft.spd->spd));
        };
        const auto done = programs_->publish(*draft.spd, owners, now.if_id_by_group, switched);
        if (!done) return done;
    } else if (owners != owners_) {
        if (auto done = programs_->update_owners(owners); !done) return done;
    }
    if (draft.spd) if_ids_ = now.if_id_by_group;
    owners_ = std::move(owners);
    open_rows_ = std::move(draft.open_rows);
    if (const auto told = tell_kernel(outer_rows, open_rows_); !told) {
        notices_.error("xfrm policies of an earlier SPD are left: " + told.error());
    }
    return {};
}

std::expected<void, std::string> Publication::keep(GroupOwners owners) {
    if (owners == owners_) return {};
    if (auto done = programs_->update_owners(owners); !done) return done;
    owners_ = std::move(owners);
    return {};
}

// A worker's ESP packet that needs the kernel's help (no neighbour yet) must not be taken for
// traffic to protect, where a policy is wide enough to cover the tunnel's own addresses.
std::vector<xfrm::PolicyRow> Publication::outer_rows_of(const OuterPairs& outer, const Spd& spd) {
    std::vector<std::pair<IpAddress, IpAddress>> covered;
    for (const auto& [source, destination] : outer) {
        const SpdVerdict verdict =
            spd.lookup(SpdDirection::outbound,
                       {.family = destination.family,
                        .source = std::as_bytes(std::span(source.bytes)).data(),
                        .destination = std::as_bytes(std::span(destination.bytes)).data(),
                        .protocol = IPPROTO_ESP});
        if (verdict.kind != SpdVerdict::Kind::no_match) covered.emplace_back(source, destination);
    }
    return xfrm::outer_esp_rows(covered);
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
