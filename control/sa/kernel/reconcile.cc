// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/reconcile.h"

#include <algorithm>
#include <compare>
#include <optional>
#include <set>
#include <utility>

#include "bpf/abi.h"

namespace sallyport::control {

namespace {

// Was tried, and nothing has changed since.
bool is_kept(const Handover& handover, const xfrm::SaName& name,
             const xfrm::RegisterChanges& changes) {
    const auto kept = handover.kept().find(name);
    return kept != handover.kept().end() && kept->second != Handover::kNoRoom &&
           !changes.added.contains(name) && !changes.removed.contains(name);
}

}  // namespace

// The state that the slot was made from.
bool Reconciler::has_gone(const Slot& slot, const xfrm::RegisterChanges& changes) const {
    const xfrm::KernelSa* state = around_.kernel.find(slot.name);
    if (state == nullptr || slot.replaced || changes.removed.contains(slot.name)) return true;
    return changes.added.contains(slot.name) &&
           !(same_key(slot, *state) && state->source == slot.source && state->esn == slot.esn &&
             state->replay.window == slot.replay.window);
}

bool Reconciler::stays(const Slot& slot, const Decisions& now,
                       const xfrm::RegisterChanges& changes) const {
    const auto decision = now.find(slot.name);
    if (decision == now.end() || !decision->second.adopted() || has_gone(slot, changes) ||
        is_kept(handover_, slot.name, changes) ||
        decision->second.direction != slot.decision.direction ||
        decision->second.owner != slot.decision.owner) {
        return false;
    }
    // Inbound packets find their SA by the SPI.
    return slot.outbound() == nullptr || decision->second.group == slot.decision.group;
}

Reconciler::Plan Reconciler::plan(const Decisions& now, const xfrm::RegisterChanges& changes,
                                  uint32_t group_count) const {
    Plan plan;
    for (const auto& [name, slot] : slots_.by_name()) {
        if (!stays(*slot, now, changes)) plan.leaving.push_back(slot);
    }
    for (const auto& [name, decision] : now) {
        if (!taking_over_ || !decision.adopted() || is_kept(handover_, name, changes)) continue;
        const Slot* slot = slots_.find(name);
        if (slot != nullptr && stays(*slot, now, changes)) continue;
        if (decision.direction == xfrm::StateDirection::outbound &&
            handover_.host_uses(*around_.kernel.find(name))) {
            plan.used_by_host.push_back(name);
            continue;
        }
        // Those that leave keep their place until the worker has let go.
        const bool has_room = plan.coming.size() < slots_.room();
        (has_room ? plan.coming : plan.no_room).push_back(name);
    }
    split(plan, changes);
    name_owners(plan, now, group_count);
    return plan;
}

// Both directions of a tunnel come together. First those that are news: while ten thousand wait,
// one that replaces another one need not.
void Reconciler::split(Plan& plan, const xfrm::RegisterChanges& changes) const {
    const size_t steered = steered_.size();
    const size_t room = batch_ - std::min(batch_, steered);
    if (plan.coming.size() <= room) return;
    struct Place {
        bool waited = false;
        IpAddress one_end;
        IpAddress other_end;
        uint32_t reqid = 0;
        xfrm::SaName name;
        uint64_t arrival = 0;
        auto operator<=>(const Place&) const = default;
    };
    std::vector<Place> places;
    for (const xfrm::SaName& name : plan.coming) {
        const xfrm::KernelSa& state = *around_.kernel.find(name);
        places.push_back({.waited = !changes.added.contains(name),
                          .one_end = std::min(state.source, name.destination),
                          .other_end = std::max(state.source, name.destination),
                          .reqid = state.reqid,
                          .name = name,
                          .arrival = state.arrival});
    }
    std::ranges::sort(places);
    plan.coming.clear();
    for (const Place& place : places) {
        if (plan.coming.size() < room) {
            plan.coming.push_back(place.name);
        } else {
            plan.waiting.push_back({.name = place.name, .arrival = place.arrival});
        }
    }
}

Reconciler::Plan Reconciler::plan_batch(const Decisions& now) {
    Plan plan;
    plan.owners = owners_;
    const size_t steered = steered_.size();
    while (steered + plan.coming.size() < batch_ && !waiting_.empty()) {
        const Waiting next = waiting_.front();
        waiting_.pop_front();
        const auto decision = now.find(next.name);
        const xfrm::KernelSa* state = around_.kernel.find(next.name);
        // What has changed since is for the next round.
        if (decision == now.end() || state == nullptr || state->arrival != next.arrival ||
            slots_.find(next.name) != nullptr || slots_.room() <= plan.coming.size()) {
            continue;
        }
        plan.coming.push_back(next.name);
        if (decision->second.direction != xfrm::StateDirection::outbound) continue;
        std::vector<WorkerId>& owners = plan.owners[to_index(decision->second.group)];
        const auto place = std::ranges::lower_bound(owners, decision->second.owner);
        if (place != owners.end() && *place == decision->second.owner) continue;
        if (owners.size() < SP_OWNERS_MAX) owners.insert(place, decision->second.owner);
    }
    return plan;
}

Reconciler::Plan Reconciler::plan_without_publication(const xfrm::RegisterChanges& changes,
                                                      uint32_t group_count) const {
    Plan plan;
    for (const auto& [name, slot] : slots_.by_name()) {
        if (has_gone(*slot, changes)) plan.leaving.push_back(slot);
    }
    name_owners(plan, {}, group_count);
    return plan;
}

void Reconciler::name_owners(Plan& plan, const Decisions& now, uint32_t group_count) const {
    std::vector<std::set<WorkerId>> owners(group_count);
    const std::set<const Slot*> leaving(plan.leaving.begin(), plan.leaving.end());
    for (const auto& [name, slot] : slots_.by_name()) {
        if (slot->outbound() == nullptr || leaving.contains(slot)) continue;
        owners[to_index(slot->decision.group)].insert(slot->owner());
        plan.outer.emplace(slot->source, name.destination);
    }
    for (const xfrm::SaName& name : plan.coming) {
        const SaDecision& decision = now.at(name);
        if (decision.direction != xfrm::StateDirection::outbound) continue;
        owners[to_index(decision.group)].insert(decision.owner);
        plan.outer.emplace(around_.kernel.find(name)->source, name.destination);
    }
    for (const Waiting& each : plan.waiting) {
        if (now.at(each.name).direction != xfrm::StateDirection::outbound) continue;
        plan.outer.emplace(around_.kernel.find(each.name)->source, each.name.destination);
    }
    for (const std::set<WorkerId>& workers : owners) {
        plan.owners.emplace_back(workers.begin(), workers.end());
        if (workers.size() > SP_OWNERS_MAX) plan.owners.back().resize(SP_OWNERS_MAX);
    }
}

void Reconciler::carry_out(const Plan& plan, const Decisions& now,
                           const xfrm::RegisterChanges& changes) {
    handover_.forget_kept(changes);
    waiting_ = plan.waiting;
    owners_ = plan.owners;
    for (Slot* slot : plan.leaving) slots_.leave(*slot);
    refresh(now);
    steer(plan, now);
    const Names behind = behind_in_kernel(now);
    for (Slot* slot : plan.leaving) handover_.retire(*slot);
    for (const auto& [name, direction] : behind) handover_.raise_in_kernel(name, direction);
    const auto steered_at = around_.clock.now();
    for (const auto& [name, slot] : slots_.by_name()) {
        if (!slot->steered_at) slot->steered_at = steered_at;
    }
}

void Reconciler::carry_out(const Plan& plan) {
    waiting_.clear();
    owners_ = plan.owners;
    for (Slot* slot : plan.leaving) slots_.leave(*slot);
    for (Slot* slot : plan.leaving) handover_.retire(*slot);
}

void Reconciler::carry_out_batch(const Plan& plan, const Decisions& now) {
    owners_ = plan.owners;
    for (const xfrm::SaName& name : plan.coming) steer(name, now.at(name), false);
    const auto steered_at = around_.clock.now();
    for (const xfrm::SaName& name : plan.coming) {
        Slot* slot = slots_.find(name);
        if (slot != nullptr && !slot->steered_at) slot->steered_at = steered_at;
    }
}

void Reconciler::refresh(const Decisions& now) {
    for (const auto& [name, slot] : slots_.by_name()) {
        const xfrm::KernelSa& state = *around_.kernel.find(name);
        if (slot->limits != state.limits) slot->soft_reported = slot->hard_reported = false;
        slot->limits = state.limits;
        const SaDecision& decision = now.at(name);
        const bool other_selectors = decision.selectors != slot->decision.selectors;
        slot->decision = decision;
        if (other_selectors && slot->phase == Phase::installed && slot->inbound() != nullptr) {
            handover_.change_selectors(*slot, state);
        }
    }
}

void Reconciler::steer(const Plan& plan, const Decisions& now) {
    std::set<PolicyId> served;
    for (const auto& [name, slot] : slots_.by_name()) {
        if (slot->outbound() != nullptr && slot->phase == Phase::installed) {
            served.insert(slot->decision.group);
        }
    }
    for (const xfrm::SaName& name : plan.coming) {
        const SaDecision& decision = now.at(name);
        steer(name, decision, served.contains(decision.group));
    }
    for (const xfrm::SaName& name : plan.no_room) handover_.keep(name, Handover::kNoRoom);
    for (const xfrm::SaName& name : plan.used_by_host) {
        handover_.keep(name, Handover::kHostUsesIt);
    }
}

void Reconciler::steer(const xfrm::SaName& name, const SaDecision& decision, bool group_is_served) {
    handover_.steer(*around_.kernel.find(name), decision, group_is_served);
    if (const Slot* slot = slots_.find(name)) steered_.push_back(slot->id);
}

// Without a slot, and the kernel's counters are behind.
Reconciler::Names Reconciler::behind_in_kernel(const Decisions& now) const {
    Names behind;
    for (const auto& [name, decision] : now) {
        if (slots_.find(name) == nullptr &&
            handover_.is_behind(*around_.kernel.find(name), decision.direction)) {
            behind.emplace_back(name, decision.direction);
        }
    }
    return behind;
}

void Reconciler::go_on() {
    std::vector<Slot*> steered;
    std::erase_if(steered_, [&](SaId id) {
        Slot* slot = slots_.find(id);
        if (slot == nullptr || slot->phase != Phase::steered) return true;
        steered.push_back(slot);
        return false;
    });
    handover_.go_on(steered);
    std::erase_if(steered_, [this](SaId id) {
        const Slot* slot = slots_.find(id);
        return slot == nullptr || slot->phase != Phase::steered;
    });
}

}  // namespace sallyport::control
