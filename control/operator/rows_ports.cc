// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/choices.h"
#include "control/operator/drop_counts.h"
#include "control/operator/rows.h"

namespace sallyport::control {

namespace json = boost::json;

namespace {

// `config` is null for sp0, where what is decrypted meets the rules of the port it leaves by.
json::object conntrack_object(const config::Port* config, const sp_conntrack_counters& counters) {
    using config::Conntrack;
    const auto mode = [](Conntrack value) {
        return text(config::word_of(config::kConntrackModes, value));
    };
    return {{"in", mode(config != nullptr ? config->conntrack_in : Conntrack::off)},
            {"out", mode(config != nullptr ? config->conntrack_out : Conntrack::off)},
            {"established", counters.established},
            {"to_kernel", counters.to_kernel},
            {"refused", counters.refused}};
}

json::object spread_object(const config::Port* config, const bpf_objects::PortCounters& counters) {
    const sp_spread_counters& spread = counters.spread;
    json::array cpus;
    if (config != nullptr) {
        for (const uint16_t cpu : config->bypass_cpus) cpus.emplace_back(cpu);
    }
    // Read while frames are on their way, the second can be ahead of the first.
    const uint64_t missing =
        spread.handed_over > spread.taken ? spread.handed_over - spread.taken : 0;
    return {{"cpus", std::move(cpus)},
            {"handed_over", spread.handed_over},
            {"taken", spread.taken},
            {"taken_by_cpu", json::value_from(counters.taken_by_cpu)},
            {"waiting_or_lost", missing}};
}

struct PortRow {
    std::string name;
    std::string device;
    uint32_t ifindex = 0;
    std::string_view role;
    uint16_t queues = 0;
    uint32_t mtu = 0;
    std::string_view xdp_mode;
    std::string attached;
    std::string attached_reason;
    std::string_view bind_mode = "none";
    std::string bind_reason;
    io::QueueStatistics sockets;
    const config::Port* config = nullptr;  // of ports of the configuration
};

std::string_view xdp_mode(const bpf_objects::Attachment& attachment) {
    return attachment.mode == config::XdpMode::generic ? "generic" : "native";
}

PortRow row_of(const RunningPort& port) {
    const bpf_objects::Attachment attachment = port.attachment.value_or(bpf_objects::Attachment{});
    return {.name = port.config->name,
            .device = port.config->device,
            .ifindex = port.ifindex,
            .role = config::word_of(config::kPortRoles, port.config->role),
            .queues = port.queues,
            .mtu = port.mtu,
            .xdp_mode = xdp_mode(attachment),
            .attached = attachment.attached(),
            .attached_reason = attachment.reason,
            .bind_mode = port.sockets->zero_copy() ? "zero-copy" : "copy",
            .bind_reason = port.sockets->mode_reason(),
            .sockets = statistics_of(*port.sockets),
            .config = port.config};
}

PortRow injector_row(const Appliance& appliance) {
    const std::string& device = appliance.config().device;
    return {.name = device,
            .device = device,
            .ifindex = appliance.tap_ifindex(),
            .role = "injector",
            .queues = static_cast<uint16_t>(appliance.workers().size()),
            .mtu = appliance.tap_mtu(),
            .xdp_mode = xdp_mode(appliance.injector()),
            .attached = appliance.injector().attached(),
            .attached_reason = appliance.injector().reason};
}

PortRow interface_row(const Appliance& appliance) {
    const std::string& device = appliance.config().xfrm_interface;
    return {.name = device,
            .device = device,
            .ifindex = appliance.interface()->ifindex(),
            .role = "interface",
            .mtu = appliance.interface()->mtu(),
            .xdp_mode = "none",
            .attached = "tc"};
}

json::object port_object(const PortRow& row, const bpf_objects::PortCounters& counters) {
    const sp_port_counters& totals = counters.totals;
    json::array matrix;
    for (const auto& queue : counters.steered) matrix.emplace_back(json::value_from(queue));
    return {{"name", text(row.name)},
            {"device", text(row.device)},
            {"ifindex", row.ifindex},
            {"role", text(row.role)},
            {"queues", row.queues},
            {"mtu", row.mtu},
            {"xdp_mode", text(row.xdp_mode)},
            {"attached", text(row.attached)},
            {"attached_reason", text(row.attached_reason)},
            {"bind_mode", text(row.bind_mode)},
            {"bind_reason", text(row.bind_reason)},
#define SP_COUNTER_FIELD(name) {#name, totals.name},
            SP_PORT_COUNTERS(SP_COUNTER_FIELD)
#undef SP_COUNTER_FIELD
                {"steered_by_queue_worker", std::move(matrix)},
            {"conntrack", conntrack_object(row.config, counters.conntrack)},
            {"bypass", spread_object(row.config, counters)},
            {"partial_checksums", counters.partial_checksums},
            {"sockets",
             {{"rx_ring_full", row.sockets.rx_ring_full},
              {"fill_ring_empty", row.sockets.fill_ring_empty},
              {"no_frame", row.sockets.no_frame},
              {"too_big", row.sockets.too_big},
              {"fill_misses", row.sockets.fill_misses}}}};
}

}  // namespace

Rows port_rows(const Appliance& appliance) {
    std::vector<std::pair<PortId, PortRow>> rows;
    for (size_t i = 0; i < appliance.ports().size(); ++i) {
        rows.emplace_back(PortId{static_cast<uint16_t>(i)}, row_of(appliance.ports()[i]));
    }
    rows.emplace_back(bpf_objects::kInjectorPort, injector_row(appliance));
    if (appliance.interface() != nullptr) {
        rows.emplace_back(bpf_objects::kInterfacePort, interface_row(appliance));
    }
    json::array out;
    for (const auto& [id, row] : rows) {
        const auto counters = appliance.bpf().counters(id);
        if (!counters) return std::unexpected(counters.error());
        out.push_back(port_object(row, *counters));
    }
    return out;
}

}  // namespace sallyport::control
