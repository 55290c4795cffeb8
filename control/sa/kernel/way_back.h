// SPDX-License-Identifier: Apache-2.0
#pragma once

// All SAs back to the kernel, a batch at a time, while the workers run: a stop that loses no more
// than is in flight.
//
//   name()     the next batch: policies have no owner on its behalf, so the kernel sends
//   (its owners are published; what is on its way to the workers is sent by them)
//   retire()   Handover::kSettle later the workers give it up; as each does, its counters are
//              written and its inbound frames are steered to the kernel
//
// Rounds go on meanwhile: what the register loses leaves as always.
//
// Owner: control thread.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "control/sa/kernel/handover.h"
#include "control/sa/kernel/reconcile.h"
#include "control/sa/kernel/slot_table.h"
#include "control/sa/kernel/surroundings.h"

namespace sallyport::control {

class WayBack {
  public:
    // From the retirement of an inbound SA until its frames are steered to the kernel they find no
    // SA, and are lost: for as long as the counters of a batch take to be written, a ms or two.
    // More, and that is longer, and control does not answer meanwhile; fewer, and a stop takes
    // longer: each batch settles (Handover::kSettle), 1 s for 20 000 SAs.
    static constexpr size_t kBatch = 64;

    WayBack(const Clock& clock, SlotTable& slots, Handover& handover, Reconciler& reconciler,
            size_t batch = kBatch)
        : clock_(clock),
          slots_(slots),
          handover_(handover),
          reconciler_(reconciler),
          batch_(batch) {}

    // From now on nobody comes.
    void begin();
    [[nodiscard]] bool has_begun() const { return begun_; }
    // False: nobody is left to be named, or there are enough on their way. True: owners are to be
    // published, see Reconciler::plan_owners().
    bool name();
    // Those that were named, if it is time.
    void retire();
    // No worker has one any more.
    [[nodiscard]] bool is_done() const { return slots_.size() == 0; }

  private:
    const Clock& clock_;
    SlotTable& slots_;
    Handover& handover_;
    Reconciler& reconciler_;
    size_t batch_;
    bool begun_ = false;
    std::vector<SaId> left_;   // the next one is the last
    std::vector<SaId> named_;  // not yet retired
    std::chrono::steady_clock::time_point named_at_;
};

}  // namespace sallyport::control
