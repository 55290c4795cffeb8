// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packets as readable expressions, from the inside out:
//
//   eth(ip4({.src = "192.0.2.2", .dst = "192.0.2.1"}, esp(0x1001)))
//   eth(ip6({...}, hop_by_hop(udp({.dst = 4500}, esp_bytes(0x1001)))))
//
// Lengths, protocol numbers and the IPv4 header checksum are filled in; every option that changes
// them exists to make an invalid packet on purpose.

#include <arpa/inet.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace sallyport::packet {

using Bytes = std::vector<uint8_t>;
using Mac = std::array<uint8_t, 6>;

inline void put16(Bytes& out, uint32_t value) {
    out.push_back(static_cast<uint8_t>(value >> 8));
    out.push_back(static_cast<uint8_t>(value));
}
inline void put32(Bytes& out, uint32_t value) {
    put16(out, value >> 16);
    put16(out, value & 0xffff);
}
inline void append(Bytes& out, const Bytes& more) {
    out.insert(out.end(), more.begin(), more.end());
}

// RFC 1071 over a whole number of 16-bit words: 0 when a header with its checksum is valid.
inline uint16_t checksum(const uint8_t* bytes, size_t count) {
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < count; i += 2)
        sum += static_cast<uint32_t>(bytes[i] << 8 | bytes[i + 1]);
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum);
}

// --- above IP ---

struct Upper {
    uint8_t protocol;
    Bytes bytes;
};

inline Upper raw(uint8_t protocol, Bytes bytes) {
    return {protocol, std::move(bytes)};
}

// SPI, sequence number and `rest` more bytes.
inline Bytes esp_bytes(uint32_t spi, size_t rest = 40) {
    Bytes out;
    put32(out, spi);
    put32(out, 1);
    for (size_t i = 0; i < rest; ++i) out.push_back(static_cast<uint8_t>(i));
    return out;
}
inline Upper esp(uint32_t spi, size_t rest = 40) {
    return {50, esp_bytes(spi, rest)};
}

struct Ports {
    uint16_t src = 40000;
    uint16_t dst = 0;
    std::optional<uint16_t> length{};  // UDP: instead of the true one
};
inline Upper udp(Ports ports, const Bytes& payload = Bytes(16)) {
    Bytes out;
    put16(out, ports.src);
    put16(out, ports.dst);
    put16(out, ports.length.value_or(static_cast<uint16_t>(8 + payload.size())));
    put16(out, 0);
    append(out, payload);
    return {17, out};
}
// `flags`: SYN unless said otherwise.
inline Upper tcp(Ports ports, const Bytes& payload = Bytes(12), uint8_t flags = 0x02) {
    Bytes out;
    put16(out, ports.src);
    put16(out, ports.dst);
    put32(out, 1);
    put32(out, 0);
    out.insert(out.end(), {0x50, flags, 0x20, 0, 0, 0, 0, 0});
    append(out, payload);
    return {6, out};
}
inline Upper icmp(uint8_t type = 8) {
    Bytes out(16);
    out[0] = type;
    return {1, out};
}
inline Upper icmp6(uint8_t type = 128) {
    Bytes out(24);
    out[0] = type;
    return {58, out};
}

// --- IPv6 extension headers ---

inline Upper extension(uint8_t protocol, const Upper& next, size_t words = 1) {
    Bytes out(8 * words);
    out[0] = next.protocol;
    out[1] = static_cast<uint8_t>(words - 1);
    append(out, next.bytes);
    return {protocol, out};
}
inline Upper hop_by_hop(const Upper& next, size_t words = 1) {
    return extension(0, next, words);
}
inline Upper routing(const Upper& next, size_t words = 1) {
    return extension(43, next, words);
}
inline Upper destination_options(const Upper& next, size_t words = 1) {
    return extension(60, next, words);
}
struct Fragment {
    uint16_t offset = 0;  // in units of 8 bytes
    bool more = false;
};
inline Upper fragment(Fragment f, const Upper& next) {
    Bytes out;
    out.push_back(next.protocol);
    out.push_back(0);
    put16(out, static_cast<uint32_t>(f.offset << 3 | (f.more ? 1 : 0)));
    put32(out, 7);
    append(out, next.bytes);
    return {44, out};
}

// --- IP ---

struct Network {
    uint16_t ethertype;
    Bytes bytes;
};

struct Ip4 {
    std::string src;
    std::string dst;
    uint8_t ttl = 64;
    uint8_t tos = 0;
    uint16_t id = 0;
    uint16_t offset = 0;  // of a fragment, in units of 8 bytes
    bool more = false;
    bool dont_fragment = false;
    size_t option_words = 0;
    std::optional<uint16_t> total_length{};
    std::optional<uint8_t> version_ihl{};
};
inline Network ip4(const Ip4& ip, const Upper& upper) {
    const size_t header = 20 + 4 * ip.option_words;
    Bytes out;
    out.push_back(ip.version_ihl.value_or(static_cast<uint8_t>(0x40 | header / 4)));
    out.push_back(ip.tos);
    put16(out, ip.total_length.value_or(static_cast<uint16_t>(header + upper.bytes.size())));
    put16(out, ip.id);
    put16(out, static_cast<uint32_t>((ip.dont_fragment ? 0x4000 : 0) | (ip.more ? 0x2000 : 0) |
                                     ip.offset));
    out.push_back(ip.ttl);
    out.push_back(upper.protocol);
    put16(out, 0);
    out.resize(20);
    inet_pton(AF_INET, ip.src.c_str(), &out[12]);
    inet_pton(AF_INET, ip.dst.c_str(), &out[16]);
    out.resize(header, 1);  // options: no-operation
    const uint16_t check = checksum(out.data(), header);
    out[10] = static_cast<uint8_t>(check >> 8);
    out[11] = static_cast<uint8_t>(check);
    append(out, upper.bytes);
    return {0x0800, out};
}

struct Ip6 {
    std::string src;
    std::string dst;
    uint8_t hop_limit = 64;
    std::optional<uint16_t> payload_length{};
    uint8_t version = 6;
};
inline Network ip6(const Ip6& ip, const Upper& upper) {
    Bytes out;
    put32(out, uint32_t{ip.version} << 28);
    put16(out, ip.payload_length.value_or(static_cast<uint16_t>(upper.bytes.size())));
    out.push_back(upper.protocol);
    out.push_back(ip.hop_limit);
    out.resize(40);
    inet_pton(AF_INET6, ip.src.c_str(), &out[8]);
    inet_pton(AF_INET6, ip.dst.c_str(), &out[24]);
    append(out, upper.bytes);
    return {0x86dd, out};
}

inline Network arp() {
    return {0x0806, Bytes(28)};
}

// --- Ethernet ---

struct Link {
    Mac dst = {0x02, 0, 0, 0, 0, 0x0a};
    Mac src = {0x02, 0, 0, 0, 0, 0x0b};
};
// Unicast MACs that differ from that of `link` in one bit each.
inline std::vector<Link> to_other_stations(const Link& link = {}) {
    std::vector<Link> out;
    for (size_t bit = 1; bit < 48; ++bit) {  // bit 0: to a group
        Link other = link;
        other.dst[bit / 8] = static_cast<uint8_t>(other.dst[bit / 8] ^ 1 << bit % 8);
        out.push_back(other);
    }
    return out;
}
inline Bytes eth(const Network& network, const Link& link = {}) {
    Bytes out(link.dst.begin(), link.dst.end());
    out.insert(out.end(), link.src.begin(), link.src.end());
    put16(out, network.ethertype);
    append(out, network.bytes);
    return out;
}

}  // namespace sallyport::packet
