// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packets as readable expressions, for tests:
//
//   ethernet(ipv4({.source = "10.1.0.5", .destination = "10.2.0.9"}, udp(1000, 53)))
//   ethernet(ipv6({.extensions = {hop_by_hop(), fragment(0, true)}}, tcp(1000, 443)))
//
// Written from the RFCs, not from dataplane/wire, so that a mistake there is not repeated here.
// Header and transport checksums are right unless a row breaks them afterwards.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dataplane/base/ip.h"

namespace sallyport::test {

using Bytes = std::vector<std::byte>;

Bytes from_hex(std::string_view text);
std::string to_hex(std::span<const std::byte> bytes);
Bytes repeated(size_t count, uint8_t value);
IpAddress address(std::string_view text);  // aborts the test program on a typing error
IpPrefix prefix(std::string_view text);

// What stands behind the IP headers.
struct Payload {
    uint8_t protocol = 0;
    Bytes bytes;
    std::optional<size_t> checksum_at;  // where a checksum with pseudo-header goes
};
Payload udp(uint16_t source_port, uint16_t destination_port, size_t data_bytes = 32);
Payload tcp(uint16_t source_port, uint16_t destination_port, size_t data_bytes = 32);
Payload sctp(uint16_t source_port, uint16_t destination_port, size_t data_bytes = 32);
Payload icmp_echo(size_t data_bytes = 32);    // IPv4
Payload icmpv6_echo(size_t data_bytes = 32);  // IPv6
Payload raw(uint8_t protocol, Bytes bytes);

struct Ipv4Fields {
    std::string source = "10.1.0.5";
    std::string destination = "10.2.0.9";
    uint8_t ttl = 64;
    uint8_t dscp_ecn = 0;
    uint16_t id = 0x1234;
    bool dont_fragment = false;
    bool more_fragments = false;
    uint16_t fragment_offset = 0;              // in units of 8 bytes
    Bytes options = {};                        // a multiple of 4 bytes
    std::optional<uint16_t> total_bytes = {};  // a lie
};
Bytes ipv4(const Ipv4Fields& fields, const Payload& payload);

// An IPv6 extension header; `body` is all of it but its first byte.
struct Extension {
    uint8_t type = 0;
    Bytes body;
};
Extension hop_by_hop(size_t units = 0);  // 8-byte units after the first
Extension routing(size_t units = 0);
Extension destination_options(size_t units = 0);
Extension fragment(uint16_t offset, bool more, uint32_t id = 7);  // offset in units of 8 bytes

struct Ipv6Fields {
    std::string source = "2001:db8:1::5";
    std::string destination = "2001:db8:2::9";
    uint8_t hop_limit = 64;
    uint8_t traffic_class = 0;
    uint32_t flow_label = 0;
    std::vector<Extension> extensions = {};
    std::optional<uint16_t> payload_bytes = {};  // a lie
};
Bytes ipv6(const Ipv6Fields& fields, const Payload& payload);

// The ordinary packet of a family, 10.1.0.5 -> 10.2.0.9 or 2001:db8:1::5 -> 2001:db8:2::9.
Bytes ip(Family family, const Payload& payload, uint8_t dscp_ecn = 0, uint8_t ttl = 64);

// The type follows from the packet's version.
Bytes ethernet(const Bytes& packet);
Bytes ethernet(uint16_t type, const Bytes& payload);

// True when the IPv4 header's checksum is right.
bool ipv4_checksum_right(std::span<const std::byte> packet);
// Ones' complement checksum over bytes (RFC 1071), as the number that stands in the field.
uint16_t internet_checksum(std::span<const std::byte> bytes);
// The same packet as a host hands it out that leaves the checksum of TCP or UDP to its device: the
// field holds the sum of the pseudo-header, not inverted. No extension headers.
Bytes with_partial_checksum(Bytes packet);
// Writes the right checksum after a test changed the header.
void repair_ipv4_checksum(Bytes& packet);

uint16_t get16(std::span<const std::byte> bytes, size_t at);
uint32_t get32(std::span<const std::byte> bytes, size_t at);
uint8_t get8(std::span<const std::byte> bytes, size_t at);
void put8(Bytes& bytes, size_t at, uint8_t value);
void put16(Bytes& bytes, size_t at, uint16_t value);
void put32(Bytes& bytes, size_t at, uint32_t value);
Bytes head(const Bytes& bytes, size_t count);  // the first `count`
void append(Bytes& bytes, std::span<const std::byte> more);

}  // namespace sallyport::test
