// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/groups.h"

#include <utility>

namespace sallyport::control {

// Their sum is a set of indices as one number: the order in which they come does not matter.
uint64_t GroupNumbers::policy_mark(uint32_t policy) {
    uint64_t mixed = (uint64_t{policy} + 1) * 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93u;
    return mixed ^ mixed >> 32;
}

void GroupNumbers::begin() {
    roll_back();
    ++round_;
}

void GroupNumbers::begin_with_changes() {
    begin();
    with_changes_ = true;
}

void GroupNumbers::doubt(const Name& name) {
    doubted_.insert(name);
}

GroupNumbers::Group& GroupNumbers::keep(Group& before, const Name& name, uint64_t policies) {
    before.kept = round_;
    return groups_.emplace(name, Group{.number = before.number, .policies = policies})
        .first->second;
}

void GroupNumbers::note(const Name& name, uint32_t policy) {
    note_all(name, policy_mark(policy));
}

void GroupNumbers::note_all(const Name& name, uint64_t marks) {
    if (const auto group = groups_.find(name); group != groups_.end()) {
        group->second.policies += marks;
        return;
    }
    if (const auto known = committed_.find(name); known != committed_.end()) {
        keep(known->second, name, marks);
        return;
    }
    new_[name] += marks;
}

GroupNumbers::Group* GroupNumbers::predecessor(const Name& name, uint64_t policies) {
    Name any_spi = name;
    any_spi.spi = {};
    for (auto it = committed_.lower_bound(any_spi); it != committed_.end(); ++it) {
        Name rest = it->first;
        rest.spi = {};
        if (rest != any_spi) break;
        if (it->second.kept != round_ && it->second.policies == policies &&
            !is_settled(it->first)) {
            return &it->second;
        }
    }
    return nullptr;
}

std::optional<PolicyId> GroupNumbers::number(const Name& name) {
    if (const auto known = groups_.find(name); known != groups_.end()) {
        return PolicyId{known->second.number};
    }
    const auto known = committed_.find(name);
    if (known != committed_.end() && is_settled(name)) return PolicyId{known->second.number};
    if (known != committed_.end() && known->second.kept != round_) {
        return PolicyId{keep(known->second, name, 0).number};
    }
    uint64_t policies = 0;
    if (const auto noted = new_.find(name); noted != new_.end()) {
        policies = noted->second;
        if (Group* before = predecessor(name, policies)) {
            return PolicyId{keep(*before, name, policies).number};
        }
    }
    uint32_t number = 0;
    if (!free_.empty()) {
        number = free_.front();
        free_.pop_front();
    } else if (upper_bound_ < capacity_) {
        number = upper_bound_++;
    } else {
        return std::nullopt;
    }
    given_.push_back(number);
    groups_.emplace(name, Group{.number = number, .policies = policies});
    return PolicyId{number};
}

void GroupNumbers::commit() {
    const auto let_go = [this](const Group& group) {
        if (group.kept != round_) resting_.push_back(group.number);
    };
    if (with_changes_) {
        for (const Name& name : doubted_) {
            const auto before = committed_.find(name);
            if (before == committed_.end()) continue;
            let_go(before->second);
            committed_.erase(before);
        }
        committed_.merge(groups_);
    } else {
        for (const auto& [name, group] : committed_) let_go(group);
        committed_ = std::move(groups_);
    }
    given_.clear();
    roll_back();
}

void GroupNumbers::roll_back() {
    // Nobody has seen them: they need no rest.
    free_.insert(free_.begin(), given_.begin(), given_.end());
    groups_.clear();
    new_.clear();
    given_.clear();
    doubted_.clear();
    with_changes_ = false;
}

void GroupNumbers::rested() {
    free_.insert(free_.end(), resting_.begin(), resting_.end());
    resting_.clear();
}

}  // namespace sallyport::control
