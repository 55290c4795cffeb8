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
// however many SAs there are; those of a later batch are served by the kernel meanwhile. With a
// round that looks at all SAs, as the first does, comes nobody, unless all go into one batch.
//
// What a round looks at are the SAs that something has happened to: their state, what is decided of
// them, a word of their worker's. All others stay as they are, at no cost.
//
// Where the policies cannot be published nobody comes: the number of a group may stand for another
// one in what is in force. Only those leave whose state has gone (plan_without_publication()).
//
// Owner: control thread.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "control/adoption/running.h"
#include "control/sa/kernel/handover.h"
#include "control/sa/kernel/slot_table.h"
#include "control/xfrm/mirror.h"

namespace sallyport::control {

// By group: the workers that send for it, sorted, each once, at most SP_OWNERS_MAX.
using GroupOwners = std::vector<std::vector<WorkerId>>;
// Those that are others from now on.
using OwnerChanges = std::map<PolicyId, std::vector<WorkerId>>;

class Reconciler {
  public:
    using Decisions = std::map<xfrm::SaName, SaDecision>;
    // So many SAs are steered at one time: 32 tunnels, both directions. While they settle and are
    // read, a worker holds their frames, 256 of them (config::kHoldFrames): more, and the time to
    // read them is longer than the time to settle; fewer, and ten thousand tunnels take longer to
    // come, since each batch settles (Handover::kSettle).
    static constexpr size_t kBatch = 64;
    // How quick the machine is, the first ones tell. More, and a slow one loses their frames; fewer
    // is of no use: it doubles.
    static constexpr size_t kBatchFirst = 8;
    // Where one that was steered waits longer (a machine short of CPU, a slow kernel), the next
    // batch has half as many, down to one tunnel; twice as many again where it waits a quarter.
    // Longer, and frames pass the age at which workers give them up (KernelSas::kHoldMs).
    static constexpr std::chrono::milliseconds kHeldMax{50};
    Reconciler(const Surroundings& around, SlotTable& slots, Handover& handover,
               size_t batch = kBatch)
        : around_(around),
          slots_(slots),
          handover_(handover),
          batch_max_(batch),
          batch_(std::min(batch, kBatchFirst)) {}

    // `arrival`: of its state, see xfrm::KernelSa. Another one has been decided about no more.
    struct Waiting {
        xfrm::SaName name;
        uint64_t arrival = 0;
    };
    struct Plan {
        std::set<xfrm::SaName> names;  // that it is about
        bool whole = false;            // all
        std::vector<Slot*> leaving;
        std::vector<xfrm::SaName> coming;        // now
        std::deque<Waiting> waiting;             // would come, in later batches
        std::vector<xfrm::SaName> no_room;       // would come
        std::vector<xfrm::SaName> used_by_host;  // the same
        OwnerChanges owners;                     // of outbound SAs that stay or come
    };
    // Until take_over() no SA comes. `decided`: what became different in `now` since the last plan
    // that was carried out. `group_count`: numbers of groups are below it.
    [[nodiscard]] Plan plan(const Decisions& now, const RunningAdoption::Change& decided,
                            const xfrm::RegisterChanges& changes, uint32_t group_count) const;
    [[nodiscard]] Plan plan_without_publication(const xfrm::RegisterChanges& changes) const;
    // Of those that wait since the last plan; `now` is what it was made from.
    [[nodiscard]] Plan plan_batch(const Decisions& now);
    // Owners are what the plan says, before it is carried out; or are not, and are named anew.
    void owners_published(const Plan& plan);
    void put_back(const Plan& batch);
    // With what the plan was made from, or without decisions where nothing was published.
    void carry_out(const Plan& plan, const Decisions& now, const xfrm::RegisterChanges& changes);
    void carry_out(const Plan& plan);
    void carry_out_batch(const Plan& plan, const Decisions& now);
    void take_over() {
        taking_over_ = true;
        all_again_ = true;
    }
    void stop_coming() {
        taking_over_ = false;
        waiting_.clear();
    }
    // Owners of groups that some have joined or left since they were published.
    [[nodiscard]] Plan plan_owners() const;

    // Those that are steered go on, each when its time has come.
    void go_on();
    // Some are steered, or wait to be.
    [[nodiscard]] bool is_under_way() const { return !steered_.empty() || !waiting_.empty(); }

  private:
    using Names = std::vector<std::pair<xfrm::SaName, std::optional<xfrm::StateDirection>>>;
    [[nodiscard]] bool has_gone(const Slot& slot, const xfrm::RegisterChanges& changes) const;
    [[nodiscard]] bool stays(const Slot& slot, const Decisions& now,
                             const xfrm::RegisterChanges& changes) const;
    [[nodiscard]] std::set<xfrm::SaName> names_of(const xfrm::RegisterChanges& changes) const;
    [[nodiscard]] bool may_come(const xfrm::SaName& name, const Decisions& now,
                                const xfrm::RegisterChanges& changes) const;
    void split(Plan& plan, const xfrm::RegisterChanges& changes) const;
    void name_owners(Plan& plan, const Decisions& now, uint32_t group_count) const;
    [[nodiscard]] bool is_served(PolicyId group) const;
    void note_waiting(const Plan& plan);
    void refresh(const Plan& plan, const Decisions& now);
    void steer(const Plan& plan, const Decisions& now);
    void steer(const xfrm::SaName& name, const SaDecision& decision, bool group_is_served);
    void note_steered(const Plan& plan);
    void adapt_batch(std::chrono::steady_clock::duration held);
    [[nodiscard]] Names behind_in_kernel(const Plan& plan, const Decisions& now) const;

    const Surroundings& around_;
    SlotTable& slots_;
    Handover& handover_;
    size_t batch_max_;
    size_t batch_;  // the next one
    bool taking_over_ = false;
    bool all_again_ = false;          // the next plan is about all
    std::set<xfrm::SaName> again_;    // the next plan is about them too
    std::set<xfrm::SaName> no_room_;  // and where there is room, about them
    std::deque<Waiting> waiting_;     // maybe not any more, and some twice
    std::vector<SaId> steered_;       // maybe not any more
    GroupOwners owners_;              // published last
};

}  // namespace sallyport::control
