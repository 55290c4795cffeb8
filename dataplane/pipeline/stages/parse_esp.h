// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "dataplane/esp/overhead.h"
#include "dataplane/pipeline/context.h"
#include "dataplane/wire/frame_ip.h"

namespace sallyport::stages {

// Finds ESP behind an outer header that is not the plain one, or says why there is none.
// Out of line: inlined, it would cost every packet registers.
[[gnu::cold, gnu::noinline]] inline DropReason find_esp(const Frame& frame, uint32_t& esp_offset,
                                                        uint32_t& total_bytes) {
    wire::IpPacket outer;
    const DropReason reason = wire::parse_frame(frame, outer);
    if (reason != DropReason::none) return reason;
    if (outer.fragment) return DropReason::outer_fragment;
    if (outer.protocol == wire::kProtocolUdp && outer.ports_known &&
        outer.destination_port == wire::kPortNatTraversal) {
        return DropReason::unexpected_encapsulation;
    }
    if (outer.protocol != wire::kProtocolEsp) return DropReason::unsupported_packet;
    esp_offset = outer.transport_offset;
    total_bytes = outer.total_bytes;
    return DropReason::none;
}

// Unprotected side: the outer header, then ESP. Nearly all outer headers have neither options nor
// extension headers, so that case needs no walk. Asks for the SAD's slot.
[[gnu::always_inline]] inline DropReason parse_esp(InboundContext& context, Packet& packet) {
    const Frame frame = packet.frame;
    if (frame.bytes < wire::kEthernetBytes + sizeof(wire::Ipv4)) return DropReason::truncated;
    std::byte* ip = frame.data + wire::kEthernetBytes;
    const uint32_t ip_bytes = frame.bytes - wire::kEthernetBytes;
    const Be16 type = wire::ether_type_at(frame.data);
    uint32_t esp_offset = 0;
    uint32_t total_bytes = 0;
    if (type == wire::kEtherTypeIpv4) {
        const auto fragment = wire::read<Be16>(ip + offsetof(wire::Ipv4, flags_offset));
        constexpr uint16_t kFragmentBits =
            Be16(wire::kIpv4MoreFragments | wire::kIpv4OffsetMask).raw();
        total_bytes = wire::read<Be16>(ip + offsetof(wire::Ipv4, total_bytes)).host();
        esp_offset = sizeof(wire::Ipv4);
        if (wire::read<uint8_t>(ip) != 0x45 ||
            wire::read<uint8_t>(ip + offsetof(wire::Ipv4, protocol)) != wire::kProtocolEsp ||
            (fragment.raw() & kFragmentBits) != 0 || total_bytes > ip_bytes) [[unlikely]] {
            const DropReason reason = find_esp(frame, esp_offset, total_bytes);
            if (reason != DropReason::none) return reason;
        }
        packet.outer_family = Family::v4;
        packet.outer_dscp_ecn = wire::read<uint8_t>(ip + offsetof(wire::Ipv4, dscp_ecn));
        packet.daddr_word = wire::read<uint32_t>(ip + offsetof(wire::Ipv4, destination));
    } else if (type == wire::kEtherTypeIpv6) {
        if (ip_bytes < sizeof(wire::Ipv6)) return DropReason::truncated;
        const uint32_t first_word = wire::read<Be32>(ip).host();
        total_bytes = uint32_t{sizeof(wire::Ipv6)} +
                      wire::read<Be16>(ip + offsetof(wire::Ipv6, payload_bytes)).host();
        esp_offset = sizeof(wire::Ipv6);
        if (wire::read<uint8_t>(ip + offsetof(wire::Ipv6, next_header)) != wire::kProtocolEsp ||
            total_bytes > ip_bytes || first_word >> 28 != 6) [[unlikely]] {
            const DropReason reason = find_esp(frame, esp_offset, total_bytes);
            if (reason != DropReason::none) return reason;
        }
        packet.outer_family = Family::v6;
        packet.outer_dscp_ecn = static_cast<uint8_t>(first_word >> 20);
        packet.daddr_word = wire::read<uint32_t>(ip + offsetof(wire::Ipv6, destination) + 12);
    } else {
        return DropReason::unsupported_packet;
    }
    if (total_bytes < esp_offset + esp::kBytesMin) return DropReason::malformed_esp;
    packet.ip = ip;
    packet.esp = ip + esp_offset;
    packet.esp_bytes = total_bytes - esp_offset;
    if (packet.esp_bytes % esp::kAlignment != 0) return DropReason::malformed_esp;
    packet.spi = wire::read<Be32>(packet.esp);
    packet.sad_hint = context.sad.hint(packet.spi, packet.daddr_word);
    context.sad.prefetch(packet.sad_hint);
    return DropReason::none;
}

}  // namespace sallyport::stages
