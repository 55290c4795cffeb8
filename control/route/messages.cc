// SPDX-License-Identifier: Apache-2.0
#include "control/route/messages.h"

#include <linux/fib_rules.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#include <algorithm>
#include <cstring>

#include "control/netlink/link.h"

namespace sallyport::route {

namespace {

using netlink::align4;
using netlink::Attributes;
using netlink::Bytes;
using netlink::family_of;
using netlink::read;

using Error = std::unexpected<std::string>;

bool read_address(Family family, Bytes bytes, IpAddress& address) {
    address = IpAddress{.family = family};
    if (bytes.size() != address.bit_count() / 8) return false;
    std::memcpy(address.bytes.data(), bytes.data(), bytes.size());
    return true;
}

bool read_mac(Bytes bytes, std::array<uint8_t, 6>& mac) {
    if (bytes.size() != mac.size()) return false;
    std::memcpy(mac.data(), bytes.data(), mac.size());
    return true;
}

IpPrefix masked(const IpAddress& address, uint8_t bits) {
    IpPrefix prefix{.address = address, .bits = bits};
    for (unsigned bit = bits; bit < address.bit_count(); ++bit) {
        prefix.address.bytes[bit / 8] &= static_cast<uint8_t>(~(0x80u >> (bit % 8)));
    }
    return prefix;
}

// The fixed header of a message and the attributes behind it.
template <typename Header>
bool split(Bytes payload, Header& header, Attributes& attributes) {
    if (!read(payload, header)) return false;
    return attributes.parse(netlink::behind<Header>(payload));
}

std::expected<Message, std::string> parse_link(bool removed, Bytes payload) {
    const auto link = netlink::decode_link(payload);
    if (!link) return Error(link.error());
    if (link->family != AF_UNSPEC) return Ignored{};
    return LinkChange{.removed = removed,
                      .link = {.ifindex = link->ifindex,
                               .running = link->running,
                               .mtu = link->mtu,
                               .mac = link->mac}};
}

std::expected<Message, std::string> parse_address(bool removed, Bytes payload) {
    ifaddrmsg header{};
    Attributes attributes;
    if (!split(payload, header, attributes)) return Error("an address message is cut off");
    return AddressChange{.removed = removed, .ifindex = header.ifa_index};
}

std::expected<Message, std::string> parse_neighbour(bool removed, Bytes payload) {
    ndmsg header{};
    Attributes attributes;
    if (!split(payload, header, attributes)) return Error("a neighbour message is cut off");
    const auto family = family_of(header.ndm_family);
    if (!family || (header.ndm_flags & NTF_PROXY) != 0 || !attributes.has(NDA_DST)) {
        return Ignored{};
    }
    constexpr uint16_t kUsable =
        NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT | NUD_NOARP;
    NeighbourChange change{.removed = removed};
    Neighbour& neighbour = change.neighbour;
    neighbour.ifindex = static_cast<uint32_t>(header.ndm_ifindex);
    if (!read_address(*family, attributes.value(NDA_DST), neighbour.address)) {
        return Error("a neighbour's address is malformed");
    }
    neighbour.usable =
        (header.ndm_state & kUsable) != 0 && read_mac(attributes.value(NDA_LLADDR), neighbour.mac);
    neighbour.stale = neighbour.usable && (header.ndm_state & NUD_STALE) != 0;
    neighbour.fixed = (header.ndm_state & (NUD_PERMANENT | NUD_NOARP)) != 0;
    uint32_t extended_flags = 0;
    uint8_t protocol = RTPROT_UNSPEC;
    if (!attributes.exact(NDA_FLAGS_EXT, extended_flags) ||
        !attributes.exact(NDA_PROTOCOL, protocol)) {
        return Error("a neighbour is malformed");
    }
    neighbour.foreign = (header.ndm_flags & NTF_EXT_LEARNED) != 0 || extended_flags != 0 ||
                        (protocol != RTPROT_UNSPEC && protocol != RTPROT_KERNEL);
    return change;
}

std::expected<Message, std::string> parse_rule(bool removed, Bytes payload) {
    fib_rule_hdr header{};
    Attributes attributes;
    if (!split(payload, header, attributes)) return Error("a rule message is cut off");
    const auto family = family_of(header.family);
    if (!family) return Ignored{};
    uint32_t table = header.table;
    uint32_t priority = 0;
    uint32_t suppress_prefix = UINT32_MAX;
    uint32_t suppress_group = UINT32_MAX;
    uint8_t made_by = 0;
    if (!attributes.exact(FRA_PROTOCOL, made_by)) return Error("a rule is malformed");
    // Rules of ours lead the host's own packets, or close a port to what comes in there.
    if (made_by == netlink::kMadeByUs) return Ignored{};
    if (!attributes.exact(FRA_TABLE, table) || !attributes.exact(FRA_PRIORITY, priority) ||
        !attributes.exact(FRA_SUPPRESS_PREFIXLEN, suppress_prefix) ||
        !attributes.exact(FRA_SUPPRESS_IFGROUP, suppress_group)) {
        return Error("a rule is malformed");
    }
    // Nothing that comes in by a port, and nothing that workers send, comes in by `lo`.
    if (netlink::text_of(attributes.value(FRA_IIFNAME)) == "lo" &&
        (header.flags & FIB_RULE_INVERT) == 0) {
        return Ignored{};
    }
    const bool initial = (table == RT_TABLE_LOCAL && priority == 0) ||
                         (table == RT_TABLE_MAIN && priority == 32766) ||
                         (table == RT_TABLE_DEFAULT && priority == 32767);
    const bool selects_all = header.src_len == 0 && header.dst_len == 0 && header.tos == 0 &&
                             (header.flags & FIB_RULE_INVERT) == 0 &&
                             attributes.only({FRA_TABLE, FRA_PRIORITY, FRA_SUPPRESS_PREFIXLEN,
                                              FRA_SUPPRESS_IFGROUP, FRA_PROTOCOL, FRA_PAD});
    return RuleChange{
        .removed = removed,
        .rule = {.family = *family,
                 .ordinary = initial && selects_all && header.action == FR_ACT_TO_TBL &&
                             suppress_prefix == UINT32_MAX && suppress_group == UINT32_MAX,
                 .table = table}};
}

// Where a next hop leads: RTA_GATEWAY has the family of the route, RTA_VIA names its own.
bool read_gateway(Family family, const Attributes& attributes, std::optional<IpAddress>& gateway) {
    if (attributes.has(RTA_GATEWAY)) {
        return read_address(family, attributes.value(RTA_GATEWAY), gateway.emplace());
    }
    if (attributes.has(RTA_VIA)) {
        const Bytes via = attributes.value(RTA_VIA);
        uint16_t via_family = 0;
        if (!read(via, via_family) || via_family > UINT8_MAX) return false;
        const auto known = family_of(static_cast<uint8_t>(via_family));
        return known && read_address(*known, via.subspan(sizeof via_family), gateway.emplace());
    }
    return true;
}

constexpr unsigned kHopUnusable = RTNH_F_DEAD | RTNH_F_LINKDOWN | RTNH_F_UNRESOLVED;

// The first next hop of RTA_MULTIPATH into `route`, and how many there are.
bool read_multipath(Family family, Bytes hops, Route& route) {
    route.hop_count = 0;
    while (!hops.empty()) {
        rtnexthop header{};
        if (!read(hops, header) || header.rtnh_len < sizeof header ||
            header.rtnh_len > hops.size()) {
            return false;
        }
        Attributes attributes;
        if (!attributes.parse(hops.subspan(sizeof header, header.rtnh_len - sizeof header))) {
            return false;
        }
        if (route.hop_count++ == 0) {
            route.ifindex = static_cast<uint32_t>(header.rtnh_ifindex);
            if (!read_gateway(family, attributes, route.gateway)) return false;
            route.plain = route.plain && (header.rtnh_flags & kHopUnusable) == 0 &&
                          !attributes.has(RTA_ENCAP) && !attributes.has(RTA_NEWDST);
        }
        hops = hops.subspan(std::min(align4(header.rtnh_len), hops.size()));
    }
    return route.hop_count != 0;
}

std::expected<Message, std::string> parse_route(bool removed, bool replaces, Bytes payload) {
    rtmsg header{};
    Attributes attributes;
    if (!split(payload, header, attributes)) return Error("a route message is cut off");
    const auto family = family_of(header.rtm_family);
    if (!family || (header.rtm_flags & RTM_F_CLONED) != 0) return Ignored{};

    RouteChange change{.removed = removed, .replaces = replaces};
    Route& route = change.route;
    IpAddress destination{.family = *family};
    if (header.rtm_dst_len > destination.bit_count() ||
        (attributes.has(RTA_DST) ? !read_address(*family, attributes.value(RTA_DST), destination)
                                 : header.rtm_dst_len != 0)) {
        return Error("a route's destination is malformed");
    }
    route.destination = masked(destination, header.rtm_dst_len);
    route.table = header.rtm_table;
    route.tos = header.rtm_tos;
    route.source_specific = header.rtm_src_len != 0;
    if (!attributes.exact(RTA_TABLE, route.table) ||
        !attributes.exact(RTA_PRIORITY, route.metric) ||
        !attributes.exact(RTA_OIF, route.ifindex)) {
        return Error("a route is malformed");
    }
    if (attributes.has(RTA_METRICS)) {
        Attributes metrics;
        if (!metrics.parse(attributes.value(RTA_METRICS)) || !metrics.exact(RTAX_MTU, route.mtu)) {
            return Error("a route's metrics are malformed");
        }
    }
    route.plain = header.rtm_type == RTN_UNICAST && (header.rtm_flags & kHopUnusable) == 0 &&
                  !attributes.has(RTA_ENCAP) && !attributes.has(RTA_NH_ID) &&
                  !attributes.has(RTA_NEWDST);
    const bool hops_read = attributes.has(RTA_MULTIPATH)
                               ? read_multipath(*family, attributes.value(RTA_MULTIPATH), route)
                               : read_gateway(*family, attributes, route.gateway);
    if (!hops_read) return Error("a route's next hops are malformed");
    return change;
}

}  // namespace

std::expected<std::optional<NeighbourName>, std::string> parse_next_hop(
    const netlink::Message& message, const IpAddress& destination) {
    rtmsg header{};
    Attributes attributes;
    if (!split(message.payload, header, attributes)) return Error("a route message is cut off");
    const auto family = family_of(header.rtm_family);
    if (message.type != RTM_NEWROUTE || family != destination.family) {
        return Error("an answer is about something else");
    }
    NeighbourName name{.address = destination};
    std::optional<IpAddress> gateway;
    if (!attributes.exact(RTA_OIF, name.ifindex) || !read_gateway(*family, attributes, gateway)) {
        return Error("a route is malformed");
    }
    if (header.rtm_type != RTN_UNICAST || name.ifindex == 0 || attributes.has(RTA_ENCAP)) {
        return std::nullopt;
    }
    if (gateway) name.address = *gateway;
    return name;
}

std::expected<Message, std::string> parse_message(const netlink::Message& message) {
    switch (message.type) {
        case RTM_NEWLINK:
        case RTM_DELLINK:
            return parse_link(message.type == RTM_DELLINK, message.payload);
        case RTM_NEWADDR:
        case RTM_DELADDR:
            return parse_address(message.type == RTM_DELADDR, message.payload);
        case RTM_NEWROUTE:
        case RTM_DELROUTE:
            return parse_route(message.type == RTM_DELROUTE, (message.flags & NLM_F_REPLACE) != 0,
                               message.payload);
        case RTM_NEWNEIGH:
        case RTM_DELNEIGH:
            return parse_neighbour(message.type == RTM_DELNEIGH, message.payload);
        case RTM_NEWRULE:
        case RTM_DELRULE:
            return parse_rule(message.type == RTM_DELRULE, message.payload);
        default:
            return Ignored{};
    }
}

}  // namespace sallyport::route
