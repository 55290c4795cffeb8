// SPDX-License-Identifier: Apache-2.0
#include "control/startup/watchdog.h"

namespace sallyport::control {

Watchdog::Look Watchdog::look(std::span<const uint64_t> loops, Time now) {
    while (seen_.size() < loops.size()) {
        seen_.push_back({.loops = loops[seen_.size()], .since = now, .hung = false});
    }
    Look out;
    for (size_t i = 0; i < loops.size(); ++i) {
        Seen& seen = seen_[i];
        if (loops[i] != seen.loops) {
            if (seen.hung) out.moved.push_back(i);
            seen = {.loops = loops[i], .since = now, .hung = false};
        } else if (!seen.hung && now - seen.since >= kHungAfter) {
            seen.hung = true;
            out.hung.push_back(i);
        }
        out.all_move = out.all_move && !seen.hung;
    }
    return out;
}

}  // namespace sallyport::control
