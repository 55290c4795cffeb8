// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <array>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <tuple>

#include "bpf/abi.h"
#include "config/connections.h"
#include "config/draft.h"
#include "config/key_material.h"

namespace sallyport::config {

namespace {

constexpr size_t kPoliciesMax = 4096;

std::string in_line(uint32_t line) {
    return "in line " + std::to_string(line);
}

void check_ports(const Draft& draft, Diagnostics& diagnostics) {
    std::map<std::string_view, uint32_t> devices;
    bool has_unprotected = false;
    bool has_protected = false;
    bool roles_known = draft.sections_known;
    for (const PortDraft& item : draft.ports) {
        const Port& port = item.port;
        const std::string label = "[port." + port.name + "]";
        if (port.name == draft.config.device) {
            diagnostics.add(port.location.line,
                            label +
                                " has the name of gateway.device, which is made by the daemon: "
                                "give the port or that device another name");
        } else if (port.device == draft.config.device) {
            diagnostics.add(item.device_line,
                            "device: " + shown(port.device) +
                                " is gateway.device, which is made by the daemon: name the "
                                "network device of this port");
        }
        if (!draft.config.xfrm_interface.empty() && (port.name == draft.config.xfrm_interface ||
                                                     port.device == draft.config.xfrm_interface)) {
            diagnostics.add(port.location.line,
                            label +
                                " has the name or the device of gateway.xfrm_interface, which is "
                                "no port: give one of them another");
        }
        if (std::ranges::find(draft.config.forward_to, port.device) !=
            draft.config.forward_to.end()) {
            diagnostics.add(item.device_line,
                            "device: " + shown(port.device) +
                                " is in gateway.forward_to, which is for devices that are no "
                                "ports: take it out there");
        }
        if (!port.device.empty()) {
            const auto [first, is_new] = devices.emplace(port.device, item.device_line);
            if (!is_new) {
                diagnostics.add(item.device_line,
                                "device: " + shown(port.device) + " is used by another port " +
                                    in_line(first->second) + ": each port needs its own device");
            }
        }
        roles_known = roles_known && item.role_known;
        if (!item.role_known) continue;
        has_unprotected = has_unprotected || port.role == PortRole::unprotected_side;
        has_protected = has_protected || port.role == PortRole::protected_side;
    }
    if (draft.ports.size() > SP_PORT_INTERFACE) {
        diagnostics.add(draft.ports_line, "[port] has " + std::to_string(draft.ports.size()) +
                                              " ports: allowed are at most " +
                                              std::to_string(SP_PORT_INTERFACE));
    }
    if (!roles_known) return;
    if (!has_unprotected) {
        diagnostics.add(draft.ports_line,
                        "no port has role = \"unprotected\": add [port.NAME] for the side where "
                        "ciphertext travels");
    }
    if (!has_protected) {
        diagnostics.add(draft.ports_line,
                        "no port has role = \"protected\": add [port.NAME] for the side where "
                        "cleartext travels");
    }
}

void check_policies(const Draft& draft, Diagnostics& diagnostics) {
    std::map<std::string_view, uint32_t> names;
    for (const PolicyDraft& item : draft.policies) {
        if (item.policy.if_id != 0 && item.policy.action == SpdAction::protect &&
            draft.config.xfrm_interface.empty()) {
            diagnostics.add(item.policy.location.line,
                            "[[policy]] if_id: the kernel's connections need an interface: write "
                            "xfrm_interface = \"ipsec0\" below [gateway]");
        }
        if (item.policy.name.empty()) continue;
        const auto [first, is_new] = names.emplace(item.policy.name, item.name_line);
        if (is_new) continue;
        diagnostics.add(item.name_line, "[[policy]] name: " + shown(item.policy.name) +
                                            " is the name of another policy " +
                                            in_line(first->second) + ": names must differ");
    }
    if (draft.policies.size() > kPoliciesMax) {
        diagnostics.add(draft.policies[kPoliciesMax].policy.location.line,
                        "[[policy]] stands there " + std::to_string(draft.policies.size()) +
                            " times: allowed are at most " + std::to_string(kPoliciesMax));
    }
}

void check_sa_names(const Draft& draft, Diagnostics& diagnostics) {
    std::map<std::string_view, uint32_t> names;
    for (const SaDraft& item : draft.sas) {
        if (item.sa.name.empty()) continue;
        const auto [first, is_new] = names.emplace(item.sa.name, item.name_line);
        if (is_new) continue;
        diagnostics.add(item.name_line, "[[sa]] name: " + shown(item.sa.name) +
                                            " is the name of another SA " + in_line(first->second) +
                                            ": names must differ");
    }
}

// The kernel keeps inbound and outbound SAs in one table by destination and SPI, and so does a
// receiver: the pair names one SA whatever its direction.
void check_spis(const Draft& draft, Diagnostics& diagnostics) {
    using Key = std::tuple<uint32_t, Family, std::array<uint8_t, 16>>;
    std::map<Key, uint32_t> spis;
    for (const SaDraft& item : draft.sas) {
        if (item.sa.spi == Spi{} || !item.destination) continue;
        const Key key{to_index(item.sa.spi), item.destination->family, item.destination->bytes};
        const auto [first, is_new] = spis.emplace(key, item.spi_line);
        if (is_new) continue;
        diagnostics.add(item.spi_line, "[[sa]] spi: another SA to " + to_string(*item.destination) +
                                           " has this SPI " + in_line(first->second) +
                                           ": SPI and destination together name one SA");
    }
}

// GCM breaks when a nonce comes twice under one key, and static SAs of one key all count from 1.
// Different salts would keep nonces apart, but not counters and states that are kept by key; every
// SA has its own.
void check_keys(const Draft& draft, Diagnostics& diagnostics) {
    std::vector<const SaDraft*> items;
    for (const SaDraft& item : draft.sas) {
        if (!item.sa.key.empty()) items.push_back(&item);
    }
    const auto bytes = [](const SaDraft* item) {
        return cipher_key(item->sa.key, *item->sa.suite);
    };
    // Equal keys come to stand together, each run in file order.
    std::ranges::stable_sort(items, [&](const SaDraft* a, const SaDraft* b) {
        return std::ranges::lexicographical_compare(bytes(a), bytes(b));
    });
    const SaDraft* first = nullptr;
    for (const SaDraft* item : items) {
        if (first == nullptr || !std::ranges::equal(bytes(first), bytes(item))) {
            first = item;
            continue;
        }
        std::string reason = "the two peers would each encrypt with it from sequence number 1";
        if (first->direction_known && item->direction_known) {
            const bool first_out = first->sa.direction == SaDirection::outbound;
            const bool second_out = item->sa.direction == SaDirection::outbound;
            if (first_out && second_out) {
                reason = "both SAs would encrypt with it from sequence number 1";
            } else if (first_out != second_out) {
                reason = "this side and the peer would both encrypt with it from sequence number 1";
            } else {
                reason = "the senders of both SAs would encrypt with it from sequence number 1";
            }
        }
        diagnostics.add(item->key_line,
                        "[[sa]] key: the SA " + in_line(first->sa.location.line) +
                            " has the same one: " + reason +
                            ", and a repeated nonce breaks GCM (RFC 4106 3.1); make a key for each "
                            "SA and direction");
    }
}

void check_sa_references(const Draft& draft, Diagnostics& diagnostics) {
    std::map<std::string_view, const PolicyDraft*> policies;
    std::vector<std::string_view> names;
    // A policy whose name was wrong may be the one that is meant.
    bool names_known = draft.sections_known;
    for (const PolicyDraft& item : draft.policies) {
        names_known = names_known && !item.policy.name.empty();
        if (policies.emplace(item.policy.name, &item).second) names.push_back(item.policy.name);
    }
    const size_t workers = draft.config.workers.cpus.size();
    std::map<std::string_view, uint32_t> outbound;
    for (const SaDraft& item : draft.sas) {
        const StaticSa& sa = item.sa;
        if (sa.worker && workers != 0 && to_index(*sa.worker) >= workers) {
            diagnostics.add(item.worker_line,
                            "[[sa]] worker: " + std::to_string(to_index(*sa.worker)) +
                                " does not exist: workers.cpus names " + std::to_string(workers) +
                                " CPUs, allowed are 0 to " + std::to_string(workers - 1));
        }
        if (sa.policy.empty()) continue;
        const auto policy = policies.find(sa.policy);
        if (policy == policies.end()) {
            if (!names_known) continue;
            const std::string_view meant = nearest(sa.policy, names);
            diagnostics.add(item.policy_line,
                            "[[sa]] policy: no policy is named " + shown(sa.policy) +
                                (meant.empty() ? "." : ", did you mean " + shown(meant) + "?") +
                                " Write the name of a [[policy]] with action = \"protect\"");
            continue;
        }
        if (policy->second->action_known && policy->second->policy.action != SpdAction::protect) {
            diagnostics.add(item.policy_line, "[[sa]] policy: " + shown(sa.policy) +
                                                  " does not protect: an SA needs a policy with "
                                                  "action = \"protect\"");
        }
        if (policy->second->policy.if_id != 0) {
            diagnostics.add(item.policy_line,
                            "[[sa]] policy: " + shown(sa.policy) +
                                " has an if_id, so the kernel's SAs serve it: remove one of them");
        }
        if (!item.direction_known || sa.direction != SaDirection::outbound) continue;
        const auto [first, is_new] = outbound.emplace(sa.policy, item.policy_line);
        if (!is_new) {
            diagnostics.add(item.policy_line,
                            "[[sa]] policy: " + shown(sa.policy) + " has an outbound SA already " +
                                in_line(first->second) +
                                ": this version takes one outbound SA for each policy");
        }
    }
}

unsigned longest(const std::vector<IpPrefix>& prefixes) {
    unsigned bits = 0;
    for (const IpPrefix& prefix : prefixes) bits = std::max<unsigned>(bits, prefix.bits);
    return bits;
}

}  // namespace

void validate(const Draft& draft, Diagnostics& diagnostics) {
    check_ports(draft, diagnostics);
    check_policies(draft, diagnostics);
    check_connections(draft, diagnostics);
    check_sa_names(draft, diagnostics);
    check_spis(draft, diagnostics);
    check_keys(draft, diagnostics);
    check_sa_references(draft, diagnostics);
    if (draft.sas.size() > draft.config.max_sas) {
        diagnostics.add(draft.sas[draft.config.max_sas].sa.location.line,
                        "[[sa]] stands there " + std::to_string(draft.sas.size()) +
                            " times: gateway.max_sas leaves room for " +
                            std::to_string(draft.config.max_sas));
    }
}

void order_policies(std::vector<Policy>& policies) {
    std::ranges::stable_sort(policies, [](const Policy& a, const Policy& b) {
        if (a.priority || b.priority) {
            return a.priority && (!b.priority || *a.priority < *b.priority);
        }
        return longest(a.local) + longest(a.remote) > longest(b.local) + longest(b.remote);
    });
}

}  // namespace sallyport::config
