// SPDX-License-Identifier: Apache-2.0
#include "control/operator/rows_xfrm.h"

#include <cstdio>
#include <string>

#include "control/xfrm/messages.h"

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

json::value known(const std::optional<uint64_t>& value) {
    if (!value) return nullptr;
    return *value;
}

std::string_view state_name(SaRow::State state) {
    switch (state) {
        case SaRow::State::active:
            return "active";
        case SaRow::State::refused:
            return "refused";
        case SaRow::State::with_kernel:
            return "kernel";
    }
    return "";
}

std::string_view direction_name(const std::optional<xfrm::StateDirection>& direction) {
    if (!direction) return "unknown";
    return *direction == xfrm::StateDirection::inbound ? "inbound" : "outbound";
}

std::string_view action_name(SpdAction action) {
    switch (action) {
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

json::value ports(const PolicyRow::Ports& ports) {
    if (ports.mask == 0) return nullptr;
    if (ports.mask == 0xffff) return text(std::to_string(ports.value));
    char masked[24];
    std::snprintf(masked, sizeof masked, "%u/0x%04x", unsigned{ports.value}, unsigned{ports.mask});
    return text(masked);
}

json::object drops_of(const SaRow& row) {
    json::object drops;
    for (size_t i = 0; i < row.drops.size(); ++i) {
        if (row.drops[i] > 0) drops[text(kDropReasonLabels[i])] = row.drops[i];
    }
    return drops;
}

json::object sa_object(const SaRow& row, std::span<const uint16_t> cpus) {
    json::object object{{"name", text(row.name)},
                        {"direction", text(direction_name(row.direction))},
                        {"spi", text(xfrm::to_text(row.spi))},
                        {"source", text(to_string(row.source))},
                        {"destination", text(to_string(row.destination))},
                        {"suite", text(row.suite)},
                        {"esn", row.esn},
                        {"policy", text(row.policy)},
                        {"worker", nullptr},
                        {"pcpu", nullptr},
                        {"state", text(state_name(row.state))},
                        {"reason", text(row.reason)},
                        {"packets", row.packets},
                        {"bytes", row.bytes},
                        {"sequence", row.sequence},
                        {"sequence_reserved", row.sequence_reserved},
                        {"drops", drops_of(row)},
                        {"replay_window", row.replay_window}};
    if (row.worker) {
        object["worker"] = to_index(*row.worker);
        object["pcpu"] = cpus[to_index(*row.worker)];
    }
    if (row.life) {
        object["limits"] = limits_of(row.life->limits);
        object["age_s"] = known(row.life->age_s);
        object["idle_s"] = known(row.life->idle_s);
    }
    return object;
}

}  // namespace

json::array sa_rows(std::span<const SaRow> rows, std::span<const uint16_t> cpus) {
    json::array out;
    for (const SaRow& row : rows) out.push_back(sa_object(row, cpus));
    return out;
}

json::array policy_rows(std::span<const PolicyRow> rows) {
    json::array out;
    for (const PolicyRow& row : rows) {
        json::value protocol;
        if (row.protocol) protocol = *row.protocol;
        out.push_back(json::object{{"name", text(row.name)},
                                   {"direction", text(direction_name(row.direction))},
                                   {"priority", row.priority},
                                   {"action", text(action_name(row.action))},
                                   {"local", json::array{text(to_string(row.local))}},
                                   {"remote", json::array{text(to_string(row.remote))}},
                                   {"protocol", std::move(protocol)},
                                   {"local_ports", ports(row.local_ports)},
                                   {"remote_ports", ports(row.remote_ports)},
                                   {"if_id", row.if_id},
                                   {"reason", text(row.reason)}});
    }
    return out;
}

}  // namespace sallyport::control
