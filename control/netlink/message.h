// SPDX-License-Identifier: Apache-2.0
#pragma once

// Netlink messages as bytes: how each request is built and each answer taken apart, whatever the
// family (control/xfrm, control/route and link.h have the families). Pure functions and no socket,
// so that all of it can be tested and fuzzed.
//
//   nlmsghdr | fixed part of the type | attribute | attribute | ...     each padded to 4 bytes
//              attribute: length, type, value; the value may be attributes again
//
// All is in host byte order except addresses, SPIs and ports. Every length is checked before it is
// used: what the kernel sends is trusted no more than what comes from a wire.

#include <linux/netlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "dataplane/base/ip.h"
#include "dataplane/base/secret_bytes.h"

namespace sallyport::netlink {

using Bytes = std::span<const std::byte>;

// Who made a rule or a route of ours, as `ip rule` and `ip route` show it ("proto 83").
inline constexpr uint8_t kMadeByUs = 83;

constexpr size_t align4(size_t bytes) {
    return (bytes + 3) & ~size_t{3};
}

// AF_INET or AF_INET6.
constexpr uint8_t number_of(Family family) {
    return family == Family::v4 ? AF_INET : AF_INET6;
}

// nullopt: neither.
constexpr std::optional<Family> family_of(uint16_t number) {
    if (number == AF_INET) return Family::v4;
    if (number == AF_INET6) return Family::v6;
    return std::nullopt;
}

// As addresses stand in attributes: 4 or 16 bytes.
inline Bytes bytes_of(const IpAddress& address) {
    return std::as_bytes(std::span(address.bytes)).first(address.bit_count() / 8);
}

// ---- writing -----------------------------------------------------------------------------------

// One request. Its capacity is fixed and it is wiped when it goes, because a state carries its key.
class RequestBuffer {
  public:
    static constexpr size_t kCapacity = 2048;

    RequestBuffer() = default;
    RequestBuffer(RequestBuffer&& other) noexcept : bytes_(other.bytes_), size_(other.size_) {
        other.clear();
    }
    RequestBuffer& operator=(RequestBuffer&&) = delete;
    RequestBuffer(const RequestBuffer&) = delete;
    ~RequestBuffer() { clear(); }

    [[nodiscard]] Bytes bytes() const { return {bytes_.data(), size_}; }
    [[nodiscard]] size_t size() const { return size_; }
    // Appends `count` zero bytes; the caller fills them. Our messages are all far below kCapacity.
    std::byte* extend(size_t count);
    std::byte* data() { return bytes_.data(); }
    void clear() {
        wipe(bytes_.data(), bytes_.size());
        size_ = 0;
    }

  private:
    std::array<std::byte, kCapacity> bytes_{};
    size_t size_ = 0;
};

// Writes one request; the header's length is right after each step.
class Writer {
  public:
    // NLM_F_REQUEST is added to `flags`.
    Writer(uint16_t type, unsigned flags, uint32_t sequence);

    // The fixed part. A structure has padding of its own where the kernel's has.
    template <typename T>
    void put(const T& value) {
        append(std::as_bytes(std::span(&value, 1)));
    }
    // An attribute whose value is `head` followed by `tail`.
    template <typename T>
    void attribute(uint16_t type, const T& head, Bytes tail = {}) {
        static_assert(std::is_trivially_copyable_v<T>);
        attribute_of(type, std::as_bytes(std::span(&head, 1)), tail);
    }
    void bytes(uint16_t type, Bytes value) { attribute_of(type, value, {}); }
    // Without a 0 at its end; name() has one.
    void text(uint16_t type, std::string_view value) {
        bytes(type, std::as_bytes(std::span(value)));
    }
    void name(uint16_t type, const std::string& value) {
        bytes(type, std::as_bytes(std::span(value.c_str(), value.size() + 1)));
    }
    void flag(uint16_t type) { bytes(type, {}); }
    // An attribute that holds those written until end().
    [[nodiscard]] size_t begin(uint16_t type);
    void end(size_t begun);

    RequestBuffer take() { return std::move(buffer_); }

  private:
    void append(Bytes value);
    void attribute_of(uint16_t type, Bytes head, Bytes tail);
    void set_length();

    RequestBuffer buffer_;
};

// Writes `port` into the header of a request. The kernel does not look at it, but quotes it in the
// notifications that the request causes.
void sign_request(RequestBuffer& request, uint32_t port);

// ---- reading -----------------------------------------------------------------------------------

struct Message {
    uint16_t type = 0;
    uint16_t flags = 0;
    uint32_t sequence = 0;
    uint32_t port = 0;  // of a notification: what the request that caused it had here; else 0
    Bytes payload;
};

// Takes the first message off `rest`. Nothing left: empty optional.
std::expected<std::optional<Message>, std::string> next_message(Bytes& rest);

// A structure at the start of `bytes`, copied out because the bytes need not be aligned. The first
// form is for those that end with an array of unknown size.
template <typename T>
bool read(Bytes bytes, T& out) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (bytes.size() < sizeof(T)) return false;
    std::memcpy(&out, bytes.data(), sizeof(T));
    return true;
}
template <typename T>
std::optional<T> peek(Bytes bytes) {
    T value;
    if (!read(bytes, value)) return std::nullopt;
    return value;
}

// What stands behind a fixed part of type T: the attributes.
template <typename T>
Bytes behind(Bytes payload) {
    return payload.subspan(std::min(align4(sizeof(T)), payload.size()));
}

// Up to the first 0, with '?' for what is not printable: the operator sees it.
std::string text_of(Bytes value);

// The attributes of one container by type; of two with the same type the last counts, as in the
// kernel. Types that are too new to be known here are left out.
class Attributes {
  public:
    static constexpr size_t kTypes = 64;

    // False: an attribute does not fit.
    [[nodiscard]] bool parse(Bytes bytes);

    [[nodiscard]] bool has(size_t type) const { return present_[type]; }
    // Empty when absent.
    [[nodiscard]] Bytes value(size_t type) const { return values_[type]; }
    // Calls `use(value)` when the attribute is there; false if it is shorter than a T. Longer ones
    // are fine: structures grow.
    template <typename T, typename Use>
    [[nodiscard]] bool with(size_t type, Use use) const {
        if (!present_[type]) return true;
        const auto value = peek<T>(values_[type]);
        if (value) use(*value);
        return value.has_value();
    }
    // Leaves `out` alone when absent; false if it is shorter, or with exact() of another size.
    template <typename T>
    [[nodiscard]] bool number(size_t type, T& out) const {
        static_assert(std::is_integral_v<T>);
        return !present_[type] || read(values_[type], out);
    }
    template <typename T>
    [[nodiscard]] bool exact(size_t type, T& out) const {
        return !present_[type] || (values_[type].size() == sizeof(T) && number(type, out));
    }
    // Whether there are no others than these.
    [[nodiscard]] bool only(std::initializer_list<size_t> types) const;

  private:
    std::array<Bytes, kTypes> values_{};
    std::array<bool, kTypes> present_{};
    bool beyond_ = false;  // there are types from kTypes on
};

// ---- ends of answers ---------------------------------------------------------------------------

// Payload of NLMSG_DONE: 0, or the positive errno that ended the dump early.
int decode_dump_end(Bytes payload);

// Payload of NLMSG_ERROR. number 0 is an acknowledgement; otherwise a positive errno, and `text`
// what the kernel said about it, if anything.
struct Acknowledgement {
    int number = 0;
    std::string text;
};
std::expected<Acknowledgement, std::string> decode_acknowledgement(const Message& message);

}  // namespace sallyport::netlink
