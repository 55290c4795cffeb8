// SPDX-License-Identifier: Apache-2.0
#include "control/host_traffic/messages.h"

#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <span>

namespace sallyport::host_traffic {

namespace {

using netlink::Attributes;
using netlink::Bytes;
using netlink::bytes_of;
using netlink::family_of;
using netlink::number_of;
using netlink::RequestBuffer;
using netlink::Writer;

bool has_no_source(const IpAddress& source) {
    return source == IpAddress{.family = source.family};
}

bool read_address(Bytes value, IpAddress& out) {
    if (value.empty()) return true;
    if (value.size() != out.bit_count() / 8) return false;
    std::ranges::copy(value, std::as_writable_bytes(std::span(out.bytes)).begin());
    return true;
}

RequestBuffer encode_rule(uint16_t type, unsigned flags, const IpAddress& source, uint32_t table,
                          uint32_t sequence) {
    Writer writer(type, NLM_F_ACK | flags, sequence);
    fib_rule_hdr body{};
    body.family = number_of(source.family);
    body.action = FR_ACT_TO_TBL;
    // The kernel does not compare "no source" with a prefix in IPv6: there the routes are for it.
    const bool by_source = source.family == Family::v4 || !has_no_source(source);
    if (by_source) body.src_len = static_cast<uint8_t>(source.bit_count());
    writer.put(body);
    writer.name(FRA_IIFNAME, "lo");
    if (by_source) writer.bytes(FRA_SRC, bytes_of(source));
    writer.attribute(FRA_PRIORITY, kRulePriority);
    writer.attribute(FRA_TABLE, table);
    writer.attribute(FRA_PROTOCOL, netlink::kMadeByUs);
    return writer.take();
}

uint8_t type_of(Leads leads) {
    switch (leads) {
        case Leads::as_without_us:
            return RTN_THROW;
        case Leads::into_tunnel:
            return RTN_UNICAST;
        case Leads::refused:
            return RTN_PROHIBIT;
    }
    return RTN_UNSPEC;
}

RequestBuffer encode_route(uint16_t type, unsigned flags, const WayName& name, const Way& way,
                           uint32_t table, uint32_t ifindex, uint32_t sequence) {
    Writer writer(type, NLM_F_ACK | flags, sequence);
    const bool v6 = name.to.address.family == Family::v6;
    const bool only_without_source = v6 && has_no_source(name.source);
    rtmsg body{};
    body.rtm_family = number_of(name.to.address.family);
    body.rtm_dst_len = name.to.bits;
    body.rtm_src_len = only_without_source ? 128 : 0;
    body.rtm_protocol = netlink::kMadeByUs;
    const bool into_tunnel = way.leads == Leads::into_tunnel;
    body.rtm_scope = into_tunnel && !v6 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
    body.rtm_type = type_of(way.leads);
    writer.put(body);
    writer.attribute(RTA_TABLE, table);
    writer.bytes(RTA_DST, bytes_of(name.to.address));
    if (only_without_source) writer.bytes(RTA_SRC, bytes_of(name.source));
    if (into_tunnel) {
        writer.attribute(RTA_OIF, ifindex);
        writer.bytes(RTA_PREFSRC, bytes_of(way.from));
    }
    return writer.take();
}

template <typename Header>
RequestBuffer encode_dump(uint16_t type, const Header& header, uint32_t sequence) {
    Writer writer(type, NLM_F_DUMP, sequence);
    writer.put(header);
    return writer.take();
}

}  // namespace

RequestBuffer encode_new_rule(const IpAddress& source, uint32_t table, uint32_t sequence) {
    return encode_rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, source, table, sequence);
}

RequestBuffer encode_delete_rule(const IpAddress& source, uint32_t table, uint32_t sequence) {
    return encode_rule(RTM_DELRULE, 0, source, table, sequence);
}

RequestBuffer encode_new_route(const WayName& name, const Way& way, uint32_t table,
                               uint32_t ifindex, uint32_t sequence) {
    return encode_route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, name, way, table, ifindex,
                        sequence);
}

RequestBuffer encode_delete_route(const WayName& name, const Way& way, uint32_t table,
                                  uint32_t ifindex, uint32_t sequence) {
    return encode_route(RTM_DELROUTE, 0, name, way, table, ifindex, sequence);
}

RequestBuffer encode_dump_rules(Family family, uint32_t sequence) {
    fib_rule_hdr header{};
    header.family = number_of(family);
    return encode_dump(RTM_GETRULE, header, sequence);
}

RequestBuffer encode_dump_routes(Family family, uint32_t sequence) {
    rtmsg header{};
    header.rtm_family = number_of(family);
    return encode_dump(RTM_GETROUTE, header, sequence);
}

std::expected<std::optional<RuleInfo>, std::string> decode_rule(Bytes payload) {
    const auto header = netlink::peek<fib_rule_hdr>(payload);
    if (!header) return std::unexpected("a rule is shorter than its header");
    const auto family = family_of(header->family);
    if (!family) return std::nullopt;
    RuleInfo rule{.source = {.family = *family}, .table = header->table};
    Attributes attributes;
    if (!attributes.parse(netlink::behind<fib_rule_hdr>(payload)) ||
        !attributes.exact(FRA_TABLE, rule.table) ||
        !attributes.exact(FRA_PRIORITY, rule.priority) ||
        !read_address(attributes.value(FRA_SRC), rule.source)) {
        return std::unexpected("a rule is malformed");
    }
    return rule;
}

std::expected<std::optional<RouteInfo>, std::string> decode_route(Bytes payload) {
    const auto header = netlink::peek<rtmsg>(payload);
    if (!header) return std::unexpected("a route is shorter than its header");
    const auto family = family_of(header->rtm_family);
    if (!family || (header->rtm_flags & RTM_F_CLONED) != 0) return std::nullopt;
    RouteInfo route{.name = {.source = {.family = *family},
                             .to = {.address = {.family = *family}, .bits = header->rtm_dst_len}},
                    .way = {.leads = Leads::into_tunnel, .from = {}},
                    .table = header->rtm_table};
    for (const Leads leads : {Leads::as_without_us, Leads::refused}) {
        if (header->rtm_type == type_of(leads)) route.way.leads = leads;
    }
    Attributes attributes;
    if (!attributes.parse(netlink::behind<rtmsg>(payload)) ||
        header->rtm_dst_len > route.name.to.address.bit_count() ||
        !attributes.exact(RTA_TABLE, route.table) ||
        !read_address(attributes.value(RTA_DST), route.name.to.address) ||
        !read_address(attributes.value(RTA_SRC), route.name.source)) {
        return std::unexpected("a route is malformed");
    }
    return route;
}

}  // namespace sallyport::host_traffic
