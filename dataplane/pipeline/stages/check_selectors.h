// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

inline bool selector_accepts(const SelectorMatch& selector, const wire::IpPacket& inner,
                             const std::byte* ip) {
    if (!selector.addresses_match(inner.family, ip)) return false;
    if (selector.protocol != 0 && selector.protocol != inner.protocol) return false;
    if (!selector.has_ports) return true;
    // A later fragment has no ports to compare, and no state is kept to know them: RFC 4301 7.
    return inner.ports_known && inner.source_port >= selector.source_port_lo &&
           inner.source_port <= selector.source_port_hi &&
           inner.destination_port >= selector.destination_port_lo &&
           inner.destination_port <= selector.destination_port_hi;
}

// The packet must be one that this SA was made for (RFC 4301 5.2 step 4).
[[gnu::always_inline]] inline DropReason check_selectors(InboundContext& /*context*/,
                                                         Packet& packet) {
    const InboundSa& sa = *packet.inbound_sa;
    if (selector_accepts(sa.selector, packet.inner, packet.ip)) [[likely]] {
        return DropReason::none;
    }
    for (size_t i = 0; i < sa.more_selector_count; ++i) {
        if (selector_accepts(sa.more_selectors[i], packet.inner, packet.ip)) {
            return DropReason::none;
        }
    }
    return DropReason::selector_mismatch;
}

}  // namespace sallyport::stages
