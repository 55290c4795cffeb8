// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/groups.h"

#include <utility>

namespace sallyport::control {

void GroupNumbers::begin() {
    previous_ = std::move(numbers_);
    numbers_.clear();
}

std::optional<PolicyId> GroupNumbers::number(const Name& name) {
    if (const auto known = numbers_.find(name); known != numbers_.end()) {
        return PolicyId{known->second};
    }
    if (auto known = previous_.extract(name)) {
        return PolicyId{numbers_.insert(std::move(known)).position->second};
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
    numbers_.emplace(name, number);
    return PolicyId{number};
}

void GroupNumbers::end() {
    for (const auto& [name, number] : previous_) free_.push_back(number);
    previous_.clear();
}

}  // namespace sallyport::control
