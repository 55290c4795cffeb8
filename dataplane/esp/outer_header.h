// SPDX-License-Identifier: Apache-2.0
#pragma once

// The outer IP header of a tunnel: the SA's template (OutboundSa::outer), and what differs from
// packet to packet. Inline, because it is on the path of every packet that is sent.
//
// Written field by field. A whole header assembled in a local variable would be copied by wide
// loads right behind narrow stores, which the CPU cannot forward: that costs more than all else
// here.
//
//   field           IPv4                              IPv6
//   length          outer packet                      behind the header
//   DSCP            inner, or 0 (copy_dscp)           the same
//   ECN             inner (RFC 6040 4.1, normal mode) the same
//   id, DF, sum     counted, by the SA's policy       -
//   flow label      -                                 inner IPv6's, so that paths that hash on it
//                                                     keep flows apart (RFC 4301 5.1.2.2)
//   the rest        template                          template

#include <cstring>

#include "dataplane/sa/sa.h"
#include "dataplane/wire/ecn.h"
#include "dataplane/wire/headers.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport::esp {

inline Family outer_family(const OutboundSa& sa) {
    return sa.header_bytes == sizeof(wire::Ipv4) ? Family::v4 : Family::v6;
}

inline uint16_t outer_flags(const OutboundSa& sa, const wire::IpPacket& inner) {
    switch (sa.df) {
        case DfPolicy::copy:
            return inner.dont_fragment ? wire::kIpv4DontFragment : 0;
        case DfPolicy::set:
            return wire::kIpv4DontFragment;
        case DfPolicy::clear:
            return 0;
    }
    return 0;
}

inline uint8_t outer_dscp_ecn(const OutboundSa& sa, const wire::IpPacket& inner) {
    return sa.copy_dscp ? inner.dscp_ecn : static_cast<uint8_t>(inner.dscp_ecn & wire::kEcnMask);
}

inline void write_outer_ipv4(OutboundSa& sa, const wire::IpPacket& inner, std::byte* at,
                             uint32_t outer_bytes) {
    const uint8_t dscp_ecn = outer_dscp_ecn(sa, inner);
    const auto total_bytes = Be16(static_cast<uint16_t>(outer_bytes));
    const auto id = Be16(sa.outer_id++);
    const auto flags_offset = Be16(outer_flags(sa, inner));
    const uint16_t checksum =
        wire::fold_checksum(sa.outer_checksum + (uint32_t{dscp_ecn} << 8) + total_bytes.raw() +
                            id.raw() + flags_offset.raw());
    std::memcpy(at, sa.outer.data(), sizeof(wire::Ipv4));
    wire::write(at + offsetof(wire::Ipv4, dscp_ecn), dscp_ecn);
    wire::write(at + offsetof(wire::Ipv4, total_bytes), total_bytes);
    wire::write(at + offsetof(wire::Ipv4, id), id);
    wire::write(at + offsetof(wire::Ipv4, flags_offset), flags_offset);
    wire::write(at + offsetof(wire::Ipv4, checksum), checksum);
}

inline void write_outer_ipv6(const OutboundSa& sa, const wire::IpPacket& inner,
                             const std::byte* inner_ip, std::byte* at, uint32_t outer_bytes) {
    const uint32_t flow_label =
        inner.family == Family::v6 ? wire::read<Be32>(inner_ip).host() & 0xfffff : 0;
    const auto payload_bytes = static_cast<uint16_t>(outer_bytes - sizeof(wire::Ipv6));
    std::memcpy(at, sa.outer.data(), sizeof(wire::Ipv6));
    wire::write(at,
                Be32(uint32_t{6} << 28 | uint32_t{outer_dscp_ecn(sa, inner)} << 20 | flow_label));
    wire::write(at + offsetof(wire::Ipv6, payload_bytes), Be16(payload_bytes));
}

// Everything of the SA's template (sa.header_bytes) in front of the ESP packet; returns where it
// begins. `inner`: read from `inner_ip`.
[[gnu::always_inline]] inline std::byte* write_outer_header(OutboundSa& sa,
                                                            const wire::IpPacket& inner,
                                                            const std::byte* inner_ip,
                                                            std::byte* esp, uint32_t esp_bytes) {
    std::byte* at = esp - sa.header_bytes;
    const uint32_t outer_bytes = sa.header_bytes + esp_bytes;
    if (outer_family(sa) == Family::v4) {
        write_outer_ipv4(sa, inner, at, outer_bytes);
    } else {
        write_outer_ipv6(sa, inner, inner_ip, at, outer_bytes);
    }
    return at;
}

}  // namespace sallyport::esp
