// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/esp/outer_header.h"
#include "dataplane/pipeline/context.h"
#include "dataplane/wire/frame_ip.h"

namespace sallyport::stages {

// Counts the packet and puts its frame into the line of those that leave. It still stands there in
// clear: the line is handed out only when the whole burst has been encrypted.
inline DropReason line_up(OutboundContext& context, Packet& packet) {
    OutboundSa& sa = *packet.outbound_sa;
    sa.packets.add(1);
    sa.bytes.add(packet.inner.total_bytes);
    std::byte* frame = packet.ip - wire::kEthernetBytes;
    wire::write_ether_type(frame, esp::outer_family(sa));
    context.delivered.add(
        {.frame = {.data = frame,
                   .bytes = wire::kEthernetBytes + sa.header_bytes + packet.esp_bytes},
         .kind = FrameKind::originated});
    return DropReason::none;
}

}  // namespace sallyport::stages
