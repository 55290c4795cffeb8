// SPDX-License-Identifier: Apache-2.0
#include "tests/support/packets.h"

#include <cstdio>
#include <cstdlib>

namespace sallyport::test {
namespace {

void push8(Bytes& bytes, unsigned value) {
    bytes.push_back(static_cast<std::byte>(value & 0xff));
}
void push16(Bytes& bytes, unsigned value) {
    push8(bytes, value >> 8);
    push8(bytes, value);
}
void push32(Bytes& bytes, uint32_t value) {
    push16(bytes, value >> 16);
    push16(bytes, value & 0xffff);
}
void push_address(Bytes& bytes, const IpAddress& value) {
    for (unsigned i = 0; i < value.bit_count() / 8; ++i) push8(bytes, value.bytes[i]);
}
void push_data(Bytes& bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) push8(bytes, static_cast<unsigned>(0x61 + i % 23));
}

unsigned hex_digit(char c) {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
    if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
    std::fprintf(stderr, "'%c' is not a hexadecimal digit\n", c);
    std::abort();
}

template <typename Expected>
auto value_or_abort(Expected expected) {
    if (!expected) {
        std::fprintf(stderr, "%s\n", expected.error().c_str());
        std::abort();
    }
    return *expected;
}

// Fills in a transport checksum over the pseudo-header (RFC 793, RFC 8200 8.1).
Bytes finished(const Payload& payload, const IpAddress& source, const IpAddress& destination) {
    Bytes bytes = payload.bytes;
    if (!payload.checksum_at) return bytes;
    Bytes summed;
    // ICMP for IPv4 has no pseudo-header.
    if (payload.protocol != 1) {
        push_address(summed, source);
        push_address(summed, destination);
        push32(summed, static_cast<uint32_t>(bytes.size()));
        push32(summed, payload.protocol);
    }
    append(summed, bytes);
    uint16_t checksum = internet_checksum(summed);
    if (checksum == 0 && payload.protocol == 17) checksum = 0xffff;
    put16(bytes, *payload.checksum_at, checksum);
    return bytes;
}

Extension options_header(uint8_t type, size_t units) {
    Extension extension{.type = type, .body = {}};
    push8(extension.body, static_cast<unsigned>(units));
    // One PadN option over the rest.
    const size_t rest = 6 + units * 8;
    push8(extension.body, 1);
    push8(extension.body, static_cast<unsigned>(rest - 2));
    extension.body.resize(1 + rest);
    return extension;
}

}  // namespace

Bytes from_hex(std::string_view text) {
    Bytes bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2) {
        push8(bytes, hex_digit(text[i]) << 4 | hex_digit(text[i + 1]));
    }
    return bytes;
}

std::string to_hex(std::span<const std::byte> bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (const std::byte byte : bytes) {
        text += kDigits[static_cast<unsigned>(byte) >> 4];
        text += kDigits[static_cast<unsigned>(byte) & 15];
    }
    return text;
}

Bytes repeated(size_t count, uint8_t value) {
    return Bytes(count, static_cast<std::byte>(value));
}

IpAddress address(std::string_view text) {
    return value_or_abort(parse_ip_address(text));
}
IpPrefix prefix(std::string_view text) {
    return value_or_abort(parse_ip_prefix(text));
}

Payload udp(uint16_t source_port, uint16_t destination_port, size_t data_bytes) {
    Payload payload{.protocol = 17, .bytes = {}, .checksum_at = 6};
    push16(payload.bytes, source_port);
    push16(payload.bytes, destination_port);
    push16(payload.bytes, static_cast<unsigned>(8 + data_bytes));
    push16(payload.bytes, 0);
    push_data(payload.bytes, data_bytes);
    return payload;
}

Payload tcp(uint16_t source_port, uint16_t destination_port, size_t data_bytes) {
    Payload payload{.protocol = 6, .bytes = {}, .checksum_at = 16};
    push16(payload.bytes, source_port);
    push16(payload.bytes, destination_port);
    push32(payload.bytes, 0x01020304);  // sequence
    push32(payload.bytes, 0x05060708);  // acknowledgement
    push16(payload.bytes, 0x5018);      // 20 bytes of header, PSH ACK
    push16(payload.bytes, 0xffff);      // window
    push32(payload.bytes, 0);           // checksum, urgent pointer
    push_data(payload.bytes, data_bytes);
    return payload;
}

Payload sctp(uint16_t source_port, uint16_t destination_port, size_t data_bytes) {
    Payload payload{.protocol = 132, .bytes = {}, .checksum_at = {}};
    push16(payload.bytes, source_port);
    push16(payload.bytes, destination_port);
    push32(payload.bytes, 0x0a0b0c0d);  // verification tag
    push32(payload.bytes, 0);           // CRC32c, which nobody on the way looks at
    push_data(payload.bytes, data_bytes);
    return payload;
}

Payload icmp_echo(size_t data_bytes) {
    Payload payload{.protocol = 1, .bytes = {}, .checksum_at = 2};
    push32(payload.bytes, 0x08000000);
    push32(payload.bytes, 0x00010001);
    push_data(payload.bytes, data_bytes);
    return payload;
}

Payload icmpv6_echo(size_t data_bytes) {
    Payload payload{.protocol = 58, .bytes = {}, .checksum_at = 2};
    push32(payload.bytes, 0x80000000);
    push32(payload.bytes, 0x00010001);
    push_data(payload.bytes, data_bytes);
    return payload;
}

Payload raw(uint8_t protocol, Bytes bytes) {
    return {.protocol = protocol, .bytes = std::move(bytes), .checksum_at = {}};
}

Bytes ipv4(const Ipv4Fields& fields, const Payload& payload) {
    const IpAddress source = address(fields.source);
    const IpAddress destination = address(fields.destination);
    const Bytes content = finished(payload, source, destination);
    const size_t header_bytes = 20 + fields.options.size();
    Bytes packet;
    push8(packet, 0x40u | static_cast<unsigned>(header_bytes / 4));
    push8(packet, fields.dscp_ecn);
    push16(packet,
           fields.total_bytes.value_or(static_cast<uint16_t>(header_bytes + content.size())));
    push16(packet, fields.id);
    push16(packet, (fields.dont_fragment ? 0x4000u : 0u) | (fields.more_fragments ? 0x2000u : 0u) |
                       fields.fragment_offset);
    push8(packet, fields.ttl);
    push8(packet, payload.protocol);
    push16(packet, 0);
    push_address(packet, source);
    push_address(packet, destination);
    append(packet, fields.options);
    repair_ipv4_checksum(packet);
    append(packet, content);
    return packet;
}

Extension hop_by_hop(size_t units) {
    return options_header(0, units);
}
Extension destination_options(size_t units) {
    return options_header(60, units);
}
Extension routing(size_t units) {
    Extension extension{.type = 43, .body = {}};
    push8(extension.body, static_cast<unsigned>(units));
    push8(extension.body, 253);  // an experimental type with nothing left to visit
    extension.body.resize(7 + units * 8);
    return extension;
}
Extension fragment(uint16_t offset, bool more, uint32_t id) {
    Extension extension{.type = 44, .body = {}};
    push8(extension.body, 0);
    push16(extension.body, static_cast<unsigned>(offset << 3) | (more ? 1u : 0u));
    push32(extension.body, id);
    return extension;
}

Bytes ipv6(const Ipv6Fields& fields, const Payload& payload) {
    const IpAddress source = address(fields.source);
    const IpAddress destination = address(fields.destination);
    Bytes chain;
    for (size_t i = 0; i < fields.extensions.size(); ++i) {
        push8(chain,
              i + 1 < fields.extensions.size() ? fields.extensions[i + 1].type : payload.protocol);
        append(chain, fields.extensions[i].body);
    }
    append(chain, finished(payload, source, destination));
    Bytes packet;
    push32(packet, 0x60000000u | uint32_t{fields.traffic_class} << 20 | fields.flow_label);
    push16(packet, fields.payload_bytes.value_or(static_cast<uint16_t>(chain.size())));
    push8(packet, fields.extensions.empty() ? payload.protocol : fields.extensions[0].type);
    push8(packet, fields.hop_limit);
    push_address(packet, source);
    push_address(packet, destination);
    append(packet, chain);
    return packet;
}

Bytes ip(Family family, const Payload& payload, uint8_t dscp_ecn, uint8_t ttl) {
    return family == Family::v4 ? ipv4({.ttl = ttl, .dscp_ecn = dscp_ecn}, payload)
                                : ipv6({.hop_limit = ttl, .traffic_class = dscp_ecn}, payload);
}

Bytes ethernet(uint16_t type, const Bytes& payload) {
    Bytes frame = from_hex("020000000002020000000001");
    push16(frame, type);
    append(frame, payload);
    return frame;
}

Bytes ethernet(const Bytes& packet) {
    return ethernet(get8(packet, 0) >> 4 == 6 ? 0x86dd : 0x0800, packet);
}

uint16_t internet_checksum(std::span<const std::byte> bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
        sum += static_cast<uint64_t>(bytes[i]) << (i % 2 == 0 ? 8 : 0);
    }
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum & 0xffff);
}

bool ipv4_checksum_right(std::span<const std::byte> packet) {
    return internet_checksum(packet.first((get8(packet, 0) & 15u) * 4)) == 0;
}

Bytes with_partial_checksum(Bytes packet) {
    const bool is_v4 = get8(packet, 0) >> 4 == 4;
    const size_t header = is_v4 ? (get8(packet, 0) & 15u) * 4 : 40;
    const uint8_t protocol = get8(packet, is_v4 ? 9 : 6);
    const auto addresses = std::span<const std::byte>(packet).subspan(is_v4 ? 12 : 8);
    Bytes pseudo;
    append(pseudo, addresses.first(is_v4 ? 8 : 32));
    push32(pseudo, static_cast<uint32_t>(packet.size() - header));
    push32(pseudo, protocol);
    put16(packet, header + (protocol == 6 ? 16 : 6),
          static_cast<uint16_t>(~internet_checksum(pseudo)));
    return packet;
}

void repair_ipv4_checksum(Bytes& packet) {
    put16(packet, 10, 0);
    put16(packet, 10,
          internet_checksum(std::span<const std::byte>(packet).first((get8(packet, 0) & 15u) * 4)));
}

uint8_t get8(std::span<const std::byte> bytes, size_t at) {
    return static_cast<uint8_t>(bytes[at]);
}
uint16_t get16(std::span<const std::byte> bytes, size_t at) {
    return static_cast<uint16_t>(get8(bytes, at) << 8 | get8(bytes, at + 1));
}
uint32_t get32(std::span<const std::byte> bytes, size_t at) {
    return uint32_t{get16(bytes, at)} << 16 | get16(bytes, at + 2);
}
void put8(Bytes& bytes, size_t at, uint8_t value) {
    bytes[at] = static_cast<std::byte>(value);
}
void put16(Bytes& bytes, size_t at, uint16_t value) {
    put8(bytes, at, static_cast<uint8_t>(value >> 8));
    put8(bytes, at + 1, static_cast<uint8_t>(value & 0xff));
}
void put32(Bytes& bytes, size_t at, uint32_t value) {
    put16(bytes, at, static_cast<uint16_t>(value >> 16));
    put16(bytes, at + 2, static_cast<uint16_t>(value & 0xffff));
}
Bytes head(const Bytes& bytes, size_t count) {
    return {bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(count)};
}
void append(Bytes& bytes, std::span<const std::byte> more) {
    bytes.insert(bytes.end(), more.begin(), more.end());
}

}  // namespace sallyport::test
