// SPDX-License-Identifier: Apache-2.0
#include "control/operator/rows_xfrm.h"

#include <cstdio>
#include <string>

#include "config/key_material.h"

namespace sallyport::control {

namespace json = boost::json;

namespace {

json::string text(std::string_view view) {
    return json::string(view.data(), view.size());
}

json::value limit(uint64_t value, uint64_t none) {
    if (value == none) return nullptr;
    return value;
}

json::object limits_of(const xfrm::Limits& limits) {
    return {{"soft_bytes", limit(limits.soft_bytes, xfrm::kNoLimit)},
            {"hard_bytes", limit(limits.hard_bytes, xfrm::kNoLimit)},
            {"soft_packets", limit(limits.soft_packets, xfrm::kNoLimit)},
            {"hard_packets", limit(limits.hard_packets, xfrm::kNoLimit)},
            {"soft_s", limit(limits.soft_add_s, 0)},
            {"hard_s", limit(limits.hard_add_s, 0)}};
}

json::value ago(uint64_t then) {
    if (then == 0) return nullptr;
    const uint64_t now = seconds_since_epoch();
    return now > then ? now - then : 0;
}

std::string suite_of(const KernelSaView& view) {
    const xfrm::KernelSa& state = *view.state;
    if (state.aead && state.algorithm == "rfc4106(gcm(aes))" && state.key.size() > 4) {
        return "aes-gcm-" + std::to_string(state.icv_bits / 8) + "-" +
               std::to_string((state.key.size() - 4) * 8);
    }
    return state.algorithm.empty() ? "none" : state.algorithm;
}

std::string reqid_text(uint32_t reqid) {
    return "reqid " + std::to_string(reqid);
}

std::string_view action_name(const PolicyView& policy) {
    switch (policy.action) {
        case SpdAction::protect:
            return "protect";
        case SpdAction::bypass:
            return "bypass";
        case SpdAction::discard:
            return "discard";
    }
    return "";
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

json::value ports(uint16_t value, uint16_t mask) {
    if (mask == 0) return nullptr;
    if (mask == 0xffff) return text(std::to_string(value));
    char masked[24];
    std::snprintf(masked, sizeof masked, "%u/0x%04x", unsigned{value}, unsigned{mask});
    return text(masked);
}

}  // namespace

json::array xfrm_sas(KernelSaControl& control, std::span<const uint16_t> cpus) {
    json::array out;
    for (const KernelSaView& view : control.sas()) {
        const xfrm::KernelSa& state = *view.state;
        std::string_view direction = "unknown";
        if (view.direction == xfrm::StateDirection::inbound) direction = "inbound";
        if (view.direction == xfrm::StateDirection::outbound) direction = "outbound";
        json::object drops;
        for (size_t i = 0; view.drops != nullptr && i < view.drops->size(); ++i) {
            const uint64_t count = (*view.drops)[i].read();
            if (count > 0) drops[text(kDropReasonLabels[i])] = count;
        }
        json::object object{
            {"name", text(reqid_text(state.reqid))},
            {"direction", text(direction)},
            {"spi", text(xfrm::to_text(state.name.spi))},
            {"source", text(to_string(state.source))},
            {"destination", text(to_string(state.name.destination))},
            {"suite", text(suite_of(view))},
            {"esn", state.esn},
            {"policy", text(reqid_text(state.reqid))},
            {"worker", nullptr},
            {"pcpu", nullptr},
            {"state", view.worker ? "active" : "kernel"},
            {"reason", text(view.reason)},
            {"packets", view.usage.packets},
            {"bytes", view.usage.bytes},
            {"sequence", view.sequence},
            {"sequence_reserved", view.reserved},
            {"drops", std::move(drops)},
            {"replay_window",
             view.direction == xfrm::StateDirection::inbound ? state.replay.window : 0},
            {"limits", limits_of(state.limits)},
            {"age_s", ago(state.usage.add_time)},
            {"idle_s", ago(view.usage.use_time)}};
        if (view.worker) {
            object["worker"] = to_index(*view.worker);
            object["pcpu"] = cpus[to_index(*view.worker)];
        }
        out.push_back(std::move(object));
    }
    return out;
}

json::array xfrm_policies(const KernelSaControl& control) {
    json::array out;
    for (const PolicyView& view : control.adoption().policies) {
        const auto found = control.mirror().policies().find(view.index);
        if (found == control.mirror().policies().end()) continue;
        const xfrm::KernelPolicy& policy = found->second;
        const xfrm::PolicySelector& selector = policy.row.selector;
        const bool outbound = policy.row.direction == xfrm::PolicyDirection::out;
        json::value protocol;
        if (selector.protocol != 0) protocol = selector.protocol;
        const json::value source = ports(selector.source_port, selector.source_port_mask);
        const json::value destination =
            ports(selector.destination_port, selector.destination_port_mask);
        const std::string name = policy.templates.empty()
                                     ? "index " + std::to_string(view.index)
                                     : reqid_text(policy.templates.front().reqid);
        const IpPrefix& local = outbound ? selector.source : selector.destination;
        const IpPrefix& remote = outbound ? selector.destination : selector.source;
        out.push_back(json::object{{"name", text(name)},
                                   {"direction", text(direction_name(policy.row.direction))},
                                   {"priority", policy.row.priority},
                                   {"action", text(action_name(view))},
                                   {"local", json::array{text(to_string(local))}},
                                   {"remote", json::array{text(to_string(remote))}},
                                   {"protocol", std::move(protocol)},
                                   {"local_ports", outbound ? source : destination},
                                   {"remote_ports", outbound ? destination : source},
                                   {"if_id", policy.if_id},
                                   {"reason", text(view.reason)}});
    }
    return out;
}

}  // namespace sallyport::control
