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
        friend auto operator<=>(const Name&, const Name&) = default;
    };
    explicit GroupNumbers(uint32_t capacity) : capacity_(capacity) {}
    // Starts a round; names that were not asked for until the next end() lose their number, which
    // is not given away before the next round.
    void begin();
    // nullopt: more than `capacity` groups.
    std::optional<PolicyId> number(const Name& name);
    void end();
    [[nodiscard]] uint32_t upper_bound() const { return upper_bound_; }  // numbers are below it
    [[nodiscard]] uint32_t capacity() const { return capacity_; }

  private:
    uint32_t capacity_;
    uint32_t upper_bound_ = 0;
    std::map<Name, uint32_t> numbers_;
    std::map<Name, uint32_t> previous_;
    std::deque<uint32_t> free_;  // longest free first
};

}  // namespace sallyport::control
