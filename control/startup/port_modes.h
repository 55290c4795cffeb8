// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which devices can be ports, and in which XDP mode each works (docs/ports.md).
//
// A port must receive and be sent to. Native XDP gives a frame to the driver of the port that it
// leaves by, and not every driver has a way for that; a redirect succeeds all the same and the
// frame is lost. Generic XDP sends to every device. So where a port cannot be sent to natively,
// all programs that redirect to it are generic: those of the other ports and of sp0.
//
// Owner: control thread, at the start.

#include <expected>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/netlink/link.h"
#include "control/startup/ports.h"

namespace sallyport::control {

// What a device allows, by what it is.
struct DeviceRule {
    config::XdpMode mode = config::XdpMode::automatic;
    std::string reason;  // why not another; empty: the configuration's own
};
// An error: it cannot be a port as it is configured, and what to do about it.
std::expected<DeviceRule, std::string> rule_of(const config::Port& port,
                                               const netlink::LinkInfo& link);

// What can be said of all ports before anything is touched. A device that is not there is nothing
// here.
std::vector<config::Error> check_devices(const config::Config& config);

// Whether VLAN tags are taken off frames before they come to a device of this kind (by the devices
// below it, by the sender of a veth), beyond the sight of its program and of LinkFeatures.
bool loses_tags_below(std::string_view kind);
// Whether its frames come through a tunnel of the kernel's, which may have merged them on its way.
bool is_kernel_tunnel(std::string_view kind);

// How frames are redirected.
struct Redirection {
    bool generic = false;
    std::string reason;  // why it is
};

// Sets the mode of each port by what its device is, and tries virtual devices: what they send for
// native XDP has nothing to do with a program on them. To be called before there are sockets.
std::expected<Redirection, std::string> choose_modes(std::span<RunningPort> ports);

// Takes packets away from a device while it has no program.
using CloseDevice = std::function<std::expected<void, std::string>(const std::string& device)>;

// When all programs are attached: tries the other devices, whose drivers may need a program for it,
// and changes to generic redirection where one cannot. `injector` is told of the change.
std::expected<void, std::string> prove_modes(bpf_objects::BpfObjects& bpf,
                                             std::span<RunningPort> ports,
                                             bpf_objects::Attachment& injector,
                                             const CloseDevice& close);

}  // namespace sallyport::control
