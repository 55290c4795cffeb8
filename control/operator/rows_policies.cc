// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "config/choices.h"
#include "control/operator/rows.h"
#include "control/sa/source.h"

namespace sallyport::control {

namespace json = boost::json;

namespace {

json::array prefixes(const std::vector<IpPrefix>& list) {
    json::array out;
    for (const IpPrefix& prefix : list) out.emplace_back(text(to_string(prefix)));
    return out;
}

json::value port_range(const std::optional<std::pair<uint16_t, uint16_t>>& range) {
    if (!range) return nullptr;
    if (range->first == range->second) return text(std::to_string(range->first));
    return text(std::to_string(range->first) + "-" + std::to_string(range->second));
}

json::value mark(const config::Policy& policy) {
    if (!policy.ct_mark) return nullptr;
    char out[32];
    if (policy.ct_mark_mask == UINT32_MAX) {
        std::snprintf(out, sizeof out, "0x%x", *policy.ct_mark);
    } else {
        std::snprintf(out, sizeof out, "0x%x/0x%x", *policy.ct_mark, policy.ct_mark_mask);
    }
    return text(out);
}

std::string_view direction_name(xfrm::PolicyDirection direction) {
    switch (direction) {
        case xfrm::PolicyDirection::in:
            return "in";
        case xfrm::PolicyDirection::out:
            return "out";
        case xfrm::PolicyDirection::forward:
            return "fwd";
    }
    return "";
}

json::value ports(const PolicyRow::Ports& ports) {
    if (ports.mask == 0) return nullptr;
    if (ports.mask == 0xffff) return text(std::to_string(ports.value));
    char masked[24];
    std::snprintf(masked, sizeof masked, "%u/0x%04x", unsigned{ports.value}, unsigned{ports.mask});
    return text(masked);
}

// A policy of the kernel's register.
json::object policy_object(const PolicyRow& row) {
    json::value protocol;
    if (row.protocol) protocol = *row.protocol;
    return json::object{{"name", text(row.name)},
                        {"direction", text(direction_name(row.direction))},
                        {"priority", row.priority},
                        {"action", text(config::word_of(config::kSpdActions, row.action))},
                        {"local", json::array{text(to_string(row.local))}},
                        {"remote", json::array{text(to_string(row.remote))}},
                        {"protocol", std::move(protocol)},
                        {"local_ports", ports(row.local_ports)},
                        {"remote_ports", ports(row.remote_ports)},
                        {"if_id", row.if_id},
                        {"reason", text(row.reason)}};
}

// A policy of the configuration, and the SAs that name it.
json::object policy_object(const config::Policy& policy, const std::vector<config::StaticSa>& sas) {
    json::array names;
    for (const config::StaticSa& sa : sas) {
        if (sa.policy == policy.name) names.emplace_back(text(sa.name));
    }
    json::value protocol;
    if (policy.protocol) protocol = *policy.protocol;
    return json::object{{"name", text(policy.name)},
                        {"action", text(config::word_of(config::kSpdActions, policy.action))},
                        {"local", prefixes(policy.local)},
                        {"remote", prefixes(policy.remote)},
                        {"protocol", std::move(protocol)},
                        {"local_ports", port_range(policy.local_ports)},
                        {"remote_ports", port_range(policy.remote_ports)},
                        {"ct_mark", mark(policy)},
                        {"if_id", policy.if_id},
                        {"sas", std::move(names)}};
}

}  // namespace

Rows policy_rows(const Appliance& appliance) {
    const config::Config& config = appliance.config();
    json::array out;
    for (const PolicyRow& row : appliance.source().policies()) out.push_back(policy_object(row));
    for (const config::Policy& policy : config.policies) {
        out.push_back(policy_object(policy, config.sas));
    }
    return out;
}

}  // namespace sallyport::control
