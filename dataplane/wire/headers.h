// SPDX-License-Identifier: Apache-2.0
#pragma once

// Headers as they stand on the wire, and the few sums that go with them. Read and written by
// memcpy: frames have no alignment to rely on.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dataplane/base/byte_order.h"

namespace sallyport::wire {

inline constexpr uint8_t kProtocolIpip = 4;
inline constexpr uint8_t kProtocolTcp = 6;
inline constexpr uint8_t kProtocolUdp = 17;
inline constexpr uint8_t kProtocolIpv6 = 41;
inline constexpr uint8_t kProtocolEsp = 50;
inline constexpr uint8_t kProtocolSctp = 132;
inline constexpr uint8_t kProtocolNone = 59;  // "dummy" inside ESP (RFC 4303 2.6)
inline constexpr uint8_t kProtocolHopByHop = 0;
inline constexpr uint8_t kProtocolRouting = 43;
inline constexpr uint8_t kProtocolFragment = 44;
inline constexpr uint8_t kProtocolDestinationOptions = 60;

inline constexpr Be16 kEtherTypeIpv4{0x0800};
inline constexpr Be16 kEtherTypeIpv6{0x86dd};
inline constexpr uint16_t kPortNatTraversal = 4500;

struct Ethernet {
    std::array<uint8_t, 6> destination;
    std::array<uint8_t, 6> source;
    Be16 type;
};
static_assert(sizeof(Ethernet) == 14);

struct Ipv4 {
    uint8_t version_ihl;
    uint8_t dscp_ecn;
    Be16 total_bytes;
    Be16 id;
    Be16 flags_offset;
    uint8_t ttl;
    uint8_t protocol;
    uint16_t checksum;  // as in memory
    Be32 source;
    Be32 destination;
};
static_assert(sizeof(Ipv4) == 20);

inline constexpr uint16_t kIpv4DontFragment = 0x4000;
inline constexpr uint16_t kIpv4MoreFragments = 0x2000;
inline constexpr uint16_t kIpv4OffsetMask = 0x1fff;

struct Ipv6 {
    Be32 version_class_flow;
    Be16 payload_bytes;
    uint8_t next_header;
    uint8_t hop_limit;
    std::array<std::byte, 16> source;
    std::array<std::byte, 16> destination;
};
static_assert(sizeof(Ipv6) == 40);

struct Udp {
    Be16 source_port;
    Be16 destination_port;
    Be16 bytes;
    uint16_t checksum;
};
static_assert(sizeof(Udp) == 8);

struct Esp {
    Be32 spi;
    Be32 sequence_low;
};
static_assert(sizeof(Esp) == 8);

template <typename Header>
Header read(const std::byte* at) {
    Header header;
    std::memcpy(&header, at, sizeof header);
    return header;
}
template <typename Header>
void write(std::byte* at, const Header& header) {
    std::memcpy(at, &header, sizeof header);
}

// Ones' complement sum of 16-bit words as they stand in memory, not folded. `bytes` is even.
inline uint32_t sum_words(const std::byte* at, size_t bytes) {
    uint32_t sum = 0;
    for (size_t i = 0; i < bytes; i += 2) {
        uint16_t word;
        std::memcpy(&word, at + i, sizeof word);
        sum += word;
    }
    return sum;
}

// A header checksum field from an unfolded sum, as it stands in memory.
inline uint16_t fold_checksum(uint32_t sum) {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum);
}

// A sum of any width as one 16-bit word, with the carries that came out of it.
inline uint16_t fold_sum(uint64_t sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>((sum & 0xffff) + (sum >> 16));
}

// The same of few words of 32 bits: below 2^36.
inline uint16_t fold_short_sum(uint64_t sum) {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>((sum & 0xffff) + (sum >> 16));
}

// Whether an IPv4 header and its checksum agree (RFC 1812 5.2.2). `bytes`: of the header, with its
// options. The sum is the same in words of 32 bits, since 2^16 is 1 in this arithmetic.
[[gnu::always_inline]] inline bool is_ipv4_checksum_right(const std::byte* header, size_t bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof(Ipv4); i += 4) sum += read<uint32_t>(header + i);
    for (size_t i = sizeof(Ipv4); i < bytes; i += 4) sum += read<uint32_t>(header + i);
    sum = (sum & 0xffff) + (sum >> 16);
    // At most 0x1000f: no other multiple of 0xffff.
    return (sum & 0xffff) + (sum >> 16) == 0xffff;
}

// The checksum after one 16-bit word of the header changed (RFC 1624, equation 3).
inline uint16_t update_checksum(uint16_t checksum, uint16_t before, uint16_t after) {
    return fold_checksum(static_cast<uint16_t>(~checksum) +
                         static_cast<uint32_t>(static_cast<uint16_t>(~before)) + after);
}

}  // namespace sallyport::wire
