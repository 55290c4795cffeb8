// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reading an IP packet far enough for policy: addresses, protocol, ports, what a tunnel copies.
// Pure functions over bytes from outside; every length is checked before it is used.

#include <cstddef>
#include <cstdint>

#include "dataplane/base/ip.h"
#include "dataplane/wire/headers.h"

namespace sallyport::wire {

struct IpPacket {
    Family family = Family::v4;
    uint8_t header_bytes = 0;     // IPv4 with options, or the IPv6 header alone
    uint8_t protocol = 0;         // what follows the last extension header
    uint8_t dscp_ecn = 0;         // traffic class
    uint8_t ttl = 0;              // hop limit
    bool dont_fragment = false;   // IPv6: always
    bool fragment = false;        // any fragment, also the first
    bool later_fragment = false;  // does not begin with the upper header
    bool protocol_known = true;   // false: a later fragment that begins inside extension headers
    bool ports_known = false;     // TCP, UDP, SCTP and not a later fragment
    uint16_t source_port = 0;     // host order
    uint16_t destination_port = 0;
    uint32_t total_bytes = 0;       // as the header says, at most what is there
    uint32_t transport_offset = 0;  // from the IP header
};

constexpr bool has_port_numbers(uint8_t protocol) {
    return protocol == kProtocolTcp || protocol == kProtocolUdp || protocol == kProtocolSctp;
}

constexpr bool is_extension_header(uint8_t protocol) {
    return protocol == kProtocolHopByHop || protocol == kProtocolRouting ||
           protocol == kProtocolFragment || protocol == kProtocolDestinationOptions;
}

// Extension headers we are ready to walk; more is a sign of an attack, not of a packet.
inline constexpr int kExtensionHeadersMax = 8;

inline void read_ports(const std::byte* packet, IpPacket& out, bool later_fragment) {
    if (later_fragment || !has_port_numbers(out.protocol) ||
        out.total_bytes < out.transport_offset + 4) {
        return;
    }
    out.source_port = read<Be16>(packet + out.transport_offset).host();
    out.destination_port = read<Be16>(packet + out.transport_offset + 2).host();
    out.ports_known = true;
}

// False: malformed. `bytes`: what is there, the packet may be shorter (Ethernet or TFC padding).
inline bool parse_ipv4(const std::byte* packet, uint32_t bytes, IpPacket& out) {
    if (bytes < sizeof(Ipv4)) return false;
    const auto version_ihl = read<uint8_t>(packet);
    const uint32_t header_bytes = (version_ihl & 0x0fu) * 4;
    const uint32_t total_bytes = read<Be16>(packet + offsetof(Ipv4, total_bytes)).host();
    if (version_ihl >> 4 != 4 || header_bytes < sizeof(Ipv4) || total_bytes < header_bytes ||
        total_bytes > bytes) {
        return false;
    }
    const uint16_t flags_offset = read<Be16>(packet + offsetof(Ipv4, flags_offset)).host();
    out.family = Family::v4;
    out.header_bytes = static_cast<uint8_t>(header_bytes);
    out.protocol = read<uint8_t>(packet + offsetof(Ipv4, protocol));
    out.dscp_ecn = read<uint8_t>(packet + offsetof(Ipv4, dscp_ecn));
    out.ttl = read<uint8_t>(packet + offsetof(Ipv4, ttl));
    out.dont_fragment = (flags_offset & kIpv4DontFragment) != 0;
    out.fragment = (flags_offset & (kIpv4MoreFragments | kIpv4OffsetMask)) != 0;
    out.later_fragment = (flags_offset & kIpv4OffsetMask) != 0;
    out.protocol_known = true;
    out.ports_known = false;
    out.total_bytes = total_bytes;
    out.transport_offset = header_bytes;
    read_ports(packet, out, out.later_fragment);
    return true;
}

inline bool parse_ipv6(const std::byte* packet, uint32_t bytes, IpPacket& out) {
    if (bytes < sizeof(Ipv6)) return false;
    const uint32_t first_word = read<Be32>(packet).host();
    const uint32_t total_bytes =
        uint32_t{sizeof(Ipv6)} + read<Be16>(packet + offsetof(Ipv6, payload_bytes)).host();
    if (first_word >> 28 != 6 || total_bytes > bytes) return false;
    out.family = Family::v6;
    out.header_bytes = sizeof(Ipv6);
    out.dscp_ecn = static_cast<uint8_t>(first_word >> 20);
    out.ttl = read<uint8_t>(packet + offsetof(Ipv6, hop_limit));
    out.dont_fragment = true;
    out.fragment = false;
    out.later_fragment = false;
    out.ports_known = false;
    out.total_bytes = total_bytes;

    auto next_header = read<uint8_t>(packet + offsetof(Ipv6, next_header));
    uint32_t offset = sizeof(Ipv6);
    for (int walked = 0; !out.later_fragment; ++walked) {
        if (!is_extension_header(next_header)) break;
        if (walked == kExtensionHeadersMax || offset + 8 > total_bytes) return false;
        const auto following = static_cast<uint8_t>(packet[offset]);
        if (next_header == kProtocolFragment) {
            const uint16_t offset_flags = read<Be16>(packet + offset + 2).host();
            out.fragment = out.fragment || (offset_flags & 0xfff9) != 0;
            out.later_fragment = (offset_flags & 0xfff8) != 0;
            offset += 8;
        } else {
            offset += (static_cast<uint32_t>(packet[offset + 1]) + 1) * 8;
        }
        if (offset > total_bytes) return false;
        next_header = following;
    }
    out.protocol = next_header;
    out.protocol_known = !is_extension_header(next_header);
    out.transport_offset = offset;
    read_ports(packet, out, out.later_fragment);
    return true;
}

// Where the addresses stand in an IP header: 4 or 16 bytes.
constexpr size_t address_bytes(Family family) {
    return family == Family::v4 ? sizeof(Ipv4::source) : sizeof(Ipv6::source);
}
inline const std::byte* source_at(const std::byte* ip, Family family) {
    return ip + (family == Family::v4 ? offsetof(Ipv4, source) : offsetof(Ipv6, source));
}
inline const std::byte* destination_at(const std::byte* ip, Family family) {
    return ip + (family == Family::v4 ? offsetof(Ipv4, destination) : offsetof(Ipv6, destination));
}

inline IpAddress source_of(Family family, const std::byte* ip) {
    IpAddress address{.family = family};
    std::memcpy(address.bytes.data(), source_at(ip, family), address_bytes(family));
    return address;
}
inline IpAddress destination_of(Family family, const std::byte* ip) {
    IpAddress address{.family = family};
    std::memcpy(address.bytes.data(), destination_at(ip, family), address_bytes(family));
    return address;
}

}  // namespace sallyport::wire
