// SPDX-License-Identifier: Apache-2.0
#pragma once

// What must be true of devices and what is: the difference, and what to do about it. Pure
// functions; who looks and who mends is watch.h.

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "control/netlink/link.h"

namespace sallyport::watch {

// A device as the kernel has it.
struct DeviceNow {
    uint32_t ifindex = 0;  // 0: there is none in this network namespace
    std::string name;
    netlink::MacAddress mac{};
    uint32_t mtu = 0;
    bool up = false;
    bool has_carrier = true;
    bool keeps_tags = true;       // VLAN tags stay in frames
    uint16_t queues = 0;          // receive queues; 0: cannot be read
    std::string slave_kind;       // of the device it belongs to ("bridge"); empty: to none
    std::set<std::string> below;  // names of PortShould::below
    bool has_program = false;     // ours, where we attached it
    bool has_kernel_out = false;  // likewise, by TC; true where it need not be there
};

// A port as it was set up.
struct PortShould {
    std::string port;    // its name in the configuration
    std::string device;  // likewise; the name that closes it
    uint32_t ifindex = 0;
    netlink::MacAddress mac{};
    uint32_t mtu = 0;
    uint16_t queues = 0;
    // Devices below it, as they were at the start, that stay closed: the port's program sees
    // nothing of what is for them.
    std::vector<netlink::LinkInfo> below;
    bool lost = false;  // its device was away once: its sockets do not come back
};

struct Difference {
    // What it is about, and what of that: one that holds on is the same one. Sorts by it.
    std::string key;
    std::string text;  // what changed, what it means, what is done or is to be done
    friend auto operator<=>(const Difference&, const Difference&) = default;
};

// What one look at a port says.
struct PortVerdict {
    std::vector<Difference> differences;
    std::set<std::string> closed;  // devices that must be closed, by name
    bool attach = false;           // the program is to be attached again
    bool attach_out = false;       // so is kernel_out
    bool lost = false;             // from now on
};

// `now`: of the port's ifindex. `namesake`: the ifindex that the port's device name has, 0: none.
PortVerdict judge_port(const PortShould& should, const DeviceNow& now, uint32_t namesake);

// sp0, or the xfrm interface.
struct InnerShould {
    std::string device;
    uint32_t ifindex = 0;
    std::string needed_by;  // what stands still without it
};
struct InnerVerdict {
    std::vector<Difference> differences;
    bool close = false;  // what comes in by it must not be forwarded
    bool attach = false;
    bool set_up = false;
};
InnerVerdict judge_inner(const InnerShould& should, const DeviceNow& now);

}  // namespace sallyport::watch
