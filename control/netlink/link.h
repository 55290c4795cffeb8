// SPDX-License-Identifier: Apache-2.0
#pragma once

// Links (network devices) over rtnetlink: what one is, and the settings that the TAP and the xfrm
// interface need. Messages are pure functions; the rest asks the kernel by a Socket.
//
// Owner: control thread.

#include <array>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <vector>

#include "control/netlink/message.h"
#include "control/netlink/socket.h"

namespace sallyport::netlink {

using MacAddress = std::array<uint8_t, 6>;

struct LinkInfo {
    uint32_t ifindex = 0;
    // AF_UNSPEC: the link itself. Else what one family says about it (a bridge of its port).
    uint8_t family = 0;
    bool running = false;  // up, with carrier
    uint32_t mtu = 0;
    MacAddress mac{};       // 0 where addresses have another size
    std::string kind;       // "xfrm", "veth", ...; empty: a real device
    bool external = false;  // of an xfrm interface: in external mode
    std::string alias;
    std::string name;
    // Of the device it belongs to ("bridge", "bond", "vrf"); empty: to none.
    std::string slave_kind;
    uint32_t master = 0;  // ifindex of that device
    uint32_t below = 0;   // of the device that this one (a VLAN, a macvlan) is on, where that is
                          // in the same network namespace; else 0

    friend bool operator==(const LinkInfo&, const LinkInfo&) = default;
};

// What is changed of a link; the rest stays.
struct LinkSettings {
    bool up = false;
    bool noarp = false;
    uint32_t mtu = 0;
    std::optional<MacAddress> mac;
    std::string alias;
};

RequestBuffer encode_get_link(const std::string& name, uint32_t sequence);
RequestBuffer encode_set_link(uint32_t ifindex, const LinkSettings& settings, uint32_t sequence);
// Without an address of its own a device sends no router solicitations and no neighbour discovery.
RequestBuffer encode_no_ipv6_addresses(uint32_t ifindex, uint32_t sequence);
// Into the network namespace that `netns_fd` is of.
RequestBuffer encode_move_link(uint32_t ifindex, int netns_fd, uint32_t sequence);
RequestBuffer encode_delete_link(uint32_t ifindex, uint32_t sequence);

// Payload of RTM_NEWLINK and RTM_DELLINK.
std::expected<LinkInfo, std::string> decode_link(Bytes payload);

// ENODEV when there is none of that name.
std::expected<LinkInfo, Error> find_link(Socket& socket, const std::string& name);

// All links of the network namespace.
std::expected<std::vector<LinkInfo>, Error> list_links(Socket& socket);
// The devices through which all comes that the device `ifindex` receives: what a VLAN is on, what
// is in a bond or bridge, and what is below those.
std::vector<LinkInfo> devices_below(const std::vector<LinkInfo>& links, uint32_t ifindex);

// From the network namespace of the calling thread. Any thread.
std::expected<void, std::string> move_link(const std::string& name, int netns_fd);

// Sets the device up; the rest stays.
std::expected<void, std::string> bring_up(uint32_t ifindex);

// sp0 as workers need it: up, with this address and MTU, without neighbour resolution (behind it
// are tunnels, and nobody there would answer) and without IPv6 addresses.
std::expected<void, std::string> set_up_tap(const std::string& name, uint32_t ifindex,
                                            const MacAddress& mac, uint32_t mtu);

}  // namespace sallyport::netlink
