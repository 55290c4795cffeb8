// SPDX-License-Identifier: Apache-2.0
#include "dataplane/spd/spd.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "bpf/abi.h"
#include "dataplane/base/prefix_map.h"
#include "dataplane/spd/classes.h"

namespace sallyport {
namespace {

// Of one class: with more, its tries are built anew.
constexpr size_t kSourcesAnewFrom = 16;

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
            return std::unexpected(too_many_in_cell(source, destination));
        }
        compiled.sources.push_back({.destination_class = compiled.class_count - 1,
                                    .source = source,
                                    .cell_first = first,
                                    .cell_count = count});
        if (compiled.entries.size() > kSpdRowsMax) {
            return std::unexpected(too_many_rows(destination));
        }
    }
    return {};
}

}  // namespace

static_assert(kCellEntriesMax == SP_CELL_ENTRIES_MAX);

std::string too_many_in_cell(const IpPrefix& source, const IpPrefix& destination) {
    return "more than " + std::to_string(SP_CELL_ENTRIES_MAX) +
           " policies with protocols, ports or marks compete for " + to_string(source) + " -> " +
           to_string(destination) + ": merge some of them";
}

std::string too_many_rows(const IpPrefix& destination) {
    return "the policies overlap so much that their lookup tables pass " +
           std::to_string(kSpdRowsMax) + " rows (at destination " + to_string(destination) +
           "): use fewer or disjoint prefixes";
}

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

// ---- what workers read ----------------------------------------------------------------------

namespace {

// Part of a map from prefixes as a trie takes it. `Value` says what an element stands for, or
// kPrefixMiss: it does not count.
template <typename Map, typename Value>
class View {
    using Element = typename Map::const_iterator;

  public:
    struct Item {
        const IpPrefix& first;
        uint32_t second;
    };
    class Iterator {
      public:
        Iterator(const View* view, Element at) : view_(view), at_(at) { skip(); }
        Iterator& operator++() {
            ++at_;
            skip();
            return *this;
        }
        Iterator operator++(int) {
            Iterator before = *this;
            ++*this;
            return before;
        }
        friend bool operator==(const Iterator& a, const Iterator& b) { return a.at_ == b.at_; }
        struct Arrow {
            Item item;
            const Item* operator->() const { return &item; }
        };
        Arrow operator->() const { return {{at_->first, view_->value_(at_->second)}}; }

      private:
        void skip() {
            while (at_ != view_->map_.end() && view_->value_(at_->second) == kPrefixMiss) ++at_;
        }
        const View* view_;
        Element at_;
    };

    View(const Map& map, Value value) : map_(map), value_(value) {}
    [[nodiscard]] Iterator begin() const { return {this, map_.begin()}; }
    [[nodiscard]] Iterator end() const { return {this, map_.end()}; }
    [[nodiscard]] Iterator lower_bound(const IpPrefix& prefix) const {
        return {this, map_.lower_bound(prefix)};
    }
    [[nodiscard]] Iterator find(const IpPrefix& prefix) const {
        const auto found = map_.find(prefix);
        if (found == map_.end() || value_(found->second) == kPrefixMiss) return end();
        return {this, found};
    }

  private:
    const Map& map_;
    Value value_;
};

// A sorted vector as a map.
template <typename Vector>
struct Sorted {
    const Vector& items;
    [[nodiscard]] auto begin() const { return items.begin(); }
    [[nodiscard]] auto end() const { return items.end(); }
    [[nodiscard]] auto lower_bound(const IpPrefix& prefix) const {
        return std::ranges::lower_bound(
            items, prefix, OutsideFirst{},
            [](const auto& item) -> const IpPrefix& { return item.first; });
    }
    [[nodiscard]] auto find(const IpPrefix& prefix) const {
        const auto found = lower_bound(prefix);
        return found != items.end() && found->first == prefix ? found : items.end();
    }
};

}  // namespace

bool Spd::Side::put_run(uint32_t index, std::span<const CompiledSpd::Candidate> run) {
    Candidate* last = nullptr;
    Candidate* next = nullptr;
    for (const auto& [entry, order] : run) {
        if (entry.ct_mark_mask != 0) continue;
        if (next == nullptr) next = &candidates_.own(index);
        *next = {.policy = entry.policy,
                 .action = entry.action,
                 .protocol = entry.protocol,
                 .has_ports = entry.has_ports,
                 .last = false,
                 .source_port_lo = entry.source_port_lo,
                 .source_port_hi = entry.source_port_hi,
                 .destination_port_lo = entry.destination_port_lo,
                 .destination_port_hi = entry.destination_port_hi,
                 .order = order};
        last = next++;
    }
    if (last != nullptr) last->last = true;
    return last != nullptr;
}

template <typename Runs>
void Spd::Side::put_class(uint32_t number, uint32_t above, uint32_t order_above, const Runs& runs,
                          const std::vector<IpPrefix>* changed) {
    ClassRow& row = classes_.own(number);
    row.above = above;
    row.order_above = order_above;
    row.only_v4_first = 1;
    row.only_v4_last = 0;
    auto first = runs.begin();
    if (first == runs.end()) {
        row.sources = {};
        return;
    }
    const IpPrefix source = first->first;
    const Candidate& candidate = candidates_[first->second];
    if (++first == runs.end() && source.address.family == Family::v4 && candidate.last) {
        row.only = candidate;
        row.only_v4_first =
            load_v4(reinterpret_cast<const std::byte*>(source.address.bytes.data()));
        row.only_v4_last =
            row.only_v4_first | (source.bits == 0 ? ~0u : (1u << (32 - source.bits)) - 1);
        row.sources = {};
        return;
    }
    const bool anew = !row.sources || changed == nullptr;
    Sources& sources = row.sources.own();
    if (anew) {
        sources.v4.build(runs);
        sources.v6.build(runs);
        return;
    }
    for (const IpPrefix& prefix : *changed) {
        sources.v4.change(runs, prefix);
        sources.v6.change(runs, prefix);
    }
}

Spd::Side::Side(const CompiledSpd& compiled) {
    using Numbers = std::vector<std::pair<IpPrefix, uint32_t>>;
    std::vector<Numbers> runs(compiled.class_count);
    for (const auto& row : compiled.sources) {
        const uint32_t index = compiled.first_entry + row.cell_first;
        if (!put_run(index, std::span(compiled.entries).subspan(row.cell_first, row.cell_count))) {
            continue;
        }
        runs[row.destination_class].emplace_back(row.source, index);
    }
    Numbers numbers;
    for (const auto& row : compiled.destinations) {
        numbers.emplace_back(row.destination, row.destination_class);
        Numbers& its_runs = runs[row.destination_class];
        std::ranges::sort(its_runs, OutsideFirst{}, &Numbers::value_type::first);
        put_class(row.destination_class, row.above, row.order_above, Sorted<Numbers>{its_runs},
                  nullptr);
    }
    std::ranges::sort(numbers, OutsideFirst{}, &Numbers::value_type::first);
    v4_destinations_.build(Sorted<Numbers>{numbers});
    v6_destinations_.build(Sorted<Numbers>{numbers});
}

void Spd::Side::change(const SpdClasses& classes) {
    const SpdRuns& listed = classes.runs();
    const auto run_for_workers = [&](const SpdClasses::Cell& cell) {
        for (uint32_t i = 0; i < cell.run.count; ++i) {
            if (listed.at(cell.run.first + i)->entry.ct_mark_mask == 0) return cell.run.first;
        }
        return kPrefixMiss;
    };
    const View numbers(classes.classes(),
                       [](const SpdClasses::Class& one) { return one.head.number; });
    for (const auto& [destination, before] : classes.before()) {
        const auto found = classes.classes().find(destination);
        const SpdClasses::Class* now = found == classes.classes().end() ? nullptr : &found->second;
        const bool same_number =
            before.head && now != nullptr && before.head->number == now->head.number;
        if (before.head && !same_number) classes_.own(before.head->number) = {};
        if (now != nullptr) {
            std::vector<IpPrefix> changed;
            for (const auto& [source, was] : before.cells) {
                const auto cell = now->cells.find(source);
                const SpdChanges::Run run =
                    cell == now->cells.end() ? SpdChanges::Run{} : cell->second.run;
                if (was && was->run == run) continue;
                changed.push_back(source);
                std::vector<CompiledSpd::Candidate> candidates;
                for (uint32_t i = 0; i < run.count; ++i) {
                    const SpdListed& each = *listed.at(run.first + i);
                    candidates.push_back({.entry = each.entry, .order = each.order});
                }
                put_run(run.first, candidates);
            }
            put_class(now->head.number, now->head.derived.above, now->head.derived.order_above,
                      View(now->cells, run_for_workers),
                      same_number && changed.size() < kSourcesAnewFrom ? &changed : nullptr);
        }
        if (same_number) continue;
        v4_destinations_.change(numbers, destination);
        v6_destinations_.change(numbers, destination);
    }
}

Spd::Spd(const CompiledSpd& outbound, const CompiledSpd& inbound)
    : outbound_(outbound), inbound_(inbound) {}

void Spd::change(SpdDirection direction, const SpdClasses& classes) {
    (direction == SpdDirection::outbound ? outbound_ : inbound_).change(classes);
}

inline const Spd::ClassRow* Spd::Side::class_of(const SpdKey& key) const {
    const uint32_t destination_class = key.family == Family::v4
                                           ? v4_destinations_.lookup(key.destination)
                                           : v6_destinations_.lookup(key.destination);
    return destination_class == kPrefixMiss ? nullptr : &classes_[destination_class];
}

[[gnu::always_inline]] inline const Spd::Candidate* Spd::Side::run_of(const ClassRow& row,
                                                                      const SpdKey& key) const {
    uint32_t first = kPrefixMiss;
    if (key.family == Family::v4) {
        const uint32_t source = load_v4(key.source);
        if (source >= row.only_v4_first && source <= row.only_v4_last) return &row.only;
        if (!row.sources) return nullptr;
        first = row.sources->v4.lookup(key.source);
    } else {
        if (!row.sources) return nullptr;
        first = row.sources->v6.lookup(key.source);
    }
    return first == kPrefixMiss ? nullptr : &candidates_[first];
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

// The earliest entry of the list decides, whichever class it is in.
SpdVerdict Spd::Side::find_in_all(const ClassRow* row, const SpdKey& key) const {
    SpdVerdict verdict;
    uint32_t order = CompiledSpd::kNone;
    for (;;) {
        const Found found = find(*row, key);
        if (found.by != nullptr && found.by->order < order) {
            verdict = found.verdict;
            order = found.by->order;
        }
        if (order <= row->order_above) return verdict;
        row = &classes_[row->above];
    }
}

inline SpdVerdict Spd::Side::lookup(const SpdKey& key) const {
    const ClassRow* row = class_of(key);
    if (row == nullptr) return {};
    if (row->order_above == CompiledSpd::kNone) return find(*row, key).verdict;
    return find_in_all(row, key);
}

SpdVerdict Spd::lookup(SpdDirection direction, const SpdKey& key) const {
    return (direction == SpdDirection::outbound ? outbound_ : inbound_).lookup(key);
}

}  // namespace sallyport
