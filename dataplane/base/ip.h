// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
#include <compare>
#include <cstdint>
#include <cstring>
#include <expected>
#include <string>
#include <string_view>

namespace sallyport {

enum class Family : uint8_t { v4, v6 };

// An IP address in network byte order. IPv4 stands in the first four bytes, the rest is zero, so
// that equality and hashing need not look at the family first.
struct IpAddress {
    Family family = Family::v4;
    std::array<uint8_t, 16> bytes{};

    friend auto operator<=>(const IpAddress&, const IpAddress&) = default;

    [[nodiscard]] constexpr unsigned bit_count() const { return family == Family::v4 ? 32 : 128; }
    // Last 32 bits of the address as they stand in memory (what bpf/abi.h hashes).
    [[nodiscard]] uint32_t last_word() const {
        uint32_t word = 0;
        std::memcpy(&word, bytes.data() + (family == Family::v4 ? 0 : 12), sizeof word);
        return word;
    }
};

// Addresses whose first `bits` bits equal those of `address`; the other bits are zero.
struct IpPrefix {
    IpAddress address;
    uint8_t bits = 0;

    friend bool operator==(const IpPrefix&, const IpPrefix&) = default;

    [[nodiscard]] bool contains(const IpAddress& other) const {
        if (other.family != address.family) return false;
        const unsigned whole = bits / 8u;
        if (std::memcmp(address.bytes.data(), other.bytes.data(), whole) != 0) return false;
        const unsigned rest = bits % 8u;
        if (rest == 0) return true;
        const auto mask = static_cast<uint8_t>(0xff00u >> rest);
        return ((address.bytes[whole] ^ other.bytes[whole]) & mask) == 0;
    }
    [[nodiscard]] bool contains(const IpPrefix& other) const {
        return other.bits >= bits && contains(other.address);
    }
};

// Its first `bits` bits alone; the others of the address become zero.
IpPrefix shortened(const IpPrefix& prefix, uint8_t bits);

// Text forms. The parse functions take exactly what inet_pton takes, plus "/bits"; a prefix with
// host bits set is an error, not silently masked. Errors are sentences for the operator.
std::expected<IpAddress, std::string> parse_ip_address(std::string_view text);
std::expected<IpPrefix, std::string> parse_ip_prefix(std::string_view text);
std::string to_string(const IpAddress& address);
std::string to_string(const IpPrefix& prefix);

}  // namespace sallyport
