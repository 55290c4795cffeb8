// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/rekey_pacer.h"

namespace sallyport::control {

bool RekeyPacer::ask(const xfrm::SaName& name, PolicyId group, Time now, When when) {
    if (queued_.contains(name)) return true;
    if (when == When::paced) {
        Pace& pace = paces_[group];
        if (pace.asked == 0 || now - pace.since > kPause) pace = {.since = now};
        if (pace.asked >= asked_max_) return false;
        ++pace.asked;
    }
    queue_.push_back(name);
    queued_.insert(name);
    return true;
}

std::optional<xfrm::SaName> RekeyPacer::next() {
    if (queue_.empty()) return std::nullopt;
    const xfrm::SaName name = queue_.front();
    queue_.pop_front();
    queued_.erase(name);
    return name;
}

}  // namespace sallyport::control
