// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/esp/overhead.h"
#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// Whether the outer packet fits the path, and what grows behind the packet its buffer.
[[gnu::always_inline]] inline DropReason check_mtu(const OutboundContext& context, Packet& packet) {
    const OutboundSa& sa = *packet.outbound_sa;
    const uint32_t esp_bytes = esp::esp_bytes_for(packet.inner.total_bytes);
    const auto room = static_cast<uint32_t>(frame_base(packet.ip) + kFrameBytes - packet.ip);
    const bool fits = esp_bytes - esp::kHeaderBytes <= room;
    const uint32_t most = sa.mtu != 0 ? sa.mtu : context.outer_mtu;
    return sa.header_bytes + esp_bytes > most || !fits ? DropReason::too_big : DropReason::none;
}

}  // namespace sallyport::stages
