// SPDX-License-Identifier: Apache-2.0
#pragma once

// How NETLINK_XFRM messages are built and taken apart. Only for messages.cc and
// register_messages.cc: the kernel's UAPI structures stay behind them.

#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "control/xfrm/messages.h"
#include "dataplane/base/byte_order.h"
#include "dataplane/base/ip.h"

namespace sallyport::xfrm::wire {

// Newer than the kernel headers of the oldest distribution we build on.
inline constexpr uint16_t kAttributeSaDirection = 33;  // XFRMA_SA_DIR, u8: 1 in, 2 out
inline constexpr uint16_t kAttributeSaPcpu = 35;       // XFRMA_SA_PCPU, u32

inline constexpr uint8_t kDirectionIn = 1;
inline constexpr uint8_t kDirectionOut = 2;

constexpr size_t align4(size_t bytes) {
    return (bytes + 3) & ~size_t{3};
}

// A structure at the start of `bytes`, copied out because the bytes need not be aligned. The first
// form is for those that end with an array of unknown size.
template <typename T>
bool read(std::span<const std::byte> bytes, T& out) {
    if (bytes.size() < sizeof(T)) return false;
    std::memcpy(&out, bytes.data(), sizeof(T));
    return true;
}
template <typename T>
std::optional<T> peek(std::span<const std::byte> bytes) {
    T value;
    if (!read(bytes, value)) return std::nullopt;
    return value;
}

// What stands behind a fixed part of type T: the attributes.
template <typename T>
std::span<const std::byte> behind(std::span<const std::byte> payload) {
    return payload.subspan(std::min(align4(sizeof(T)), payload.size()));
}

inline uint16_t linux_family(Family family) {
    return family == Family::v4 ? AF_INET : AF_INET6;
}

inline std::optional<Family> from_linux_family(uint16_t family) {
    if (family == AF_INET) return Family::v4;
    if (family == AF_INET6) return Family::v6;
    return std::nullopt;
}

inline xfrm_address_t linux_address(const IpAddress& address) {
    xfrm_address_t out{};
    std::memcpy(&out, address.bytes.data(), address.bit_count() / 8);
    return out;
}

inline IpAddress from_linux_address(const xfrm_address_t& address, Family family) {
    IpAddress out;
    out.family = family;
    std::memcpy(out.bytes.data(), &address, out.bit_count() / 8);
    return out;
}

// The kernel does not mind bits behind a prefix's length; IpPrefix has none.
inline IpPrefix from_linux_prefix(const xfrm_address_t& address, uint8_t bits, Family family) {
    IpPrefix out{.address = from_linux_address(address, family), .bits = bits};
    for (unsigned bit = bits; bit < out.address.bit_count(); ++bit) {
        uint8_t& byte = out.address.bytes[bit / 8];
        byte = static_cast<uint8_t>(byte & ~(0x80u >> (bit % 8)));
    }
    return out;
}

inline std::expected<PolicySelector, std::string> from_linux_selector(const xfrm_selector& from) {
    const auto family = from_linux_family(from.family);
    if (!family) return std::unexpected("a policy has an unknown address family");
    const unsigned bits = IpAddress{.family = *family}.bit_count();
    if (from.prefixlen_s > bits || from.prefixlen_d > bits) {
        return std::unexpected("a policy has a prefix longer than its addresses");
    }
    return PolicySelector{.source = from_linux_prefix(from.saddr, from.prefixlen_s, *family),
                          .destination = from_linux_prefix(from.daddr, from.prefixlen_d, *family),
                          .protocol = from.proto,
                          .source_port = Be16::from_raw(from.sport).host(),
                          .source_port_mask = Be16::from_raw(from.sport_mask).host(),
                          .destination_port = Be16::from_raw(from.dport).host(),
                          .destination_port_mask = Be16::from_raw(from.dport_mask).host(),
                          .ifindex = static_cast<uint32_t>(from.ifindex)};
}

// Writes one request; the header's length is put right after each step.
class Writer {
  public:
    Writer(uint16_t type, uint16_t flags, uint32_t sequence) {
        const nlmsghdr header{.nlmsg_len = 0,
                              .nlmsg_type = type,
                              .nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags),
                              .nlmsg_seq = sequence,
                              .nlmsg_pid = 0};
        put(header);
    }

    template <typename T>
    void put(const T& value) {
        std::memcpy(buffer_.extend(align4(sizeof value)), &value, sizeof value);
        set_length();
    }

    // An attribute whose value is `head` followed by `tail`.
    template <typename T>
    void attribute(uint16_t type, const T& head, std::span<const std::byte> tail = {}) {
        const size_t bytes = sizeof(nlattr) + sizeof(T) + tail.size();
        const nlattr header{.nla_len = static_cast<uint16_t>(bytes), .nla_type = type};
        std::byte* out = buffer_.extend(align4(bytes));
        std::memcpy(out, &header, sizeof header);
        std::memcpy(out + sizeof header, &head, sizeof head);
        std::ranges::copy(tail, out + sizeof header + sizeof head);
        set_length();
    }

    RequestBuffer take() { return std::move(buffer_); }

  private:
    void set_length() {
        const auto length = static_cast<uint32_t>(buffer_.size());
        std::memcpy(buffer_.data(), &length, sizeof length);
    }

    RequestBuffer buffer_;
};

// Calls `visit(type, value)` for each attribute; false if one does not fit.
template <typename Visit>
bool for_each_attribute(std::span<const std::byte> bytes, Visit visit) {
    while (!bytes.empty()) {
        const auto header = peek<nlattr>(bytes);
        if (!header || header->nla_len < sizeof(nlattr) || header->nla_len > bytes.size()) {
            return false;
        }
        visit(static_cast<uint16_t>(header->nla_type & NLA_TYPE_MASK),
              bytes.subspan(sizeof(nlattr), header->nla_len - sizeof(nlattr)));
        bytes = bytes.subspan(std::min(align4(header->nla_len), bytes.size()));
    }
    return true;
}

// The attributes of one message by type; of two with the same type the last counts, as in the
// kernel. Types that are too new to be known here are left out.
class Attributes {
  public:
    [[nodiscard]] bool parse(std::span<const std::byte> bytes) {
        return for_each_attribute(bytes, [this](uint16_t type, std::span<const std::byte> value) {
            if (type >= kTypes) return;
            values_[type] = value;
            present_[type] = true;
        });
    }

    [[nodiscard]] bool has(uint16_t type) const { return present_[type]; }
    // Empty when absent.
    [[nodiscard]] std::span<const std::byte> value(uint16_t type) const { return values_[type]; }
    // Calls `use(value)` when the attribute is there; false if it is shorter than a T.
    template <typename T, typename Use>
    [[nodiscard]] bool with(uint16_t type, Use use) const {
        if (!present_[type]) return true;
        const auto value = peek<T>(values_[type]);
        if (value) use(*value);
        return value.has_value();
    }
    template <typename T>
    [[nodiscard]] bool number(uint16_t type, T& out) const {
        return with<T>(type, [&out](T value) { out = value; });
    }

  private:
    static constexpr size_t kTypes = 64;
    std::array<std::span<const std::byte>, kTypes> values_{};
    std::array<bool, kTypes> present_{};
};

}  // namespace sallyport::xfrm::wire
