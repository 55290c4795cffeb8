// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rules and routes of host_traffic.h as rtnetlink messages. Pure functions.

#include <cstdint>
#include <expected>
#include <optional>
#include <string>

#include "control/host_traffic/plan.h"
#include "control/netlink/message.h"

namespace sallyport::host_traffic {

// Before an IKE daemon's own (strongSwan: 220) and the main table's (32766), behind the local one.
inline constexpr uint32_t kRulePriority = 210;
// Tables of ours: this one for packets without a source, those behind it for one source each. "SP"
// in the upper half, far from what people and daemons number.
inline constexpr uint32_t kTableFirst = 0x53500000;
inline constexpr uint32_t kTableLast = 0x5350ffff;

constexpr bool is_table_of_ours(uint32_t table) {
    return table >= kTableFirst && table <= kTableLast;
}

// Packets of this host from `source` (all zero: without a source) look into `table` first.
netlink::RequestBuffer encode_new_rule(const IpAddress& source, uint32_t table, uint32_t sequence);
netlink::RequestBuffer encode_delete_rule(const IpAddress& source, uint32_t table,
                                          uint32_t sequence);
// In place of what the table has for the destination.
netlink::RequestBuffer encode_new_route(const WayName& name, const Way& way, uint32_t table,
                                        uint32_t ifindex, uint32_t sequence);
netlink::RequestBuffer encode_delete_route(const WayName& name, const Way& way, uint32_t table,
                                           uint32_t ifindex, uint32_t sequence);

// A rule of policy routing, as far as ours can be told from others by it.
struct RuleInfo {
    IpAddress source;  // all zero: none, or that one
    uint32_t priority = 0;
    uint32_t table = 0;
};
// Payload of RTM_NEWRULE and RTM_DELRULE. nullopt: of a family that is none of ours.
std::expected<std::optional<RuleInfo>, std::string> decode_rule(netlink::Bytes payload);
netlink::RequestBuffer encode_dump_rules(Family family, uint32_t sequence);

// A route in whatever table; `way.from` is not read. What leads elsewhere counts as into_tunnel.
struct RouteInfo {
    WayName name;  // `source` of a route that is for one source only; else all zero
    Way way;
    uint32_t table = 0;
};
// Payload of RTM_NEWROUTE and RTM_DELROUTE. nullopt: of a family that is none of ours.
std::expected<std::optional<RouteInfo>, std::string> decode_route(netlink::Bytes payload);
netlink::RequestBuffer encode_dump_routes(Family family, uint32_t sequence);

}  // namespace sallyport::host_traffic
