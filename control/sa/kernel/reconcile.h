// SPDX-License-Identifier: Apache-2.0
#pragma once

// One round: what the register is now, against what the workers have.
//
//   plan()       who leaves, who comes; nothing changes yet
//   (the policies are published: their owners are those of the plan)
//   carry_out()  who leaves is retired, now that no outbound packet is steered to it any more; who
//                stays takes what may change under way (limits, selectors, rank); who comes is
//                steered; who is left to the kernel has its counters raised where they are behind
//   go_on()      who is steered takes its next step when its time has come
//
// Where the policies cannot be published nobody comes: the number of a group may stand for another
// one in what is in force. Only those leave whose state has gone (plan_without_publication()).
//
// Owner: control thread.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "control/sa/kernel/handover.h"
#include "control/sa/kernel/slot_table.h"
#include "control/xfrm/mirror.h"

namespace sallyport::control {

// By group: the workers that send for it, sorted, each once, at most SP_OWNERS_MAX.
using GroupOwners = std::vector<std::vector<WorkerId>>;
// Outer source and destination.
using OuterPairs = std::set<std::pair<IpAddress, IpAddress>>;

class Reconciler {
  public:
    using Decisions = std::map<xfrm::SaName, SaDecision>;
    Reconciler(const Surroundings& around, SlotTable& slots, Handover& handover)
        : around_(around), slots_(slots), handover_(handover) {}

    struct Plan {
        std::vector<Slot*> leaving;
        std::vector<xfrm::SaName> coming;
        std::vector<xfrm::SaName> no_room;       // would come
        std::vector<xfrm::SaName> used_by_host;  // the same
        GroupOwners owners;                      // of outbound SAs that stay or come
        OuterPairs outer;                        // of the same
    };
    // Until take_over() no SA comes. `group_count`: numbers of groups are below it.
    [[nodiscard]] Plan plan(const Decisions& now, const xfrm::RegisterChanges& changes,
                            uint32_t group_count) const;
    [[nodiscard]] Plan plan_without_publication(const xfrm::RegisterChanges& changes,
                                                uint32_t group_count) const;
    // With what the plan was made from, or without decisions where nothing was published.
    void carry_out(const Plan& plan, const Decisions& now, const xfrm::RegisterChanges& changes);
    void carry_out(const Plan& plan);
    void take_over() { taking_over_ = true; }

    // Those that are steered go on, each when its time has come. False: none is left.
    bool go_on();

  private:
    using Names = std::vector<std::pair<xfrm::SaName, std::optional<xfrm::StateDirection>>>;
    [[nodiscard]] bool has_gone(const Slot& slot, const xfrm::RegisterChanges& changes) const;
    [[nodiscard]] bool stays(const Slot& slot, const Decisions& now,
                             const xfrm::RegisterChanges& changes) const;
    void name_owners(Plan& plan, const Decisions& now, uint32_t group_count) const;
    void refresh(const Decisions& now);
    void steer(const Plan& plan, const Decisions& now);
    [[nodiscard]] Names behind_in_kernel(const Decisions& now) const;

    const Surroundings& around_;
    SlotTable& slots_;
    Handover& handover_;
    bool taking_over_ = false;
};

}  // namespace sallyport::control
