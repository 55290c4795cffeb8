// SPDX-License-Identifier: Apache-2.0
#pragma once

// The numbers of groups: policies with one template, served by the same SAs
// (control/adoption/decide.h, "Policies").

#include <compare>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>

#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"

namespace sallyport::control {

// Keeps a group's number for as long as the group exists, so that running SAs keep their PolicyId.
// A template may name the SPI of its SA, which is another one after each rekey: when all policies
// of a group, and no others, name another SPI than in the round before, the number stays with them.
// An IKE daemon changes them one after another; a round in between sees two groups.
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
    // Starts a round; names that were not asked for until the next end() lose their number, which
    // is not given away before the next round.
    void begin();
    // `policy` (its index, each once) is of group `name`. Before the numbers of the round are asked
    // for; not needed for groups whose templates never name an SPI.
    void note(const Name& name, uint32_t policy);
    // nullopt: more than `capacity` groups.
    std::optional<PolicyId> number(const Name& name);
    void end();
    [[nodiscard]] uint32_t upper_bound() const { return upper_bound_; }  // numbers are below it
    [[nodiscard]] uint32_t capacity() const { return capacity_; }

  private:
    struct Group {
        uint32_t number = 0;
        uint64_t policies = 0;  // noted, see with_policy()
    };
    using Groups = std::map<Name, Group>;
    // Of the round before, without a successor of its name, with the same policies.
    Groups::iterator predecessor(const Name& name, uint64_t policies);

    uint32_t capacity_;
    uint32_t upper_bound_ = 0;
    Groups groups_;
    Groups previous_;
    std::map<Name, uint64_t> new_;  // noted, without a number yet: their policies
    std::deque<uint32_t> free_;     // longest free first
};

}  // namespace sallyport::control
