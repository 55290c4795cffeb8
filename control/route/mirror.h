// SPDX-License-Identifier: Apache-2.0
#pragma once

// A copy of the kernel's routes and neighbours, as far as they concern our ports, from which the
// snapshots for direct egress are built (dataplane/egress/next_hops.h).
//
//   RouteSocket -> parse_message() -> RouteMirror -> build() -> NextHops -> workers
//
// What the kernel would do with a packet and the mirror says must not differ, so the mirror knows
// where its knowledge ends, and there it says "leave it to the kernel":
// - Addresses in the local table (this host's, broadcast, multicast), and all below them: the
//   kernel looks there first.
// - Routes that are not plain unicast through one of our ports, or depend on TOS or source.
// - Everything of a family that has policy routing rules beyond the kernel's initial three.
// Of several routes to one prefix the lowest metric wins; of several next hops the first is used.
// A destination on the link is its own next hop, so each neighbour there gets an entry; those not
// known yet go to the kernel, whose resolution then shows up here.
//
// Changes come as messages, but some the kernel does not announce one by one: IPv4 routes vanish
// silently with their link or source address. Such a message, and any that does not fit what is
// known, asks for a resync: clear() and a new dump.
//
// Owner: control thread.

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "control/route/messages.h"
#include "dataplane/egress/next_hops.h"

namespace sallyport::route {

enum class Effect : uint8_t {
    none,     // the snapshot stays right
    changed,  // build a new one
    resync,   // dump everything again
};

class RouteMirror {
  public:
    // `port_ifindexes`: by PortId.
    explicit RouteMirror(std::vector<uint32_t> port_ifindexes)
        : ports_(std::move(port_ifindexes)) {}

    void clear();
    // One message of a dump.
    void load(const Message& message);
    // One message of the running kernel.
    [[nodiscard]] Effect apply(const Message& message);

    [[nodiscard]] std::unique_ptr<const NextHops> build(
        std::vector<EgressFilter> filters_by_port) const;

  private:
    struct RouteKey {
        uint8_t family;
        std::array<uint8_t, 16> address;
        uint8_t bits;
        uint32_t metric;  // behind the prefix: the best route of a prefix comes first
        uint8_t tos;
        bool source_specific;
        friend auto operator<=>(const RouteKey&, const RouteKey&) = default;
    };
    struct StoredRoute {
        Route route;
        // How many more the kernel has under this key, which it tells apart by more than we keep.
        uint32_t duplicates = 0;
    };
    struct NeighbourKey {
        uint32_t ifindex;
        uint8_t family;
        std::array<uint8_t, 16> address;
        friend auto operator<=>(const NeighbourKey&, const NeighbourKey&) = default;
    };
    using Routes = std::map<RouteKey, StoredRoute>;

    static RouteKey key_of(const Route& route);
    static NeighbourKey key_of(uint32_t ifindex, const IpAddress& address);
    [[nodiscard]] bool is_port(uint32_t ifindex) const;
    [[nodiscard]] Routes* table(uint32_t number);
    [[nodiscard]] bool has_policy_routing(Family family) const;
    void load(const RouteChange& change);
    Effect apply(const LinkChange& change);
    Effect apply(const RouteChange& change);
    Effect apply(const NeighbourChange& change);

    std::vector<uint32_t> ports_;
    std::map<uint32_t, Link> links_;  // ports only
    Routes local_;
    Routes main_;
    // On ports only, and usable.
    std::map<NeighbourKey, Neighbour> neighbours_;
    std::vector<Rule> rules_;
};

}  // namespace sallyport::route
