// SPDX-License-Identifier: Apache-2.0
#include "control/host_traffic/plan.h"

#include <algorithm>
#include <utility>

namespace sallyport::host_traffic {

namespace {

IpAddress no_source(Family family) {
    return {.family = family};
}

IpPrefix host_prefix(const IpAddress& address) {
    return {.address = address, .bits = static_cast<uint8_t>(address.bit_count())};
}

bool can_be_source(const IpAddress& address) {
    const auto& b = address.bytes;
    if (address == no_source(address.family)) return false;
    if (address.family == Family::v4) {
        return b[0] != 127 && (b[0] & 0xf0) != 0xe0 && !(b[0] == 169 && b[1] == 254);
    }
    const bool loopback =
        std::all_of(b.begin(), b.end() - 1, [](uint8_t byte) { return byte == 0; });
    return !loopback && b[0] != 0xff && !(b[0] == 0xfe && (b[1] & 0xc0) == 0x80);
}

constexpr IpPrefix kAll[] = {{.address = {.family = Family::v4}},
                             {.address = {.family = Family::v6}}};

}  // namespace

Ways::Ways(Policies policies, std::span<const IpAddress> own) : policies_(std::move(policies)) {
    // An outer address is the last choice: its packets are the tunnels' own.
    for (const bool outer : {false, true}) {
        for (const IpAddress& address : own) {
            if (can_be_source(address) && policies_.near_ends.contains(address) == outer) {
                add_source(address, outer);
            }
        }
    }
    for (uint32_t i = 0; i < policies_.outbound.size(); ++i) {
        const SpdEntry& entry = policies_.outbound[i];
        const auto is_inside = [&](const Source& source) {
            return entry.source.contains(source.address);
        };
        if (std::ranges::any_of(sources_, is_inside)) positions_[entry.policy].push_back(i);
    }
    for (const IpPrefix& all : kAll) {
        choose(all);
        for (const WayName& name : names_inside(all)) set_way(name);
    }
}

void Ways::add_source(const IpAddress& address, bool outer) {
    const auto is_same = [&](const Source& source) { return source.address == address; };
    if (std::ranges::any_of(sources_, is_same)) return;
    Source source{.address = address, .outer = outer, .entries = {}, .choices = {}};
    for (uint32_t i = 0; i < policies_.outbound.size(); ++i) {
        const SpdEntry& entry = policies_.outbound[i];
        if (entry.source.contains(address)) source.entries[entry.destination].push_back(i);
    }
    for (const auto& [to, unused] : source.entries.items()) {
        source.choices[to];
        without_source(address.family)[to];
    }
    sources_.push_back(std::move(source));
}

bool Ways::is_served(const SpdEntry& entry) const {
    const size_t group = to_index(entry.policy);
    return entry.action == SpdAction::protect && group < policies_.served.size() &&
           policies_.served[group];
}

// By the entries that cover all packets from `source` to `to`, in their order.
Ways::Choice Ways::judge(const Source& source, const IpPrefix& to) const {
    bool by_worker = false;
    bool by_others = false;
    for (const uint32_t position : positions_around(source.entries, to)) {
        const SpdEntry& entry = policies_.outbound[position];
        by_worker = by_worker || is_served(entry);
        by_others = by_others || (!is_served(entry) && entry.action != SpdAction::discard);
        if (entry.takes_all()) break;
    }
    if (!by_worker) return {};
    const bool too_wide = source.outer && to.bits == 0;
    if (by_others || too_wide) return {.from = {}, .shared = true};
    return {.from = source.address};
}

Ways::Choice Ways::first_choice(const IpPrefix& to) const {
    if (to.bits == 0) return {};
    for (const Source& source : sources_) {
        const auto found = source.choices.items().find(to);
        if (found != source.choices.items().end() && found->second.from) {
            return {.from = found->second.from};
        }
    }
    return {};
}

void Ways::choose(const IpPrefix& around) {
    for (Source& source : sources_) {
        source.entries.for_each_inside(around, [&](const auto& item) {
            source.choices[item.first] = judge(source, item.first);
        });
    }
    Choices& free = without_source(around.address.family);
    std::vector<IpPrefix> destinations;
    free.for_each_inside(around, [&](const auto& item) { destinations.push_back(item.first); });
    for (const IpPrefix& to : destinations) free[to] = first_choice(to);
}

// Of all tables.
std::set<WayName> Ways::names_inside(const IpPrefix& around) {
    std::set<WayName> names;
    const auto add = [&](const IpAddress& source, const Choices& choices) {
        choices.for_each_inside(around,
                                [&](const auto& item) { names.insert({source, item.first}); });
        const auto& peers = policies_.far_ends;
        for (auto it = peers.lower_bound(around.address); it != peers.end() && around.contains(*it);
             ++it) {
            names.insert({source, host_prefix(*it)});
        }
    };
    for (const Source& source : sources_) {
        if (source.address.family == around.address.family) add(source.address, source.choices);
    }
    add(no_source(around.address.family), without_source(around.address.family));
    return names;
}

const Ways::Choices& Ways::choices_of(const IpAddress& source) {
    for (const Source& each : sources_) {
        if (each.address == source) return each.choices;
    }
    return without_source(source.family);
}

void Ways::set_way(const WayName& name) {
    const Choices& choices = choices_of(name.source);
    const IpPrefix& to = name.to;
    const auto found = choices.items().find(to);
    const bool is_there = found != choices.items().end();
    const std::optional<IpAddress> from = is_there ? found->second.from : std::nullopt;
    const bool is_peer =
        to.bits == to.address.bit_count() && policies_.far_ends.contains(to.address);
    plan_.ways.erase(name);
    plan_.left.erase(name);
    if (is_there && (found->second.shared || (is_peer && from))) plan_.left.insert(name);
    if (from && !is_peer) {
        const bool v6 = to.address.family == Family::v6;
        plan_.ways[name] = {.leads = v6 ? Leads::refused : Leads::into_tunnel, .from = *from};
        return;
    }
    if (to.bits == 0 || !(is_there || is_peer)) return;
    const IpPrefix wider = shortened(to, static_cast<uint8_t>(to.bits - 1));
    if (choices.any_around(wider, [](const Choice& choice) { return choice.from.has_value(); })) {
        plan_.ways[name] = {};
    }
}

std::set<WayName> Ways::serve(PolicyId group, bool served) {
    const size_t index = to_index(group);
    if (index >= policies_.served.size()) policies_.served.resize(index + 1);
    if (policies_.served[index] == served) return {};
    policies_.served[index] = served;
    const auto positions = positions_.find(group);
    if (positions == positions_.end()) return {};
    std::set<WayName> names;
    for (const uint32_t position : positions->second) {
        const IpPrefix& around = policies_.outbound[position].destination;
        choose(around);
        names.merge(names_inside(around));
    }
    for (const WayName& name : names) set_way(name);
    return names;
}

}  // namespace sallyport::host_traffic
