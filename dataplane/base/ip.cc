// SPDX-License-Identifier: Apache-2.0
#include "dataplane/base/ip.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

namespace sallyport {

IpPrefix shortened(const IpPrefix& prefix, uint8_t bits) {
    IpPrefix result = prefix;
    result.bits = bits;
    for (unsigned i = 0; i < result.address.bytes.size(); ++i) {
        const unsigned kept = bits > i * 8 ? std::min(8u, bits - i * 8) : 0;
        result.address.bytes[i] &= static_cast<uint8_t>(0xff00u >> kept);
    }
    return result;
}

std::expected<IpAddress, std::string> parse_ip_address(std::string_view text) {
    const std::string terminated(text);
    IpAddress address;
    if (inet_pton(AF_INET, terminated.c_str(), address.bytes.data()) == 1) {
        address.family = Family::v4;
        return address;
    }
    address.bytes = {};
    if (inet_pton(AF_INET6, terminated.c_str(), address.bytes.data()) == 1) {
        address.family = Family::v6;
        return address;
    }
    return std::unexpected("'" + terminated + "' is not an IPv4 or IPv6 address");
}

std::expected<IpPrefix, std::string> parse_ip_prefix(std::string_view text) {
    const size_t slash = text.find('/');
    auto address = parse_ip_address(text.substr(0, slash));
    if (!address) {
        return std::unexpected("'" + std::string(text) +
                               "' is not an IPv4 or IPv6 prefix such as 10.1.0.0/16");
    }
    IpPrefix prefix{.address = *address, .bits = static_cast<uint8_t>(address->bit_count())};
    if (slash == std::string_view::npos) return prefix;

    const std::string_view digits = text.substr(slash + 1);
    unsigned bits = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), bits);
    if (error != std::errc{} || end != digits.data() + digits.size() || digits.empty() ||
        bits > address->bit_count()) {
        return std::unexpected("'" + std::string(text) +
                               "': the prefix length is a number from 0 to " +
                               std::to_string(address->bit_count()));
    }
    prefix.bits = static_cast<uint8_t>(bits);
    IpAddress masked = *address;
    for (unsigned bit = bits; bit < address->bit_count(); ++bit) {
        masked.bytes[bit / 8] &= static_cast<uint8_t>(~(0x80u >> (bit % 8)));
    }
    if (!(masked == *address)) {
        prefix.address = masked;
        return std::unexpected("'" + std::string(text) +
                               "' has bits set behind its prefix length: write " +
                               to_string(prefix));
    }
    return prefix;
}

std::string to_string(const IpAddress& address) {
    char text[INET6_ADDRSTRLEN] = {};
    inet_ntop(address.family == Family::v4 ? AF_INET : AF_INET6, address.bytes.data(), text,
              sizeof text);
    return text;
}

std::string to_string(const IpPrefix& prefix) {
    return to_string(prefix.address) + "/" + std::to_string(prefix.bits);
}

}  // namespace sallyport
