// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <span>
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

io::QueueStatistics statistics_of(const io::PortSockets& sockets) {
    io::QueueStatistics total;
    for (uint16_t q = 0; q < sockets.queues(); ++q) total += sockets.statistics(QueueId{q});
    return total;
}

namespace {

// The programs count a redirect as steered; whether the socket took the frame, only it knows.
void add_socket_drops(Drops& drops, const io::QueueStatistics& sockets) {
    const auto add = [&drops](DropReason reason, uint64_t frames) {
        drops[static_cast<size_t>(reason)] += frames;
    };
    add(DropReason::rx_ring_full, sockets.rx_ring_full);
    add(DropReason::too_big, sockets.too_big);
    add(DropReason::fill_ring_empty, sockets.fill_ring_empty);
    add(DropReason::no_frame, sockets.no_frame);
}

using Places = std::vector<std::pair<std::string, Drops>>;

std::string name_of(PortId port, const Appliance& appliance) {
    if (port == bpf_objects::kInjectorPort) return appliance.config().device;
    if (port == bpf_objects::kInterfacePort) return appliance.config().xfrm_interface;
    return appliance.ports()[to_index(port)].config->name;
}

void add_kernel_losses(Places& places, std::span<const bpf_objects::KernelLoss> losses,
                       const Appliance& appliance) {
    for (const bpf_objects::KernelLoss& loss : losses) {
        const auto place = std::ranges::find(places, "port " + name_of(loss.port, appliance),
                                             &Places::value_type::first);
        if (place != places.end()) place->second[static_cast<size_t>(loss.drop)] += loss.packets;
    }
}

std::expected<Places, std::string> places_of(const Appliance& appliance,
                                             std::span<const bpf_objects::KernelLoss> losses) {
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
    add_kernel_losses(places, losses, appliance);
    return places;
}

}  // namespace

Rows drop_rows(const Appliance& appliance) {
    const auto losses = appliance.bpf().kernel_losses();
    const auto places = places_of(appliance, losses);
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
        json::object kernel;
        for (const bpf_objects::KernelLoss& loss : losses) {
            if (static_cast<size_t>(loss.drop) != reason) continue;
            json::value& count = kernel[loss.reason];
            count = (count.is_null() ? 0 : count.to_number<uint64_t>()) + loss.packets;
        }
        out.push_back(json::object{{"reason", text(kDropReasonLabels[reason])},
                                   {"count", total},
                                   {"where", std::move(where)},
                                   {"kernel", std::move(kernel)},
                                   {"help", text(kDropReasonHelp[reason])}});
    }
    return out;
}

}  // namespace sallyport::control
