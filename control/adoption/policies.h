// SPDX-License-Identifier: Apache-2.0
#pragma once

// One policy by itself: what the workers can judge of it (control/adoption/decide.h, "Policies").

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "control/xfrm/values.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control::adoption {

struct JudgedPolicy {
    const xfrm::KernelPolicy* policy = nullptr;
    SpdEntry entry;            // covers at least what the policy covers; its PolicyId is not set
    std::string obstacle;      // why only the kernel can judge it; empty: the entry is exact
    bool may_pass_on = false;  // does not apply to all packets that the entry covers
    [[nodiscard]] bool exact() const { return obstacle.empty(); }
};

JudgedPolicy judge(const xfrm::KernelPolicy& policy);

// By place (names.h).
std::vector<JudgedPolicy> judge_in_order(const std::map<uint32_t, xfrm::KernelPolicy>& policies);

// "mark 0x10", with its mask where that is not all ones.
std::string describe(const xfrm::Mark& mark);

}  // namespace sallyport::control::adoption
