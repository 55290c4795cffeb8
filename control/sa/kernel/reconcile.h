// SPDX-License-Identifier: Apache-2.0
#pragma once

// One round: what the register is now, against what the workers have.
//
//   prepare()   who leaves gives up its name; who stays takes what may change under way (limits,
//               selectors, rank); who comes is steered
//   (the policies are published: their owners are those that have a name now)
//   complete()  who leaves is retired, now that no outbound packet is steered to it any more; who
//               is left to the kernel has its counters raised where they are behind
//   go_on()     who is steered takes its next step when its time has come
//
// Owner: control thread.

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "control/sa/kernel/handover.h"
#include "control/sa/kernel/slot_table.h"
#include "control/xfrm/mirror.h"

namespace sallyport::control {

class Reconciler {
  public:
    using Decisions = std::map<xfrm::SaName, SaDecision>;
    Reconciler(const Surroundings& around, SlotTable& slots, Handover& handover)
        : around_(around), slots_(slots), handover_(handover) {}

    // Returns those that leave. Until take_over() no SA comes.
    std::vector<Slot*> prepare(const Decisions& now, const xfrm::RegisterChanges& changes);
    void complete(const std::vector<Slot*>& leaving);
    void take_over() { taking_over_ = true; }

    // Those that are steered go on, each when its time has come. False: none is left.
    bool go_on();

  private:
    [[nodiscard]] bool stays(const Slot& slot, const Decisions& now,
                             const xfrm::RegisterChanges& changes) const;
    std::vector<Slot*> take_leave(const Decisions& now, const xfrm::RegisterChanges& changes);
    void refresh(const Decisions& now);
    void steer(const Decisions& now);
    void find_behind(const Decisions& now);

    const Surroundings& around_;
    SlotTable& slots_;
    Handover& handover_;
    bool taking_over_ = false;
    // Without a slot, and the kernel's counters are behind.
    std::vector<std::pair<xfrm::SaName, std::optional<xfrm::StateDirection>>> behind_;
};

}  // namespace sallyport::control
