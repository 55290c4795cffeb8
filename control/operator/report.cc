// SPDX-License-Identifier: Apache-2.0
#include "control/operator/report.h"

#include <unistd.h>

#include <array>
#include <boost/json.hpp>
#include <cstdio>

#include "config/key_material.h"
#include "control/operator/rows_xfrm.h"
#include "dataplane/egress/egress.h"

namespace sallyport::control {

namespace json = boost::json;

namespace {

using Drops = std::array<uint64_t, kDropReasonCount>;

json::string text(std::string_view view) {
    return json::string(view.data(), view.size());
}

std::string_view name_of(config::SpdAction action) {
    switch (action) {
        case config::SpdAction::protect:
            return "protect";
        case config::SpdAction::bypass:
            return "bypass";
        case config::SpdAction::discard:
            return "discard";
    }
    return "";
}

std::string_view name_of(xfrm::SaRegistry::Method method) {
    switch (method) {
        case xfrm::SaRegistry::Method::undecided:
            return "none";
        case xfrm::SaRegistry::Method::full:
            return "full";
        case xfrm::SaRegistry::Method::larval:
            return "larval";
    }
    return "";
}

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

uint64_t sum(const Drops& drops) {
    uint64_t total = 0;
    for (const uint64_t count : drops) total += count;
    return total;
}

// A worker's own drops and those of its egress.
Drops drops_of(const Worker& worker) {
    Drops drops{};
    for (size_t i = 0; i < drops.size(); ++i) {
        drops[i] = worker.counters().drops[i].read() + worker.egress().drops()[i].read();
    }
    return drops;
}

io::SocketStatistics statistics_of(const io::PortSockets& sockets) {
    io::SocketStatistics total;
    for (uint16_t q = 0; q < sockets.queues(); ++q) {
        for (uint16_t w = 0; w < sockets.workers(); ++w) {
            const auto one = sockets.statistics(QueueId{q}, WorkerId{w});
            total.rx_dropped += one.rx_dropped;
            total.rx_ring_full += one.rx_ring_full;
            total.fill_ring_empty += one.fill_ring_empty;
        }
    }
    return total;
}

// The programs count a redirect as steered; whether the socket took the frame, only it knows.
void add_socket_drops(Drops& drops, const io::SocketStatistics& sockets) {
    drops[static_cast<size_t>(DropReason::rx_ring_full)] += sockets.rx_ring_full;
    drops[static_cast<size_t>(DropReason::no_frame)] += sockets.rx_dropped;
}

json::object direction(const DirectionCounters& counters) {
    return {{"frames", counters.frames.read()},       {"bytes", counters.bytes.read()},
            {"delivered", counters.delivered.read()}, {"bursts", counters.bursts.read()},
            {"held", counters.held.read()},           {"on_hold", counters.on_hold.read()}};
}

std::string_view name_of(config::Conntrack conntrack) {
    switch (conntrack) {
        case config::Conntrack::off:
            return "off";
        case config::Conntrack::punt:
            return "punt";
        case config::Conntrack::drop:
            return "drop";
    }
    return "";
}

// `config` is null for sp0, where what is decrypted meets the rules of the port it leaves by.
json::object conntrack_object(const config::Port* config, const sp_conntrack_counters& counters) {
    using config::Conntrack;
    return {{"in", text(name_of(config != nullptr ? config->conntrack_in : Conntrack::off))},
            {"out", text(name_of(config != nullptr ? config->conntrack_out : Conntrack::off))},
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

json::object port_object(std::string_view name, std::string_view device, uint32_t ifindex,
                         std::string_view role, uint16_t queues, uint32_t mtu,
                         const bpf_objects::Attachment& attachment, std::string_view bind_mode,
                         std::string_view bind_reason, const bpf_objects::PortCounters& counters,
                         const io::SocketStatistics& sockets, const config::Port* config) {
    const sp_port_counters& totals = counters.totals;
    json::array matrix;
    for (const auto& row : counters.steered) matrix.emplace_back(json::value_from(row));
    return {{"name", text(name)},
            {"device", text(device)},
            {"ifindex", ifindex},
            {"role", text(role)},
            {"queues", queues},
            {"mtu", mtu},
            {"xdp_mode", attachment.mode == config::XdpMode::generic ? "generic" : "native"},
            {"attached", attachment.attached()},
            {"attached_reason", text(attachment.reason)},
            {"bind_mode", text(bind_mode)},
            {"bind_reason", text(bind_reason)},
            {"rx_frames", totals.rx_frames},
            {"rx_bytes", totals.rx_bytes},
            {"passed", totals.passed},
            {"steered", totals.steered},
            {"redirected", totals.redirected},
            {"dropped", totals.dropped},
            {"egress_frames", totals.egress_frames},
            {"egress_bytes", totals.egress_bytes},
            {"egress_sent", totals.egress_sent},
            {"passed_esp", totals.passed_esp},
            {"passed_protect", totals.passed_protect},
            {"steered_by_queue_worker", std::move(matrix)},
            {"conntrack", conntrack_object(config, counters.conntrack)},
            {"bypass", spread_object(config, counters)},
            {"sockets",
             {{"rx_dropped", sockets.rx_dropped},
              {"rx_ring_full", sockets.rx_ring_full},
              {"fill_ring_empty", sockets.fill_ring_empty}}}};
}

}  // namespace

std::expected<json::value, std::string> Report::show(rpc::Show what) const {
    switch (what) {
        case rpc::Show::status:
            return status();
        case rpc::Show::ports:
            return ports();
        case rpc::Show::workers:
            return workers();
        case rpc::Show::sa:
            return sas();
        case rpc::Show::policy:
            return policies();
        case rpc::Show::drops:
            return drops();
        case rpc::Show::connections:
            return connections();
    }
    return std::unexpected("unknown request");
}

json::value Report::status() const {
    const config::Config& config = appliance_.config();
    const FrameCensus frames = appliance_.census();
    const uint64_t known = frames.pool + frames.in_kernel;
    const auto uptime = std::chrono::steady_clock::now() - started_;
    const SourceCounts counts = appliance_.source().counts();
    json::array notes;
    for (const std::string& note : log_.notes()) notes.emplace_back(text(note));
    return json::object{
        {"version", SALLYPORT_VERSION},
        {"pid", getpid()},
        {"uptime_s", std::chrono::duration_cast<std::chrono::seconds>(uptime).count()},
        {"config", text(config.file.native())},
        {"egress", config.egress == config::EgressMode::direct ? "direct" : "devmap"},
        {"sa_lookup", appliance_.sa_lookup().kfunc ? "kfunc" : "owner map"},
        {"sa_lookup_reason", text(appliance_.sa_lookup().reason)},
        {"xfrm_registration", text(name_of(appliance_.registry().method()))},
        {"xfrm_registration_reason", text(appliance_.registry().reason())},
        {"crypto", text(appliance_.crypto())},
        {"workers", appliance_.workers().size()},
        {"sa_source", config.follows_xfrm() ? "xfrm" : "configuration"},
        {"policies", config.policies.size() + counts.policies},
        {"sas", counts.sas},
        {"sas_with_kernel", counts.sas_with_kernel},
        {"frames",
         {{"total", frames.total},
          {"pool", frames.pool},
          {"in_kernel", frames.in_kernel},
          {"in_workers", frames.total > known ? frames.total - known : 0},
          {"hugepages", appliance_.memory().on_hugepages()}}},
        {"notes", std::move(notes)}};
}

std::expected<json::value, std::string> Report::ports() const {
    json::array out;
    for (size_t i = 0; i < appliance_.ports().size(); ++i) {
        const RunningPort& port = appliance_.ports()[i];
        const auto counters = appliance_.bpf().counters(PortId{static_cast<uint16_t>(i)});
        if (!counters) return std::unexpected(counters.error());
        const bool unprotected = port.config->role == config::PortRole::unprotected_side;
        out.push_back(port_object(port.config->name, port.config->device, port.ifindex,
                                  unprotected ? "unprotected" : "protected", port.queues, port.mtu,
                                  port.attachment.value_or(bpf_objects::Attachment{}),
                                  port.sockets->zero_copy() ? "zero-copy" : "copy",
                                  port.sockets->mode_reason(), *counters,
                                  statistics_of(*port.sockets), port.config));
    }
    const auto counters = appliance_.bpf().counters(bpf_objects::kInjectorPort);
    if (!counters) return std::unexpected(counters.error());
    const std::string& device = appliance_.config().device;
    out.push_back(port_object(device, device, appliance_.tap_ifindex(), "injector",
                              static_cast<uint16_t>(appliance_.workers().size()),
                              appliance_.tap_mtu(), appliance_.injector(), "none", "", *counters,
                              {}, nullptr));
    if (appliance_.interface() == nullptr) return out;
    const auto interface = appliance_.bpf().counters(bpf_objects::kInterfacePort);
    if (!interface) return std::unexpected(interface.error());
    const std::string& name = appliance_.config().xfrm_interface;
    json::object row =
        port_object(name, name, appliance_.interface()->ifindex(), "interface", 0,
                    appliance_.interface()->mtu(), {}, "none", "", *interface, {}, nullptr);
    row["xdp_mode"] = "none";
    row["attached"] = "tc";
    out.push_back(std::move(row));
    return out;
}

json::value Report::workers() const {
    json::array out;
    for (const auto& worker : appliance_.workers()) {
        const WorkerCounters& counters = worker->counters();
        out.push_back(json::object{{"worker", to_index(worker->id())},
                                   {"cpu", worker->cpu()},
                                   {"inbound", direction(counters.inbound)},
                                   {"outbound", direction(counters.outbound)},
                                   {"dropped", sum(drops_of(*worker))},
                                   {"egress_frames", counters.egress_frames.read()},
                                   {"from_kernel", counters.from_kernel.read()},
                                   {"loops", counters.loops.read()},
                                   {"sleeps", counters.sleeps.read()},
                                   {"busy_cycles", counters.busy_cycles.read()},
                                   {"cpu_time_ms", worker->cpu_time_ns() / 1'000'000},
                                   {"sas", appliance_.source().served_by(worker->id())}});
    }
    return out;
}

json::value Report::sas() const {
    std::vector<uint16_t> cpus;
    for (const auto& worker : appliance_.workers()) cpus.push_back(worker->cpu());
    return sa_rows(appliance_.source().sas(), cpus);
}

json::value Report::policies() const {
    const config::Config& config = appliance_.config();
    json::array out = policy_rows(appliance_.source().policies());
    for (const config::Policy& policy : config.policies) {
        json::array names;
        for (const config::StaticSa& sa : config.sas) {
            if (sa.policy == policy.name) names.emplace_back(text(sa.name));
        }
        json::value protocol;
        if (policy.protocol) protocol = *policy.protocol;
        out.push_back(json::object{{"name", text(policy.name)},
                                   {"action", text(name_of(policy.action))},
                                   {"local", prefixes(policy.local)},
                                   {"remote", prefixes(policy.remote)},
                                   {"protocol", std::move(protocol)},
                                   {"local_ports", port_range(policy.local_ports)},
                                   {"remote_ports", port_range(policy.remote_ports)},
                                   {"ct_mark", mark(policy)},
                                   {"if_id", policy.if_id},
                                   {"sas", std::move(names)}});
    }
    return out;
}

std::expected<json::value, std::string> Report::drops() const {
    std::vector<std::pair<std::string, Drops>> places;
    for (size_t i = 0; i < appliance_.ports().size(); ++i) {
        const auto counters = appliance_.bpf().counters(PortId{static_cast<uint16_t>(i)});
        if (!counters) return std::unexpected(counters.error());
        Drops drops = counters->drops;
        add_socket_drops(drops, statistics_of(*appliance_.ports()[i].sockets));
        places.emplace_back("port " + appliance_.ports()[i].config->name, drops);
    }
    const auto counters = appliance_.bpf().counters(bpf_objects::kInjectorPort);
    if (!counters) return std::unexpected(counters.error());
    places.emplace_back("port " + appliance_.config().device, counters->drops);
    if (appliance_.interface() != nullptr) {
        const auto interface = appliance_.bpf().counters(bpf_objects::kInterfacePort);
        if (!interface) return std::unexpected(interface.error());
        places.emplace_back("port " + appliance_.config().xfrm_interface, interface->drops);
    }
    for (const auto& worker : appliance_.workers()) {
        places.emplace_back("worker " + std::to_string(to_index(worker->id())), drops_of(*worker));
    }

    json::array out;
    for (size_t reason = 1; reason < kDropReasonCount; ++reason) {  // 0 is "not dropped"
        uint64_t total = 0;
        json::object where;
        for (const auto& [place, drops] : places) {
            if (drops[reason] == 0) continue;
            total += drops[reason];
            where[place] = drops[reason];
        }
        out.push_back(json::object{{"reason", text(kDropReasonLabels[reason])},
                                   {"count", total},
                                   {"where", std::move(where)},
                                   {"help", text(kDropReasonHelp[reason])}});
    }
    return out;
}

json::value Report::connections() const {
    json::array out;
    for (const bpf_objects::Connection& connection : appliance_.bpf().connections()) {
        json::array names;
        for (const config::Policy& policy : appliance_.config().policies) {
            if (policy.if_id == connection.if_id) names.emplace_back(text(policy.name));
        }
        const sp_connection_counters& counters = connection.counters;
        out.push_back(json::object{{"if_id", connection.if_id},
                                   {"policies", std::move(names)},
                                   {"in_packets", counters.in_packets},
                                   {"in_bytes", counters.in_bytes},
                                   {"in_dropped", counters.in_dropped},
                                   {"out_packets", counters.out_packets},
                                   {"out_bytes", counters.out_bytes}});
    }
    return out;
}

}  // namespace sallyport::control
