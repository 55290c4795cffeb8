// SPDX-License-Identifier: Apache-2.0
#pragma once

// Security associations as a worker holds them. Inbound and outbound are different types: they
// share an algorithm and nothing else.
//
// Layout: the first cache line is what every packet reads and writes, the second what most read,
// then comes what is seldom touched. Behind the object stands the block of the expanded key, as
// large as the suite says; an inbound SA has its selectors beyond the first there too, and ends
// with its replay bitmap.
//
//   OutboundSa | key block                     InboundSa | key block | selectors | bitmap
//
// Control builds an SA completely before a worker sees it (publish) and frees it after the worker
// has said that it no longer does (retire). In between the worker owns every field that is not
// marked otherwise; counters may be read by anyone.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>

#include "dataplane/base/byte_order.h"
#include "dataplane/base/drop_reason.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/base/single_writer.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/sa/df_policy.h"
#include "dataplane/sa/replay_window.h"

namespace sallyport {

// Addresses, protocol and ports one SA may carry, seen as the inner packet stands (RFC 4301 4.4.1).
struct Selector {
    IpPrefix source;
    IpPrefix destination;
    uint8_t protocol = 0;  // 0: any
    bool has_ports = false;
    uint16_t source_port_lo = 0;  // host order, inclusive
    uint16_t source_port_hi = 65535;
    uint16_t destination_port_lo = 0;
    uint16_t destination_port_hi = 65535;

    friend bool operator==(const Selector&, const Selector&) = default;
};

// A selector as a worker compares it: the address words as they stand in an IP header, masked.
// IPv4 headers have source and destination side by side, so one word holds both.
struct SelectorMatch {
    Family family = Family::v4;
    uint8_t protocol = 0;
    bool has_ports = false;
    uint16_t source_port_lo = 0;
    uint16_t source_port_hi = 0;
    uint16_t destination_port_lo = 0;
    uint16_t destination_port_hi = 0;
    // The first of each is all that IPv4 needs, so that it stays within one cache line.
    std::array<uint64_t, 4> mask{};
    std::array<uint64_t, 4> want{};

    SelectorMatch() = default;
    explicit SelectorMatch(const Selector& selector);

    // `header`: a complete IP header of `family`.
    [[nodiscard]] bool addresses_match(Family packet_family, const std::byte* header) const {
        if (packet_family != family) return false;
        uint64_t words[4] = {};
        if (packet_family == Family::v4) {
            std::memcpy(words, header + 12, 8);
            return ((words[0] ^ want[0]) & mask[0]) == 0;
        }
        std::memcpy(words, header + 8, 32);
        return (((words[0] ^ want[0]) & mask[0]) | ((words[1] ^ want[1]) & mask[1]) |
                ((words[2] ^ want[2]) & mask[2]) | ((words[3] ^ want[3]) & mask[3])) == 0;
    }
};

inline constexpr size_t kSelectorsMax = 32;  // of one SA

// One sequence number more than the last that may be used: ESN stops before 2^64 (RFC 4303 3.3.3).
inline constexpr uint64_t kSequenceEnd32 = uint64_t{1} << 32;
inline constexpr uint64_t kSequenceEndEsn = ~uint64_t{0};

// Where the key block of an SA is.
template <typename Sa>
const std::byte* behind(const Sa* sa) {
    static_assert(sizeof(Sa) % crypto::kKeyBlockAlignment == 0);
    return reinterpret_cast<const std::byte*>(sa + 1);
}

struct alignas(64) OutboundSa {
    // --- line 0 ---
    // The next packet's. writer: worker; reader: control. Stored before the packet that has the
    // number before it leaves: what is on the wire lies below every later look.
    SingleWriter<uint64_t> sequence_next{1};
    uint64_t sequence_low_water = 0;  // reaching it asks control for more, once
    uint64_t iv_mask = 0;             // IV = sequence ^ iv_mask (0 for static SAs)
    Counter packets;                  // writer: worker; reader: control, as of all counters here
    Counter bytes;                    // inner bytes
    Be32 spi;
    uint32_t salt = 0;  // as in key material, one of 3 bytes behind a 0
    crypto::SuiteForm form;
    bool esn = false;
    bool low_water_reported = false;
    uint8_t header_bytes = 20;  // outer IP header in the template: 20 or 40
    uint8_t pad0 = 0;
    uint16_t mtu = 0;  // largest outer packet, IP bytes; 0: that of the ports
    WorkerId owner{};
    // --- line 1 ---
    std::array<std::byte, 40> outer{};  // outer IP header template; length, id, DSCP, TTL filled in
    uint32_t outer_checksum = 0;        // ones' complement sum of the IPv4 template, unfolded
    uint16_t outer_id = 0;              // IPv4 identification of the next packet
    DfPolicy df = DfPolicy::copy;
    bool copy_dscp = true;
    SaId id{};
    PolicyId policy{};
    // --- seldom ---
    uint64_t sequence_reserved = 1;  // first number that is not reserved on disk: never used
    uint64_t sequence_end = kSequenceEnd32;  // past the last number the protocol allows
    uint64_t rank = 0;                       // of a policy's SAs the greatest sends
    OutboundSa* next_of_policy = nullptr;    // OutboundTable's
    uint32_t key_block_bytes = 0;
    std::array<Counter, kDropReasonCount> drops;

    [[nodiscard]] const std::byte* key() const { return behind(this); }

    // Takes over what control has reserved on disk. The hot path compares with the low-water mark
    // alone and looks at the limits only beyond it, so the mark must not lie behind one of them.
    void reserve(uint64_t reserved, uint64_t low_water) {
        sequence_reserved = reserved;
        sequence_low_water = std::min({low_water, reserved, sequence_end});
        low_water_reported = false;
    }
    // The numbers below `least` are spent, by this sender or another.
    void raise_sequence(uint64_t least) {
        if (sequence_next.read() < least) sequence_next.set(least);
    }
};
static_assert(offsetof(OutboundSa, owner) < 64 && offsetof(OutboundSa, outer) == 64);
static_assert(offsetof(OutboundSa, policy) < 128);

struct alignas(64) InboundSa {
    // --- line 0 ---
    ReplayWindow replay;
    Be32 spi;
    uint32_t salt = 0;
    Counter packets;
    Counter bytes;  // inner bytes
    crypto::SuiteForm form;
    bool esn = false;
    Family outer_family = Family::v4;
    uint8_t more_selector_count = 0;
    uint8_t pad0 = 0;
    WorkerId owner{};
    uint16_t pad1 = 0;
    // --- line 1 ---
    alignas(64) IpAddress outer_destination;
    IpAddress outer_source;
    SaId id{};
    PolicyId policy{};
    // --- seldom ---
    const SelectorMatch* more_selectors = nullptr;  // in the SA's memory block
    uint32_t key_block_bytes = 0;
    std::array<Counter, kDropReasonCount> drops;
    // --- touched once per packet ---
    alignas(64) SelectorMatch selector;

    [[nodiscard]] const std::byte* key() const { return behind(this); }
    // Asks for what the next stages need while nothing of the SA is known yet. The bitmap stands
    // here with one selector and AES-GCM, which nearly all SAs have; else it is asked for late.
    void prefetch() const {
        __builtin_prefetch(this, 1);
        __builtin_prefetch(key() + crypto::kGcmKeyBlockBytes, 1);
    }

    // Goes on as `before`, the same SA with other addresses, selectors or window size.
    void take_over(const InboundSa& before);
};
static_assert(offsetof(InboundSa, owner) < 64 && offsetof(InboundSa, outer_destination) == 64);

// What control says to build an SA. Keys are copied into SA memory and expanded there.
struct OutboundSaParameters {
    SaId id{};
    PolicyId policy{};
    Spi spi{};
    IpAddress source;
    IpAddress destination;
    const crypto::Suite* suite = nullptr;
    std::span<const std::byte> key;  // key || salt
    bool esn = false;
    uint64_t sequence_next = 1;
    uint64_t sequence_reserved = 1;
    uint64_t sequence_low_water = 0;
    uint64_t iv_mask = 0;
    uint64_t rank = 0;
    WorkerId owner{};
    uint16_t mtu = 0;
    DfPolicy df = DfPolicy::copy;
    bool copy_dscp = true;
    uint8_t outer_ttl = 64;
};

struct InboundSaParameters {
    SaId id{};
    PolicyId policy{};
    Spi spi{};
    IpAddress source;
    IpAddress destination;
    const crypto::Suite* suite = nullptr;
    std::span<const std::byte> key;  // key || salt
    bool esn = false;
    uint32_t replay_window = 64;
    uint64_t replay_top = 0;
    WorkerId owner{};
    std::span<const Selector> selectors;  // 1 .. kSelectorsMax
};

// Frees an SA: wipes it first. Control only, after the owner has retired it.
struct SaDeleter {
    void operator()(OutboundSa* sa) const;
    void operator()(InboundSa* sa) const;
};
using OutboundSaPtr = std::unique_ptr<OutboundSa, SaDeleter>;
using InboundSaPtr = std::unique_ptr<InboundSa, SaDeleter>;

// Control only. Errors are sentences without key material.
std::expected<OutboundSaPtr, std::string> make_outbound_sa(const crypto::Aead& aead,
                                                           const OutboundSaParameters& parameters);
std::expected<InboundSaPtr, std::string> make_inbound_sa(const crypto::Aead& aead,
                                                         const InboundSaParameters& parameters);

// Bytes of memory one SA takes, with its share of allocation rounding.
size_t memory_bytes(const OutboundSa& sa);
size_t memory_bytes(const InboundSa& sa);

}  // namespace sallyport
