// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/running.h"

#include <algorithm>
#include <utility>

#include "control/adoption/rivals.h"
#include "control/adoption/tables.h"

namespace sallyport::control {

namespace {

// Filling the tables costs as much as deciding all: where it fails again and again it is tried
// after ever more rounds, up to this many.
constexpr uint32_t kRoundsToAttemptMax = 63;

// Nothing is left to the kernel for what only decide_adoption() knows of.
bool seems_common(const Adoption& adoption, const RunningAdoption::Register& now) {
    const std::string rivals = adoption::has_rivals();
    return adoption.left_open.empty() &&
           std::ranges::all_of(adoption.policies,
                               [&](const auto& item) {
                                   const std::string& reason = item.second.reason;
                                   return reason.empty() || reason == rivals;
                               }) &&
           std::ranges::all_of(now.states,
                               [](const auto& item) { return item.first.mark == xfrm::Mark{}; });
}

}  // namespace

RunningAdoption::RunningAdoption(GroupNumbers& numbers) : numbers_(numbers) {}
RunningAdoption::~RunningAdoption() = default;

const RunningAdoption::Change& RunningAdoption::decide(const Register& now,
                                                       const xfrm::RegisterChanges& changes,
                                                       const AdoptionSetup& setup) {
    roll_back();
    change_ = {};
    if (tables_ && std::ranges::equal(setup.local_addresses, local_addresses_)) {
        pending_ = Pending::step;
        if (tables_->step(now, changes, setup, numbers_, change_)) return change_;
        roll_back();
        note_uncommon();
        rounds_to_attempt_ = std::max(rounds_to_attempt_, 1u);  // not in this one
    }
    decide_all(now, setup);
    return change_;
}

void RunningAdoption::decide_all(const Register& now, const AdoptionSetup& setup) {
    pending_ = Pending::whole;
    change_ = {.whole = true, .sas = {}};
    earlier_adoption_ = std::exchange(adoption_, {});
    earlier_tables_ = std::move(tables_);
    earlier_local_addresses_ = std::exchange(
        local_addresses_, {setup.local_addresses.begin(), setup.local_addresses.end()});
    if (seems_common_ && rounds_to_attempt_ > 0) {
        --rounds_to_attempt_;
    } else if (seems_common_) {
        tables_ = std::make_unique<Tables>(adoption_);
        if (tables_->fill(now, setup, numbers_)) {
            attempts_failed_ = 0;
            return;
        }
        tables_.reset();
        adoption_ = {};
        note_uncommon();
    }
    adoption_ = decide_adoption(now.states, now.policies, setup, numbers_);
    if (adoption_.outbound == earlier_adoption_.outbound &&
        adoption_.inbound == earlier_adoption_.inbound) {
        // Any places say the order.
        adoption_.outbound_places = earlier_adoption_.outbound_places;
        adoption_.inbound_places = earlier_adoption_.inbound_places;
        adoption_.edits.emplace();
    }
    seems_common_ = seems_common(adoption_, now);
}

void RunningAdoption::note_uncommon() {
    attempts_failed_ = std::min(attempts_failed_ + 1, 6u);
    rounds_to_attempt_ = std::min((1u << attempts_failed_) - 1, kRoundsToAttemptMax);
}

void RunningAdoption::commit() {
    numbers_.commit();
    if (tables_) tables_->keep();
    earlier_tables_.reset();
    earlier_adoption_ = {};
    pending_ = Pending::nothing;
}

void RunningAdoption::roll_back() {
    switch (std::exchange(pending_, Pending::nothing)) {
        case Pending::nothing:
            return;
        case Pending::step:
            tables_->undo();
            break;
        case Pending::whole:
            tables_ = std::move(earlier_tables_);
            adoption_ = std::exchange(earlier_adoption_, {});
            local_addresses_ = std::move(earlier_local_addresses_);
            break;
    }
    numbers_.roll_back();
}

}  // namespace sallyport::control
