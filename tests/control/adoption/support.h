// SPDX-License-Identifier: Apache-2.0
#pragma once

// Registers as IKE daemons make them: a tunnel is policies out, in and fwd, and SAs.

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "config/config.h"
#include "control/adoption/decide.h"
#include "control/xfrm/values.h"

namespace sallyport::control::adoption_test {

inline IpPrefix prefix(const char* text) {
    return parse_ip_prefix(text).value();
}
inline IpAddress address(const char* text) {
    return parse_ip_address(text).value();
}

struct Tunnel {
    IpAddress local = address("192.0.2.1");
    IpAddress remote = address("198.51.100.1");
    IpPrefix local_net = prefix("10.1.0.0/16");
    IpPrefix remote_net = prefix("10.2.0.0/16");
    uint32_t reqid = 1;
    uint32_t priority = 1000;
};

inline xfrm::KernelSa outbound_sa(const Tunnel& tunnel, uint32_t spi) {
    xfrm::KernelSa sa;
    sa.name = {.spi = Spi{spi}, .destination = tunnel.remote};
    sa.source = tunnel.local;
    sa.reqid = tunnel.reqid;
    sa.flags = 32;  // af-unspec, as strongSwan sets it in tunnel mode
    sa.algorithm = "rfc4106(gcm(aes))";
    sa.aead = true;
    sa.icv_bits = 128;
    sa.key = SecretBytes(std::vector<std::byte>(20, std::byte{7}));
    sa.replay.window = 32;
    return sa;
}

inline xfrm::KernelSa inbound_sa(const Tunnel& tunnel, uint32_t spi) {
    xfrm::KernelSa sa = outbound_sa(tunnel, spi);
    sa.name.destination = tunnel.local;
    sa.source = tunnel.remote;
    return sa;
}

class Register {
  public:
    std::vector<uint16_t> cpus = {0, 1};
    std::vector<IpAddress> local = {address("192.0.2.1")};
    std::vector<config::Policy> config;
    size_t entries_max = std::numeric_limits<size_t>::max();
    std::map<xfrm::SaName, xfrm::KernelSa> states;
    std::map<uint32_t, xfrm::KernelPolicy> policies;

    using Change = std::function<void(xfrm::KernelPolicy&)>;

    xfrm::SaName add(xfrm::KernelSa sa) {
        sa.arrival = ++arrivals_;
        const xfrm::SaName name = sa.name;
        states.insert_or_assign(name, std::move(sa));
        return name;
    }

    uint32_t add(xfrm::KernelPolicy policy) {
        ++arrivals_;
        policy.row.index =
            static_cast<uint32_t>(arrivals_ * 8) | static_cast<uint32_t>(policy.row.direction);
        if (first_index_ == 0) first_index_ = policy.row.index;
        policies.emplace(policy.row.index, policy);
        return policy.row.index;
    }
    void update(uint32_t index, const Change& change) {
        xfrm::KernelPolicy& policy = policies.at(index);
        change(policy);
    }
    // It came later than was thought.
    void move(const xfrm::SaName& name) { states.at(name).arrival = ++arrivals_; }
    [[nodiscard]] uint32_t first_index() const { return first_index_; }

    // out, in and fwd. `change` sees each before it goes in.
    void add_policies(const Tunnel& tunnel, const Change& change = {}) {
        for (const auto direction : {xfrm::PolicyDirection::out, xfrm::PolicyDirection::in,
                                     xfrm::PolicyDirection::forward}) {
            const bool outbound = direction == xfrm::PolicyDirection::out;
            xfrm::KernelPolicy policy;
            policy.row.direction = direction;
            policy.row.action = xfrm::PolicyAction::allow;
            policy.row.priority = tunnel.priority;
            policy.row.selector.source = outbound ? tunnel.local_net : tunnel.remote_net;
            policy.row.selector.destination = outbound ? tunnel.remote_net : tunnel.local_net;
            policy.templates.push_back({.source = outbound ? tunnel.local : tunnel.remote,
                                        .destination = outbound ? tunnel.remote : tunnel.local,
                                        .reqid = tunnel.reqid});
            if (change) change(policy);
            add(std::move(policy));
        }
    }

    uint32_t add_filter(xfrm::PolicyDirection direction, xfrm::PolicyAction action,
                        const char* source, const char* destination, uint32_t priority,
                        const Change& change = {}) {
        xfrm::KernelPolicy policy;
        policy.row.direction = direction;
        policy.row.action = action;
        policy.row.priority = priority;
        policy.row.selector.source = prefix(source);
        policy.row.selector.destination = prefix(destination);
        if (change) change(policy);
        return add(std::move(policy));
    }

    void remove_policies(const Tunnel& tunnel) {
        std::erase_if(policies, [&](const auto& item) {
            return !item.second.templates.empty() &&
                   item.second.templates.front().reqid == tunnel.reqid;
        });
    }

    // And takes it over: no worker reads what was before.
    Adoption decide(GroupNumbers& numbers) const {
        Adoption decided = decide_adoption(states, policies,
                                           {.cpus = cpus,
                                            .local_addresses = local,
                                            .policies = config,
                                            .entries_max = entries_max},
                                           numbers);
        numbers.commit();
        numbers.rested();
        return decided;
    }
    Adoption decide() const {
        GroupNumbers numbers(1024);
        return decide(numbers);
    }

  private:
    uint64_t arrivals_ = 0;
    uint32_t first_index_ = 0;
};

// By group: the workers with an adopted outbound SA, sorted, each once.
inline std::vector<std::vector<WorkerId>> owners_of(const Adoption& adoption) {
    std::vector<std::set<WorkerId>> owners(adoption.group_count);
    for (const auto& [name, decision] : adoption.sas) {
        if (decision.adopted() && decision.direction == xfrm::StateDirection::outbound) {
            owners.at(to_index(decision.group)).insert(decision.owner);
        }
    }
    std::vector<std::vector<WorkerId>> out;
    for (const auto& group : owners) out.emplace_back(group.begin(), group.end());
    return out;
}

}  // namespace sallyport::control::adoption_test
