// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/policies.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "control/adoption/names.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport::control::adoption {

namespace {

struct PortRange {
    uint16_t lo = 0;
    uint16_t hi = 65535;
};

// nullopt: the mask is no prefix, so what it matches is not one range.
std::optional<PortRange> range_of(uint16_t value, uint16_t mask) {
    const auto open = static_cast<uint16_t>(~mask);
    if ((open & (open + 1u)) != 0) return std::nullopt;
    const auto lo = static_cast<uint16_t>(value & mask);
    return PortRange{.lo = lo, .hi = static_cast<uint16_t>(lo | open)};
}

// xfrm keeps ICMP type and code, the mobility type and parts of the GRE key where ports are.
std::string set_ports(SpdEntry& entry, const xfrm::PolicySelector& selector) {
    if (selector.source_port_mask == 0 && selector.destination_port_mask == 0) return {};
    if (!wire::has_port_numbers(selector.protocol)) {
        constexpr uint8_t kIcmp = 1;
        constexpr uint8_t kIcmpV6 = 58;
        if (selector.protocol == kIcmp || selector.protocol == kIcmpV6) return "ICMP type";
        return selector.protocol == 0 ? "ports of any protocol"
                                      : "ports of protocol " + std::to_string(selector.protocol);
    }
    const auto source = range_of(selector.source_port, selector.source_port_mask);
    const auto destination = range_of(selector.destination_port, selector.destination_port_mask);
    if (!source || !destination) return "ports by a mask that is no range";
    entry.has_ports = true;
    entry.source_port_lo = source->lo;
    entry.source_port_hi = source->hi;
    entry.destination_port_lo = destination->lo;
    entry.destination_port_hi = destination->hi;
    return {};
}

std::string obstacle_beside_selector(const xfrm::KernelPolicy& policy) {
    if (policy.mark != xfrm::Mark{}) return describe(policy.mark);
    if (policy.selector_ifindex != 0) {
        return "selects device " + std::to_string(policy.selector_ifindex);
    }
    if (policy.has_security_context) return "security context";
    if (!policy.main_type) return "policy of type sub";
    return {};
}

}  // namespace

std::string describe(const xfrm::Mark& mark) {
    std::array<char, 40> text{};
    std::snprintf(text.data(), text.size(),
                  mark.mask == 0xffffffff ? "mark 0x%x" : "mark 0x%x/0x%x", mark.value, mark.mask);
    return text.data();
}

JudgedPolicy judge(const xfrm::KernelPolicy& policy) {
    const xfrm::PolicySelector& selector = policy.row.selector;
    JudgedPolicy judged{.policy = &policy, .entry = {}, .obstacle = {}};
    SpdEntry& entry = judged.entry;
    entry.source = shortened(selector.source, selector.source.bits);
    entry.destination = shortened(selector.destination, selector.destination.bits);
    entry.protocol = selector.protocol;
    if (policy.row.action == xfrm::PolicyAction::block) {
        entry.action = SpdAction::discard;
    } else {
        entry.action = policy.templates.empty() ? SpdAction::bypass : SpdAction::protect;
    }
    judged.obstacle = set_ports(entry, selector);
    if (judged.exact()) judged.obstacle = obstacle_beside_selector(policy);
    judged.may_pass_on = !judged.exact() || policy.if_id != 0;
    if (!judged.exact()) return judged;
    if (policy.offloaded) {
        judged.obstacle = "offloaded to a device";
    } else if (entry.action == SpdAction::protect && policy.templates.size() > 1) {
        judged.obstacle = "several templates";
    } else if (entry.action == SpdAction::protect && policy.templates.front().optional) {
        judged.obstacle = "optional template";
    } else if (entry.action != SpdAction::protect && policy.if_id != 0) {
        judged.obstacle = "xfrm interface " + std::to_string(policy.if_id);
    }
    return judged;
}

std::vector<JudgedPolicy> judge_in_order(const std::map<uint32_t, xfrm::KernelPolicy>& policies) {
    std::vector<JudgedPolicy> judged;
    judged.reserve(policies.size());
    for (const auto& [index, policy] : policies) judged.push_back(judge(policy));
    std::ranges::sort(judged, {}, place_of);
    return judged;
}

}  // namespace sallyport::control::adoption
