// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `show sa` and `show policy` tell of the kernel's register: values only, no slots.

#include <array>

#include "control/adoption/decide.h"
#include "control/sa/source.h"
#include "control/xfrm/values.h"
#include "dataplane/base/single_writer.h"

namespace sallyport::control {

// As xfrm counts time.
uint64_t seconds_since_epoch();

// The kernel serves it. `decision` is null where there is none yet.
SaRow row_of(const xfrm::KernelSa& state, const SaDecision* decision);
// Of kernel and worker together.
void set_usage(SaRow& row, const xfrm::Usage& usage);
void set_drops(SaRow& row, const std::array<Counter, kDropReasonCount>& drops);

PolicyRow row_of(const xfrm::KernelPolicy& policy, const PolicyView& view);

}  // namespace sallyport::control
