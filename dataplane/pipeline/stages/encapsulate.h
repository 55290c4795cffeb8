// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/esp/job.h"
#include "dataplane/esp/outer_header.h"
#include "dataplane/esp/padding.h"
#include "dataplane/pipeline/context.h"
#include "dataplane/wire/frame_ip.h"

namespace sallyport::stages {

// All but the ciphertext: our hop, the trailer behind the packet, the ESP and outer headers in
// front of it (RFC 4303 3.3), and the job for encrypt. From here on packet.ip is the outer header.
[[gnu::always_inline]] inline DropReason encapsulate(OutboundContext& context, Packet& packet) {
    OutboundSa& sa = *packet.outbound_sa;
    std::byte* inner = packet.ip;
    const uint32_t inner_bytes = packet.inner.total_bytes;
    if (context.source == OutboundSource::port) wire::decrement_ttl(inner, packet.inner.family);
    esp::write_trailer(inner, inner_bytes, packet.inner.family);

    const uint64_t iv = Be64(packet.sequence ^ sa.iv_mask).raw();
    packet.esp = inner - esp::kHeaderBytes;
    packet.esp_bytes = esp::esp_bytes_for(inner_bytes);
    wire::write(packet.esp, sa.spi);
    wire::write(packet.esp + offsetof(wire::Esp, sequence_low),
                Be32(static_cast<uint32_t>(packet.sequence)));
    wire::write(packet.esp + sizeof(wire::Esp), iv);
    esp::fill_job(packet.job, sa, packet.esp, packet.esp_bytes, packet.sequence, iv);

    packet.ip = esp::write_outer_header(sa, packet.inner, inner, packet.esp, packet.esp_bytes);
    return DropReason::none;
}

}  // namespace sallyport::stages
