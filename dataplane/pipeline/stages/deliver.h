// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"
#include "dataplane/wire/frame_ip.h"

namespace sallyport::stages {

// The last stage inbound: the packet as a frame of its own, without padding, for the egress.
inline DropReason deliver(InboundContext& context, Packet& packet) {
    InboundSa& sa = *packet.inbound_sa;
    sa.packets.add(1);
    sa.bytes.add(packet.inner.total_bytes);
    std::byte* frame = packet.ip - wire::kEthernetBytes;
    wire::write_ether_type(frame, packet.inner.family);
    context.delivered.add(
        {.frame = {.data = frame, .bytes = wire::kEthernetBytes + packet.inner.total_bytes},
         .kind = FrameKind::transit});
    return DropReason::none;
}

}  // namespace sallyport::stages
