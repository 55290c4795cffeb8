// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/rounds.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace sallyport::control {

namespace {

// Of a direction: with fewer all may as well be the kernel's.
constexpr size_t kEntriesLeast = 16;

}  // namespace

void Rounds::heard(const xfrm::RegisterChanges& changes) {
    if (!changes.policies.empty() || changes.resync) parts_.lease.take_away();
}

// What has no room is left to the kernel in the large, more of it until the rest has.
std::expected<Publication::Draft, std::string> Rounds::draft(const xfrm::RegisterChanges& changes) {
    size_t entries_max = std::numeric_limits<size_t>::max();
    for (;;) {
        decide_(changes, entries_max);
        auto draft = parts_.publication.draft(parts_.adoption.adoption());
        if (draft) return std::move(*draft);
        if (entries_max == 0) return std::unexpected(draft.error().text);
        // Each try asks for less than the one before, whatever it is told.
        entries_max = std::min(draft.error().entries_fit, entries_max / 2);
        if (entries_max < kEntriesLeast) entries_max = 0;
    }
}

std::expected<void, std::string> Rounds::publish(const xfrm::RegisterChanges& changes) {
    if (!parts_.commands.some_read_earlier_spds()) parts_.groups.rested();
    auto drafted = draft(changes);
    if (!drafted) return std::unexpected(drafted.error());
    const Adoption& now = parts_.adoption.adoption();
    const RunningAdoption::Change& decided = parts_.adoption.change();
    const auto plan =
        parts_.reconciler.plan(now.sas, decided, changes, parts_.groups.upper_bound());
    outer_.update(now, decided);
    const bool other_spd = drafted->spd.has_value();
    // Rows are changed one after another: what they say of BYPASS meanwhile is nobody's policy.
    if (other_spd) parts_.lease.take_away();
    if (auto done = parts_.publication.publish(std::move(*drafted), now, plan.owners, outer_);
        !done) {
        return done;
    }
    parts_.adoption.commit();
    outer_.commit();
    parts_.reconciler.owners_published(plan);
    owners_published_(parts_.publication.owners(), plan.owners, other_spd || decided.whole);
    parts_.reconciler.carry_out(plan, now.sas, changes);
    return {};
}

std::expected<void, std::string> Rounds::run(xfrm::RegisterChanges changes) {
    changes.added.merge(unpublished_.added);
    changes.removed.merge(unpublished_.removed);
    changes.moved.merge(unpublished_.moved);
    changes.policies.merge(unpublished_.policies);
    unpublished_ = {};
    auto done = publish(changes);
    if (done) {
        not_published_.clear();
        retry_in_ = kRetryFirst;
        return done;
    }
    parts_.adoption.roll_back();
    outer_.roll_back();
    parts_.lease.take_away();
    not_published_ = done.error();
    go_on_with_earlier(std::move(changes));
    around_.another_round(retry_in_);
    retry_in_ = std::min(2 * retry_in_, kRetryLast);
    return done;
}

void Rounds::go_on_with_earlier(xfrm::RegisterChanges changes) {
    const auto plan = parts_.reconciler.plan_without_publication(changes);
    keep(plan);
    parts_.reconciler.carry_out(plan);
    unpublished_ = std::move(changes);
}

// The owners of what is in force.
bool Rounds::keep(const Reconciler::Plan& plan) {
    const auto kept = parts_.publication.keep(plan.owners);
    if (!kept) {
        around_.notices.error(kept.error());
        return false;
    }
    parts_.reconciler.owners_published(plan);
    if (!plan.owners.empty()) {
        owners_published_(parts_.publication.owners(), plan.owners, false);
    }
    return true;
}

bool Rounds::go_on() {
    parts_.reconciler.go_on();
    next_batch();
    return parts_.reconciler.is_under_way();
}

void Rounds::next_batch() {
    const Reconciler::Decisions& now = parts_.adoption.adoption().sas;
    const auto plan = parts_.reconciler.plan_batch(now);
    if (plan.coming.empty()) return;
    if (!keep(plan)) {
        parts_.reconciler.put_back(plan);
        return around_.another_round(kRetryFirst);  // which names them anew
    }
    parts_.reconciler.carry_out_batch(plan, now);
}

bool Rounds::go_back(WayBack& way_back) {
    way_back.retire();
    if (!way_back.name()) return !way_back.is_done();
    // Those that cannot be written are written with the next ones; frames find no SA until then.
    keep(parts_.reconciler.plan_owners());
    return true;
}

void Rounds::in_step(const xfrm::RegisterChanges& waiting) {
    if (not_published_.empty() && waiting.policies.empty() && !waiting.resync)
        parts_.lease.extend();
}

}  // namespace sallyport::control
