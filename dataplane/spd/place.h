// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where an entry stands in a direction's list, said so that others may come and go around it. A
// position changes whenever one in front does; a place stays while the entry exists, so that a
// change of the list can be said by its entries alone.

#include <compare>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "dataplane/spd/spd.h"

namespace sallyport {

// Ordered as the list is: the smaller place is asked first. No two entries of a list have one.
struct SpdPlace {
    // `part` of an entry of its own; smaller: of what stands in front of it for its sake.
    static constexpr uint32_t kItself = std::numeric_limits<uint32_t>::max();

    uint8_t tier = 0;       // what no priority overtakes
    uint32_t priority = 0;  // the smaller first
    uint32_t rank = 0;      // of equal priority
    uint32_t index = 0;
    uint32_t part = kItself;

    friend auto operator<=>(const SpdPlace&, const SpdPlace&) = default;
};

// Of one direction: what is at the place from now on. nullopt: nothing.
struct SpdEdit {
    SpdPlace place;
    std::optional<SpdEntry> entry;
};

// In the order of their places, each place once.
struct SpdEdits {
    std::vector<SpdEdit> outbound;
    std::vector<SpdEdit> inbound;
};

// A direction's list.
struct SpdList {
    std::vector<SpdEntry> entries;  // SPD order
    std::vector<SpdPlace> places;   // of each
};

}  // namespace sallyport
