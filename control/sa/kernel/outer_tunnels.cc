// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/outer_tunnels.h"

namespace sallyport::control {

void OuterTunnels::set(const xfrm::SaName& name, const std::optional<OuterPair>& pair) {
    const auto known = by_sa_.find(name);
    if (known != by_sa_.end()) {
        const auto counted = pairs_.find(known->second);
        if (--counted->second == 0) {
            changed_.insert(counted->first);
            pairs_.erase(counted);
        }
        by_sa_.erase(known);
    }
    if (!pair) return;
    by_sa_.emplace(name, *pair);
    if (++pairs_[*pair] == 1) changed_.insert(*pair);
}

void OuterTunnels::update(const Adoption& now, const RunningAdoption::Change& change) {
    roll_back();
    const auto look = [&](const xfrm::SaName& name) {
        std::optional<OuterPair> pair;
        const auto decision = now.sas.find(name);
        const xfrm::KernelSa* state = kernel_.find(name);
        if (decision != now.sas.end() && state != nullptr && decision->second.adopted() &&
            decision->second.direction == xfrm::StateDirection::outbound) {
            pair = {.destination = name.destination, .source = state->source};
        }
        const auto known = by_sa_.find(name);
        std::optional<OuterPair> before;
        if (known != by_sa_.end()) before = known->second;
        if (before == pair) return;
        before_.emplace_back(name, before);
        set(name, pair);
    };
    if (!change.whole) {
        for (const xfrm::SaName& name : change.sas) look(name);
        return;
    }
    for (const auto& [name, decision] : now.sas) look(name);
    std::vector<xfrm::SaName> gone;
    for (const auto& [name, pair] : by_sa_) {
        if (!now.sas.contains(name)) gone.push_back(name);
    }
    for (const xfrm::SaName& name : gone) look(name);
}

void OuterTunnels::commit() {
    before_.clear();
    changed_.clear();
}

void OuterTunnels::roll_back() {
    for (; !before_.empty(); before_.pop_back()) {
        const auto& [name, pair] = before_.back();
        set(name, pair);
    }
    changed_.clear();
}

std::optional<IpAddress> OuterTunnels::far_end_after(const std::optional<IpAddress>& last) const {
    auto next = pairs_.begin();
    if (last) {
        IpAddress greatest{.family = Family::v6};
        greatest.bytes.fill(0xff);
        next = pairs_.upper_bound({.destination = *last, .source = greatest});
    }
    return next == pairs_.end() ? std::nullopt : std::optional(next->first.destination);
}

}  // namespace sallyport::control
