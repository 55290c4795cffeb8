// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/tour.h"

namespace sallyport::control {

void Tour::begin() {
    if (under_way_) return;
    under_way_ = true;
    next_ = 0;
    turn_ = (turn_ + 1) % kTurns;
}

bool Tour::go_on() {
    const auto until = clock_.now() + kSlice;
    while (under_way_) {
        step();
        if (clock_.now() >= until) break;
    }
    return under_way_;
}

void Tour::step() {
    due_.clear();
    written_.clear();
    size_t expired = 0;
    for (size_t looked = 0; looked < kStep && due_.size() < kRequests &&
                            written_.size() < kRequests && expired < kExpiries;
         ++looked) {
        if (next_ >= slots_.places()) {
            under_way_ = false;
            break;
        }
        const size_t index = next_++;
        Slot* slot = slots_.at(index);
        if (slot == nullptr || slot->phase != Phase::installed) continue;
        if (handover_.needs_look(*slot)) due_.push_back(slot);
        if (index % kTurns == turn_ && Feedback::has_news(*slot)) written_.push_back(slot);
        if (feedback_.check_limits(*slot)) ++expired;
    }
    handover_.look_after(due_);
    feedback_.write_counters(written_);
}

}  // namespace sallyport::control
