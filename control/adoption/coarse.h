// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the compiled SPD has no room for becomes coarse: a *region* of addresses that is left to the
// kernel as a whole, instead of an SPD that cannot be published.
//
// An address pair holds SP_CELL_ENTRIES_MAX entries, and the list as many as the maps have room
// for. Peers fill both: each CHILD_SA narrowed to one port is an entry. So the largest *party* at
// that place (all entries of one tunnel's two addresses are one party) loses its exactness first:
//
//   list          cell 10.1.0.0/24 -> 10.2.0.0/24          after
//   A  any port of 10.1.0.9/32                              A   stands in front, stays as it is
//   B  tcp 1001   <- the first of the largest party         region: PROTECT, the kernel decides
//   B  tcp 1002 .. 1017                                     -   never reached, left out
//   C  any protocol                                         -   never reached in this cell
//
// A region decides for each packet of its addresses that no entry in front of it takes. It is
// exactly one address pair where only that is too full, so it costs no row, and it lies inside the
// selectors of every entry that competes there. Where the whole list is too long the parties with
// most entries are given up, each as at most kRegionsPerParty regions around its addresses, and
// after that the end of the list, as 0/0.
//
// Policies of the configuration are nobody's: they stand behind those of the register and never
// begin a region. What a region hides of them the kernel is told (xfrm::left_open_rows()).

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "dataplane/spd/place.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control::adoption {

inline constexpr size_t kRegionsPerParty = 4;

// One entry of a direction's list, and whose it is.
struct Claim {
    static constexpr uint32_t kConfiguration = std::numeric_limits<uint32_t>::max();
    SpdEntry entry;
    uint32_t party = kConfiguration;
    SpdPlace place;  // ascending in a list
};

struct Region {
    size_t position = 0;  // in the list: stands in front of the claim there
    IpPrefix source;
    IpPrefix destination;
    std::string reason;  // "more than 16 policies for 10.1.0.0/24 to 10.2.0.0/24"

    // It takes packets of an entry at `place` of the list.
    [[nodiscard]] bool hides_some_of(const SpdEntry& entry, size_t place) const;
    // It takes all of them.
    [[nodiscard]] bool hides(const SpdEntry& entry, size_t place) const;
};

// The regions that make `list` compile to at most SP_CELL_ENTRIES_MAX entries for each address pair
// and to at most `entries_max` entries in order. Nothing where it does so by itself. Sorted as they
// stand in the list.
std::vector<Region> regions_of(std::span<const Claim> list, size_t entries_max);

// `list` with its regions in it: PROTECT in the group `kernels`, which no worker serves. Outbound,
// what ports decide on is left out of it for fragments: the kernel does not see their ports, and
// might find a policy that lets them out in clear (bpf/steer_protected.bpf.c). A region's places
// are parts of that of the claim behind it.
SpdList with_regions(std::span<const Claim> list, std::span<const Region> regions,
                     SpdDirection direction, PolicyId kernels);

}  // namespace sallyport::control::adoption
