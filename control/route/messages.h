// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the kernel says about links, routes, rules and neighbours (rtnetlink), as typed values.
//
// Parsing is pure: bytes in, values out, no socket, so that it can be fuzzed
// (control/netlink/message.h has what all netlink messages share). Lengths are checked strictly: an
// attribute that ends behind its container, or a value of another size than its type has, makes the
// message an error, because a mirror built of guesses is worse than one that is read again.
//
// Only what the mirror needs is kept (mirror.h); everything else becomes Ignored.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <variant>

#include "control/netlink/message.h"
#include "dataplane/base/ip.h"

namespace sallyport::route {

struct Link {
    uint32_t ifindex = 0;
    bool running = false;  // up, with carrier
    uint32_t mtu = 0;
    std::array<uint8_t, 6> mac{};
    friend bool operator==(const Link&, const Link&) = default;
};

struct Route {
    uint32_t table = 0;
    IpPrefix destination;
    uint32_t metric = 0;
    uint8_t tos = 0;
    bool source_specific = false;  // IPv6 "from" routes
    // False: only the kernel can follow it (not unicast, a dead next hop, an encapsulation, a
    // nexthop object, ...). The fields below count only where it is true.
    bool plain = false;
    uint32_t ifindex = 0;              // of the first next hop
    std::optional<IpAddress> gateway;  // absent: destinations are on the link
    uint32_t mtu = 0;                  // 0: that of the link
    uint32_t hop_count = 1;
    friend bool operator==(const Route&, const Route&) = default;
};

struct Neighbour {
    uint32_t ifindex = 0;
    IpAddress address;
    bool usable = false;  // the kernel would send to `mac` without asking first
    bool stale = false;   // ... but would ask soon after
    bool fixed = false;   // NUD_PERMANENT or NUD_NOARP: the kernel never asks
    // Of another control plane (EVPN, FRR, Cilium): learned or managed by it, or under its protocol
    // number. An extended flag that is too new to be known here counts as one.
    bool foreign = false;
    std::array<uint8_t, 6> mac{};
    // Whether it is purely the kernel's own dynamic entry: only such may be told what to do.
    [[nodiscard]] bool may_be_refreshed() const { return !fixed && !foreign; }
    friend bool operator==(const Neighbour&, const Neighbour&) = default;
};

// A rule of policy routing. The kernel's three initial ones (local, main, default) are ordinary.
struct Rule {
    Family family = Family::v4;
    bool ordinary = false;
    uint32_t table = 0;
};

struct Ignored {};
struct LinkChange {
    bool removed = false;
    Link link;
};
struct RouteChange {
    bool removed = false;
    bool replaces = false;  // NLM_F_REPLACE: instead of the one with the same key
    Route route;
};
struct NeighbourChange {
    bool removed = false;
    Neighbour neighbour;
};
struct AddressChange {
    bool removed = false;
    uint32_t ifindex = 0;
};
struct RuleChange {
    bool removed = false;
    Rule rule;
};
// One entry of the kernel's tables of neighbours.
struct NeighbourName {
    uint32_t ifindex = 0;
    IpAddress address;
    friend auto operator<=>(const NeighbourName&, const NeighbourName&) = default;
};
using Message =
    std::variant<Ignored, LinkChange, RouteChange, NeighbourChange, AddressChange, RuleChange>;

std::expected<Message, std::string> parse_message(const netlink::Message& message);

// The answer to a question for the way to `destination` (RTM_GETROUTE): the neighbour that packets
// to it are handed to. None: it is this host's own, unreachable, or behind an encapsulation.
std::expected<std::optional<NeighbourName>, std::string> parse_next_hop(
    const netlink::Message& message, const IpAddress& destination);

}  // namespace sallyport::route
