// SPDX-License-Identifier: Apache-2.0
#pragma once

// The policies of the register on their way to the programs and the workers: compiled and written
// when they change; otherwise only who owns them is.
//
// Owner: control thread.

#include <expected>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "control/adoption/decide.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/sa/kernel/slot_table.h"
#include "control/sa/kernel/surroundings.h"
#include "control/sa/worker_commands.h"
#include "control/xfrm/guard.h"

namespace sallyport::control {

class Publication {
  public:
    Publication(xfrm::PolicyGuard& guard, WorkerCommands& commands, Notices& notices)
        : guard_(guard), commands_(commands), notices_(notices) {}
    // `bpf` outlives the use of this object.
    void open(bpf_objects::BpfObjects& bpf) { bpf_ = &bpf; }

    // `group_count`: numbers of groups are below it. Their owners are those that have a name in
    // `slots`. On error the earlier policies stay, and the next call tries again.
    std::expected<void, std::string> publish(Adoption now, const SlotTable& slots,
                                             uint32_t group_count);
    // What was decided last.
    [[nodiscard]] const Adoption& adoption() const { return adoption_; }

  private:
    using Owners = std::vector<std::vector<WorkerId>>;
    [[nodiscard]] static Owners owners_of(const SlotTable& slots, uint32_t group_count);
    std::expected<void, std::string> publish_policies(const Owners& owners);
    void let_outer_packets_pass(const SlotTable& slots);

    xfrm::PolicyGuard& guard_;
    WorkerCommands& commands_;
    Notices& notices_;
    bpf_objects::BpfObjects* bpf_ = nullptr;
    Adoption adoption_;
    const Spd* spd_ = nullptr;  // published last
    Owners owners_;             // published last
    bool policies_due_ = true;
    std::set<std::pair<IpAddress, IpAddress>> outer_pairs_;  // that `guard_` lets pass
};

}  // namespace sallyport::control
