// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/publication.h"

#include <netinet/in.h>

#include <algorithm>
#include <cmath>
#include <memory>

namespace sallyport::control {

namespace {

bool same_policies(const Adoption& a, const Adoption& b) {
    return a.outbound == b.outbound && a.inbound == b.inbound &&
           a.if_id_by_group == b.if_id_by_group;
}

}  // namespace

std::expected<Publication::Draft, Publication::Misfit> Publication::draft(Adoption now) const {
    Draft out{.adoption = std::move(now), .spd = std::nullopt};
    if (spd_ != nullptr && same_policies(out.adoption, adoption_)) return out;
    const size_t entries = std::max(out.adoption.outbound.size(), out.adoption.inbound.size());
    auto compiled = compile_entries(out.adoption.outbound, out.adoption.inbound);
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

std::expected<void, std::string> Publication::publish(Draft draft, GroupOwners owners,
                                                      const OuterPairs& outer) {
    const Spd& spd = draft.spd ? *draft.spd->spd : *spd_;
    if (auto told = tell_kernel(draft.adoption, outer, spd); !told) return told;
    if (draft.spd) {
        const auto switched = [&] {
            spd_ = draft.spd->spd.get();
            commands_.publish(std::move(draft.spd->spd));
        };
        const auto done =
            programs_->publish(*draft.spd, owners, draft.adoption.if_id_by_group, switched);
        if (!done) return done;
    } else if (owners != owners_) {
        if (auto done = programs_->update_owners(owners); !done) return done;
    }
    adoption_ = std::move(draft.adoption);
    owners_ = std::move(owners);
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
std::expected<void, std::string> Publication::tell_kernel(const Adoption& now,
                                                          const OuterPairs& outer, const Spd& spd) {
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
    std::vector<xfrm::LeftOpen> open;
    for (const AddressPair& pair : now.left_open) {
        open.push_back({.source = pair.source, .destination = pair.destination});
    }
    std::vector<xfrm::PolicyRow> rows = xfrm::outer_esp_rows(covered);
    auto last = xfrm::left_open_rows(open, setup_.policies);
    if (!last) return std::unexpected(last.error());
    const bool nothing_is_open = last->empty();
    rows.insert(rows.end(), last->begin(), last->end());
    if (rows == kernel_rows_) return {};
    if (auto done = kernel_path_.replace(rows); !done) {
        if (!nothing_is_open) return done;
        notices_.error("ESP packets that need the kernel's help may be encrypted twice: " +
                       done.error());
        return {};
    }
    kernel_rows_ = std::move(rows);
    return {};
}

}  // namespace sallyport::control
