// SPDX-License-Identifier: Apache-2.0
#pragma once

// The policies of the register on their way to the programs and the workers: compiled and written
// when they change; otherwise only who owns them is.
//
// A transaction:
//   draft()     compiles what of the decided is different, and fails where it has no room. Nothing
//               has changed.
//   publish()   map writes, which change rows (dataplane/spd/classes.h) or are made beside what is
//               in use until one more switches; workers are told; then it is
//               what adoption() says. On error nothing has changed: the earlier adoption is in
//               force, for programs, workers and SAs.
//   keep()      the earlier adoption, by those of its SAs that are left.
//
// What the kernel must know of a publication, that some of its packets end with it (Adoption::
// left_open) and that outer packets pass, it learns before; what it need not know any more, after.
//
// Owner: control thread.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "control/adoption/decide.h"
#include "control/policy/compiler.h"
#include "control/sa/kernel/outer_tunnels.h"
#include "control/sa/kernel/reconcile.h"
#include "control/sa/kernel/slot_table.h"
#include "control/sa/kernel/surroundings.h"
#include "control/sa/worker_commands.h"
#include "control/xfrm/guard.h"

namespace sallyport::control {

// The XDP programs, as far as policies go; see bpf_objects::BpfObjects. Each fails without having
// changed what is in use.
class Programs {
  public:
    [[nodiscard]] virtual SpdRoom room() const = 0;
    // `changed`: groups whose owners are others than before. `switched`: called when the programs
    // use it, and before it is waited for those that do not.
    virtual std::expected<void, std::string> publish(const SpdUpdate& spd,
                                                     const GroupOwners& owners,
                                                     std::span<const PolicyId> changed,
                                                     std::span<const uint32_t> if_ids,
                                                     const std::function<void()>& switched) = 0;
    virtual std::expected<void, std::string> update_owners(const GroupOwners& owners,
                                                           std::span<const PolicyId> changed) = 0;
    // BYPASS is believed until then.
    virtual std::expected<void, std::string> set_bypass_until(
        std::chrono::steady_clock::time_point until) = 0;

  protected:
    ~Programs() = default;
};

// The kernel's own policies that stand in for ours, see xfrm::PolicyGuard.
class KernelPath {
  public:
    virtual std::expected<void, std::string> replace(std::vector<xfrm::PolicyRow> rows) = 0;

  protected:
    ~KernelPath() = default;
};

class Publication {
  public:
    struct Setup {
        std::span<const config::Policy> policies;  // of the configuration; outlive the object
    };
    Publication(KernelPath& kernel_path, WorkerCommands& commands, Notices& notices, Setup setup)
        : kernel_path_(kernel_path), commands_(commands), notices_(notices), setup_(setup) {}
    // `programs` outlives the use of this object.
    void open(Programs& programs) {
        programs_ = &programs;
        compiler_.open(programs.room());
    }

    struct Draft {
        std::optional<SpdUpdate> spd;  // nullopt: that in use
        std::vector<xfrm::PolicyRow> open_rows;
    };
    struct Misfit {
        std::string text;
        size_t entries_fit = 0;  // as many of a direction may
    };
    // Fails where there is no room for all of it. Edits of `now` are about what is in force. One
    // at a time: an earlier draft is void.
    [[nodiscard]] std::expected<Draft, Misfit> draft(const Adoption& now);
    // `now`: what the draft was made of. `owners`: of its groups. `outer`: updated to `now`.
    std::expected<void, std::string> publish(Draft draft, const Adoption& now,
                                             const OwnerChanges& owners, const OuterTunnels& outer);
    // Only owners are others: those that are left of what is in force.
    std::expected<void, std::string> keep(const OwnerChanges& owners);

    // Published last.
    [[nodiscard]] const GroupOwners& owners() const { return owners_; }

  private:
    // Pairs of `outer` that a policy covers, where `spd` is in force from now on.
    [[nodiscard]] std::set<OuterPair> covered_by(const Spd& spd, const Draft& draft,
                                                 const Adoption& now,
                                                 const OuterTunnels& outer) const;
    static std::vector<xfrm::PolicyRow> outer_rows_of(const std::set<OuterPair>& covered);
    void swap_owners(OwnerChanges& owners);
    std::expected<void, std::string> tell_programs(Draft& draft, const Adoption& now,
                                                   const OwnerChanges& owners);
    [[nodiscard]] std::vector<PolicyId> groups_of(const OwnerChanges& owners) const;
    [[nodiscard]] std::expected<std::vector<xfrm::PolicyRow>, std::string> open_rows_of(
        const Adoption& now) const;
    std::expected<void, std::string> tell_kernel(const std::vector<xfrm::PolicyRow>& outer,
                                                 const std::vector<xfrm::PolicyRow>& open);

    KernelPath& kernel_path_;
    WorkerCommands& commands_;
    Notices& notices_;
    Setup setup_;
    Programs* programs_ = nullptr;
    SpdCompiler compiler_;
    const Spd* spd_ = nullptr;                // published last; null: none yet
    GroupOwners owners_;                      // published last
    bool owners_known_ = true;                // false: programs may have some of others
    std::set<OuterPair> covered_;             // by policies of what is in force
    std::vector<xfrm::PolicyRow> open_rows_;  // where what is in force leaves packets to the kernel
    std::optional<std::vector<xfrm::PolicyRow>> kernel_rows_{std::in_place};  // nullopt: unknown
    std::string outer_refused_;                                               // why, said once
};

}  // namespace sallyport::control
