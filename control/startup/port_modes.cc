// SPDX-License-Identifier: Apache-2.0
#include "control/startup/port_modes.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "control/netlink/socket.h"

namespace sallyport::control {

namespace {

using config::XdpMode;

std::unexpected<std::string> refusal(const config::Port& port, const std::string& text) {
    return std::unexpected("port " + port.name + ": " + text);
}

// Whose frames go to a program of their own instead of to the kernel's stack.
constexpr std::string_view kMacvtap = "macvtap";
// Which share one MAC with the device below: the kernel tells them apart by their own addresses.
constexpr std::array<std::string_view, 2> kByAddress = {"ipvlan", "ipvtap"};

// What the kernel says of a driver is the same for all; who can mend it is not.
std::string remedy_of(std::string_view kind) {
    if (kind == "veth") return "; switch GRO of its peer on (ethtool -K PEER gro on)";
    if (kind == "tun") return "; whoever has the TAP must have opened it";
    return {};
}

std::string cannot_send(const RunningPort& port, const bpf_objects::NativeSending& sending) {
    return "native XDP cannot send out of port " + port.config->name + " (device " +
           port.config->device + (port.kind.empty() ? "" : ", " + port.kind) + "): " + sending.why +
           remedy_of(port.kind);
}

// Frames from there are to be redirected generically. An error where the configuration forbids it.
std::expected<void, std::string> make_generic(RunningPort& port, const std::string& reason) {
    if (port.config->xdp_mode == XdpMode::native) {
        return refusal(*port.config, "xdp_mode = \"native\" does not work: " + reason +
                                         ". Write xdp_mode = \"auto\": then all ports are generic");
    }
    if (port.config->bind_mode == config::BindMode::zero_copy) {
        return refusal(*port.config,
                       "bind_mode = \"zero-copy\" does not work: it wants "
                       "native XDP, but " +
                           reason + ". Write bind_mode = \"auto\"");
    }
    port.xdp_mode = XdpMode::generic;
    if (port.mode_reason.empty()) port.mode_reason = "generic because " + reason;
    return {};
}

std::expected<void, std::string> make_all_generic(std::span<RunningPort> ports,
                                                  const std::string& reason) {
    for (RunningPort& port : ports) {
        if (auto made = make_generic(port, reason); !made) return made;
    }
    return {};
}

}  // namespace

std::expected<DeviceRule, std::string> rule_of(const config::Port& port,
                                               const netlink::LinkInfo& link) {
    if (link.slave_kind == "vrf") {
        return refusal(port, "the device " + port.device +
                                 " is in a VRF, and what workers send is routed by the main table: "
                                 "take it out (ip link set " +
                                 port.device + " nomaster)");
    }
    if (!link.slave_kind.empty()) {
        return refusal(port, "the device " + port.device + " belongs to a " + link.slave_kind +
                                 ", which has the addresses and gets its packets: write the " +
                                 link.slave_kind +
                                 "'s device as `device`, or take it out (ip "
                                 "link set " +
                                 port.device + " nomaster)");
    }
    if (std::ranges::find(kByAddress, link.kind) != kByAddress.end()) {
        return refusal(port, "the device " + port.device + " is an " + link.kind +
                                 ", which gets only packets for its own addresses and none to "
                                 "forward: take a macvlan device");
    }
    if (link.kind == kMacvtap) {
        return refusal(port, "the device " + port.device +
                                 " is a macvtap, whose packets a program of its own reads: take a "
                                 "macvlan device");
    }
    if (link.kind == "bond") {
        const std::string why =
            "native XDP of a bond runs on the devices in it, and sockets are bound to the bond";
        if (port.xdp_mode == XdpMode::native) {
            return refusal(port, "xdp_mode = \"native\" does not work on " + port.device + ": " +
                                     why + ". Write xdp_mode = \"auto\" or \"generic\"");
        }
        if (port.bind_mode == config::BindMode::zero_copy) {
            return refusal(port, "bind_mode = \"zero-copy\" does not work on " + port.device +
                                     ": it wants native XDP, but " + why +
                                     ". Write bind_mode = \"auto\"");
        }
        if (port.xdp_mode == XdpMode::automatic) {
            return DeviceRule{.mode = XdpMode::generic, .reason = "generic because " + why};
        }
    }
    return DeviceRule{.mode = port.xdp_mode, .reason = {}};
}

std::vector<config::Error> check_devices(const config::Config& config) {
    std::vector<config::Error> errors;
    auto socket = netlink::Socket::open(netlink::Protocol::route);
    if (!socket) return errors;  // the start says so
    for (const config::Port& port : config.ports) {
        const auto link = netlink::find_link(*socket, port.device);
        if (!link) continue;
        const auto rule = rule_of(port, *link);
        if (rule) continue;
        errors.push_back({.file = config.file, .line = port.location.line, .text = rule.error()});
    }
    return errors;
}

bool loses_tags_below(std::string_view kind) {
    constexpr std::array<std::string_view, 5> kKinds = {"bond", "team", "bridge", "macvlan",
                                                        "veth"};
    return std::ranges::find(kKinds, kind) != kKinds.end();
}

bool is_kernel_tunnel(std::string_view kind) {
    constexpr std::array<std::string_view, 5> kKinds = {"vxlan", "geneve", "gretap", "ip6gretap",
                                                        "erspan"};
    return std::ranges::find(kKinds, kind) != kKinds.end();
}

std::expected<Redirection, std::string> choose_modes(std::span<RunningPort> ports) {
    auto socket = netlink::Socket::open(netlink::Protocol::route);
    if (!socket) return std::unexpected(socket.error());
    const auto links = netlink::list_links(*socket);
    if (!links) return std::unexpected("cannot list network devices: " + links.error().text);
    Redirection redirection;
    for (RunningPort& port : ports) {
        const auto link = netlink::find_link(*socket, port.config->device);
        if (!link) return refusal(*port.config, link.error().text);
        auto rule = rule_of(*port.config, *link);
        if (!rule) return std::unexpected(rule.error());
        port.kind = link->kind;
        port.running = link->running;
        port.xdp_mode = rule->mode;
        port.mode_reason = std::move(rule->reason);
        port.below = netlink::devices_below(*links, port.ifindex);
        if (link->kind.empty()) continue;
        const auto sending =
            bpf_objects::prove_native_sending(port.ifindex, port.mac, port.running);
        if (sending.answer != bpf_objects::NativeSending::Answer::impossible) continue;
        if (!redirection.generic) redirection = {true, cannot_send(port, sending)};
    }
    if (!redirection.generic) return redirection;
    if (auto made = make_all_generic(ports, redirection.reason); !made) {
        return std::unexpected(made.error());
    }
    return redirection;
}

std::expected<void, std::string> prove_modes(bpf_objects::BpfObjects& bpf,
                                             std::span<RunningPort> ports,
                                             bpf_objects::Attachment& injector,
                                             const CloseDevice& close) {
    if (injector.mode == XdpMode::generic) return {};
    std::string reason;
    for (const RunningPort& port : ports) {
        if (!port.kind.empty()) continue;  // tried before
        const auto sending =
            bpf_objects::prove_native_sending(port.ifindex, port.mac, port.running);
        if (sending.answer != bpf_objects::NativeSending::Answer::impossible) continue;
        reason = cannot_send(port, sending);
        break;
    }
    if (reason.empty()) return {};

    for (size_t i = 0; i < ports.size(); ++i) {
        RunningPort& port = ports[i];
        if (port.attachment->mode == XdpMode::generic) continue;
        if (auto made = make_generic(port, reason); !made) return made;
        if (port.sockets->zero_copy()) {
            return refusal(*port.config, "it has zero-copy sockets, which want native XDP, but " +
                                             reason + ". Write xdp_mode = \"generic\"");
        }
        if (auto closed = close(port.config->device); !closed) return closed;
        auto changed =
            bpf.change_mode(PortId{static_cast<uint16_t>(i)}, XdpMode::generic, port.mode_reason);
        if (!changed) return std::unexpected(changed.error());
        changed->replaced_stale |= port.attachment->replaced_stale;
        port.attachment = *changed;
    }
    auto changed = bpf.change_injector_mode(XdpMode::generic, "generic because " + reason);
    if (!changed) return std::unexpected(changed.error());
    injector = *changed;
    return {};
}

}  // namespace sallyport::control
