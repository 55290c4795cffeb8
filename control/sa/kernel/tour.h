// SPDX-License-Identifier: Apache-2.0
#pragma once

// The look at all SAs that workers have, ten times a second, a slice at a time, so that control
// answers in between: what workers say (that numbers run low, above all) comes first.
//
//   every time       limits; numbers that run low, where a worker's word was lost; requests to
//                    rekey that were not obeyed; what an SA that has just come has missed
//   every kTurns-th  counters into the kernel's states; each time it is another part of the SAs'
//                    turn, so the kernel has as much to do at any time
//
// What is due for many is asked for at once. With so many busy SAs that a tour takes longer than
// the time to the next one, that one is put off: feedback and limits are that much later.
//
// Owner: control thread.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "control/sa/kernel/feedback.h"
#include "control/sa/kernel/handover.h"
#include "control/sa/kernel/slot_table.h"
#include "control/sa/kernel/surroundings.h"

namespace sallyport::control {

class Tour {
  public:
    // Longer, and control answers later by as much; shorter, and it costs a timer for each few SAs.
    static constexpr std::chrono::milliseconds kSlice{3};
    // What arrived since an SA's turn can be replayed once after a crash.
    static constexpr uint32_t kTurns = 10;

    Tour(const Clock& clock, SlotTable& slots, Handover& handover, Feedback& feedback)
        : clock_(clock), slots_(slots), handover_(handover), feedback_(feedback) {}

    // The next one, if the last is over.
    void begin();
    // A slice. False: it is over.
    bool go_on();

  private:
    // So many are looked at before the clock is, or until as many requests are due as go at once.
    static constexpr size_t kStep = 256;
    static constexpr size_t kRequests = 64;
    static constexpr size_t kExpiries = 16;  // each by itself
    void step();

    const Clock& clock_;
    SlotTable& slots_;
    Handover& handover_;
    Feedback& feedback_;
    bool under_way_ = false;
    uint32_t turn_ = 0;
    size_t next_ = 0;
    std::vector<Slot*> due_;  // of a step
    std::vector<Slot*> written_;
};

}  // namespace sallyport::control
