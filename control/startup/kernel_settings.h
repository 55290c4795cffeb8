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
};

// What lets the host forward: set last at a start and put back first at a stop, because between
// them and the programs on the ports the kernel would forward what the SPD never saw. Of each port
// too: its FIB lookup for programs finds no route for what comes in by a device that does not
// forward, also for IPv6, which the kernel itself forwards wherever `all` says so.
std::vector<Setting> forwarding_settings(std::span<const config::Port> ports);
// Others of the host. `asks_conntrack`: XDP looks up the kernel's connections.
std::vector<Setting> host_settings(const config::Config& config, bool asks_conntrack);
// Of the TAP.
std::vector<Setting> tap_settings(const std::string& device);
// Of the xfrm interface.
std::vector<Setting> interface_settings(const std::string& device);

// What this kernel has no setting for is left out (a kernel without IPv6, for one).
std::expected<void, std::string> apply(std::span<const Setting> settings, Sysctls& sysctls,
                                       Log& log);
// Settings that stand in the way and are the operator's to change.
void note_obstacles(Log& log);

}  // namespace sallyport::control
