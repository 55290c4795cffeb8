// SPDX-License-Identifier: Apache-2.0
#include "dataplane/spd/spd.h"

#include <algorithm>

#include "bpf/abi.h"
#include "dataplane/base/prefix_map.h"

namespace sallyport {
namespace {

// What a class needs to know of those above it.
struct Class {
    uint32_t number = 0;
    uint32_t earliest = 0;  // entry that covers the destination
    size_t entries = 0;     // that cover it
    uint32_t steps = 1;     // classes that a lookup may visit
};

std::expected<void, std::string> add_sources(CompiledSpd& compiled, const IpPrefix& destination,
                                             std::span<const SpdEntry> ordered,
                                             std::span<const uint32_t> positions) {
    PrefixPositions by_source;
    for (const uint32_t i : positions) by_source[ordered[i].source].push_back(i);
    for (const auto& [source, unused] : by_source.items()) {
        const auto first = static_cast<uint32_t>(compiled.entries.size());
        for (const uint32_t i : positions_around(by_source, source)) {
            compiled.entries.push_back({.entry = ordered[i], .order = i});
            if (ordered[i].takes_all()) break;
        }
        const auto count = static_cast<uint32_t>(compiled.entries.size()) - first;
        if (count > SP_CELL_ENTRIES_MAX) {
            return std::unexpected("more than " + std::to_string(SP_CELL_ENTRIES_MAX) +
                                   " policies with protocols, ports or marks compete for " +
                                   to_string(source) + " -> " + to_string(destination) +
                                   ": merge some of them");
        }
        compiled.sources.push_back({.destination_class = compiled.class_count - 1,
                                    .source = source,
                                    .cell_first = first,
                                    .cell_count = count});
        if (compiled.entries.size() > kSpdRowsMax) {
            return std::unexpected("the policies overlap so much that their lookup tables pass " +
                                   std::to_string(kSpdRowsMax) + " rows (at destination " +
                                   to_string(destination) + "): use fewer or disjoint prefixes");
        }
    }
    return {};
}

}  // namespace

std::expected<CompiledSpd, std::string> compile_spd(std::span<const SpdEntry> ordered) {
    PrefixPositions by_destination;
    for (uint32_t i = 0; i < ordered.size(); ++i) {
        by_destination[ordered[i].destination].push_back(i);
    }

    CompiledSpd compiled;
    PrefixMap<Class> classes;
    for (const auto& [destination, own] : by_destination.items()) {  // wider ones first
        Class here{
            .number = compiled.class_count++, .earliest = own.front(), .entries = own.size()};
        CompiledSpd::DestinationRow row{.destination = destination,
                                        .destination_class = here.number};
        const auto* wider = classes.next_wider(destination);
        bool alone = wider == nullptr;
        if (!alone) {
            const Class& above = wider->second;
            here.entries += above.entries;
            here.earliest = std::min(here.earliest, above.earliest);
            alone = here.entries <= kAloneEntriesMax || above.steps == SP_SPD_CLASSES_MAX;
            if (!alone) {
                here.steps = above.steps + 1;
                row.above = above.number;
                row.order_above = above.earliest;
            }
        }
        compiled.destinations.push_back(row);
        const auto added = alone ? add_sources(compiled, destination, ordered,
                                               positions_around(by_destination, destination))
                                 : add_sources(compiled, destination, ordered, own);
        if (!added) return std::unexpected(added.error());
        classes[destination] = here;
    }
    return compiled;
}

Spd::Side::Side(const CompiledSpd& compiled) {
    for (const auto& [entry, order] : compiled.entries) {
        orders.push_back(order);
        candidates.push_back({.policy = entry.policy,
                              .action = entry.action,
                              .protocol = entry.protocol,
                              .has_ports = entry.has_ports,
                              .last = false,
                              .source_port_lo = entry.source_port_lo,
                              .source_port_hi = entry.source_port_hi,
                              .destination_port_lo = entry.destination_port_lo,
                              .destination_port_hi = entry.destination_port_hi});
    }
    std::vector<PrefixEntry> rows;
    for (const auto& row : compiled.destinations) {
        rows.push_back({.prefix = row.destination, .value = row.destination_class});
    }
    destinations = PrefixTable(rows);

    std::vector<std::vector<PrefixEntry>> sources(compiled.class_count);
    for (const auto& row : compiled.sources) {
        candidates[row.cell_first + row.cell_count - 1].last = true;
        sources[row.destination_class].push_back({.prefix = row.source, .value = row.cell_first});
    }
    classes.resize(compiled.class_count);
    for (const auto& row : compiled.destinations) {
        classes[row.destination_class].above = row.above;
        classes[row.destination_class].order_above = row.order_above;
    }
    for (size_t number = 0; number < sources.size(); ++number) {
        const auto& entries = sources[number];
        const auto v4 = flatten_v4(entries);
        const auto v6 = flatten_v6(entries);
        ClassRow& row = classes[number];
        row.v4_first = static_cast<uint32_t>(v4_sources.size());
        row.v4_count = static_cast<uint32_t>(v4.size());
        row.v6_first = static_cast<uint32_t>(v6_sources.size());
        row.v6_count = static_cast<uint32_t>(v6.size());
        if (entries.size() == 1 && entries.front().prefix.address.family == Family::v4 &&
            candidates[entries.front().value].last) {
            const IpPrefix& source = entries.front().prefix;
            row.only = candidates[entries.front().value];
            row.only_order = orders[entries.front().value];
            row.only_v4_first =
                load_v4(reinterpret_cast<const std::byte*>(source.address.bytes.data()));
            row.only_v4_last =
                row.only_v4_first | (source.bits == 0 ? ~0u : (1u << (32 - source.bits)) - 1);
        }
        v4_sources.insert(v4_sources.end(), v4.begin(), v4.end());
        v6_sources.insert(v6_sources.end(), v6.begin(), v6.end());
    }
}

Spd::Spd(const CompiledSpd& outbound, const CompiledSpd& inbound)
    : outbound_(outbound), inbound_(inbound) {}

inline const Spd::ClassRow* Spd::Side::class_of(const SpdKey& key) const {
    const uint32_t destination_class = destinations.lookup(key.family, key.destination);
    return destination_class == kPrefixMiss ? nullptr : &classes[destination_class];
}

[[gnu::always_inline]] inline const Spd::Candidate* Spd::Side::run_of(const ClassRow& row,
                                                                      const SpdKey& key) const {
    uint32_t first = kPrefixMiss;
    if (key.family == Family::v4) {
        const uint32_t source = load_v4(key.source);
        if (source >= row.only_v4_first && source <= row.only_v4_last) return &row.only;
        if (row.v4_count == 0) return nullptr;
        first = find_range(std::span(v4_sources).subspan(row.v4_first, row.v4_count), source).value;
    } else {
        if (row.v6_count == 0) return nullptr;
        first = find_range(std::span(v6_sources).subspan(row.v6_first, row.v6_count),
                           load_v6(key.source))
                    .value;
    }
    return first == kPrefixMiss ? nullptr : &candidates[first];
}

// Inlined into the lookup of a class that stands alone: nearly all packets.
[[gnu::always_inline]] inline Spd::Found Spd::Side::find(const ClassRow& row,
                                                         const SpdKey& key) const {
    const Candidate* candidate = run_of(row, key);
    if (candidate == nullptr) return {};
    for (;; ++candidate) {
        if (candidate->protocol != 0 && !key.protocol_known) {
            return {.verdict = {.kind = SpdVerdict::Kind::ports_unknown}, .by = candidate};
        }
        if (candidate->protocol == 0 || candidate->protocol == key.protocol) {
            if (candidate->has_ports && !key.ports_known) {
                return {.verdict = {.kind = SpdVerdict::Kind::ports_unknown}, .by = candidate};
            }
            if (!candidate->has_ports || (key.source_port >= candidate->source_port_lo &&
                                          key.source_port <= candidate->source_port_hi &&
                                          key.destination_port >= candidate->destination_port_lo &&
                                          key.destination_port <= candidate->destination_port_hi)) {
                return {.verdict = {.kind = SpdVerdict::Kind::matched,
                                    .action = candidate->action,
                                    .policy = candidate->policy},
                        .by = candidate};
            }
        }
        if (candidate->last) return {};
    }
}

uint32_t Spd::Side::order_of(const ClassRow& row, const Candidate* by) const {
    if (by == nullptr) return CompiledSpd::kNone;
    return by == &row.only ? row.only_order : orders[static_cast<size_t>(by - candidates.data())];
}

// The earliest entry of the list decides, whichever class it is in.
SpdVerdict Spd::Side::find_in_all(const ClassRow* row, const SpdKey& key) const {
    SpdVerdict verdict;
    uint32_t order = CompiledSpd::kNone;
    for (;;) {
        const Found found = find(*row, key);
        if (const uint32_t its_order = order_of(*row, found.by); its_order < order) {
            verdict = found.verdict;
            order = its_order;
        }
        if (order <= row->order_above) return verdict;
        row = &classes[row->above];
    }
}

SpdVerdict Spd::lookup(SpdDirection direction, const SpdKey& key) const {
    const Side& side = direction == SpdDirection::outbound ? outbound_ : inbound_;
    const ClassRow* row = side.class_of(key);
    if (row == nullptr) return {};
    if (row->order_above == CompiledSpd::kNone) return side.find(*row, key).verdict;
    return side.find_in_all(row, key);
}

}  // namespace sallyport
