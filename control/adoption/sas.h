// SPDX-License-Identifier: Apache-2.0
#pragma once

// One SA by itself: is it for workers, and which templates does it fit (control/adoption/decide.h,
// "SAs").

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "control/xfrm/values.h"
#include "dataplane/base/ip.h"
#include "dataplane/crypto/suite.h"

namespace sallyport::control::adoption {

// Why the state by itself, whatever the policies are, is not for workers; empty: it is.
std::string obstacle_of(const xfrm::KernelSa& sa, std::optional<xfrm::StateDirection> direction,
                        std::span<const crypto::Suite> suites);

// Does the kernel send by `wanted` with this SA; may a packet that came by the SA pass `wanted`.
bool fits_outbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa);
bool fits_inbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa);

bool is_any(const IpAddress& address);

}  // namespace sallyport::control::adoption
