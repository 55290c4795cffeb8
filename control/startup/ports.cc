// SPDX-License-Identifier: Apache-2.0
#include "control/startup/ports.h"

#include <net/if.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "config/system.h"
#include "control/startup/busy_queue.h"
#include "dataplane/esp/overhead.h"
#include "dataplane/io/tap.h"

namespace sallyport::control {

namespace {

constexpr uint32_t kTapMtuMin = 1280;  // IPv6 needs that much
constexpr uint32_t kTapMtuMax = 3698;  // beyond it writes leave the fast path (dataplane/io/tap.h)
static_assert(kTapMtuMax <= io::Tap::kMtuMax);

std::expected<ifreq, std::string> ask(const std::string& device, unsigned long question,
                                      const char* what) {
    ifreq request{};
    if (config::ask_device(device, question, request)) return request;
    return std::unexpected(std::string("cannot read the ") + what + " of " + device + ": " +
                           std::strerror(errno));
}

std::expected<RunningPort, std::string> find_port(const config::Port& port) {
    RunningPort running;
    running.config = &port;
    running.ifindex = if_nametoindex(port.device.c_str());
    if (running.ifindex == 0) {
        return std::unexpected("there is no network device '" + port.device + "'");
    }
    const auto mtu = ask(port.device, SIOCGIFMTU, "MTU");
    if (!mtu) return std::unexpected(mtu.error());
    running.mtu = static_cast<uint32_t>(mtu->ifr_mtu);
    const auto mac = ask(port.device, SIOCGIFHWADDR, "MAC");
    if (!mac) return std::unexpected(mac.error());
    std::memcpy(running.mac.data(), mac->ifr_hwaddr.sa_data, running.mac.size());
    const auto queues = config::device_queue_count(port.device);
    if (!queues) return std::unexpected(queues.error());
    running.queues = port.queues.value_or(*queues);
    return running;
}

// Whether frames are left for the FILL rings when cards with zero-copy have filled their own. Only
// the bound sockets tell which cards these are.
std::expected<void, std::string> check_card_frames(std::span<const RunningPort> ports,
                                                   const config::Config& config, uint16_t workers) {
    uint64_t queues = 0;
    uint64_t in_cards = 0;
    std::string who;
    for (const RunningPort& port : ports) {
        queues += port.queues;
        if (!port.sockets->zero_copy()) continue;
        in_cards += uint64_t{port.queues} * config::receive_ring_slots(port.config->device);
        who += (who.empty() ? "" : ", ") + port.config->device;
    }
    const uint64_t needed =
        config::frames_needed(queues, workers, config.follows_xfrm()) + in_cards;
    if (in_cards == 0 || config.memory.frames >= needed) return {};
    const uint64_t enough = std::bit_ceil(needed);
    const std::string more = enough <= config::kFramesMax
                                 ? "Write " + std::to_string(enough) + " or more, make"
                                 : "Make";
    return std::unexpected("[memory] frames: " + std::to_string(config.memory.frames) +
                           " are too few: with zero-copy " + std::to_string(in_cards) +
                           " stand in the receive rings of " + who + ". " + more +
                           " the rings shorter (ethtool -G), or write bind_mode = \"copy\"");
}

}  // namespace

std::expected<std::vector<RunningPort>, std::string> find_ports(const config::Config& config) {
    std::vector<RunningPort> ports;
    for (const config::Port& port : config.ports) {
        auto found = find_port(port);
        if (!found) return std::unexpected(found.error());
        ports.push_back(std::move(*found));
    }
    return ports;
}

std::vector<uint32_t> ifindexes_of(std::span<const std::string> devices) {
    std::vector<uint32_t> out;
    for (const std::string& device : devices) {
        if (const uint32_t ifindex = if_nametoindex(device.c_str()); ifindex != 0) {
            out.push_back(ifindex);
        }
    }
    return out;
}

std::vector<netlink::LinkInfo> same_wire(std::span<const RunningPort> ports,
                                         const RunningPort& port) {
    if (!port.is_unprotected()) return {};
    std::vector<netlink::LinkInfo> devices = port.below;
    std::erase_if(devices, [&](const netlink::LinkInfo& device) {
        // What is in a bond or bridge receives nothing itself.
        return device.master != 0 || std::ranges::any_of(ports, [&](const RunningPort& other) {
                   return other.ifindex == device.ifindex;
               });
    });
    return devices;
}

uint32_t outer_mtu(std::span<const RunningPort> ports) {
    uint32_t mtu = UINT16_MAX;
    for (const RunningPort& port : ports) {
        if (port.is_unprotected()) mtu = std::min(mtu, port.mtu);
    }
    return mtu;
}

uint32_t largest_outer_mtu(std::span<const RunningPort> ports) {
    uint32_t mtu = 0;
    for (const RunningPort& port : ports) {
        if (port.is_unprotected()) mtu = std::max(mtu, port.mtu);
    }
    return mtu;
}

uint32_t tunnel_mtu(std::span<const RunningPort> ports) {
    const uint32_t outer = outer_mtu(ports);
    return std::clamp(outer - std::min(outer, esp::kTunnelOverheadMax), kTapMtuMin, kTapMtuMax);
}

std::expected<void, std::string> open_sockets(std::span<RunningPort> ports,
                                              const config::Config& config, uint16_t workers,
                                              io::PacketMemory& memory, Log& log) {
    BusyQueues busy(log);
    for (RunningPort& port : ports) {
        // Generic XDP takes its frames after the driver has made packets of them.
        const bool is_generic = port.xdp_mode == config::XdpMode::generic;
        const io::Bind bind = is_generic ? io::Bind::copy : port.config->bind_mode;
        const bool was_asked_for = port.config->bind_mode == io::Bind::copy;
        auto sockets = io::PortSockets::create(
            {.device = port.config->device,
             .ifindex = port.ifindex,
             .queues = port.queues,
             .workers = workers,
             .bind = bind,
             .tx_entries = config.egress == config::EgressMode::direct
                               ? io::PortSocketsSetup{}.tx_entries
                               : 0,
             .when_busy =
                 [&](uint16_t queue, std::chrono::milliseconds waited) {
                     return busy.look(port.config->device, port.ifindex, queue, waited);
                 },
             .copy_reason = is_generic && !was_asked_for ? "generic XDP copies" : ""},
            memory);
        if (!sockets) return std::unexpected(sockets.error());
        port.sockets = std::move(*sockets);
    }
    return check_card_frames(ports, config, workers);
}

FrameCensus census_of(const io::PacketMemory& memory, std::span<const RunningPort> ports) {
    FrameCensus census;
    census.total = memory.frame_count();
    census.pool = memory.available();
    for (const RunningPort& port : ports) {
        if (port.sockets) census.in_kernel += port.sockets->frames_in_kernel();
    }
    return census;
}

}  // namespace sallyport::control
