// SPDX-License-Identifier: Apache-2.0
#pragma once

// The numbers of groups: policies with one template, served by the same SAs
// (control/adoption/decide.h, "Policies").

#include <compare>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"

namespace sallyport::control {

// Keeps a group's number for as long as the group exists, so that running SAs keep their PolicyId.
// A template may name the SPI of its SA, which is another one after each rekey: when all policies
// of a group, and no others, name another SPI than in the round before, the number stays with them.
// An IKE daemon changes them one after another; a round in between sees two groups.
//
//   begin(), number() ... ---> commit()      what was asked for is in force; names that were not
//                       |                    lose their number, which rests
//                       +----> roll_back()   as before begin(): nothing was given or taken away
//   rested()                                 no worker reads an SPD any more in which resting
//                                            numbers stand for what they were: they may be given
//
// A round that begins with begin_with_changes() is about the names that it doubts; all others keep
// their numbers, at no cost.
class GroupNumbers {
  public:
    struct Name {
        IpAddress source;  // of the tunnel, as an outbound packet has it
        IpAddress destination;
        uint32_t reqid = 0;
        uint8_t mode = 0;
        uint8_t protocol = 0;
        uint32_t if_id = 0;
        uint32_t own = 0;  // policy index of a group that consists of one policy; else 0
        Spi spi{};         // 0: of any SA. Last, so that names that differ in it are neighbours
        friend auto operator<=>(const Name&, const Name&) = default;
    };
    explicit GroupNumbers(uint32_t capacity) : capacity_(capacity) {}
    // Starts a round, from what was committed last.
    void begin();
    void begin_with_changes();
    // In such a round: policies have left or joined `name`. It loses its number unless that is
    // asked for.
    void doubt(const Name& name);
    // `policy` (its index, each once) is of group `name`. Before the numbers of the round are asked
    // for; not needed for groups whose templates never name an SPI.
    void note(const Name& name, uint32_t policy);
    // All of a group's at once: the sum of policy_mark() over them.
    void note_all(const Name& name, uint64_t marks);
    static uint64_t policy_mark(uint32_t policy);
    // nullopt: more than `capacity` groups, with the numbers at rest.
    std::optional<PolicyId> number(const Name& name);
    void commit();
    void roll_back();
    void rested();
    [[nodiscard]] uint32_t upper_bound() const { return upper_bound_; }  // numbers are below it
    [[nodiscard]] uint32_t capacity() const { return capacity_; }

  private:
    struct Group {
        uint32_t number = 0;
        uint64_t policies = 0;  // noted, the sum of their policy_mark()
        uint64_t kept = 0;      // of committed_: in this round somebody has its number
    };
    using Groups = std::map<Name, Group>;
    // Of the round before, not kept under its own name, with the same policies.
    Group* predecessor(const Name& name, uint64_t policies);
    Group& keep(Group& before, const Name& name, uint64_t policies);
    [[nodiscard]] bool is_settled(const Name& name) const {
        return with_changes_ && !doubted_.contains(name);
    }

    uint32_t capacity_;
    uint32_t upper_bound_ = 0;
    uint64_t round_ = 0;
    bool with_changes_ = false;
    std::set<Name> doubted_;
    Groups committed_;
    Groups groups_;                 // of the round
    std::map<Name, uint64_t> new_;  // noted, without a number yet: their policies
    std::vector<uint32_t> given_;   // in the round
    std::vector<uint32_t> resting_;
    std::deque<uint32_t> free_;  // longest free first
};

}  // namespace sallyport::control
