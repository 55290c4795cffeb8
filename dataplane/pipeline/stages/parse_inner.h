// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"
#include "dataplane/wire/frame_ip.h"

namespace sallyport::stages {

// Protected side: a packet in clear that may make one more hop, where that hop is ours.
[[gnu::always_inline]] inline DropReason parse_inner(OutboundContext& context, Packet& packet) {
    const Frame frame = packet.frame;
    // MLD reports and the like, which every device with IPv6 sends.
    if (context.source == OutboundSource::kernel && wire::is_link_multicast(frame)) {
        return DropReason::kernel_multicast;
    }
    const DropReason reason = wire::parse_frame(frame, packet.inner);
    if (reason != DropReason::none) return reason;
    packet.ip = frame.data + wire::kEthernetBytes;
    const uint8_t ttl_needed = context.source == OutboundSource::port ? 2 : 1;
    return packet.inner.ttl < ttl_needed ? DropReason::ttl_exceeded : DropReason::none;
}

}  // namespace sallyport::stages
