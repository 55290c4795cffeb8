// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/groups.h"

#include <utility>

namespace sallyport::control {

namespace {

// A set of indices as one number: the order in which they come does not matter.
uint64_t with_policy(uint64_t policies, uint32_t index) {
    uint64_t mixed = (uint64_t{index} + 1) * 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93u;
    return policies + (mixed ^ mixed >> 32);
}

}  // namespace

void GroupNumbers::begin() {
    roll_back();
    ++round_;
}

GroupNumbers::Group& GroupNumbers::keep(Group& before, const Name& name, uint64_t policies) {
    before.kept = round_;
    return groups_.emplace(name, Group{.number = before.number, .policies = policies})
        .first->second;
}

void GroupNumbers::note(const Name& name, uint32_t policy) {
    if (const auto group = groups_.find(name); group != groups_.end()) {
        group->second.policies = with_policy(group->second.policies, policy);
        return;
    }
    if (const auto known = committed_.find(name); known != committed_.end()) {
        keep(known->second, name, with_policy(0, policy));
        return;
    }
    uint64_t& policies = new_[name];
    policies = with_policy(policies, policy);
}

GroupNumbers::Group* GroupNumbers::predecessor(const Name& name, uint64_t policies) {
    Name any_spi = name;
    any_spi.spi = {};
    for (auto it = committed_.lower_bound(any_spi); it != committed_.end(); ++it) {
        Name rest = it->first;
        rest.spi = {};
        if (rest != any_spi) break;
        if (it->second.kept != round_ && it->second.policies == policies) return &it->second;
    }
    return nullptr;
}

std::optional<PolicyId> GroupNumbers::number(const Name& name) {
    if (const auto known = groups_.find(name); known != groups_.end()) {
        return PolicyId{known->second.number};
    }
    const auto known = committed_.find(name);
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
    for (const auto& [name, group] : committed_) {
        if (group.kept != round_) resting_.push_back(group.number);
    }
    committed_ = std::move(groups_);
    groups_.clear();
    new_.clear();
    given_.clear();
}

void GroupNumbers::roll_back() {
    // Nobody has seen them: they need no rest.
    free_.insert(free_.begin(), given_.begin(), given_.end());
    groups_.clear();
    new_.clear();
    given_.clear();
}

void GroupNumbers::rested() {
    free_.insert(free_.end(), resting_.begin(), resting_.end());
    resting_.clear();
}

}  // namespace sallyport::control
