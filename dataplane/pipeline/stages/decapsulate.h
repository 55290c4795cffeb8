// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/esp/padding.h"
#include "dataplane/pipeline/context.h"
#include "dataplane/wire/ecn.h"
#include "dataplane/wire/headers.h"

namespace sallyport::stages {

// Ones' complement arithmetic keeps a header checksum right while the TOS byte changes.
inline void set_ipv4_ecn(std::byte* ip, uint8_t dscp_ecn) {
    auto header = wire::read<wire::Ipv4>(ip);
    const auto before = static_cast<uint16_t>(header.version_ihl | header.dscp_ecn << 8);
    const auto after = static_cast<uint16_t>(header.version_ihl | dscp_ecn << 8);
    header.dscp_ecn = dscp_ecn;
    header.checksum = wire::update_checksum(header.checksum, before, after);
    wire::write(ip, header);
}

inline void set_ipv6_ecn(std::byte* ip, uint8_t ecn) {
    const auto word = wire::read<Be32>(ip).host();
    wire::write(ip, Be32((word & ~(uint32_t{wire::kEcnMask} << 20)) | uint32_t{ecn} << 20));
}

// Where the outer header says something about congestion that the inner one does not.
[[gnu::cold, gnu::noinline]] inline DropReason change_ecn(Packet& packet, uint8_t ecn) {
    if (ecn == wire::kEcnDrop) return DropReason::ecn_not_capable;
    if (packet.inner.family == Family::v4) {
        set_ipv4_ecn(packet.ip,
                     static_cast<uint8_t>((packet.inner.dscp_ecn & ~wire::kEcnMask) | ecn));
    } else {
        set_ipv6_ecn(packet.ip, ecn);
    }
    return DropReason::none;
}

// Padding, next header and the inner IP header, which says how long the packet is: what follows it
// is TFC padding (RFC 4303 2.7). Its checksum is left to the receiving host, as any router in
// between may. From here on packet.ip is the inner header.
[[gnu::always_inline]] inline DropReason decapsulate(InboundContext& /*context*/, Packet& packet) {
    const std::byte* text = packet.job.text;
    const auto trailer = esp::read_trailer(text, packet.job.text_bytes);
    if (!trailer) return DropReason::bad_padding;
    bool valid = false;
    switch (trailer->next_header) {
        case wire::kProtocolIpip:
            valid = wire::parse_ipv4(text, trailer->inner_bytes, packet.inner);
            break;
        case wire::kProtocolIpv6:
            valid = wire::parse_ipv6(text, trailer->inner_bytes, packet.inner);
            break;
        case wire::kProtocolNone:
            return DropReason::dummy_packet;
        default:
            return DropReason::bad_next_header;
    }
    if (!valid) return DropReason::malformed_inner;
    if (packet.inner.family == Family::v4 &&
        !wire::is_ipv4_checksum_right(text, packet.inner.header_bytes)) {
        return DropReason::bad_ip_checksum;
    }
    packet.ip = packet.job.text;
    const uint8_t inner_ecn = packet.inner.dscp_ecn & wire::kEcnMask;
    const uint8_t ecn = wire::kEcnDecapsulation[inner_ecn][packet.outer_dscp_ecn & wire::kEcnMask];
    return ecn == inner_ecn ? DropReason::none : change_ecn(packet, ecn);
}

}  // namespace sallyport::stages
