// SPDX-License-Identifier: Apache-2.0
#pragma once

// Selectors as sets of packets: what two share, what is left of one without the other.

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "dataplane/sa/sa.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control::adoption {

Selector selector_of(const SpdEntry& entry);

// Is there a packet that both match.
bool overlap(const SpdEntry& a, const SpdEntry& b);

// What is left of `selector` without the packets of `taken`, in disjoint parts. nullopt: selectors
// cannot say it ("every protocol but one").
std::optional<std::vector<Selector>> without(const Selector& selector, const SpdEntry& taken);

// Finds the entries of a list that share packets with one of it, in time that depends on how many
// there are and not on the length of the list.
class OverlapIndex {
  public:
    // `entries` outlives the index.
    explicit OverlapIndex(std::span<const SpdEntry> entries);
    // Positions of all that do, itself included, in no order.
    [[nodiscard]] std::vector<uint32_t> overlapping(uint32_t position) const;

  private:
    // Positions ordered by one of the two prefixes: those inside a prefix are neighbours, those
    // around it are found by trying the lengths there are.
    struct Side {
        IpPrefix SpdEntry::* member = nullptr;
        std::vector<uint32_t> sorted;
        std::vector<uint8_t> lengths;
    };
    struct Run {
        uint32_t first = 0;
        uint32_t last = 0;  // exclusive
    };
    [[nodiscard]] Side side(IpPrefix SpdEntry::* member) const;
    [[nodiscard]] std::vector<Run> candidates(const Side& side, const IpPrefix& prefix) const;

    std::span<const SpdEntry> entries_;
    Side by_source_;
    Side by_destination_;
};

// The same of entries that come and go, each by a number of its own.
class OverlapMap {
  public:
    void insert(uint32_t number, const SpdEntry& entry);
    void erase(uint32_t number, const SpdEntry& entry);
    // Of those whose prefixes may share addresses with the entry's, the shorter of two lists: the
    // caller looks at the entries themselves.
    [[nodiscard]] std::vector<uint32_t> candidates(const SpdEntry& entry) const;

  private:
    struct Key {
        IpAddress address;
        uint8_t bits = 0;
        uint32_t number = 0;
        friend auto operator<=>(const Key&, const Key&) = default;
    };
    struct Side {
        std::set<Key> keys;
        std::map<uint8_t, size_t> lengths;  // in use, how often
    };
    static void insert(Side& side, const IpPrefix& prefix, uint32_t number);
    static void erase(Side& side, const IpPrefix& prefix, uint32_t number);
    // False: there are more than `most`.
    static bool collect(const Side& side, const IpPrefix& prefix, size_t most,
                        std::vector<uint32_t>& found);

    Side by_source_;
    Side by_destination_;
};

}  // namespace sallyport::control::adoption
