// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sequence and replay state of SAs beyond their deletion.
//
// An IKE daemon that moves an SA (MOBIKE, a NAT mapping that changed) deletes the state and adds it
// again: same SPI, same keys, and the kernel's counters of the moment it asked. Those may be behind
// what a worker or the kernel has used since. What is kept here only ever moves up, so that neither
// is a number sent twice nor a packet accepted twice, whatever counters the state comes back with.
//
// Names are (SPI, protocol, digest of the key): the address is what changes. Bounded: beyond
// kNamesMax the one that was noted longest ago is forgotten.
//
// Owner: control thread.

#include <compare>
#include <cstdint>
#include <map>

#include "control/sa/key_digest.h"
#include "dataplane/base/ids.h"

namespace sallyport::control {

class SequenceMemory {
  public:
    // Keys that are remembered after their SAs have gone. The oldest are forgotten beyond it, and a
    // key that comes back after that starts from the kernel's own counter.
    static constexpr size_t kNamesMax = size_t{1} << 18;

    struct Name {
        Spi spi{};
        uint8_t protocol = 0;
        KeyDigest key;
        friend auto operator<=>(const Name&, const Name&) = default;
    };
    struct State {
        uint64_t outbound_next = 1;  // every number below may have been sent
        uint64_t inbound_top = 0;    // every number up to it may have been accepted
    };

    // What is known of `name`; numbers of a fresh SA when nothing is.
    [[nodiscard]] State find(const Name& name) const;
    // Something is known of a key of this SPI.
    [[nodiscard]] bool knows(Spi spi, uint8_t protocol) const;
    // Notes that numbers below `outbound_next` and up to `inbound_top` are used. Lower values than
    // those known change nothing.
    void raise(const Name& name, const State& used);
    [[nodiscard]] size_t size() const { return names_.size(); }

  private:
    struct Entry {
        State state;
        uint64_t noted = 0;  // key into by_age_
    };
    std::map<Name, Entry> names_;
    std::map<uint64_t, Name> by_age_;
    uint64_t clock_ = 0;
};

}  // namespace sallyport::control
