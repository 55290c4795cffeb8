// SPDX-License-Identifier: Apache-2.0
#include "control/route/mirror.h"

#include <linux/rtnetlink.h>

#include <algorithm>
#include <tuple>

namespace sallyport::route {

namespace {

// Never forwarded by a unicast route, whatever the tables say.
std::vector<IpPrefix> never_forwarded() {
    std::vector<IpPrefix> prefixes;
    for (const char* text : {"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128",
                             "::1/128", "fe80::/10", "ff00::/8"}) {
        prefixes.push_back(parse_ip_prefix(text).value());
    }
    return prefixes;
}

// The snapshot under construction.
class Builder {
  public:
    void leave_to_kernel(const IpPrefix& prefix) {
        entries_.push_back({.prefix = prefix, .value = NextHops::kLeaveToKernel});
    }
    void route(const IpPrefix& prefix, uint32_t hop) {
        entries_.push_back({.prefix = prefix, .value = hop});
    }
    // Each different next hop once. `neighbour` is null while it is not resolved.
    uint32_t hop(PortId port, const Link& link, uint32_t mtu, const IpAddress* address,
                 const Neighbour* neighbour) {
        const uint32_t ip_bytes = std::min({mtu == 0 ? link.mtu : mtu, link.mtu, 65535u});
        const Key key{to_index(port), ip_bytes, address != nullptr,
                      address != nullptr ? to_index_family(*address) : uint8_t{0},
                      address != nullptr ? address->bytes : std::array<uint8_t, 16>{}};
        const auto [at, added] = index_.try_emplace(key, static_cast<uint32_t>(hops_.size()));
        if (added) {
            const bool resolved = neighbour != nullptr && neighbour->usable && link.running;
            hops_.push_back(
                {.port = port,
                 .source_mac = link.mac,
                 .destination_mac = resolved ? neighbour->mac : std::array<uint8_t, 6>{},
                 .mtu = static_cast<uint16_t>(ip_bytes),
                 .resolved = resolved});
            on_link_.push_back(address == nullptr);
        }
        return at->second;
    }

    [[nodiscard]] const std::vector<PrefixTable::Entry>& entries() const { return entries_; }
    [[nodiscard]] const std::vector<NextHop>& hops() const { return hops_; }
    // A hop that stands for a link, not for a neighbour.
    [[nodiscard]] bool is_on_link(uint32_t hop) const {
        return hop < on_link_.size() && on_link_[hop];
    }

  private:
    static uint8_t to_index_family(const IpAddress& address) {
        return address.family == Family::v4 ? 4 : 6;
    }
    using Key = std::tuple<uint16_t, uint32_t, bool, uint8_t, std::array<uint8_t, 16>>;

    std::vector<PrefixTable::Entry> entries_;
    std::vector<NextHop> hops_;
    std::vector<bool> on_link_;
    std::map<Key, uint32_t> index_;
};

}  // namespace

RouteMirror::RouteKey RouteMirror::key_of(const Route& route) {
    return {.family = static_cast<uint8_t>(route.destination.address.family),
            .address = route.destination.address.bytes,
            .bits = route.destination.bits,
            .metric = route.metric,
            .tos = route.tos,
            .source_specific = route.source_specific};
}

RouteMirror::NeighbourKey RouteMirror::key_of(uint32_t ifindex, const IpAddress& address) {
    return {.ifindex = ifindex,
            .family = static_cast<uint8_t>(address.family),
            .address = address.bytes};
}

bool RouteMirror::is_port(uint32_t ifindex) const {
    return std::ranges::find(ports_, ifindex) != ports_.end();
}

RouteMirror::Routes* RouteMirror::table(uint32_t number) {
    if (number == RT_TABLE_LOCAL) return &local_;
    if (number == RT_TABLE_MAIN) return &main_;
    return nullptr;
}

// Also true when an initial rule is gone: then local or main is not consulted as we assume.
bool RouteMirror::has_policy_routing(Family family) const {
    bool local = false;
    bool main = false;
    for (const Rule& rule : rules_) {
        if (rule.family != family) continue;
        if (!rule.ordinary) return true;
        local = local || rule.table == RT_TABLE_LOCAL;
        main = main || rule.table == RT_TABLE_MAIN;
    }
    return !local || !main;
}

void RouteMirror::clear() {
    links_.clear();
    local_.clear();
    main_.clear();
    neighbours_.clear();
    rules_.clear();
}

void RouteMirror::load(const Message& message) {
    if (const auto* route = std::get_if<RouteChange>(&message)) {
        load(*route);
    } else if (const auto* rule = std::get_if<RuleChange>(&message)) {
        rules_.push_back(rule->rule);
    } else if (const auto* link = std::get_if<LinkChange>(&message)) {
        static_cast<void>(apply(*link));
    } else if (const auto* neighbour = std::get_if<NeighbourChange>(&message)) {
        static_cast<void>(apply(*neighbour));
    }
}

// A dump lists the routes of one key in the order the kernel looks at them.
void RouteMirror::load(const RouteChange& change) {
    Routes* routes = table(change.route.table);
    if (routes == nullptr) return;
    const auto [at, added] =
        routes->try_emplace(key_of(change.route), StoredRoute{.route = change.route});
    if (!added) ++at->second.duplicates;
}

Effect RouteMirror::apply(const Message& message) {
    struct Visitor {
        RouteMirror& mirror;
        Effect operator()(const Ignored&) const { return Effect::none; }
        Effect operator()(const LinkChange& change) const { return mirror.apply(change); }
        Effect operator()(const RouteChange& change) const { return mirror.apply(change); }
        Effect operator()(const NeighbourChange& change) const { return mirror.apply(change); }
        Effect operator()(const AddressChange& change) const {
            return change.removed ? Effect::resync : Effect::none;
        }
        Effect operator()(const RuleChange&) const { return Effect::resync; }
    };
    return std::visit(Visitor{*this}, message);
}

Effect RouteMirror::apply(const LinkChange& change) {
    if (!is_port(change.link.ifindex)) return Effect::none;
    const auto at = links_.find(change.link.ifindex);
    if (change.removed) {
        if (at == links_.end()) return Effect::none;
        links_.erase(at);
        return Effect::resync;
    }
    if (at == links_.end()) {
        links_.emplace(change.link.ifindex, change.link);
        return Effect::changed;
    }
    if (at->second == change.link) return Effect::none;
    const bool running_changed = at->second.running != change.link.running;
    at->second = change.link;
    return running_changed ? Effect::resync : Effect::changed;
}

Effect RouteMirror::apply(const RouteChange& change) {
    Routes* routes = table(change.route.table);
    if (routes == nullptr) return Effect::none;
    const auto at = routes->find(key_of(change.route));
    if (at == routes->end()) {
        if (change.removed) return Effect::none;
        routes->emplace(key_of(change.route), StoredRoute{.route = change.route});
        return Effect::changed;
    }
    StoredRoute& stored = at->second;
    if (change.removed) {
        // IPv6 announces the loss of one of several next hops like that of a route.
        if (stored.duplicates != 0 || stored.route.hop_count != change.route.hop_count) {
            return Effect::resync;
        }
        routes->erase(at);
        return Effect::changed;
    }
    if (change.replaces) {
        if (stored.duplicates != 0) return Effect::resync;
        const bool same = stored.route == change.route;
        stored.route = change.route;
        return same ? Effect::none : Effect::changed;
    }
    // A second one, in front or behind: only a dump shows the order. The same again is most often
    // a message that was on its way while we dumped.
    if (!(stored.route == change.route)) return Effect::resync;
    ++stored.duplicates;
    return Effect::none;
}

Effect RouteMirror::apply(const NeighbourChange& change) {
    const Neighbour& now = change.neighbour;
    if (!is_port(now.ifindex)) return Effect::none;
    const NeighbourKey key = key_of(now.ifindex, now.address);
    const auto at = neighbours_.find(key);
    if (change.removed || !now.usable) {
        if (at == neighbours_.end()) return Effect::none;
        neighbours_.erase(at);
        return Effect::changed;
    }
    const bool same = at != neighbours_.end() && at->second.mac == now.mac;
    neighbours_[key] = now;
    return same ? Effect::none : Effect::changed;
}

std::unique_ptr<const NextHops> RouteMirror::build(
    std::vector<EgressFilter> filters_by_port) const {
    Builder builder;
    const auto port_of = [this](uint32_t ifindex) -> std::optional<PortId> {
        const auto at = std::ranges::find(ports_, ifindex);
        if (at == ports_.end()) return std::nullopt;
        return PortId{static_cast<uint16_t>(at - ports_.begin())};
    };
    const auto neighbour_of = [this](uint32_t ifindex, const IpAddress& address) {
        const auto at = neighbours_.find(key_of(ifindex, address));
        return at == neighbours_.end() ? nullptr : &at->second;
    };

    // What comes first counts: no route below can take these back.
    std::vector<PrefixTable::Entry> local;
    for (const IpPrefix& prefix : never_forwarded()) {
        local.push_back({.prefix = prefix, .value = NextHops::kLeaveToKernel});
    }
    for (const auto& [key, stored] : local_) {
        local.push_back({.prefix = stored.route.destination, .value = NextHops::kLeaveToKernel});
    }
    for (const PrefixTable::Entry& each : local) builder.leave_to_kernel(each.prefix);
    const PrefixTable local_table(local);

    const std::array policy_routing = {has_policy_routing(Family::v4),
                                       has_policy_routing(Family::v6)};
    for (auto at = main_.begin(); at != main_.end();) {
        const Route& best = at->second.route;  // lowest metric
        const IpPrefix& prefix = best.destination;
        bool depends_on_more = false;
        auto end = at;
        for (; end != main_.end() && end->second.route.destination == prefix; ++end) {
            depends_on_more |= end->first.tos != 0 || end->first.source_specific;
        }
        at = end;
        if (policy_routing[static_cast<size_t>(prefix.address.family)]) continue;

        const auto port = port_of(best.ifindex);
        const auto link = links_.find(best.ifindex);
        const auto* first = reinterpret_cast<const std::byte*>(prefix.address.bytes.data());
        // The local table is asked first, so what it covers is not ours however long our prefix.
        const bool covered =
            local_table.lookup(prefix.address.family, first) != PrefixTable::kMiss &&
            std::ranges::any_of(local, [&prefix](const PrefixTable::Entry& each) {
                return each.prefix.contains(prefix);
            });
        if (depends_on_more || !best.plain || !port || link == links_.end() || covered) {
            builder.leave_to_kernel(prefix);
        } else if (best.gateway) {
            builder.route(prefix, builder.hop(*port, link->second, best.mtu, &*best.gateway,
                                              neighbour_of(best.ifindex, *best.gateway)));
        } else {
            builder.route(prefix, builder.hop(*port, link->second, best.mtu, nullptr, nullptr));
        }
    }

    // Neighbours whose own route is on the link they are known on.
    const PrefixTable routes(builder.entries());
    const std::vector<NextHop> link_hops = builder.hops();
    for (const auto& [key, neighbour] : neighbours_) {
        const IpAddress& address = neighbour.address;
        const auto* bytes = reinterpret_cast<const std::byte*>(address.bytes.data());
        const uint32_t hop = routes.lookup(address.family, bytes);
        const auto port = port_of(neighbour.ifindex);
        const auto link = links_.find(neighbour.ifindex);
        if (hop >= link_hops.size() || !builder.is_on_link(hop) || link == links_.end() ||
            link_hops[hop].port != *port) {
            continue;
        }
        const IpPrefix host{.address = address, .bits = static_cast<uint8_t>(address.bit_count())};
        const uint32_t resolved =
            builder.hop(*port, link->second, link_hops[hop].mtu, &address, &neighbour);
        // A host route on the link is in the table already and would win: replace its hop.
        builder.route(host, resolved);
    }

    // Later entries of a prefix lose, but a neighbour knows more than its own host route.
    std::vector<PrefixTable::Entry> entries = builder.entries();
    std::ranges::stable_sort(entries, [&builder](const auto& a, const auto& b) {
        return builder.is_on_link(a.value) < builder.is_on_link(b.value);
    });
    filters_by_port.resize(ports_.size());
    return std::make_unique<const NextHops>(entries, builder.hops(), std::move(filters_by_port));
}

}  // namespace sallyport::route
