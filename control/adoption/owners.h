// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which worker owns an SA, and which SA of a group goes first (control/adoption/decide.h, "Owner").

#include <cstdint>
#include <span>

#include "control/adoption/decide.h"
#include "control/xfrm/values.h"

namespace sallyport::control::adoption {

// An outbound SA that the kernel may use for a group.
struct Member {
    const xfrm::KernelSa* sa;
    SaDecision* decision;
};

// Where the newest stays with the kernel, all do.
void hold_back(std::span<const Member> group);

WorkerId inbound_owner(const xfrm::KernelSa& sa, std::span<const uint16_t> cpus);

// Sets owner and rank of those that are adopted.
void choose_outbound_owners(std::span<const Member> group, std::span<const uint16_t> cpus);

}  // namespace sallyport::control::adoption
