// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/coarse.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "bpf/abi.h"
#include "dataplane/base/prefix_map.h"

namespace sallyport::control::adoption {

namespace {

// Looks at address pairs in search of those that are too full. More would block the control thread
// for longer than a tenth of a second; where it takes more, the largest party is given up instead.
constexpr size_t kLooksMax = 1 << 19;

bool meet(const IpPrefix& a, const IpPrefix& b) {
    return a.contains(b) || b.contains(a);
}

using Positions = std::vector<uint32_t>;
using ByPair = PrefixMap<PrefixPositions>;  // destination, source

struct Cell {
    IpPrefix source;
    IpPrefix destination;
    friend bool operator<(const Cell& a, const Cell& b) {
        constexpr auto key = [](const Cell& cell) {
            return std::tie(cell.source.address, cell.source.bits, cell.destination.address,
                            cell.destination.bits);
        };
        return key(a) < key(b);
    }
};

// Positions of the entries that cover a cell, ascending.
Positions covering(const ByPair& pairs, const Cell& cell) {
    Positions found;
    pairs.for_each_around(cell.destination, [&](const PrefixPositions& sources) {
        sources.for_each_around(cell.source, [&](const Positions& positions) {
            found.insert(found.end(), positions.begin(), positions.end());
        });
    });
    std::ranges::sort(found);
    return found;
}

// One for all, and one for each protocol that has port numbers.
constexpr size_t kRegionEntriesMax = 4;

// Shorter prefixes step by step: what the addresses of a party are cut to.
constexpr uint8_t kLengthsV4[] = {32, 24, 16, 8, 0};
constexpr uint8_t kLengthsV6[] = {128, 64, 48, 32, 0};

IpPrefix cut(const IpPrefix& prefix, size_t step) {
    const uint8_t bits = prefix.address.family == Family::v4 ? kLengthsV4[step] : kLengthsV6[step];
    return shortened(prefix, std::min(prefix.bits, bits));
}

// Protocols of which entries from `place` on select ports there.
std::set<uint8_t> port_protocols(std::span<const Claim> list, size_t place, const IpPrefix& source,
                                 const IpPrefix& destination) {
    std::set<uint8_t> protocols;
    for (const Claim& claim : list.subspan(place)) {
        if (claim.entry.has_ports && meet(claim.entry.source, source) &&
            meet(claim.entry.destination, destination)) {
            protocols.insert(claim.entry.protocol);
        }
    }
    return protocols;
}

class Finder {
  public:
    explicit Finder(std::span<const Claim> list)
        : list_(list), hidden_(list.size()), length_(list.size()) {
        for (uint32_t i = 0; i < list.size(); ++i) {
            if (list[i].party != Claim::kConfiguration) by_party_[list[i].party].push_back(i);
        }
    }

    std::vector<Region> find(size_t entries_max) {
        make_cells_fit();
        while (length_ > entries_max && give_up_largest(false)) {
        }
        if (length_ > entries_max) cut_off(entries_max);
        if (reserve_ > 0) make_cells_fit();
        std::ranges::sort(regions_, {}, [](const Region& region) {
            // Of two at one place the narrower first: it may have ports that the other has not.
            return std::tuple(region.position, -region.source.bits - region.destination.bits,
                              region.destination.address, region.source.address);
        });
        return std::move(regions_);
    }

  private:
    // As many entries as a region there has.
    [[nodiscard]] size_t entries_of(const Cell& cell) const {
        return 1 + port_protocols(list_, 0, cell.source, cell.destination).size();
    }

    void add(Region region) {
        length_ += entries_of({.source = region.source, .destination = region.destination});
        for (size_t i = region.position; i < list_.size(); ++i) {
            if (hidden_[i] || !region.hides(list_[i].entry, i)) continue;
            hidden_[i] = true;
            --length_;
        }
        regions_.push_back(std::move(region));
    }

    void make_cells_fit() {
        while (!look_at_cells() && give_up_largest(true)) {
        }
    }

    // False: it would take too long.
    bool look_at_cells() {
        ByPair narrow;
        ByPair wide;
        size_t narrow_count = 0;
        for (uint32_t i = 0; i < list_.size(); ++i) {
            const SpdEntry& entry = list_[i].entry;
            if (hidden_[i]) continue;
            if (!entry.takes_all()) ++narrow_count;
            (entry.takes_all() ? wide : narrow)[entry.destination][entry.source].push_back(i);
        }
        if (narrow_count + reserve_ < SP_CELL_ENTRIES_MAX) return true;
        auto cells = full_cells(narrow);
        if (!cells) return false;
        // Wide ones first: what becomes coarse there is so in those inside.
        std::ranges::sort(*cells, {}, [](const Cell& cell) {
            return std::tuple(cell.source.bits + cell.destination.bits, cell.source.address,
                              cell.destination.address, cell.source.bits);
        });
        for (const Cell& cell : *cells) empty(cell, covering(narrow, cell), covering(wide, cell));
        return true;
    }

    // Those that as many narrow entries cover as may compete, or more.
    [[nodiscard]] std::optional<std::vector<Cell>> full_cells(const ByPair& narrow) const {
        std::vector<Cell> cells;
        size_t looks = 0;
        for (const auto& [destination, unused] : narrow.items()) {
            PrefixMap<size_t> by_source;
            size_t all = 0;
            narrow.for_each_around(destination, [&](const PrefixPositions& sources) {
                looks += sources.items().size();
                if (looks > kLooksMax) return;
                for (const auto& [source, positions] : sources.items()) {
                    by_source[source] += positions.size();
                    all += positions.size();
                }
            });
            if (looks > kLooksMax) return std::nullopt;
            if (all + reserve_ < SP_CELL_ENTRIES_MAX) continue;
            for (const auto& [source, unused_too] : by_source.items()) {
                size_t count = 0;
                by_source.for_each_around(source, [&](size_t more) { count += more; });
                if (count + reserve_ >= SP_CELL_ENTRIES_MAX) {
                    cells.push_back({.source = source, .destination = destination});
                }
            }
            looks += by_source.items().size();
        }
        return cells;
    }

    // A class that holds what is around it reads all that covers the cell, another one what is of
    // its own destination: there nothing wider ends the run.
    void empty(const Cell& cell, const Positions& narrow, const Positions& wide) {
        if (empty_run(cell, narrow, wide, false)) return;
        const auto own = [&](Positions positions) {
            std::erase_if(positions, [&](uint32_t position) {
                return list_[position].entry.destination != cell.destination;
            });
            return positions;
        };
        empty_run(cell, own(narrow), own(wide), true);
    }

    // False: it has room, or nothing that makes some.
    bool empty_run(const Cell& cell, Positions narrow, const Positions& wide, bool own) {
        // What ends the run of this cell, and is its last entry or entries.
        size_t end = wide.empty() ? list_.size() : wide.front();
        size_t last = wide.empty() ? 0 : 1;
        for (const Region& region : regions_) {
            if (region.position <= end && region.source.contains(cell.source) &&
                region.destination.contains(cell.destination) &&
                (!own || region.destination == cell.destination)) {
                end = region.position;
                last = entries_of({.source = region.source, .destination = region.destination});
            }
        }
        std::erase_if(narrow, [end](uint32_t position) { return position >= end; });
        const auto of_register =
            static_cast<size_t>(std::ranges::count_if(narrow, [this](uint32_t position) {
                return list_[position].party != Claim::kConfiguration;
            }));
        if (narrow.size() + last <= SP_CELL_ENTRIES_MAX &&
            of_register + reserve_ <= SP_CELL_ENTRIES_MAX) {
            return false;
        }

        struct Share {
            size_t first = 0;  // in `narrow`
            size_t count = 0;
        };
        std::map<uint32_t, Share> shares;
        for (size_t i = 0; i < narrow.size(); ++i) {
            const uint32_t party = list_[narrow[i]].party;
            if (party == Claim::kConfiguration) continue;
            const auto [share, is_new] = shares.try_emplace(party);
            if (is_new) share->second.first = i;
            ++share->second.count;
        }
        const size_t coarse = entries_of(cell);
        const Share* largest = nullptr;
        for (const auto& [party, share] : shares) {
            if (share.first + std::max(coarse, reserve_) > SP_CELL_ENTRIES_MAX) continue;
            if (largest == nullptr ||
                std::tie(share.count, share.first) > std::tie(largest->count, largest->first)) {
                largest = &share;
            }
        }
        if (largest == nullptr) return false;  // only the configuration's: compile_spd() says so
        add({.position = narrow[largest->first],
             .source = cell.source,
             .destination = cell.destination,
             .reason = "more than " + std::to_string(SP_CELL_ENTRIES_MAX) + " policies for " +
                       to_string(cell.source) + " to " + to_string(cell.destination)});
        return true;
    }

    // The addresses of a party, ever wider until they are few.
    [[nodiscard]] std::set<Cell> around(const Positions& positions) const {
        std::set<Cell> cells;
        for (size_t step = 0; step < std::size(kLengthsV4); ++step) {
            cells.clear();
            for (const uint32_t position : positions) {
                const SpdEntry& entry = list_[position].entry;
                cells.insert({.source = cut(entry.source, step),
                              .destination = cut(entry.destination, step)});
            }
            if (cells.size() <= kRegionsPerParty) break;
        }
        return cells;
    }

    // The party with most entries that are left. `narrow`: of those that compete by protocol and
    // ports. False: there is none that would make the list shorter.
    bool give_up_largest(bool narrow) {
        const auto counts = [&](uint32_t position) {
            return !hidden_[position] && !(narrow && list_[position].entry.takes_all());
        };
        const Positions* largest = nullptr;
        std::ptrdiff_t most = kRegionsPerParty * kRegionEntriesMax;
        for (const auto& [party, positions] : by_party_) {
            const auto count = std::ranges::count_if(positions, counts);
            if (count <= most) continue;
            most = count;
            largest = &positions;
        }
        if (largest == nullptr) return false;
        reserve_ = kRegionEntriesMax;
        for (const Cell& cell : around(*largest)) {
            add({.position = largest->front(),
                 .source = cell.source,
                 .destination = cell.destination,
                 .reason = "no room for the " + std::to_string(most) + " policies of its peer"});
        }
        return true;
    }

    // Everything behind the first entries is the kernel's.
    void cut_off(size_t entries_max) {
        size_t left = entries_max - std::min(entries_max, 2 * kRegionEntriesMax);
        for (const Region& region : regions_) {
            left -= std::min(left, entries_of({region.source, region.destination}));
        }
        size_t position = 0;
        for (; position < list_.size() && left > 0; ++position) {
            if (!hidden_[position]) --left;
        }
        reserve_ = kRegionEntriesMax;
        for (const Family family : {Family::v4, Family::v6}) {
            const IpPrefix any{.address = {.family = family}, .bits = 0};
            add({.position = position,
                 .source = any,
                 .destination = any,
                 .reason = "no room for so many policies"});
        }
        // Of no use behind it.
        std::erase_if(regions_,
                      [position](const Region& region) { return region.position > position; });
    }

    std::span<const Claim> list_;
    std::vector<bool> hidden_;  // never reached, for the regions found so far
    size_t length_;             // of what is not hidden, and of the regions
    // Entries of a region that begins inside a cell: one of a single address pair never does.
    size_t reserve_ = 0;
    std::map<uint32_t, Positions> by_party_;
    std::vector<Region> regions_;
};

}  // namespace

bool Region::hides_some_of(const SpdEntry& entry, size_t place) const {
    return position <= place && meet(source, entry.source) && meet(destination, entry.destination);
}

bool Region::hides(const SpdEntry& entry, size_t place) const {
    return position <= place && source.contains(entry.source) &&
           destination.contains(entry.destination);
}

std::vector<Region> regions_of(std::span<const Claim> list, size_t entries_max) {
    return Finder(list).find(entries_max);
}

SpdList with_regions(std::span<const Claim> list, std::span<const Region> regions,
                     SpdDirection direction, PolicyId kernels) {
    SpdList out;
    SpdPlace place;  // of the next entry of a region
    const auto put = [&](const SpdEntry& entry) {
        out.entries.push_back(entry);
        out.places.push_back(place);
        ++place.part;
    };
    const auto add = [&](const Region& region) {
        SpdEntry entry{.policy = kernels,
                       .action = SpdAction::protect,
                       .source = region.source,
                       .destination = region.destination,
                       .has_ports = true};
        if (direction == SpdDirection::outbound) {
            for (const uint8_t protocol :
                 port_protocols(list, region.position, region.source, region.destination)) {
                entry.protocol = protocol;
                put(entry);
            }
        }
        entry.protocol = 0;
        entry.has_ports = false;
        put(entry);
    };
    size_t next = 0;
    for (size_t i = 0; i < list.size(); ++i) {
        place = list[i].place;
        place.part = 0;
        for (; next < regions.size() && regions[next].position <= i; ++next) add(regions[next]);
        const auto hides = [&](const Region& region) { return region.hides(list[i].entry, i); };
        place.part = SpdPlace::kItself;
        if (!std::ranges::any_of(regions.first(next), hides)) put(list[i].entry);
    }
    place = {.tier = std::numeric_limits<uint8_t>::max(), .part = 0};  // behind all
    for (; next < regions.size(); ++next) add(regions[next]);
    return out;
}

}  // namespace sallyport::control::adoption
