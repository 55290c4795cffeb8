// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/bypass_lease.h"

#include <utility>

namespace sallyport::control {

using Time = std::chrono::steady_clock::time_point;

void BypassLease::open(Programs& programs) {
    programs_ = &programs;
    set({});
}

void BypassLease::extend() {
    const Time now = clock_.now();
    if (until_ != Time{} && until_ < now) ++lapses_;
    set(now + kFor);
}

void BypassLease::take_away() {
    if (until_ == Time{}) return;
    if (until_ < clock_.now()) ++lapses_;
    set({});
}

void BypassLease::set(Time until) {
    if (const auto done = programs_->set_bypass_until(until); done) {
        until_ = until;
    } else if (!std::exchange(failed_, true)) {
        notices_.error("what BYPASS policies cover may be left to the kernel: " + done.error());
    }
}

}  // namespace sallyport::control
