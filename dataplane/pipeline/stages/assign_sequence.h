// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cassert>

#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// From here on the number is spent: the stages that follow drop nothing.
[[gnu::always_inline]] inline DropReason assign_sequence(OutboundContext& context, Packet& packet) {
    OutboundSa& sa = *packet.outbound_sa;
    assert(sa.owner == context.worker);
    const uint64_t sequence = sa.sequence_next.read();
    if (sequence >= sa.sequence_low_water) [[unlikely]] {
        if (!sa.low_water_reported) {
            sa.low_water_reported = true;
            context.events.post(event::SequenceLow{.id = sa.id, .next = sequence});
        }
        if (sequence >= sa.sequence_end) return DropReason::sequence_exhausted;
        if (sequence >= sa.sequence_reserved) return DropReason::sequence_unreserved;
    }
    sa.sequence_next.set(sequence + 1);
    packet.sequence = sequence;
    return DropReason::none;
}

}  // namespace sallyport::stages
