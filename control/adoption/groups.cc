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
    previous_ = std::move(groups_);
    groups_.clear();
    new_.clear();
}

void GroupNumbers::note(const Name& name, uint32_t policy) {
    auto group = groups_.find(name);
    if (group == groups_.end()) {
        auto known = previous_.extract(name);
        if (!known) {
            uint64_t& policies = new_[name];
            policies = with_policy(policies, policy);
            return;
        }
        known.mapped().policies = 0;
        group = groups_.insert(std::move(known)).position;
    }
    group->second.policies = with_policy(group->second.policies, policy);
}

GroupNumbers::Groups::iterator GroupNumbers::predecessor(const Name& name, uint64_t policies) {
    Name any_spi = name;
    any_spi.spi = {};
    for (auto it = previous_.lower_bound(any_spi); it != previous_.end(); ++it) {
        Name rest = it->first;
        rest.spi = {};
        if (rest != any_spi) break;
        if (it->second.policies == policies) return it;
    }
    return previous_.end();
}

std::optional<PolicyId> GroupNumbers::number(const Name& name) {
    if (const auto known = groups_.find(name); known != groups_.end()) {
        return PolicyId{known->second.number};
    }
    if (auto known = previous_.extract(name)) {
        known.mapped().policies = 0;
        return PolicyId{groups_.insert(std::move(known)).position->second.number};
    }
    uint64_t policies = 0;
    if (const auto noted = new_.find(name); noted != new_.end()) {
        policies = noted->second;
        if (const auto before = predecessor(name, policies); before != previous_.end()) {
            const uint32_t kept = before->second.number;
            previous_.erase(before);
            groups_.emplace(name, Group{.number = kept, .policies = policies});
            return PolicyId{kept};
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
    groups_.emplace(name, Group{.number = number, .policies = policies});
    return PolicyId{number};
}

void GroupNumbers::end() {
    for (const auto& [name, group] : previous_) free_.push_back(group.number);
    previous_.clear();
}

}  // namespace sallyport::control
