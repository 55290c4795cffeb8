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

// That something has happened to.
std::set<xfrm::SaName> Reconciler::names_of(const xfrm::RegisterChanges& changes) const {
    std::set<xfrm::SaName> names = again_;
    names.insert(slots_.doubtful().begin(), slots_.doubtful().end());
    names.insert(changes.added.begin(), changes.added.end());
    names.insert(changes.removed.begin(), changes.removed.end());
    names.insert(changes.moved.begin(), changes.moved.end());
    return names;
}

bool Reconciler::may_come(const xfrm::SaName& name, const Decisions& now,
                          const xfrm::RegisterChanges& changes) const {
    const auto decision = now.find(name);
    return taking_over_ && decision != now.end() && decision->second.adopted() &&
           !is_kept(handover_, name, changes);
}

Reconciler::Plan Reconciler::plan(const Decisions& now, const RunningAdoption::Change& decided,
                                  const xfrm::RegisterChanges& changes,
                                  uint32_t group_count) const {
    Plan plan{.names = names_of(changes), .whole = decided.whole || all_again_};
    if (plan.whole) {
        for (const auto& [name, slot] : slots_.by_name()) plan.names.insert(name);
        for (const auto& [name, decision] : now) plan.names.insert(name);
    } else {
        plan.names.insert(decided.sas.begin(), decided.sas.end());
        if (slots_.room() > 0) plan.names.insert(no_room_.begin(), no_room_.end());
    }
    for (const xfrm::SaName& name : plan.names) {
        Slot* slot = slots_.find(name);
        if (slot != nullptr) {
            if (stays(*slot, now, changes)) continue;
            plan.leaving.push_back(slot);
        }
        if (!may_come(name, now, changes)) continue;
        if (now.at(name).direction == xfrm::StateDirection::outbound &&
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
    size_t room = batch_ - std::min(batch_, steered);
    if (plan.coming.size() <= room) return;
    // A look at all takes long, and frames of those that come with it would wait until its end.
    if (plan.whole) room = 0;
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
    const size_t steered = steered_.size();
    while (steered + plan.coming.size() < batch_ && !waiting_.empty()) {
        const Waiting next = waiting_.front();
        waiting_.pop_front();
        const xfrm::KernelSa* state = around_.kernel.find(next.name);
        // What has changed since is for the next round.
        if (state == nullptr || state->arrival != next.arrival ||
            slots_.find(next.name) != nullptr || !may_come(next.name, now, {})) {
            continue;
        }
        if (slots_.room() <= plan.coming.size()) {
            again_.insert(next.name);
            continue;
        }
        if (!plan.names.insert(next.name).second) continue;
        plan.coming.push_back(next.name);
    }
    name_owners(plan, now, static_cast<uint32_t>(owners_.size()));
    return plan;
}

void Reconciler::put_back(const Plan& batch) {
    again_.insert(batch.names.begin(), batch.names.end());
}

Reconciler::Plan Reconciler::plan_without_publication(const xfrm::RegisterChanges& changes) const {
    Plan plan{.names = names_of(changes)};
    for (const xfrm::SaName& name : plan.names) {
        Slot* slot = slots_.find(name);
        if (slot != nullptr && has_gone(*slot, changes)) plan.leaving.push_back(slot);
    }
    name_owners(plan, {}, static_cast<uint32_t>(owners_.size()));
    return plan;
}

Reconciler::Plan Reconciler::plan_owners() const {
    Plan plan;
    name_owners(plan, {}, static_cast<uint32_t>(owners_.size()));
    return plan;
}

// Of groups that some come to or leave, and of those that were not published since.
void Reconciler::name_owners(Plan& plan, const Decisions& now, uint32_t group_count) const {
    std::map<PolicyId, std::set<WorkerId>> owners;
    if (plan.whole) {
        for (uint32_t group = 0; group < group_count; ++group) owners[PolicyId{group}];
    }
    for (const PolicyId group : slots_.changed_groups()) owners[group];
    const std::set<const Slot*> leaving(plan.leaving.begin(), plan.leaving.end());
    for (const Slot* slot : leaving) {
        if (slot->outbound() != nullptr) owners[slot->decision.group];
    }
    for (const xfrm::SaName& name : plan.coming) {
        const SaDecision& decision = now.at(name);
        if (decision.direction != xfrm::StateDirection::outbound) continue;
        owners[decision.group].insert(decision.owner);
    }
    for (auto& [group, workers] : owners) {
        slots_.for_each_of_group(group, [&](const Slot& slot) {
            if (!leaving.contains(&slot)) workers.insert(slot.owner());
        });
        std::vector<WorkerId> named(workers.begin(), workers.end());
        if (named.size() > SP_OWNERS_MAX) named.resize(SP_OWNERS_MAX);
        const size_t index = to_index(group);
        const bool same = index < owners_.size() ? named == owners_[index] : named.empty();
        if (!same) plan.owners.emplace(group, std::move(named));
    }
}

void Reconciler::owners_published(const Plan& plan) {
    for (const auto& [group, workers] : plan.owners) {
        if (to_index(group) >= owners_.size()) owners_.resize(to_index(group) + size_t{1});
        owners_[to_index(group)] = workers;
    }
    slots_.owners_published();
}

void Reconciler::carry_out(const Plan& plan, const Decisions& now,
                           const xfrm::RegisterChanges& changes) {
    handover_.forget_kept(changes, plan.names);
    all_again_ = false;
    again_.clear();
    slots_.forget_doubts();
    note_waiting(plan);
    for (Slot* slot : plan.leaving) slots_.leave(*slot);
    refresh(plan, now);
    steer(plan, now);
    const Names behind = behind_in_kernel(plan, now);
    for (Slot* slot : plan.leaving) handover_.retire(*slot);
    for (const auto& [name, direction] : behind) handover_.raise_in_kernel(name, direction);
    note_steered(plan);
}

void Reconciler::carry_out(const Plan& plan) {
    // They may come after the next publication, if they still may.
    for (const Waiting& each : std::exchange(waiting_, {})) again_.insert(each.name);
    for (Slot* slot : plan.leaving) slots_.leave(*slot);
    for (Slot* slot : plan.leaving) handover_.retire(*slot);
}

void Reconciler::carry_out_batch(const Plan& plan, const Decisions& now) {
    for (const xfrm::SaName& name : plan.coming) steer(name, now.at(name), false);
    note_steered(plan);
}

// News come before those that have waited.
void Reconciler::note_waiting(const Plan& plan) {
    if (plan.whole) {
        waiting_ = plan.waiting;
        no_room_.clear();
    } else {
        waiting_.insert(waiting_.begin(), plan.waiting.begin(), plan.waiting.end());
        for (const xfrm::SaName& name : plan.names) no_room_.erase(name);
    }
    no_room_.insert(plan.no_room.begin(), plan.no_room.end());
}

void Reconciler::note_steered(const Plan& plan) {
    const auto steered_at = around_.clock.now();
    for (const xfrm::SaName& name : plan.coming) {
        Slot* slot = slots_.find(name);
        if (slot != nullptr && !slot->steered_at) slot->steered_at = steered_at;
    }
}

void Reconciler::refresh(const Plan& plan, const Decisions& now) {
    for (const xfrm::SaName& name : plan.names) {
        Slot* slot = slots_.find(name);
        if (slot == nullptr) continue;
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

// A worker sends for it already.
bool Reconciler::is_served(PolicyId group) const {
    bool served = false;
    slots_.for_each_of_group(
        group, [&](const Slot& slot) { served = served || slot.phase == Phase::installed; });
    return served;
}

void Reconciler::steer(const Plan& plan, const Decisions& now) {
    for (const xfrm::SaName& name : plan.coming) {
        const SaDecision& decision = now.at(name);
        steer(name, decision, is_served(decision.group));
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

// Without a slot, and the kernel's counters are behind those of its key, which may be that of
// another name with the SPI.
Reconciler::Names Reconciler::behind_in_kernel(const Plan& plan, const Decisions& now) const {
    Names behind;
    const auto look = [&](const xfrm::SaName& name, const SaDecision& decision) {
        if (slots_.find(name) != nullptr) return;
        const xfrm::KernelSa* state = around_.kernel.find(name);
        if (state != nullptr && handover_.is_behind(*state, decision.direction)) {
            behind.emplace_back(name, decision.direction);
        }
    };
    std::optional<Spi> before;
    for (const xfrm::SaName& name : plan.names) {
        if (std::exchange(before, name.spi) == name.spi) continue;
        const xfrm::SaName first{.spi = name.spi, .destination = {}, .protocol = 0, .mark = {}};
        for (auto it = now.lower_bound(first); it != now.end() && it->first.spi == name.spi; ++it) {
            look(it->first, it->second);
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
    const auto now = around_.clock.now();
    using Duration = std::chrono::steady_clock::duration;
    std::optional<Duration> held;
    std::erase_if(steered_, [&](SaId id) {
        const Slot* slot = slots_.find(id);
        if (slot == nullptr) return true;
        if (slot->phase == Phase::steered) return false;
        if (slot->steered_at)
            held = std::max(held.value_or(Duration::zero()), now - *slot->steered_at);
        return true;
    });
    if (held) adapt_batch(*held);
}

void Reconciler::adapt_batch(std::chrono::steady_clock::duration held) {
    constexpr size_t kTunnel = 2;
    if (held > kHeldMax) {
        batch_ = std::min(batch_max_, std::max(kTunnel, batch_ / 2));
    } else if (held < kHeldMax / 4) {
        batch_ = std::min(batch_max_, 2 * batch_);
    }
}

}  // namespace sallyport::control
