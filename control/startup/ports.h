// SPDX-License-Identifier: Apache-2.0
#pragma once

// The ports of the configuration, with what the system says about them and the sockets they get.

#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/log.h"
#include "control/netlink/link.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/port_sockets.h"

namespace sallyport::control {

struct RunningPort {
    const config::Port* config = nullptr;
    uint32_t ifindex = 0;
    uint32_t mtu = 1500;  // IP bytes
    bpf_objects::MacAddress mac{};
    uint16_t queues = 1;
    std::string kind;      // "veth", "vlan"; empty: a real device
    bool running = false;  // up, with carrier, at the start
    // Devices that frames come through first (of a VLAN, a bond).
    std::vector<netlink::LinkInfo> below;
    config::XdpMode xdp_mode = config::XdpMode::automatic;  // what is left of the configuration's
    std::string mode_reason;                                // why; empty: nothing was taken from it
    std::unique_ptr<io::PortSockets> sockets;
    std::optional<bpf_objects::Attachment> attachment;

    [[nodiscard]] bool is_unprotected() const {
        return config->role == config::PortRole::unprotected_side;
    }
};

// The devices below an unprotected port that are no ports themselves. Behind them is the same wire,
// and the port's program sees nothing of what is for such a device itself. Not those in a bond or
// bridge, which receive nothing themselves.
std::vector<netlink::LinkInfo> same_wire(std::span<const RunningPort> ports,
                                         const RunningPort& port);

// Devices, MTUs and queues, by PortId. `config` outlives the result.
std::expected<std::vector<RunningPort>, std::string> find_ports(const config::Config& config);

// Of those devices that there are.
std::vector<uint32_t> ifindexes_of(std::span<const std::string> devices);

// The largest packet that every port of the unprotected side carries.
uint32_t outer_mtu(std::span<const RunningPort> ports);
// The largest packet that any of them carries.
uint32_t largest_outer_mtu(std::span<const RunningPort> ports);
// Room for the tunnel, so that the kernel fragments (or refuses) what it routes into one.
uint32_t tunnel_mtu(std::span<const RunningPort> ports);

// AF_XDP sockets for each port, queue and worker. `memory` outlives them. Queues that a dead
// process still holds are waited for (busy_queue.h).
std::expected<void, std::string> open_sockets(std::span<RunningPort> ports,
                                              const config::Config& config, uint16_t workers,
                                              io::PacketMemory& memory, Log& log);

// Where every frame of packet memory is. Exact when the workers stand still.
struct FrameCensus {
    uint64_t total = 0;
    uint64_t pool = 0;
    uint64_t in_kernel = 0;
    [[nodiscard]] bool conserved() const { return pool + in_kernel == total; }
};
FrameCensus census_of(const io::PacketMemory& memory, std::span<const RunningPort> ports);

}  // namespace sallyport::control
