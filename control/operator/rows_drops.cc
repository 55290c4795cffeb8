// SPDX-License-Identifier: Apache-2.0
#include <utility>
#include <vector>

#include "control/operator/drop_counts.h"
#include "control/operator/rows.h"
#include "dataplane/egress/egress.h"

namespace sallyport::control {

namespace json = boost::json;

uint64_t sum(const Drops& drops) {
    uint64_t total = 0;
    for (const uint64_t count : drops) total += count;
    return total;
}

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

namespace {

// The programs count a redirect as steered; whether the socket took the frame, only it knows.
void add_socket_drops(Drops& drops, const io::SocketStatistics& sockets) {
    drops[static_cast<size_t>(DropReason::rx_ring_full)] += sockets.rx_ring_full;
    drops[static_cast<size_t>(DropReason::no_frame)] += sockets.rx_dropped;
}

using Places = std::vector<std::pair<std::string, Drops>>;

std::expected<Places, std::string> places_of(const Appliance& appliance) {
    Places places;
    for (size_t i = 0; i < appliance.ports().size(); ++i) {
        const auto counters = appliance.bpf().counters(PortId{static_cast<uint16_t>(i)});
        if (!counters) return std::unexpected(counters.error());
        Drops drops = counters->drops;
        add_socket_drops(drops, statistics_of(*appliance.ports()[i].sockets));
        places.emplace_back("port " + appliance.ports()[i].config->name, drops);
    }
    const auto counters = appliance.bpf().counters(bpf_objects::kInjectorPort);
    if (!counters) return std::unexpected(counters.error());
    places.emplace_back("port " + appliance.config().device, counters->drops);
    if (appliance.interface() != nullptr) {
        const auto interface = appliance.bpf().counters(bpf_objects::kInterfacePort);
        if (!interface) return std::unexpected(interface.error());
        places.emplace_back("port " + appliance.config().xfrm_interface, interface->drops);
    }
    for (const auto& worker : appliance.workers()) {
        places.emplace_back("worker " + std::to_string(to_index(worker->id())), drops_of(*worker));
    }
    return places;
}

}  // namespace

Rows drop_rows(const Appliance& appliance) {
    const auto places = places_of(appliance);
    if (!places) return std::unexpected(places.error());
    json::array out;
    for (size_t reason = 1; reason < kDropReasonCount; ++reason) {  // 0 is "not dropped"
        uint64_t total = 0;
        json::object where;
        for (const auto& [place, drops] : *places) {
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

}  // namespace sallyport::control
