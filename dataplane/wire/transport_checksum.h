// SPDX-License-Identifier: Apache-2.0
#pragma once

// Checksums of TCP and UDP that the sender has left to a device: the field holds the sum of the
// pseudo-header alone, not inverted (bpf/checksum.h says where such packets come from).

#include <cstddef>
#include <cstdint>

#include "dataplane/wire/headers.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport::wire {

inline constexpr uint32_t kTcpBytes = 20;
inline constexpr uint32_t kTcpChecksumAt = 16;

// The pseudo-header of RFC 9293 3.1 and RFC 8200 8.1, not folded.
[[gnu::always_inline]] inline uint64_t sum_pseudo_header(const std::byte* ip,
                                                         const IpPacket& packet) {
    const std::byte* at = source_at(ip, packet.family);
    uint64_t sum = uint64_t{Be32(packet.total_bytes - packet.transport_offset).raw()} +
                   Be32(packet.protocol).raw();
    sum += uint64_t{read<uint32_t>(at)} + read<uint32_t>(at + 4);
    if (packet.family == Family::v4) return sum;
    for (size_t i = 8; i < 2 * sizeof(Ipv6::source); i += 4) sum += read<uint32_t>(at + i);
    return sum;
}

// Any number of bytes; one that is left over counts as the first of its word.
inline uint64_t sum_bytes(const std::byte* at, size_t bytes) {
    uint64_t sum = 0;
    for (; bytes >= 4; bytes -= 4, at += 4) sum += read<uint32_t>(at);
    if (bytes >= 2) {
        sum += read<uint16_t>(at);
        at += 2;
    }
    return bytes % 2 == 0 ? sum : sum + static_cast<uint8_t>(*at);
}

// Where the checksum stands, from the IP header; 0: the packet has none that could be completed.
[[gnu::always_inline]] inline uint32_t transport_checksum_at(const IpPacket& packet) {
    if (packet.fragment) return 0;
    const uint32_t bytes = packet.total_bytes - packet.transport_offset;
    if (packet.protocol == kProtocolTcp && bytes >= kTcpBytes) {
        return packet.transport_offset + kTcpChecksumAt;
    }
    if (packet.protocol == kProtocolUdp && bytes >= sizeof(Udp)) {
        return packet.transport_offset + uint32_t{offsetof(Udp, checksum)};
    }
    return 0;
}

// True: it was not complete, and is now. `at`: of the field, which holds the sum of the
// pseudo-header, `pseudo`. A right checksum can happen to be that number: then nothing is changed.
[[gnu::cold, gnu::noinline]] inline bool complete_checksum(std::byte* ip, const IpPacket& packet,
                                                           uint32_t at, uint64_t pseudo) {
    const uint64_t segment =
        sum_bytes(ip + packet.transport_offset, packet.total_bytes - packet.transport_offset);
    if (fold_sum(pseudo + segment) == 0xffff) return false;
    auto checksum = static_cast<uint16_t>(~fold_sum(segment));
    // RFC 768: 0 would say that there is none.
    if (checksum == 0 && packet.protocol == kProtocolUdp) checksum = 0xffff;
    write(ip + at, checksum);
    return true;
}

}  // namespace sallyport::wire
