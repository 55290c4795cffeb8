// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/tables.h"

#include <algorithm>
#include <iterator>

#include "bpf/abi.h"
#include "control/adoption/names.h"
#include "control/adoption/owners.h"
#include "control/adoption/policies.h"
#include "control/adoption/rivals.h"
#include "control/adoption/sas.h"
#include "control/policy/compile.h"

namespace sallyport::control {

using namespace adoption;

namespace {

constexpr SpdPlace kFirstPlace{.part = 0};
// With more edits the lists are made anew, which costs as much as some ten edits in a long one.
constexpr size_t kEditsMax = 16;

SpdEntry addresses_of(SpdEntry entry) {
    entry.protocol = 0;
    entry.has_ports = false;
    return entry;
}

// With one template, whose far end is an address: others are found by no index here.
bool is_common(const xfrm::KernelPolicy& policy, const JudgedPolicy& judged) {
    if (!judged.exact() || judged.may_pass_on || policy.if_id != 0 || !policy.main_type) {
        return false;
    }
    if (judged.entry.action != SpdAction::protect) return true;
    const xfrm::Template& wanted = policy.templates.front();
    return !is_any(policy.row.direction == xfrm::PolicyDirection::out ? wanted.destination
                                                                      : wanted.source);
}

}  // namespace

// ---- by index ----------------------------------------------------------------------------------

GroupNumbers::Name RunningAdoption::Tables::name_of(uint32_t index, const Policy& policy) {
    if (!policy.wanted) return {.own = index};
    GroupNumbers::Name name = class_name(*policy.wanted, 0, 0);
    if (policy.side() == kIn) std::swap(name.source, name.destination);
    return name;
}

SpdPlace RunningAdoption::Tables::place_in_list(const Policy& policy) {
    const bool last =
        policy.direction == xfrm::PolicyDirection::in && policy.entry.action == SpdAction::bypass;
    return last ? behind_others(policy.place) : policy.place;
}

bool RunningAdoption::Tables::are_rivals(const Policy& a, const Policy& b) {
    return of_one_priority(a.place, b.place) && overlap(a.entry, b.entry) &&
           (a.entry.action != b.entry.action || a.wanted != b.wanted);
}

SpdEntry RunningAdoption::Tables::entry_in_list(const Policy& policy) {
    SpdEntry entry = policy.entry;
    if (policy.side() == kOut && policy.has_rivals) entry.action = SpdAction::protect;
    return entry;
}

RunningAdoption::Tables::End RunningAdoption::Tables::end_of(const TemplateClass& one) {
    return {one.side, one.side == kOut ? one.wanted.destination : one.wanted.source,
            one.wanted.reqid};
}

template <typename Visit>
void RunningAdoption::Tables::for_each_row(ClassId id, Visit visit) const {
    for (auto it = class_rows_.lower_bound({id, 0}); it != class_rows_.end() && it->first == id;
         ++it) {
        visit(it->second);
    }
}

template <typename Visit>
void RunningAdoption::Tables::for_each_fitting(ClassId id, Visit visit) const {
    for (auto it = fitting_sas_.lower_bound({id, xfrm::SaName{}});
         it != fitting_sas_.end() && it->first == id; ++it) {
        visit(it->second);
    }
}

std::vector<uint32_t> RunningAdoption::Tables::overlapping(Side side, const SpdEntry& entry) const {
    std::vector<uint32_t> found = overlaps_[side].candidates(entry);
    std::erase_if(found,
                  [&](uint32_t index) { return !overlap(policies_.at(index).entry, entry); });
    return found;
}

InboundList::View RunningAdoption::Tables::view(Line line) const {
    const Policy& policy = policies_.at(line);
    return {.entry = &policy.entry,
            .forward = policy.direction == xfrm::PolicyDirection::forward,
            .place = policy.place,
            .template_class = policy.template_class};
}

std::vector<InboundList::Line> RunningAdoption::Tables::overlapping(Line line) const {
    return overlapping(kIn, policies_.at(line).entry);
}

bool RunningAdoption::Tables::fits(ClassId id, const xfrm::KernelSa& sa) const {
    const TemplateClass& one = classes_.at(id);
    return one.side == kOut ? fits_outbound(one.wanted, 0, sa) : fits_inbound(one.wanted, 0, sa);
}

std::vector<RunningAdoption::Tables::ClassId> RunningAdoption::Tables::classes_for(
    const xfrm::KernelSa& sa, Side side) const {
    std::vector<ClassId> found;
    const IpAddress& address = side == kOut ? sa.name.destination : sa.source;
    const auto look = [&](uint32_t reqid) {
        const End end{side, address, reqid};
        for (auto it = classes_by_end_.lower_bound({end, 0});
             it != classes_by_end_.end() && it->first == end; ++it) {
            if (fits(it->second, sa)) found.push_back(it->second);
        }
    };
    look(sa.reqid);
    if (side == kIn && sa.reqid != 0) look(0);
    std::ranges::sort(found);
    return found;
}

// ---- policies ----------------------------------------------------------------------------------

// False: it is not a common one.
bool RunningAdoption::Tables::read_policy(Step& step, uint32_t index) {
    const auto there = step.now.policies.find(index);
    const auto known = policies_.find(index);
    Touched touched;
    if (known != policies_.end()) touched.before = known->second;
    if (there != step.now.policies.end()) {
        const xfrm::KernelPolicy& policy = there->second;
        const JudgedPolicy judged = judge(policy);
        if (!is_common(policy, judged)) return false;
        touched.after = Policy{.entry = judged.entry,
                               .wanted = {},
                               .direction = policy.row.direction,
                               .place = place_of(judged),
                               .template_class = {}};
        if (judged.entry.action == SpdAction::protect) {
            touched.after->wanted = policy.templates.front();
        }
        touched.updated = true;
    }
    if (touched.before || touched.after) step.touched.emplace(index, touched);
    return true;
}

// False: there are more groups than numbers.
bool RunningAdoption::Tables::number_groups(Step& step) {
    const auto count = [&](uint32_t index, const Policy& policy, bool joins) {
        const GroupNumbers::Name name = name_of(index, policy);
        const auto known = groups_.find(name);
        Group group = known == groups_.end() ? Group{} : known->second;
        uint32_t& members = policy.side() == kOut ? group.out : group.in;
        joins ? ++members : --members;
        if (policy.side() == kOut) {
            const uint64_t mark = GroupNumbers::policy_mark(index);
            group.marks = joins ? group.marks + mark : group.marks - mark;
        }
        undo_.assign(groups_, name, group);
        step.names.insert(name);
    };
    for (const auto& [index, touched] : step.touched) {
        if (touched.before && touched.after &&
            name_of(index, *touched.before) == name_of(index, *touched.after)) {
            continue;
        }
        if (touched.before) count(index, *touched.before, false);
        if (touched.after) count(index, *touched.after, true);
    }
    for (const GroupNumbers::Name& name : step.names) {
        const Group& group = groups_.at(name);
        step.numbers.doubt(name);
        if (group.out > 0) step.numbers.note_all(name, group.marks);
    }
    for (const bool outbound : {true, false}) {
        for (const GroupNumbers::Name& name : step.names) {
            Group group = groups_.at(name);
            if ((group.out > 0) != outbound || group.out + group.in == 0) continue;
            const auto number = step.numbers.number(name);
            if (!number) return false;
            if (group.number == number) continue;
            if (group.number) step.renumbered.push_back(name);
            group.number = number;
            undo_.assign(groups_, name, group);
        }
    }
    for (const GroupNumbers::Name& name : step.names) {
        const Group& group = groups_.at(name);
        if (group.out + group.in == 0) undo_.erase_key(groups_, name);
    }
    return true;
}

// Policies of groups whose number another group has taken over.
void RunningAdoption::Tables::touch_renumbered(Step& step) {
    for (const GroupNumbers::Name& name : step.renumbered) {
        GroupNumbers::Name reversed = name;
        std::swap(reversed.source, reversed.destination);
        for (const auto& key : {std::pair(kOut, name), std::pair(kIn, reversed)}) {
            const auto id = class_ids_.find(key);
            if (id == class_ids_.end()) continue;
            for_each_row(id->second, [&](uint32_t index) {
                const Policy& policy = policies_.at(index);
                step.touched.try_emplace(index, Touched{.before = policy, .after = policy});
            });
        }
    }
    for (auto& [index, touched] : step.touched) {
        if (!touched.after) continue;
        touched.after->entry.policy = *groups_.at(name_of(index, *touched.after)).number;
    }
}

void RunningAdoption::Tables::count_rivals(Step& step, uint32_t index, int more) {
    const auto known = rivals_.find(index);
    const int count = (known == rivals_.end() ? 0 : known->second) + more;
    if (count == 0) {
        undo_.erase_key(rivals_, index);
    } else {
        undo_.assign(rivals_, index, count);
    }
    step.rivals.insert(index);
}

void RunningAdoption::Tables::leave_rivals(Step& step, uint32_t index, const Policy& before) {
    const Side side = before.side();
    overlaps_[side].erase(index, before.entry);
    undo_.add([this, side, index, entry = before.entry] { overlaps_[side].insert(index, entry); });
    if (side != kOut || !rivals_.contains(index)) return;
    for (const uint32_t other : overlaps_[side].candidates(before.entry)) {
        if (are_rivals(policies_.at(other), before)) count_rivals(step, other, -1);
    }
    undo_.erase_key(rivals_, index);
}

void RunningAdoption::Tables::join_rivals(Step& step, uint32_t index, const Policy& after) {
    const Side side = after.side();
    for (const uint32_t other :
         side == kOut ? overlaps_[side].candidates(after.entry) : std::vector<uint32_t>{}) {
        if (!are_rivals(policies_.at(other), after)) continue;
        count_rivals(step, other, 1);
        count_rivals(step, index, 1);
    }
    overlaps_[side].insert(index, after.entry);
    undo_.add([this, side, index, entry = after.entry] { overlaps_[side].erase(index, entry); });
}

// Who has rivals when all have left and come. From here on policies_ and overlaps_ are as they are
// to be, but for the classes of those that are new in theirs.
void RunningAdoption::Tables::meet_rivals(Step& step) {
    const auto stays = [](const Touched& touched) {
        const std::optional<Policy>& before = touched.before;
        const std::optional<Policy>& after = touched.after;
        return before && after && before->place == after->place &&
               before->entry.action == after->entry.action && before->wanted == after->wanted &&
               selector_key(before->entry) == selector_key(after->entry);
    };
    for (const auto& [index, touched] : step.touched) {
        if (touched.before && !stays(touched)) leave_rivals(step, index, *touched.before);
    }
    for (auto& [index, touched] : step.touched) {
        if (!touched.after) {
            undo_.erase_key(policies_, index);
            continue;
        }
        if (touched.before && touched.before->wanted == touched.after->wanted) {
            touched.after->template_class = touched.before->template_class;
        }
        if (!stays(touched)) join_rivals(step, index, *touched.after);
        undo_.assign(policies_, index, *touched.after);
    }
    for (const uint32_t index : step.rivals) {
        const auto policy = policies_.find(index);
        if (policy == policies_.end()) continue;
        step.touched.try_emplace(index, Touched{.before = policy->second, .after = policy->second});
    }
    for (auto& [index, touched] : step.touched) {
        if (!touched.after) continue;
        touched.after->has_rivals = rivals_.contains(index);
        undo_.assign(policies_, index, *touched.after);
    }
}

void RunningAdoption::Tables::change_policies(Step& step) {
    for (auto& [index, touched] : step.touched) {
        if (touched.after) {
            change_policy(step, index, touched);
        } else {
            remove_policy(step, index, *touched.before);
        }
    }
    for (const uint32_t index : step.shown) show(index);
}

void RunningAdoption::Tables::remove_policy(Step& step, uint32_t index, const Policy& before) {
    disturb_inbound(step, before);
    take_from_lists(step, before);
    count_in_class(step, before, -1);
    leave_class(step, index, before);
    undo_.erase_key(out_.policies, index);
}

void RunningAdoption::Tables::change_policy(Step& step, uint32_t index, Touched& touched) {
    Policy& after = *touched.after;
    const std::optional<Policy>& before = touched.before;
    const bool same_class = before && before->wanted == after.wanted;
    const bool same_line =
        before && before->place == after.place && entry_in_list(*before) == entry_in_list(after);
    if (before && !same_line) take_from_lists(step, *before);
    if (before) count_in_class(step, *before, -1);
    if (!same_class) {
        if (before) leave_class(step, index, *before);
        join_class(step, index, after);
        undo_.assign(policies_, index, after);
    }
    count_in_class(step, after, 1);
    if (!same_line) put_into_lists(step, after);
    if (!same_line || !same_class) {
        step.shown.insert(index);
        if (before) disturb_inbound(step, *before);
        disturb_inbound(step, after);
    }
}

// No worker serves a class of which one has rivals.
void RunningAdoption::Tables::count_in_class(Step& step, const Policy& policy, int more) {
    if (!policy.has_rivals || !policy.template_class) return;
    const ClassId id = *policy.template_class;
    TemplateClass one = classes_.at(id);
    const bool some = one.with_rivals > 0;
    one.with_rivals += more;
    undo_.assign(classes_, id, one);
    if (some == (one.with_rivals > 0)) return;
    step.classes.insert(id);
    for_each_row(id, [&](uint32_t index) { step.shown.insert(index); });
}

void RunningAdoption::Tables::show(uint32_t index) {
    const auto found = policies_.find(index);
    if (found == policies_.end()) return;
    const Policy& policy = found->second;
    const bool rivals = policy.template_class ? classes_.at(*policy.template_class).with_rivals > 0
                                              : policy.has_rivals;
    undo_.assign(out_.policies, index,
                 {.index = index,
                  .group = policy.entry.policy,
                  .action = entry_in_list(policy).action,
                  .reason = rivals ? has_rivals() : std::string()});
}

// ---- lists -------------------------------------------------------------------------------------

// Which entry with this selector is in the list, before it changes.
void RunningAdoption::Tables::note_first(Step& step, Side side, const SelectorKey& key) {
    const auto [noted, is_new] = step.first_before[side].try_emplace(key);
    if (!is_new) return;
    const auto first = claims_[side].lower_bound({key, kFirstPlace});
    if (first != claims_[side].end() && first->first.first == key) {
        noted->second.emplace(first->first.second, first->second);
    }
}

void RunningAdoption::Tables::put_into_lists(Step& step, const Policy& policy) {
    const Side side = policy.side();
    const SelectorKey key = selector_key(policy.entry);
    note_first(step, side, key);
    undo_.assign(claims_[side], {key, place_in_list(policy)}, entry_in_list(policy));
}

void RunningAdoption::Tables::take_from_lists(Step& step, const Policy& policy) {
    const Side side = policy.side();
    const SelectorKey key = selector_key(policy.entry);
    note_first(step, side, key);
    undo_.erase_key(claims_[side], {key, place_in_list(policy)});
}

// Other policies may take other packets away from those that share some with it.
void RunningAdoption::Tables::disturb_inbound(Step& step, const Policy& policy) {
    if (policy.side() != kIn) return;
    for (const uint32_t index : overlapping(kIn, policy.entry)) {
        if (const auto id = policies_.at(index).template_class) step.classes.insert(*id);
    }
}

// Every address pair that it covers: each entry there shares addresses with it.
bool RunningAdoption::Tables::pair_has_room(Side side, const SpdEntry& entry) const {
    if (entry.takes_all()) return true;
    const SpdEntry addresses = addresses_of(entry);
    std::set<SelectorKey> competing;
    const auto compete = [&](const SpdEntry& other) {
        if (!other.takes_all() && overlap(other, addresses)) competing.insert(selector_key(other));
    };
    for (const uint32_t index : overlaps_[side].candidates(addresses)) {
        compete(policies_.at(index).entry);
        if (competing.size() >= SP_CELL_ENTRIES_MAX) return false;
    }
    std::ranges::for_each(narrow_of_configuration_[side], compete);
    return competing.size() < SP_CELL_ENTRIES_MAX;
}

bool RunningAdoption::Tables::has_room(const Step& step) const {
    for (const auto& [index, touched] : step.touched) {
        if (!touched.after || !touched.updated) continue;
        if (!pair_has_room(touched.after->side(), touched.after->entry)) return false;
    }
    return std::ranges::all_of(
        lists_, [&](const auto& list) { return list.size() <= step.setup.entries_max; });
}

void RunningAdoption::Tables::make_edits(Step& step) {
    SpdEdits edits;
    for (const Side side : {kOut, kIn}) {
        std::map<SpdPlace, std::optional<SpdEntry>> changed;
        for (const auto& [key, before] : step.first_before[side]) {
            const auto first = claims_[side].lower_bound({key, kFirstPlace});
            const bool some = first != claims_[side].end() && first->first.first == key;
            if (some && before && before->first == first->first.second &&
                before->second == first->second) {
                continue;
            }
            if (before) changed.try_emplace(before->first);
            if (some) changed[first->first.second] = first->second;
        }
        auto& out = side == kOut ? edits.outbound : edits.inbound;
        for (const auto& [place, entry] : changed) {
            if (entry) {
                undo_.assign(lists_[side], place, *entry);
            } else {
                undo_.erase_key(lists_[side], place);
            }
            out.push_back({.place = place, .entry = entry});
        }
    }
    out_.edits = std::move(edits);
}

void RunningAdoption::Tables::make_lists() {
    for (const Side side : {kOut, kIn}) {
        auto& entries = side == kOut ? out_.outbound : out_.inbound;
        auto& places = side == kOut ? out_.outbound_places : out_.inbound_places;
        entries.reserve(lists_[side].size());
        places.reserve(lists_[side].size());
        for (const auto& [place, entry] : lists_[side]) {
            entries.push_back(entry);
            places.push_back(place);
        }
    }
}

// What was there before.
std::optional<SpdEntry> RunningAdoption::Tables::put_into_list(
    Side side, const SpdPlace& place, const std::optional<SpdEntry>& entry) {
    auto& entries = side == kOut ? out_.outbound : out_.inbound;
    auto& places = side == kOut ? out_.outbound_places : out_.inbound_places;
    const auto at = std::ranges::lower_bound(places, place);
    const auto there = entries.begin() + (at - places.begin());
    std::optional<SpdEntry> before;
    if (at != places.end() && *at == place) {
        before = *there;
        if (entry) {
            *there = *entry;
        } else {
            entries.erase(there);
            places.erase(at);
        }
    } else if (entry) {
        entries.insert(there, *entry);
        places.insert(at, place);
    }
    return before;
}

// One after another where they are few: each moves what stands behind it.
void RunningAdoption::Tables::edit_lists() {
    if (out_.edits->outbound.size() + out_.edits->inbound.size() > kEditsMax) {
        undo_.add([this, outbound = std::exchange(out_.outbound, {}),
                   inbound = std::exchange(out_.inbound, {}),
                   outbound_places = std::exchange(out_.outbound_places, {}),
                   inbound_places = std::exchange(out_.inbound_places, {})]() mutable {
            out_.outbound = std::move(outbound);
            out_.inbound = std::move(inbound);
            out_.outbound_places = std::move(outbound_places);
            out_.inbound_places = std::move(inbound_places);
        });
        return make_lists();
    }
    for (const Side side : {kOut, kIn}) {
        for (const SpdEdit& edit : side == kOut ? out_.edits->outbound : out_.edits->inbound) {
            undo_.add([this, side, place = edit.place,
                       before = put_into_list(side, edit.place, edit.entry)] {
                put_into_list(side, place, before);
            });
        }
    }
}

void RunningAdoption::Tables::count_groups(const GroupNumbers& numbers) {
    const uint32_t count = std::max(numbers.upper_bound(), 1u);
    if (count == out_.group_count) return;
    undo_.add([this, before = out_.group_count] {
        out_.group_count = before;
        out_.if_id_by_group.resize(before);
    });
    out_.group_count = count;
    out_.if_id_by_group.resize(count);
}

bool RunningAdoption::Tables::add_configuration(Step& step) {
    for (const Side side : {kOut, kIn}) {
        SpdPlace place{.tier = kTierConfiguration};
        const auto direction = side == kOut ? SpdDirection::outbound : SpdDirection::inbound;
        for (SpdEntry entry : spd_entries(step.setup.policies, direction)) {
            const auto number = step.numbers.number(config_group_name(entry.policy));
            if (!number) return false;
            entry.policy = *number;
            claims_[side].try_emplace({selector_key(entry), place}, entry);
            if (!entry.takes_all()) narrow_of_configuration_[side].push_back(entry);
            ++place.index;
        }
    }
    return true;
}

// ---- template classes --------------------------------------------------------------------------

void RunningAdoption::Tables::join_class(Step& step, uint32_t index, Policy& policy) {
    if (!policy.wanted) return;
    const Side side = policy.side();
    const std::pair key(side, class_name(*policy.wanted, 0, 0));
    const auto known = class_ids_.find(key);
    const ClassId id = known == class_ids_.end() ? next_class_++ : known->second;
    policy.template_class = id;
    undo_.insert(class_rows_, {id, index});
    if (known != class_ids_.end()) {
        step.classes.insert(id);
        return;
    }
    const TemplateClass made{
        .name = key.second, .wanted = *policy.wanted, .side = side, .group = policy.entry.policy};
    undo_.assign(classes_, id, made);
    undo_.assign(class_ids_, key, id);
    undo_.insert(classes_by_end_, {end_of(made), id});
    // Who fits it, of those that there are.
    const auto [unused, address, reqid] = end_of(made);
    const bool any_reqid = side == kIn && reqid == 0;
    for (auto it = sas_by_end_.lower_bound({end_of(made), xfrm::SaName{}}); it != sas_by_end_.end();
         ++it) {
        const auto& [its_side, its_address, its_reqid] = it->first;
        if (its_side != side || its_address != address || (!any_reqid && its_reqid != reqid)) break;
        step.unfitted.insert(it->second);
    }
}

void RunningAdoption::Tables::leave_class(Step& step, uint32_t index, const Policy& policy) {
    if (!policy.template_class) return;
    const ClassId id = *policy.template_class;
    undo_.erase(class_rows_, {id, index});
    const auto row = class_rows_.lower_bound({id, 0});
    if (row != class_rows_.end() && row->first == id) {
        step.classes.insert(id);
        return;
    }
    for_each_fitting(id, [&](const xfrm::SaName& name) { step.unfitted.insert(name); });
    const TemplateClass& one = classes_.at(id);
    undo_.erase(classes_by_end_, {end_of(one), id});
    undo_.erase_key(class_ids_, {one.side, one.name});
    undo_.erase_key(classes_, id);
}

void RunningAdoption::Tables::renumber_classes(Step& step) {
    for (const GroupNumbers::Name& name : step.names) {
        const auto group = groups_.find(name);
        if (group == groups_.end()) continue;
        GroupNumbers::Name reversed = name;
        std::swap(reversed.source, reversed.destination);
        for (const auto& key : {std::pair(kOut, name), std::pair(kIn, reversed)}) {
            const auto id = class_ids_.find(key);
            if (id == class_ids_.end()) continue;
            TemplateClass one = classes_.at(id->second);
            if (one.group == *group->second.number) continue;
            one.group = *group->second.number;
            undo_.assign(classes_, id->second, one);
            step.classes.insert(id->second);
        }
    }
}

// ---- SAs ---------------------------------------------------------------------------------------

// False: only its mark may tell it from others, and no worker sees marks.
bool RunningAdoption::Tables::read_state(Step& step, const xfrm::SaName& name) {
    const auto there = step.now.states.find(name);
    const auto known = sas_.find(name);
    const bool is_known = known != sas_.end();
    step.unfitted.insert(name);
    const xfrm::KernelSa* state = there == step.now.states.end() ? nullptr : &there->second;
    if (state != nullptr && name.mark != xfrm::Mark{}) return false;
    const bool same_ends = state != nullptr && is_known && known->second.source == state->source &&
                           known->second.reqid == state->reqid;
    if (same_ends) return true;
    if (is_known) {
        const Sa& sa = known->second;
        undo_.erase(sas_by_end_, {End{kOut, name.destination, sa.reqid}, name});
        undo_.erase(sas_by_end_, {End{kIn, sa.source, sa.reqid}, name});
    }
    if (state == nullptr) return true;
    undo_.insert(sas_by_end_, {End{kOut, name.destination, state->reqid}, name});
    undo_.insert(sas_by_end_, {End{kIn, state->source, state->reqid}, name});
    Sa sa = is_known ? known->second : Sa{};
    sa.source = state->source;
    sa.reqid = state->reqid;
    undo_.assign(sas_, name, std::move(sa));
    return true;
}

void RunningAdoption::Tables::refit(Step& step, const xfrm::SaName& name, Side side,
                                    std::vector<ClassId>& fitting, std::vector<ClassId> now) {
    for (const ClassId id : fitting) {
        if (!std::ranges::binary_search(now, id)) undo_.erase(fitting_sas_, {id, name});
        if (side == kOut) step.classes.insert(id);
    }
    for (const ClassId id : now) {
        undo_.insert(fitting_sas_, {id, name});
        if (side == kOut) step.classes.insert(id);
    }
    fitting = std::move(now);
}

void RunningAdoption::Tables::fit(Step& step, const xfrm::SaName& name,
                                  std::set<xfrm::SaName>& again, Change& change) {
    const auto known = sas_.find(name);
    if (known == sas_.end()) return;
    const auto there = step.now.states.find(name);
    Sa sa = known->second;
    for (const Side side : {kOut, kIn}) {
        refit(step, name, side, sa.fitting[side],
              there == step.now.states.end() ? std::vector<ClassId>{}
                                             : classes_for(there->second, side));
    }
    if (there != step.now.states.end()) {
        undo_.assign(sas_, name, std::move(sa));
        again.insert(name);
        return;
    }
    undo_.erase_key(sas_, name);
    undo_.erase_key(out_.sas, name);
    change.sas.insert(name);
}

void RunningAdoption::Tables::decide_inbound(const Sa& known, SaDecision& decision) const {
    const auto name = [this](ClassId id) { return classes_.at(id).name; };
    decision.group = classes_.at(std::ranges::max(known.fitting[kIn], {}, name)).group;
    if (!decision.adopted()) return;
    std::vector<Line> lines;
    for (const ClassId id : known.fitting[kIn]) {
        for_each_row(id, [&](uint32_t index) { lines.push_back(index); });
    }
    auto selectors = selectors_past_others(*this, known.fitting[kIn], lines);
    if (selectors) {
        decision.selectors = std::move(*selectors);
    } else {
        decision.reason = selectors.error();
    }
}

// What it is without a look at others of its group.
SaDecision RunningAdoption::Tables::decide_alone(const Step& step, const xfrm::KernelSa& sa,
                                                 const Sa& known) const {
    SaDecision decision;
    judge_alone(sa,
                {.outbound = !known.fitting[kOut].empty(), .inbound = !known.fitting[kIn].empty()},
                step.setup, decision);
    if (!decision.direction) return decision;
    const bool outbound = decision.direction == xfrm::StateDirection::outbound;
    const std::vector<ClassId>& fitting = known.fitting[outbound ? kOut : kIn];
    if (fitting.empty()) {
        if (decision.adopted()) decision.reason = "no policy for it yet";
    } else if (!outbound) {
        decide_inbound(known, decision);
    } else {
        decision.group = classes_.at(fitting.front()).group;
        const auto has_some = [this](ClassId id) { return classes_.at(id).with_rivals > 0; };
        if (decision.adopted() && std::ranges::any_of(fitting, has_some)) {
            decision.reason = "its policy: " + has_rivals();
        }
        if (fitting.size() > 1 && decision.adopted()) {
            decision.reason = "several groups of policies use it";
        }
    }
    if (!decision.adopted()) return decision;
    take_form(sa, step.setup.suites, decision);
    if (!outbound) decision.owner = inbound_owner(sa, step.setup.cpus);
    return decision;
}

// What outbound SAs of one group are to each other.
void RunningAdoption::Tables::decide_groups(const Step& step, const std::set<ClassId>& groups,
                                            std::map<xfrm::SaName, SaDecision>& fresh) const {
    for (const ClassId id : groups) {
        std::vector<Member> members;
        for_each_fitting(id, [&](const xfrm::SaName& name) {
            const xfrm::KernelSa& sa = step.now.states.at(name);
            SaDecision& decision = fresh.at(name);
            if (!sa.larval && decision.direction == xfrm::StateDirection::outbound) {
                members.push_back({.sa = &sa, .decision = &decision});
            }
        });
        hold_back(members);
        choose_outbound_owners(members, step.setup.cpus);
    }
}

// `again`: whose classes were looked up. False: one has gone, and nobody said so.
bool RunningAdoption::Tables::decide_sas(Step& step, std::set<xfrm::SaName> again, Change& change) {
    const auto add = [&](const xfrm::SaName& name) { again.insert(name); };
    for (const ClassId id : step.classes) for_each_fitting(id, add);
    std::set<ClassId> groups;
    for (const xfrm::SaName& name : again) {
        const auto& fitting = sas_.at(name).fitting[kOut];
        groups.insert(fitting.begin(), fitting.end());
    }
    // Those that have left theirs are none of it any more, but the others are to look again.
    for (const ClassId id : step.classes) {
        const auto one = classes_.find(id);
        if (one != classes_.end() && one->second.side == kOut) groups.insert(id);
    }
    for (const ClassId id : groups) for_each_fitting(id, add);
    std::map<xfrm::SaName, SaDecision> fresh;
    for (const xfrm::SaName& name : again) {
        const auto state = step.now.states.find(name);
        if (state == step.now.states.end()) return false;
        fresh.emplace_hint(fresh.end(), name, decide_alone(step, state->second, sas_.at(name)));
    }
    decide_groups(step, groups, fresh);
    for (auto& [name, decision] : fresh) {
        const auto before = out_.sas.find(name);
        if (before != out_.sas.end() && before->second == decision) continue;
        undo_.assign(out_.sas, name, std::move(decision));
        change.sas.insert(name);
    }
    return true;
}

// ---- steps -------------------------------------------------------------------------------------

bool RunningAdoption::Tables::change_all_policies(Step& step) {
    if (!number_groups(step)) return false;
    touch_renumbered(step);
    meet_rivals(step);
    change_policies(step);
    renumber_classes(step);
    return true;
}

bool RunningAdoption::Tables::decide_touched(Step& step, Change& change) {
    std::set<xfrm::SaName> again;
    for (const xfrm::SaName& name : step.unfitted) fit(step, name, again, change);
    if (!decide_sas(step, std::move(again), change)) return false;
    count_groups(step.numbers);
    return true;
}

bool RunningAdoption::Tables::fill(const Register& now, const AdoptionSetup& setup,
                                   GroupNumbers& numbers) {
    Step step{.now = now, .setup = setup, .numbers = numbers};
    numbers.begin();
    if (!numbers.number(name_beyond_capacity()) || !add_configuration(step)) return false;
    for (const auto& [index, policy] : now.policies) {
        if (!read_policy(step, index)) return false;
    }
    if (!change_all_policies(step)) return false;
    for (const Side side : {kOut, kIn}) {
        for (auto it = claims_[side].begin(); it != claims_[side].end();) {
            const SelectorKey& key = it->first.first;
            lists_[side].emplace(it->first.second, it->second);
            while (it != claims_[side].end() && it->first.first == key) ++it;
        }
    }
    if (!has_room(step)) return false;
    for (const auto& [name, state] : now.states) {
        if (!read_state(step, name)) return false;
    }
    Change all;
    if (!decide_touched(step, all)) return false;
    make_lists();
    undo_.on();
    return true;
}

bool RunningAdoption::Tables::step(const Register& now, const xfrm::RegisterChanges& changes,
                                   const AdoptionSetup& setup, GroupNumbers& numbers,
                                   Change& change) {
    Step step{.now = now, .setup = setup, .numbers = numbers};
    numbers.begin_with_changes();
    for (const uint32_t index : changes.policies) {
        if (!read_policy(step, index)) return false;
    }
    if (!change_all_policies(step)) return false;
    make_edits(step);
    if (!has_room(step)) return false;
    for (const auto* names : {&changes.added, &changes.removed, &changes.moved}) {
        for (const xfrm::SaName& name : *names) {
            if (!read_state(step, name)) return false;
        }
    }
    if (!decide_touched(step, change)) return false;
    edit_lists();
    return true;
}

}  // namespace sallyport::control
