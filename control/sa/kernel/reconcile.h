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
// Who comes, comes in batches: the next one is named by plan_batch(), its owners are published, and
// carry_out() steers it. So an SA's frames wait in its worker for as long as a batch takes,
// however many SAs there are; those of a later batch are served by the kernel meanwhile.
//
// Where the policies cannot be published nobody comes: the number of a group may stand for another
// one in what is in force. Only those leave whose state has gone (plan_without_publication()).
//
// Owner: control thread.

#include <cstddef>
#include <cstdint>
#include <deque>
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
    // So many SAs are steered at one time: 32 tunnels, both directions. While they settle and are
    // read, a worker holds their frames, 256 of them (config::kHoldFrames): more, and the time to
    // read them is longer than the time to settle; fewer, and ten thousand tunnels take longer to
    // come, since each batch settles (Handover::kSettle).
    static constexpr size_t kBatch = 64;
    Reconciler(const Surroundings& around, SlotTable& slots, Handover& handover,
               size_t batch = kBatch)
        : around_(around), slots_(slots), handover_(handover), batch_(batch) {}

    // `arrival`: of its state, see xfrm::KernelSa. Another one has been decided about no more.
    struct Waiting {
        xfrm::SaName name;
        uint64_t arrival = 0;
    };
    struct Plan {
        std::vector<Slot*> leaving;
        std::vector<xfrm::SaName> coming;        // now
        std::deque<Waiting> waiting;             // would come, in later batches
        std::vector<xfrm::SaName> no_room;       // would come
        std::vector<xfrm::SaName> used_by_host;  // the same
        GroupOwners owners;                      // of outbound SAs that stay or come
        OuterPairs outer;                        // of the same, and of those that wait
    };
    // Until take_over() no SA comes. `group_count`: numbers of groups are below it.
    [[nodiscard]] Plan plan(const Decisions& now, const xfrm::RegisterChanges& changes,
                            uint32_t group_count) const;
    [[nodiscard]] Plan plan_without_publication(const xfrm::RegisterChanges& changes,
                                                uint32_t group_count) const;
    // Of those that wait since the last plan; `now` is what it was made from.
    [[nodiscard]] Plan plan_batch(const Decisions& now);
    // With what the plan was made from, or without decisions where nothing was published.
    void carry_out(const Plan& plan, const Decisions& now, const xfrm::RegisterChanges& changes);
    void carry_out(const Plan& plan);
    void carry_out_batch(const Plan& plan, const Decisions& now);
    void take_over() { taking_over_ = true; }

    // Those that are steered go on, each when its time has come.
    void go_on();
    // Some are steered, or wait to be.
    [[nodiscard]] bool is_under_way() const { return !steered_.empty() || !waiting_.empty(); }

  private:
    using Names = std::vector<std::pair<xfrm::SaName, std::optional<xfrm::StateDirection>>>;
    [[nodiscard]] bool has_gone(const Slot& slot, const xfrm::RegisterChanges& changes) const;
    [[nodiscard]] bool stays(const Slot& slot, const Decisions& now,
                             const xfrm::RegisterChanges& changes) const;
    void split(Plan& plan, const xfrm::RegisterChanges& changes) const;
    void name_owners(Plan& plan, const Decisions& now, uint32_t group_count) const;
    void refresh(const Decisions& now);
    void steer(const Plan& plan, const Decisions& now);
    void steer(const xfrm::SaName& name, const SaDecision& decision, bool group_is_served);
    [[nodiscard]] Names behind_in_kernel(const Decisions& now) const;

    const Surroundings& around_;
    SlotTable& slots_;
    Handover& handover_;
    size_t batch_;
    bool taking_over_ = false;
    std::deque<Waiting> waiting_;
    std::vector<SaId> steered_;  // maybe not any more
    GroupOwners owners_;         // of the last plan
};

}  // namespace sallyport::control
