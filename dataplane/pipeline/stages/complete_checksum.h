// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"
#include "dataplane/wire/transport_checksum.h"

namespace sallyport::stages {

// A host on this machine may have left the checksum of TCP or UDP to its device, and no device will
// see it in clear any more. The kernel completes what it sends into sp0 itself.
[[gnu::always_inline]] inline DropReason complete_checksum(OutboundContext& context,
                                                           Packet& packet) {
    const uint32_t at = wire::transport_checksum_at(packet.inner);
    if (at == 0 || context.source != OutboundSource::port) return DropReason::none;
    const uint64_t pseudo = wire::sum_pseudo_header(packet.ip, packet.inner);
    if (wire::read<uint16_t>(packet.ip + at) != wire::fold_short_sum(pseudo)) [[likely]] {
        return DropReason::none;
    }
    if (wire::complete_checksum(packet.ip, packet.inner, at, pseudo)) {
        context.counters.checksums_completed.add(1);
    }
    return DropReason::none;
}

}  // namespace sallyport::stages
