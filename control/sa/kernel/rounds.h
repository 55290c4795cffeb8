// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the register is comes into force, in rounds. Each is a transaction: decided, published and
// carried out as a whole with the numbers of its groups, or nothing of it, and then it is tried
// again by itself, later and later, and by the next change of the register.
//
//   heard()     a message: BYPASS is not believed any more where it is about policies
//   run()       a round
//   go_on()     between rounds: SAs that are on their way to workers, and the next batch of them
//   go_back()   the same at the end: all SAs are on their way back
//   in_step()   nothing waits to be heard: what is published is what the register has, if it is
//
// Owner: control thread.

#include <chrono>
#include <cstddef>
#include <expected>
#include <functional>
#include <string>
#include <utility>

#include "control/adoption/groups.h"
#include "control/adoption/running.h"
#include "control/sa/kernel/bypass_lease.h"
#include "control/sa/kernel/outer_tunnels.h"
#include "control/sa/kernel/publication.h"
#include "control/sa/kernel/reconcile.h"
#include "control/sa/kernel/surroundings.h"
#include "control/sa/kernel/way_back.h"
#include "control/sa/worker_commands.h"

namespace sallyport::control {

class Rounds {
  public:
    // After a publication that failed the next try comes this much later, ever later up to the
    // second; a change of the register is one too. Shorter, and a machine in trouble has more of
    // it; longer, and the policies of before are in force that much longer.
    static constexpr std::chrono::milliseconds kRetryFirst{100};
    static constexpr std::chrono::milliseconds kRetryLast{10'000};

    struct Parts {
        GroupNumbers& groups;
        RunningAdoption& adoption;
        Reconciler& reconciler;
        Publication& publication;
        BypassLease& lease;
        WorkerCommands& commands;
    };
    // Decides what is to be after changes since the last round that was published, with room for so
    // many entries: RunningAdoption::decide() of the register.
    using Decide = std::function<void(const xfrm::RegisterChanges& changes, size_t entries_max)>;
    // Called when owners of groups are published, before SAs that come with them settle and those
    // that go are retired: this host's own packets change their way with the others.
    // `changed`: those of them that are others; `other_spd`: the SPD is, too.
    using OwnersPublished =
        std::function<void(const GroupOwners& owners, const OwnerChanges& changed, bool other_spd)>;
    Rounds(
        const Surroundings& around, const Parts& parts, Decide decide,
        OwnersPublished owners_published = [](const GroupOwners&, const OwnerChanges&, bool) {})
        : around_(around),
          parts_(parts),
          outer_(around.kernel),
          decide_(std::move(decide)),
          owners_published_(std::move(owners_published)) {}

    void heard(const xfrm::RegisterChanges& changes);
    // `changes`: since the last round. On error what was published before stays in force, but for
    // the SAs that have gone.
    std::expected<void, std::string> run(xfrm::RegisterChanges changes);
    // True: some are left, go on after Handover::kSettle.
    bool go_on();
    // Everything goes back to the kernel. True: go on after Handover::kSettle, or when a worker has
    // said something.
    bool go_back(WayBack& way_back);
    // `waiting`: heard, and not yet of a round.
    void in_step(const xfrm::RegisterChanges& waiting);

    // SaSource's.
    [[nodiscard]] std::optional<IpAddress> far_end_after(
        const std::optional<IpAddress>& last) const {
        return outer_.far_end_after(last);
    }
    // Why earlier policies are in force than the register has; empty: they are not.
    [[nodiscard]] const std::string& not_published() const { return not_published_; }

  private:
    std::expected<void, std::string> publish(const xfrm::RegisterChanges& changes);
    std::expected<Publication::Draft, std::string> draft(const xfrm::RegisterChanges& changes);
    bool keep(const Reconciler::Plan& plan);
    void next_batch();
    void go_on_with_earlier(xfrm::RegisterChanges changes);

    const Surroundings& around_;
    Parts parts_;
    OuterTunnels outer_;
    Decide decide_;
    OwnersPublished owners_published_;
    xfrm::RegisterChanges unpublished_;  // of rounds that failed
    std::string not_published_;
    std::chrono::milliseconds retry_in_ = kRetryFirst;
};

}  // namespace sallyport::control
