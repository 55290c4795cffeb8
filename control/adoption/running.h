// SPDX-License-Identifier: Apache-2.0
#pragma once

// What decide_adoption() says of the register, kept up to date from what changed in it: a rekey
// costs what its own SAs and policies cost, however many others there are.
//
//   decide() ---> adoption() is what is to be ---> commit()
//      |                                      \--> roll_back()   adoption() is what it was before
//      +--> and what of it is another: decisions, SPD entries
//
// A step keeps to what is *common*: policies that the workers judge exactly, of no xfrm interface,
// states without a mark, a number for each group, room in each address pair and in the list. There
// an SA depends on the policies whose template fits, those on policies with overlapping selectors,
// and outbound SAs on the others of their group: what a change touches is found by index. Anything
// else in the register (a policy that may pass packets on, an address pair that is too full, ...)
// can change decisions far away. Then all is decided by decide_adoption(), as long as it is there:
// correct, and slower for everybody.
//
// A place is what a policy says (names.h), not when it came, so a rekey, which updates all policies
// of a child, changes no SPD entry. Who has rivals (rivals.h) is counted: one that comes or goes
// touches those it shares packets with.
//
// Owner: control thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "control/adoption/decide.h"
#include "control/adoption/groups.h"
#include "control/xfrm/mirror.h"

namespace sallyport::control {

class RunningAdoption {
  public:
    struct Register {
        const std::map<xfrm::SaName, xfrm::KernelSa>& states;
        const std::map<uint32_t, xfrm::KernelPolicy>& policies;
    };
    struct Change {
        bool whole = false;          // all was decided: any of it may be another one
        std::set<xfrm::SaName> sas;  // else: those decided otherwise, that came, or went
    };

    // `numbers` outlives the object, which begins, commits and rolls back its rounds.
    explicit RunningAdoption(GroupNumbers& numbers);
    ~RunningAdoption();

    // `changes`: all since the last commit. What was decided since then and is not committed is
    // rolled back first. The first time all is decided.
    const Change& decide(const Register& now, const xfrm::RegisterChanges& changes,
                         const AdoptionSetup& setup);
    void commit();
    void roll_back();

    // With its edits after decide(); its lists are complete, too.
    [[nodiscard]] const Adoption& adoption() const { return adoption_; }

    // What the last decide() said.
    [[nodiscard]] const Change& change() const { return change_; }

    // Something uncommon is there.
    [[nodiscard]] bool decides_all() const { return tables_ == nullptr; }

  private:
    class Tables;
    enum class Pending : uint8_t { nothing, step, whole };

    void decide_all(const Register& now, const AdoptionSetup& setup);
    void note_uncommon();

    GroupNumbers& numbers_;
    Adoption adoption_;
    std::unique_ptr<Tables> tables_;  // null: all is decided each time
    std::vector<IpAddress> local_addresses_;
    Change change_;
    Pending pending_ = Pending::nothing;
    // Of the commit before, while all is decided anew.
    Adoption earlier_adoption_;
    std::unique_ptr<Tables> earlier_tables_;
    std::vector<IpAddress> earlier_local_addresses_;
    // Tables are filled again when nothing uncommon is seen, but not each time where something is
    // seen only then.
    bool seems_common_ = true;
    uint32_t attempts_failed_ = 0;
    uint32_t rounds_to_attempt_ = 0;
};

}  // namespace sallyport::control
