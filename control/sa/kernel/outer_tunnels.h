// SPDX-License-Identifier: Apache-2.0
#pragma once

// The outer addresses of tunnels whose SAs are for workers, counted by SA: which of them came and
// went since the last publication is known without a look at all.
//
// Owner: control thread.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "control/adoption/running.h"
#include "control/sa/kernel/surroundings.h"

namespace sallyport::control {

// Of outbound packets. Ordered by destination, so that those inside a prefix are neighbours.
struct OuterPair {
    IpAddress destination;
    IpAddress source;
    friend auto operator<=>(const OuterPair&, const OuterPair&) = default;
};

class OuterTunnels {
  public:
    explicit OuterTunnels(const Register& kernel) : kernel_(kernel) {}

    // To what `now` says, which is another since the last commit as `change` says. What was not
    // committed is rolled back first.
    void update(const Adoption& now, const RunningAdoption::Change& change);
    void commit();
    void roll_back();

    [[nodiscard]] const std::map<OuterPair, uint32_t>& pairs() const { return pairs_; }
    // Of their destinations the one after `last`, or the first; none: `last` was the last.
    [[nodiscard]] std::optional<IpAddress> far_end_after(
        const std::optional<IpAddress>& last) const;
    // That came or went in the last update.
    [[nodiscard]] const std::set<OuterPair>& changed() const { return changed_; }

  private:
    void set(const xfrm::SaName& name, const std::optional<OuterPair>& pair);

    const Register& kernel_;
    std::map<OuterPair, uint32_t> pairs_;  // so many SAs have it
    std::map<xfrm::SaName, OuterPair> by_sa_;
    std::set<OuterPair> changed_;
    std::vector<std::pair<xfrm::SaName, std::optional<OuterPair>>> before_;
};

}  // namespace sallyport::control
