// SPDX-License-Identifier: Apache-2.0
#pragma once

// The IP packet within an Ethernet frame: found, read and sent on its way. Whoever looks at a frame
// uses this, so that a frame has the same reason to be dropped wherever it is looked at; the XDP
// programs have the same reasons (bpf/parse.h).

#include "dataplane/base/drop_reason.h"
#include "dataplane/base/frame.h"
#include "dataplane/wire/headers.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport::wire {

inline constexpr uint32_t kEthernetBytes = sizeof(Ethernet);

constexpr Be16 ether_type_of(Family family) {
    return family == Family::v4 ? kEtherTypeIpv4 : kEtherTypeIpv6;
}
inline Be16 ether_type_at(const std::byte* frame) {
    return read<Be16>(frame + offsetof(Ethernet, type));
}
inline void write_ether_type(std::byte* frame, Family family) {
    write(frame + offsetof(Ethernet, type), ether_type_of(family));
}

// Sent to a group of stations on the link, or to all of them.
inline bool is_link_multicast(const Frame& frame) {
    return frame.bytes >= kEthernetBytes && (frame.data[0] & std::byte{1}) != std::byte{0};
}

// Reads the packet, whose header stands at frame.data + kEthernetBytes. Otherwise why not:
// truncated (the frame ends before the header does), malformed_ip, unsupported_packet (not IP).
[[gnu::always_inline]] inline DropReason parse_frame(const Frame& frame, IpPacket& packet) {
    if (frame.bytes < kEthernetBytes) return DropReason::truncated;
    const std::byte* ip = frame.data + kEthernetBytes;
    const uint32_t bytes = frame.bytes - kEthernetBytes;
    const Be16 type = ether_type_at(frame.data);
    bool valid = false;
    if (type == kEtherTypeIpv4) {
        if (bytes < sizeof(Ipv4)) return DropReason::truncated;
        valid = parse_ipv4(ip, bytes, packet);
    } else if (type == kEtherTypeIpv6) {
        if (bytes < sizeof(Ipv6)) return DropReason::truncated;
        valid = parse_ipv6(ip, bytes, packet);
    } else {
        return DropReason::unsupported_packet;
    }
    return valid ? DropReason::none : DropReason::malformed_ip;
}

// One hop less. The caller has seen that one is left.
inline void decrement_ttl(std::byte* ip, Family family) {
    if (family == Family::v4) {
        // TTL and protocol share a checksum word, as they stand in memory: TTL is its low byte.
        const auto before = read<uint16_t>(ip + offsetof(Ipv4, ttl));
        const auto after = static_cast<uint16_t>(before - 1);
        const auto checksum = read<uint16_t>(ip + offsetof(Ipv4, checksum));
        ip[offsetof(Ipv4, ttl)] = static_cast<std::byte>(after);
        write(ip + offsetof(Ipv4, checksum), update_checksum(checksum, before, after));
    } else {
        std::byte& hop_limit = ip[offsetof(Ipv6, hop_limit)];
        hop_limit = static_cast<std::byte>(static_cast<uint8_t>(hop_limit) - 1);
    }
}

}  // namespace sallyport::wire
