// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/selectors.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <tuple>

namespace sallyport::control::adoption {

namespace {

auto sort_key(const IpPrefix& prefix) {
    return std::tuple(prefix.address, prefix.bits);
}

// The last address of a prefix.
IpAddress last_address(const IpPrefix& prefix) {
    IpAddress last = prefix.address;
    for (unsigned bit = prefix.bits; bit < last.bit_count(); ++bit) {
        last.bytes[bit / 8] |= static_cast<uint8_t>(0x80u >> bit % 8);
    }
    return last;
}

bool overlap(const IpPrefix& a, const IpPrefix& b) {
    return a.contains(b) || b.contains(a);
}

// Cuts `hole` out of one prefix of `rest`: what is beside it becomes parts, `rest` the middle.
void cut_prefix(Selector& rest, IpPrefix Selector::* member, const IpPrefix& hole,
                std::vector<Selector>& parts) {
    for (uint8_t bit = (rest.*member).bits; bit < hole.bits; ++bit) {
        IpPrefix beside = shortened(hole, static_cast<uint8_t>(bit + 1));
        beside.address.bytes[bit / 8] ^= static_cast<uint8_t>(0x80u >> bit % 8);
        Selector part = rest;
        part.*member = beside;
        parts.push_back(part);
    }
    if (hole.bits > (rest.*member).bits) rest.*member = hole;
}

void cut_ports(Selector& rest, uint16_t Selector::* lo, uint16_t Selector::* hi, uint16_t hole_lo,
               uint16_t hole_hi, std::vector<Selector>& parts) {
    if (rest.*lo < hole_lo) {
        Selector part = rest;
        part.has_ports = true;
        part.*hi = static_cast<uint16_t>(hole_lo - 1);
        parts.push_back(part);
        rest.has_ports = true;
        rest.*lo = hole_lo;
    }
    if (rest.*hi > hole_hi) {
        Selector part = rest;
        part.has_ports = true;
        part.*lo = static_cast<uint16_t>(hole_hi + 1);
        parts.push_back(part);
        rest.has_ports = true;
        rest.*hi = hole_hi;
    }
}

// Without has_ports the ranges of an entry say nothing.
SpdEntry with_full_ranges(SpdEntry entry) {
    if (!entry.has_ports) {
        entry.source_port_lo = entry.destination_port_lo = 0;
        entry.source_port_hi = entry.destination_port_hi = 65535;
    }
    return entry;
}

}  // namespace

Selector selector_of(const SpdEntry& entry) {
    const SpdEntry full = with_full_ranges(entry);
    return {.source = full.source,
            .destination = full.destination,
            .protocol = full.protocol,
            .has_ports = full.has_ports,
            .source_port_lo = full.source_port_lo,
            .source_port_hi = full.source_port_hi,
            .destination_port_lo = full.destination_port_lo,
            .destination_port_hi = full.destination_port_hi};
}

bool overlap(const SpdEntry& a, const SpdEntry& b) {
    if (!overlap(a.source, b.source) || !overlap(a.destination, b.destination)) return false;
    if (a.protocol != 0 && b.protocol != 0 && a.protocol != b.protocol) return false;
    if (!a.has_ports || !b.has_ports) return true;
    return a.source_port_lo <= b.source_port_hi && b.source_port_lo <= a.source_port_hi &&
           a.destination_port_lo <= b.destination_port_hi &&
           b.destination_port_lo <= a.destination_port_hi;
}

std::optional<std::vector<Selector>> without(const Selector& selector, const SpdEntry& taken) {
    const SpdEntry hole = with_full_ranges(taken);
    const SpdEntry as_entry{.source = selector.source,
                            .destination = selector.destination,
                            .protocol = selector.protocol,
                            .has_ports = selector.has_ports,
                            .source_port_lo = selector.source_port_lo,
                            .source_port_hi = selector.source_port_hi,
                            .destination_port_lo = selector.destination_port_lo,
                            .destination_port_hi = selector.destination_port_hi};
    if (!overlap(as_entry, hole)) return std::vector{selector};
    if (hole.protocol != 0 && selector.protocol != hole.protocol) return std::nullopt;
    std::vector<Selector> parts;
    Selector rest = selector;
    cut_prefix(rest, &Selector::source, hole.source, parts);
    cut_prefix(rest, &Selector::destination, hole.destination, parts);
    if (hole.has_ports) {
        cut_ports(rest, &Selector::source_port_lo, &Selector::source_port_hi, hole.source_port_lo,
                  hole.source_port_hi, parts);
        cut_ports(rest, &Selector::destination_port_lo, &Selector::destination_port_hi,
                  hole.destination_port_lo, hole.destination_port_hi, parts);
    }
    return parts;
}

OverlapIndex::OverlapIndex(std::span<const SpdEntry> entries)
    : entries_(entries),
      by_source_(side(&SpdEntry::source)),
      by_destination_(side(&SpdEntry::destination)) {}

OverlapIndex::Side OverlapIndex::side(IpPrefix SpdEntry::* member) const {
    Side made{.member = member, .sorted = std::vector<uint32_t>(entries_.size()), .lengths = {}};
    std::iota(made.sorted.begin(), made.sorted.end(), 0u);
    std::ranges::sort(made.sorted, {}, [&](uint32_t i) { return sort_key(entries_[i].*member); });
    std::set<uint8_t> lengths;
    for (const SpdEntry& entry : entries_) lengths.insert((entry.*member).bits);
    made.lengths.assign(lengths.begin(), lengths.end());
    return made;
}

std::vector<OverlapIndex::Run> OverlapIndex::candidates(const Side& side,
                                                        const IpPrefix& prefix) const {
    const auto key = [&](uint32_t i) { return sort_key(entries_[i].*(side.member)); };
    const auto run = [&](const IpPrefix& from, const IpPrefix& to) {
        const auto first = std::ranges::lower_bound(side.sorted, sort_key(from), {}, key);
        const auto last = std::ranges::upper_bound(side.sorted, sort_key(to), {}, key);
        return Run{.first = static_cast<uint32_t>(first - side.sorted.begin()),
                   .last = static_cast<uint32_t>(last - side.sorted.begin())};
    };
    std::vector<Run> runs;
    for (const uint8_t bits : side.lengths) {
        if (bits >= prefix.bits) break;
        const IpPrefix around = shortened(prefix, bits);
        const Run found = run(around, around);
        if (found.first < found.last) runs.push_back(found);
    }
    // Shorter prefixes that begin at the same address sort before it, all others are inside.
    runs.push_back(run(prefix, {.address = last_address(prefix), .bits = 128}));
    return runs;
}

std::vector<uint32_t> OverlapIndex::overlapping(uint32_t position) const {
    const SpdEntry& entry = entries_[position];
    const auto size = [](const std::vector<Run>& runs) {
        return std::accumulate(runs.begin(), runs.end(), size_t{0},
                               [](size_t sum, Run run) { return sum + (run.last - run.first); });
    };
    const std::vector<Run> sources = candidates(by_source_, entry.source);
    const std::vector<Run> destinations = candidates(by_destination_, entry.destination);
    const bool source_is_narrow = size(sources) <= size(destinations);
    const Side& side = source_is_narrow ? by_source_ : by_destination_;
    std::vector<uint32_t> found;
    for (const Run run : source_is_narrow ? sources : destinations) {
        for (uint32_t i = run.first; i < run.last; ++i) {
            const uint32_t other = side.sorted[i];
            if (overlap(entries_[other], entry)) found.push_back(other);
        }
    }
    return found;
}

void OverlapMap::insert(Side& side, const IpPrefix& prefix, uint32_t number) {
    side.keys.insert({.address = prefix.address, .bits = prefix.bits, .number = number});
    ++side.lengths[prefix.bits];
}

void OverlapMap::erase(Side& side, const IpPrefix& prefix, uint32_t number) {
    if (side.keys.erase({.address = prefix.address, .bits = prefix.bits, .number = number}) == 0) {
        return;
    }
    const auto length = side.lengths.find(prefix.bits);
    if (--length->second == 0) side.lengths.erase(length);
}

void OverlapMap::insert(uint32_t number, const SpdEntry& entry) {
    insert(by_source_, entry.source, number);
    insert(by_destination_, entry.destination, number);
}

void OverlapMap::erase(uint32_t number, const SpdEntry& entry) {
    erase(by_source_, entry.source, number);
    erase(by_destination_, entry.destination, number);
}

bool OverlapMap::collect(const Side& side, const IpPrefix& prefix, size_t most,
                         std::vector<uint32_t>& found) {
    found.clear();
    const auto take = [&](const Key& from, const IpAddress& last, uint8_t bits_last) {
        for (auto it = side.keys.lower_bound(from); it != side.keys.end(); ++it) {
            if (std::tie(it->address, it->bits) > std::tie(last, bits_last)) break;
            if (found.size() == most) return false;
            found.push_back(it->number);
        }
        return true;
    };
    for (const auto& [bits, unused] : side.lengths) {
        if (bits >= prefix.bits) break;
        const IpPrefix around = shortened(prefix, bits);
        if (!take({.address = around.address, .bits = bits}, around.address, bits)) return false;
    }
    // Shorter prefixes that begin at the same address sort before it, all others are inside.
    return take({.address = prefix.address, .bits = prefix.bits}, last_address(prefix), 128);
}

std::vector<uint32_t> OverlapMap::candidates(const SpdEntry& entry) const {
    std::vector<uint32_t> found;
    for (size_t most = 32;; most *= 4) {
        if (collect(by_destination_, entry.destination, most, found) ||
            collect(by_source_, entry.source, most, found)) {
            return found;
        }
    }
}

}  // namespace sallyport::control::adoption
