// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rivals: two `out` policies of one priority that share packets and do not do the same with them.
//
// Which of them the kernel asks first is no matter of their age. A new policy goes behind others of
// its chain, or of its node in a tree; an update keeps the place there; between chains and trees
// and whenever thresholds are set it depends on their prefixes. Neither messages nor dumps say it.
// So what either covers is left to the kernel: a filter becomes PROTECT in a group of its own, and
// the SAs of a rival's group stay with the kernel, which may send with them.
//
// Of `in` and `fwd` policies the same holds for SAs (inbound_selectors.h). What arrives in clear
// does not enter where one of them forbids it.

#include <span>
#include <string>
#include <vector>

#include "control/adoption/inbound_selectors.h"

namespace sallyport::control::adoption {

// As a reason, of a policy.
inline std::string has_rivals() {
    return "overlaps another of its priority";
}

// By row: has it rivals. `rows`: of `out` policies, by place.
std::vector<bool> find_rivals(std::span<const Row> rows);

}  // namespace sallyport::control::adoption
