// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport::stages {

// The SA of SPI and destination (RFC 4301 4.1). Without one the frame may be put on hold, so up to
// here nothing has changed it. Asks for the SA.
[[gnu::always_inline]] inline DropReason lookup_sa(InboundContext& context, Packet& packet) {
    const std::byte* daddr = wire::destination_at(packet.ip, packet.outer_family);
    InboundSa* sa = context.sad.find(packet.sad_hint, packet.spi, packet.outer_family, daddr,
                                     packet.daddr_word);
    if (sa == nullptr) return DropReason::unknown_spi;
    packet.inbound_sa = sa;
    sa->prefetch();
    return DropReason::none;
}

}  // namespace sallyport::stages
