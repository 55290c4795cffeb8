// SPDX-License-Identifier: Apache-2.0
#pragma once

// Builds messages as the kernel sends them, for tests of what reads them.

#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "control/xfrm/messages.h"
#include "control/xfrm/values.h"
#include "dataplane/base/byte_order.h"

namespace sallyport::xfrm::test {

using Buffer = std::vector<std::byte>;

inline constexpr uint16_t kSaDirection = 33;  // XFRMA_SA_DIR
inline constexpr uint16_t kSaPcpu = 35;       // XFRMA_SA_PCPU

template <typename T>
Buffer bytes_of(const T& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    return {bytes.begin(), bytes.end()};
}

inline Buffer join(Buffer first, const Buffer& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
}

// The payload of one message: a fixed part and attributes.
class Payload {
  public:
    template <typename T>
    explicit Payload(const T& body) : bytes_(bytes_of(body)) {
        pad();
    }
    Payload() = default;

    Payload& add(uint16_t type, const Buffer& value) {
        const nlattr header{.nla_len = static_cast<uint16_t>(sizeof(nlattr) + value.size()),
                            .nla_type = type};
        bytes_ = join(std::move(bytes_), bytes_of(header));
        bytes_ = join(std::move(bytes_), value);
        pad();
        return *this;
    }
    template <typename T>
    Payload& add(uint16_t type, const T& value)
        requires(!std::is_same_v<T, Buffer>)
    {
        return add(type, bytes_of(value));
    }

    [[nodiscard]] const Buffer& bytes() const { return bytes_; }
    [[nodiscard]] Message message(uint16_t type, uint32_t port = 0) const {
        return {.type = type, .port = port, .payload = bytes_};
    }

  private:
    void pad() { bytes_.resize((bytes_.size() + 3) & ~size_t{3}); }
    Buffer bytes_;
};

inline IpAddress ip(const char* text) {
    return *parse_ip_address(text);
}

inline xfrm_address_t linux_ip(const char* text) {
    const IpAddress address = ip(text);
    xfrm_address_t out{};
    std::memcpy(&out, address.bytes.data(), address.bit_count() / 8);
    return out;
}

inline uint16_t family_of(const char* text) {
    return std::string_view(text).contains(':') ? AF_INET6 : AF_INET;
}

inline SaName name(uint32_t spi, const char* destination = "192.0.2.1", Mark mark = {}) {
    return {.spi = Spi{spi}, .destination = ip(destination), .mark = mark};
}

inline xfrm_usersa_info state_body(uint32_t spi, const char* destination = "192.0.2.1",
                                   const char* source = "192.0.2.9") {
    xfrm_usersa_info body{};
    body.id.daddr = linux_ip(destination);
    body.id.spi = Be32(spi).raw();
    body.id.proto = kProtocolEsp;
    body.saddr = linux_ip(source);
    body.lft = {XFRM_INF, XFRM_INF, XFRM_INF, XFRM_INF, 0, 0, 0, 0};
    body.reqid = 7;
    body.family = family_of(destination);
    body.mode = XFRM_MODE_TUNNEL;
    return body;
}

inline Buffer aead(uint8_t key_byte, uint32_t key_bytes = 20, uint32_t icv_bits = 128,
                   const char* algorithm = "rfc4106(gcm(aes))") {
    struct {
        char name[64];
        uint32_t key_bits;
        uint32_t icv_bits;
    } head{};
    std::strncpy(head.name, algorithm, sizeof head.name - 1);
    head.key_bits = key_bytes * 8;
    head.icv_bits = icv_bits;
    return join(bytes_of(head), Buffer(key_bytes, std::byte{key_byte}));
}

// xfrm_algo; with `trunc_bits` xfrm_algo_auth.
inline Buffer algorithm(const char* text, uint32_t key_bytes,
                        std::optional<uint32_t> trunc_bits = {}, uint8_t key_byte = 0x11) {
    struct {
        char name[64];
        uint32_t key_bits;
    } head{};
    std::strncpy(head.name, text, sizeof head.name - 1);
    head.key_bits = key_bytes * 8;
    Buffer out = bytes_of(head);
    if (trunc_bits) out = join(std::move(out), bytes_of(*trunc_bits));
    return join(std::move(out), Buffer(key_bytes, std::byte{key_byte}));
}

struct EsnReplay {
    uint32_t words = 0, oseq = 0, seq = 0, oseq_hi = 0, seq_hi = 0, window = 0;
};
inline Buffer esn_replay(const EsnReplay& replay) {
    return join(bytes_of(replay), Buffer(size_t{replay.words} * 4, std::byte{0}));
}

// A state with keys, as a daemon installs it.
inline Payload full_state(uint32_t spi, uint8_t key_byte = 0x5a,
                          const char* destination = "192.0.2.1") {
    return Payload(state_body(spi, destination))
        .add(XFRMA_ALG_AEAD, aead(key_byte))
        .add(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 2, .window = 64}));
}

inline xfrm_usersa_id deletion_id(uint32_t spi, const char* destination = "192.0.2.1") {
    xfrm_usersa_id id{};
    id.daddr = linux_ip(destination);
    id.spi = Be32(spi).raw();
    id.family = family_of(destination);
    id.proto = kProtocolEsp;
    return id;
}

inline Payload deletion(uint32_t spi, const char* destination = "192.0.2.1") {
    return Payload(deletion_id(spi, destination))
        .add(XFRMA_SA, state_body(spi, destination))
        .add(XFRMA_ALG_AEAD, aead(0x5a));
}

inline Payload expiry(uint32_t spi, bool hard, const char* destination = "192.0.2.1") {
    xfrm_user_expire body{};
    body.state = state_body(spi, destination);
    body.hard = hard;
    return Payload(body);
}

inline Payload counter_event(uint32_t spi, uint32_t sent, uint32_t top, uint64_t bytes,
                             uint32_t flags, const char* destination = "192.0.2.1") {
    xfrm_aevent_id body{};
    body.sa_id.daddr = linux_ip(destination);
    body.sa_id.spi = Be32(spi).raw();
    body.sa_id.family = family_of(destination);
    body.sa_id.proto = kProtocolEsp;
    body.reqid = 7;
    body.flags = flags;
    return Payload(body)
        .add(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 2, .oseq = sent, .seq = top, .window = 64}))
        .add(XFRMA_LTIME_VAL, xfrm_lifetime_cur{.bytes = bytes, .packets = bytes / 100});
}

inline xfrm_userpolicy_info policy_body(uint32_t index, uint32_t priority = 1000) {
    xfrm_userpolicy_info body{};
    body.sel.saddr = linux_ip("10.1.0.0");
    body.sel.daddr = linux_ip("10.2.0.0");
    body.sel.prefixlen_s = 16;
    body.sel.prefixlen_d = 16;
    body.sel.family = AF_INET;
    body.priority = priority;
    body.index = index;
    body.dir = static_cast<uint8_t>(index & 7);
    return body;
}

inline xfrm_user_tmpl template_body(const char* source, const char* destination,
                                    uint32_t reqid = 7) {
    xfrm_user_tmpl out{};
    out.saddr = linux_ip(source);
    out.id.daddr = linux_ip(destination);
    out.id.proto = kProtocolEsp;
    out.family = family_of(source);
    out.mode = XFRM_MODE_TUNNEL;
    out.reqid = reqid;
    return out;
}

inline Payload full_policy(uint32_t index, uint32_t priority = 1000) {
    return Payload(policy_body(index, priority))
        .add(XFRMA_TMPL, template_body("192.0.2.9", "192.0.2.1"));
}

inline Payload policy_deletion(uint32_t index, bool by_selector) {
    xfrm_userpolicy_id id{};
    id.dir = static_cast<uint8_t>(index & 7);
    if (!by_selector) id.index = index;
    return Payload(id).add(XFRMA_POLICY, policy_body(index));
}

}  // namespace sallyport::xfrm::test
