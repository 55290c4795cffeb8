// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/reconcile.h"

#include <algorithm>
#include <set>
#include <utility>

namespace sallyport::control {

std::vector<Slot*> Reconciler::prepare(const Decisions& now, const xfrm::RegisterChanges& changes) {
    handover_.forget_kept(changes);
    std::vector<Slot*> leaving = take_leave(now, changes);
    refresh(now);
    if (taking_over_) steer(now);
    find_behind(now);
    return leaving;
}

bool Reconciler::stays(const Slot& slot, const Decisions& now,
                       const xfrm::RegisterChanges& changes) const {
    const xfrm::KernelSa* state = around_.kernel.find(slot.name);
    const auto decision = now.find(slot.name);
    if (state == nullptr || decision == now.end() || !decision->second.adopted() ||
        changes.removed.contains(slot.name) ||
        decision->second.direction != slot.decision.direction ||
        decision->second.owner != slot.decision.owner) {
        return false;
    }
    // Inbound packets find their SA by the SPI.
    if (slot.outbound() != nullptr && decision->second.group != slot.decision.group) return false;
    return !changes.added.contains(slot.name) ||
           (same_key(slot, *state) && state->source == slot.source && state->esn == slot.esn &&
            state->replay.window == slot.replay.window);
}

std::vector<Slot*> Reconciler::take_leave(const Decisions& now,
                                          const xfrm::RegisterChanges& changes) {
    std::vector<Slot*> leaving;
    for (const auto& [name, slot] : slots_.by_name()) {
        if (!stays(*slot, now, changes)) leaving.push_back(slot);
    }
    for (Slot* slot : leaving) slots_.leave(*slot);
    return leaving;
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

void Reconciler::steer(const Decisions& now) {
    std::set<PolicyId> served;
    for (const auto& [name, slot] : slots_.by_name()) {
        if (slot->outbound() != nullptr && slot->phase == Phase::installed) {
            served.insert(slot->decision.group);
        }
    }
    for (const auto& [name, decision] : now) {
        if (!decision.adopted() || slots_.find(name) != nullptr ||
            handover_.kept().contains(name)) {
            continue;
        }
        handover_.steer(*around_.kernel.find(name), decision, served.contains(decision.group));
    }
}

void Reconciler::find_behind(const Decisions& now) {
    behind_.clear();
    for (const auto& [name, decision] : now) {
        if (slots_.find(name) == nullptr &&
            handover_.is_behind(*around_.kernel.find(name), decision.direction)) {
            behind_.emplace_back(name, decision.direction);
        }
    }
}

void Reconciler::complete(const std::vector<Slot*>& leaving) {
    for (Slot* slot : leaving) handover_.retire(*slot);
    for (const auto& [name, direction] : std::exchange(behind_, {})) {
        handover_.raise_in_kernel(name, direction);
    }
    const auto steered_at = around_.clock.now();
    for (const auto& [name, slot] : slots_.by_name()) {
        if (!slot->steered_at) slot->steered_at = steered_at;
    }
}

bool Reconciler::go_on() {
    std::vector<Slot*> steered;
    for (const auto& [name, slot] : slots_.by_name()) {
        if (slot->phase == Phase::steered) steered.push_back(slot);
    }
    for (Slot* slot : steered) handover_.go_on(*slot);
    return std::ranges::any_of(
        slots_.by_name(), [](const auto& item) { return item.second->phase == Phase::steered; });
}

}  // namespace sallyport::control
