// SPDX-License-Identifier: Apache-2.0
#pragma once

// One SA by itself: is it for workers, and which templates does it fit (control/adoption/decide.h,
// "SAs").

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "control/adoption/decide.h"
#include "control/xfrm/values.h"
#include "dataplane/base/ip.h"
#include "dataplane/crypto/suite.h"

namespace sallyport::control::adoption {

// Why the state by itself, whatever the policies are, is not for workers; empty: it is.
std::string obstacle_of(const xfrm::KernelSa& sa, std::optional<xfrm::StateDirection> direction,
                        std::span<const crypto::Suite> suites);

// Directions whose templates want it.
struct Wanted {
    bool outbound = false;
    bool inbound = false;
};
// Sets the direction of `decision`, and its reason where the SA alone is one.
void judge_alone(const xfrm::KernelSa& sa, Wanted wanted, const AdoptionSetup& setup,
                 SaDecision& decision);
// Of one that is adopted: what a worker makes of its form.
void take_form(const xfrm::KernelSa& sa, std::span<const crypto::Suite> suites,
               SaDecision& decision);

// Does the kernel send by `wanted` with this SA; may a packet that came by the SA pass `wanted`.
bool fits_outbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa);
bool fits_inbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa);

bool is_any(const IpAddress& address);

}  // namespace sallyport::control::adoption
