// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "control/operator/rows.h"
#include "control/sa/source.h"
#include "control/xfrm/messages.h"

namespace sallyport::control {

namespace json = boost::json;

namespace {

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

Rows sa_rows(const Appliance& appliance) {
    std::vector<uint16_t> cpus;
    for (const auto& worker : appliance.workers()) cpus.push_back(worker->cpu());
    json::array out;
    for (const SaRow& row : appliance.source().sas()) out.push_back(sa_object(row, cpus));
    return out;
}

}  // namespace sallyport::control
