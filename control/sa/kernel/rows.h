// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `show sa` and `show policy` tell of the kernel's register.

#include "control/adoption/decide.h"
#include "control/sa/kernel/slot.h"
#include "control/sa/source.h"
#include "control/xfrm/values.h"

namespace sallyport::control {

// The kernel serves it. `decision` is null where there is none yet.
SaRow row_of(const xfrm::KernelSa& state, const SaDecision* decision);
// `slot`: a worker serves it.
void set_slot(SaRow& row, const Slot& slot);

PolicyRow row_of(const xfrm::KernelPolicy& policy, const PolicyView& view);

}  // namespace sallyport::control
