// SPDX-License-Identifier: Apache-2.0
#include "control/route/messages.h"

#include <linux/fib_rules.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#include <algorithm>
#include <cstring>

namespace sallyport::route {

namespace {

using Bytes = std::span<const std::byte>;

using Error = std::unexpected<std::string>;

template <typename T>
bool read(Bytes bytes, T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (bytes.size() < sizeof value) return false;
    std::memcpy(&value, bytes.data(), sizeof value);
    return true;
}

size_t aligned(size_t bytes) {
    return (bytes + 3) & ~size_t{3};
}

// The attributes of one container, by type. Of two with the same type the last counts, as in the
// kernel.
class Attributes {
  public:
    static constexpr size_t kTypes = 64;

    // False: an attribute does not fit.
    [[nodiscard]] bool parse(Bytes bytes) {
        while (!bytes.empty()) {
            rtattr header{};
            if (!read(bytes, header)) return false;
            if (header.rta_len < sizeof header || header.rta_len > bytes.size()) return false;
            const size_t type = header.rta_type & 0x3fffu;  // without the NLA_F_ flags
            if (type < kTypes) {
                values_[type] = bytes.subspan(sizeof header, header.rta_len - sizeof header);
                present_[type] = true;
            } else {
                beyond_ = true;
            }
            bytes = bytes.subspan(std::min(aligned(header.rta_len), bytes.size()));
        }
        return true;
    }

    [[nodiscard]] bool has(size_t type) const { return present_[type]; }
    [[nodiscard]] Bytes value(size_t type) const { return values_[type]; }
    // Leaves `number` alone when absent. False: wrong size.
    [[nodiscard]] bool number(size_t type, uint32_t& number) const {
        if (!present_[type]) return true;
        return values_[type].size() == sizeof number && read(values_[type], number);
    }
    [[nodiscard]] bool only(std::initializer_list<size_t> types) const {
        if (beyond_) return false;
        for (size_t type = 0; type < kTypes; ++type) {
            if (present_[type] && std::ranges::find(types, type) == types.end()) return false;
        }
        return true;
    }

  private:
    std::array<Bytes, kTypes> values_{};
    std::array<bool, kTypes> present_{};
    bool beyond_ = false;
};

std::optional<Family> family_of(uint8_t number) {
    if (number == AF_INET) return Family::v4;
    if (number == AF_INET6) return Family::v6;
    return std::nullopt;
}

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
    return attributes.parse(payload.subspan(std::min(aligned(sizeof header), payload.size())));
}

std::expected<Message, std::string> parse_link(bool removed, Bytes payload) {
    ifinfomsg header{};
    Attributes attributes;
    if (!split(payload, header, attributes)) return Error("a link message is cut off");
    if (header.ifi_family != AF_UNSPEC || header.ifi_index <= 0) return Ignored{};
    LinkChange change{.removed = removed};
    change.link.ifindex = static_cast<uint32_t>(header.ifi_index);
    change.link.running = (header.ifi_flags & (IFF_UP | IFF_RUNNING)) == (IFF_UP | IFF_RUNNING);
    if (!attributes.number(IFLA_MTU, change.link.mtu)) return Error("a link's MTU is malformed");
    // Tunnels have addresses of other sizes; they are no ports.
    read_mac(attributes.value(IFLA_ADDRESS), change.link.mac);
    return change;
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
    if (!attributes.number(FRA_TABLE, table) || !attributes.number(FRA_PRIORITY, priority) ||
        !attributes.number(FRA_SUPPRESS_PREFIXLEN, suppress_prefix) ||
        !attributes.number(FRA_SUPPRESS_IFGROUP, suppress_group)) {
        return Error("a rule is malformed");
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
        hops = hops.subspan(std::min(aligned(header.rtnh_len), hops.size()));
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
    if (!attributes.number(RTA_TABLE, route.table) ||
        !attributes.number(RTA_PRIORITY, route.metric) ||
        !attributes.number(RTA_OIF, route.ifindex)) {
        return Error("a route is malformed");
    }
    if (attributes.has(RTA_METRICS)) {
        Attributes metrics;
        if (!metrics.parse(attributes.value(RTA_METRICS)) || !metrics.number(RTAX_MTU, route.mtu)) {
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

std::expected<Message, std::string> parse_message(const nlmsghdr& header, Bytes payload) {
    switch (header.nlmsg_type) {
        case RTM_NEWLINK:
        case RTM_DELLINK:
            return parse_link(header.nlmsg_type == RTM_DELLINK, payload);
        case RTM_NEWADDR:
        case RTM_DELADDR:
            return parse_address(header.nlmsg_type == RTM_DELADDR, payload);
        case RTM_NEWROUTE:
        case RTM_DELROUTE:
            return parse_route(header.nlmsg_type == RTM_DELROUTE,
                               (header.nlmsg_flags & NLM_F_REPLACE) != 0, payload);
        case RTM_NEWNEIGH:
        case RTM_DELNEIGH:
            return parse_neighbour(header.nlmsg_type == RTM_DELNEIGH, payload);
        case RTM_NEWRULE:
        case RTM_DELRULE:
            return parse_rule(header.nlmsg_type == RTM_DELRULE, payload);
        default:
            return Ignored{};
    }
}

}  // namespace

std::expected<Datagram, std::string> parse_datagram(std::span<const std::byte> bytes) {
    Datagram datagram;
    while (!bytes.empty()) {
        nlmsghdr header{};
        if (!read(bytes, header) || header.nlmsg_len < sizeof header ||
            header.nlmsg_len > bytes.size()) {
            return Error("a netlink message is cut off");
        }
        const Bytes payload = bytes.subspan(sizeof header, header.nlmsg_len - sizeof header);
        datagram.interrupted |= (header.nlmsg_flags & NLM_F_DUMP_INTR) != 0;
        if (header.nlmsg_type == NLMSG_DONE || header.nlmsg_type == NLMSG_ERROR) {
            // Both begin with a negative errno; NLMSG_DONE of old kernels comes without.
            int error = 0;
            if (!read(payload, error) && header.nlmsg_type == NLMSG_ERROR) {
                return Error("a netlink error is cut off");
            }
            if (error < 0) datagram.error = error == INT32_MIN ? INT32_MAX : -error;
            datagram.done |= header.nlmsg_type == NLMSG_DONE;
        } else {
            auto message = parse_message(header, payload);
            if (!message) return Error(message.error());
            datagram.messages.push_back(std::move(*message));
        }
        bytes = bytes.subspan(std::min(aligned(header.nlmsg_len), bytes.size()));
    }
    return datagram;
}

}  // namespace sallyport::route
