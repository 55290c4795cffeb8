// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/publication.h"

#include <netinet/in.h>

#include <algorithm>
#include <span>

#include "control/policy/compile.h"

namespace sallyport::control {

std::expected<void, std::string> Publication::publish(Adoption now, const SlotTable& slots,
                                                      uint32_t group_count) {
    const bool other_policies = policies_due_ || now.outbound != adoption_.outbound ||
                                now.inbound != adoption_.inbound ||
                                now.if_id_by_group != adoption_.if_id_by_group;
    adoption_ = std::move(now);
    Owners owners = owners_of(slots, group_count);
    if (other_policies) {
        if (auto done = publish_policies(owners); !done) return done;
    } else if (owners != owners_) {
        const auto done = bpf_->update_owners(owners);
        if (!done) return std::unexpected(done.error());
    }
    owners_ = std::move(owners);
    let_outer_packets_pass(slots);
    return {};
}

std::expected<void, std::string> Publication::publish_policies(const Owners& owners) {
    policies_due_ = true;  // until it is done
    auto compiled = compile_entries(adoption_.outbound, adoption_.inbound);
    if (!compiled) return std::unexpected(compiled.error());
    spd_ = compiled->spd.get();
    commands_.publish(std::move(compiled->spd));
    auto done =
        bpf_->publish_spd(compiled->outbound, compiled->inbound, owners, adoption_.if_id_by_group);
    policies_due_ = !done.has_value();
    return done;
}

Publication::Owners Publication::owners_of(const SlotTable& slots, uint32_t group_count) {
    Owners out(group_count);
    for (const auto& [name, slot] : slots.by_name()) {
        if (slot->outbound() == nullptr) continue;
        auto& workers = out[to_index(slot->decision.group)];
        if (std::ranges::find(workers, slot->owner()) == workers.end()) {
            workers.push_back(slot->owner());
        }
    }
    for (auto& workers : out) {
        std::ranges::sort(workers);
        if (workers.size() > SP_OWNERS_MAX) workers.resize(SP_OWNERS_MAX);
    }
    return out;
}

// A worker's ESP packet that needs the kernel's help (no neighbour yet) must not be taken for
// traffic to protect, where a policy is wide enough to cover the tunnel's own addresses.
void Publication::let_outer_packets_pass(const SlotTable& slots) {
    std::set<std::pair<IpAddress, IpAddress>> pairs;
    for (const auto& [name, slot] : slots.by_name()) {
        if (slot->outbound() == nullptr) continue;
        const SpdVerdict verdict =
            spd_->lookup(SpdDirection::outbound,
                         {.family = name.destination.family,
                          .source = std::as_bytes(std::span(slot->source.bytes)).data(),
                          .destination = std::as_bytes(std::span(name.destination.bytes)).data(),
                          .protocol = IPPROTO_ESP});
        if (verdict.kind != SpdVerdict::Kind::no_match) {
            pairs.emplace(slot->source, name.destination);
        }
    }
    if (pairs == outer_pairs_) return;
    const std::vector<std::pair<IpAddress, IpAddress>> rows(pairs.begin(), pairs.end());
    if (const auto done = guard_.replace(xfrm::outer_esp_rows(rows)); !done) {
        notices_.error("ESP packets that need the kernel's help may be encrypted twice: " +
                       done.error());
        return;
    }
    outer_pairs_ = std::move(pairs);
}

}  // namespace sallyport::control
