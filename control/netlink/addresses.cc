// SPDX-License-Identifier: Apache-2.0
#include "control/netlink/addresses.h"

#include <ifaddrs.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "control/netlink/socket.h"

namespace sallyport::netlink {

namespace {

// Where addresses change ever again meanwhile, the caller comes back.
constexpr int kDumpAttempts = 5;

// False: the value has another size.
bool read_address(Bytes value, Family family, IpAddress& out) {
    out.family = family;
    if (value.size() != out.bit_count() / 8) return false;
    std::ranges::copy(value, std::as_writable_bytes(std::span(out.bytes)).begin());
    return true;
}

// The last address of a network that has more than two.
std::optional<IpAddress> broadcast_of(IpAddress address, uint8_t prefix_bits) {
    if (prefix_bits > 30) return std::nullopt;
    for (unsigned bit = prefix_bits; bit < 32; ++bit) {
        address.bytes[bit / 8] |= static_cast<uint8_t>(0x80u >> bit % 8);
    }
    return address;
}

RequestBuffer encode_dump(uint32_t sequence) {
    Writer writer(RTM_GETADDR, NLM_F_DUMP, sequence);
    writer.put(ifaddrmsg{});
    return writer.take();
}

}  // namespace

std::optional<std::vector<IpAddress>> local_addresses() {
    std::vector<IpAddress> out;
    ifaddrs* list = nullptr;
    if (getifaddrs(&list) != 0) return std::nullopt;
    const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, &freeifaddrs);
    for (const ifaddrs* item = list; item != nullptr; item = item->ifa_next) {
        if (item->ifa_addr == nullptr) continue;
        IpAddress address;
        if (item->ifa_addr->sa_family == AF_INET) {
            sockaddr_in v4{};
            std::memcpy(&v4, item->ifa_addr, sizeof v4);
            std::memcpy(address.bytes.data(), &v4.sin_addr, 4);
        } else if (item->ifa_addr->sa_family == AF_INET6) {
            sockaddr_in6 v6{};
            std::memcpy(&v6, item->ifa_addr, sizeof v6);
            address.family = Family::v6;
            std::memcpy(address.bytes.data(), &v6.sin6_addr, 16);
        } else {
            continue;
        }
        out.push_back(address);
    }
    return out;
}

// As the kernel makes its routes: for the broadcast address that was given, and for that of the
// network, which is the far end's where there is one.
std::expected<std::vector<IpAddress>, std::string> decode_addresses(Bytes payload) {
    const auto header = peek<ifaddrmsg>(payload);
    if (!header) return std::unexpected("an address is shorter than its header");
    std::vector<IpAddress> out;
    if (header->ifa_family != AF_INET && header->ifa_family != AF_INET6) return out;
    const Family family = header->ifa_family == AF_INET ? Family::v4 : Family::v6;
    Attributes attributes;
    if (!attributes.parse(behind<ifaddrmsg>(payload))) {
        return std::unexpected("an attribute of an address is too long");
    }
    IpAddress named;
    if (!read_address(attributes.value(IFA_ADDRESS), family, named)) {
        return std::unexpected("an address is malformed");
    }
    IpAddress own = named;
    IpAddress broadcast;
    if (attributes.has(IFA_LOCAL) && !read_address(attributes.value(IFA_LOCAL), family, own)) {
        return std::unexpected("an address is malformed");
    }
    out.push_back(own);
    if (family == Family::v6) return out;
    if (attributes.has(IFA_BROADCAST)) {
        if (!read_address(attributes.value(IFA_BROADCAST), family, broadcast)) {
            return std::unexpected("a broadcast address is malformed");
        }
        out.push_back(broadcast);
    }
    if (const auto last = broadcast_of(named, header->ifa_prefixlen)) out.push_back(*last);
    return out;
}

std::expected<std::vector<IpAddress>, std::string> local_and_broadcast_addresses() {
    auto socket = Socket::open(Protocol::route);
    if (!socket) return std::unexpected(socket.error());
    for (int attempt = 1;; ++attempt) {
        std::vector<IpAddress> out;
        std::string malformed;
        const auto listed =
            socket->exchange(encode_dump(socket->next_sequence()), [&](const Message& message) {
                if (message.type != RTM_NEWADDR) return;
                const auto addresses = decode_addresses(message.payload);
                if (!addresses) {
                    malformed = addresses.error();
                } else {
                    out.insert(out.end(), addresses->begin(), addresses->end());
                }
            });
        if (!listed && listed.error().number == EAGAIN && attempt < kDumpAttempts) continue;
        if (!listed) return std::unexpected("cannot list addresses: " + listed.error().text);
        if (!malformed.empty()) return std::unexpected(malformed);
        std::ranges::sort(out);
        const auto rest = std::ranges::unique(out);
        out.erase(rest.begin(), rest.end());
        return out;
    }
}

}  // namespace sallyport::netlink
