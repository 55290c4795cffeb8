// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which kernel settings the appliance needs (startup/sysctls.h sets them and puts them back).

#include <expected>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/log.h"
#include "control/startup/sysctls.h"

namespace sallyport::control {

struct Setting {
    std::string name;  // with slashes, below /proc/sys
    std::string value;
    bool noted = false;  // the operator is told when it was off
    Sysctls::Insist insist = Sysctls::Insist::yes;
};

// What lets the host forward: set last at a start and put back first at a stop, because between
// them and the programs on the ports the kernel would forward what the SPD never saw. Of each port
// too: its FIB lookup for programs finds no route for what comes in by a device that does not
// forward, also for IPv6, which the kernel itself forwards wherever `all` says so.
std::vector<Setting> forwarding_settings(const config::Config& config);

// Whether IPv6 may pass at all: a policy or an SA has it, or an IKE daemon may bring some at any
// time. Else the host's IPv6 stays as it is: switching forwarding on makes a host a router, which
// believes no other router any more.
bool forwards_ipv6(const config::Config& config);
// Where this host believes routers (accept_ra), it goes on although it forwards, and keeps the
// default routes that it has from them; the kernel would remove those, also of other devices, the
// moment one device begins to forward. Set before any of the others. By what the host has now.
//
// Not on protected ports, nor for devices that come later: one forged advertisement of a host or a
// container there would give the gateway another default route. Not insisted on: a network manager
// that reads advertisements itself writes 0.
std::vector<Setting> router_settings(const config::Config& config);
// What a run may have set that forwarded IPv6, to be put back by one that does not.
std::vector<std::string> ipv6_forwarding(const config::Config& config);

// Others of the host. `asks_conntrack`: XDP looks up the kernel's connections.
std::vector<Setting> host_settings(const config::Config& config, bool asks_conntrack);
// Of the TAP.
std::vector<Setting> tap_settings(const config::Config& config);
// Of the xfrm interface.
std::vector<Setting> interface_settings(const config::Config& config);

// What this kernel has no setting for is left out (a kernel without IPv6, for one).
std::expected<void, std::string> apply(std::span<const Setting> settings, Sysctls& sysctls,
                                       Log& log);
// Settings that stand in the way and are the operator's to change.
void note_obstacles(Log& log);

}  // namespace sallyport::control
