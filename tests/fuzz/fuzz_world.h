// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the pipeline fuzzers share: an SA and its key, buffers, and checks that abort.

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <source_location>
#include <span>
#include <vector>

#include "dataplane/egress/egress.h"
#include "dataplane/pipeline/burst.h"
#include "tests/support/esp_oracle.h"
#include "tests/support/frame_buffers.h"
#include "tests/support/packets.h"

namespace sallyport::fuzz {

inline void check(bool holds, std::source_location where = std::source_location::current()) {
    if (holds) return;
    std::fprintf(stderr, "%s:%u: a rule does not hold\n", where.file_name(), where.line());
    std::abort();
}

// The fuzzer's input cut into a mode byte and records.
class Records {
  public:
    explicit Records(std::span<const std::byte> input) : rest_(input) {
        if (rest_.empty()) return;
        mode_ = static_cast<uint8_t>(rest_[0]);
        rest_ = rest_.subspan(1);
    }
    [[nodiscard]] uint8_t mode() const { return mode_; }
    std::optional<std::span<const std::byte>> next() {
        if (rest_.size() < 2) return {};
        const size_t wanted = test::get16(rest_, 0);
        rest_ = rest_.subspan(2);
        const auto record = rest_.first(std::min(wanted, rest_.size()));
        rest_ = rest_.subspan(record.size());
        return record;
    }

  private:
    std::span<const std::byte> rest_;
    uint8_t mode_ = 0;
};

struct World {
    static constexpr uint32_t kSpi = 0x1001;
    crypto::Aead aead = crypto::Aead::create().value();
    test::FrameBuffers buffers{kBurstMax};
    test::Bytes key = test::from_hex("000102030405060708090a0b0c0d0e0f10111213");
    // By outer family: 0 IPv4, 1 IPv6.
    IpAddress source[2] = {test::address("192.0.2.1"), test::address("2001:db8:ffff::1")};
    IpAddress destination[2] = {test::address("192.0.2.2"), test::address("2001:db8:ffff::2")};
    std::vector<Selector> selectors = {
        {.source = test::prefix("10.0.0.0/8"), .destination = test::prefix("10.0.0.0/8")},
        {.source = test::prefix("2001:db8::/32"), .destination = test::prefix("2001:db8::/32")}};

    [[nodiscard]] InboundSaPtr make_inbound(size_t outer, bool esn) const {
        return make_inbound_sa(aead, {.spi = Spi{kSpi},
                                      .source = source[outer],
                                      .destination = destination[outer],
                                      .suite = crypto::find_suite("aes-gcm-16-128"),
                                      .key = key,
                                      .esn = esn,
                                      .selectors = selectors})
            .value();
    }
    // The last numbers of the 32-bit range, so that its end is within a burst's reach.
    [[nodiscard]] OutboundSaPtr make_outbound(size_t outer, bool esn) const {
        return make_outbound_sa(aead, {.policy = PolicyId{1},
                                       .spi = Spi{kSpi},
                                       .source = source[outer],
                                       .destination = destination[outer],
                                       .suite = crypto::find_suite("aes-gcm-16-128"),
                                       .key = key,
                                       .esn = esn,
                                       .sequence_next = kSequenceEnd32 - 40,
                                       .sequence_reserved = kSequenceEndEsn,
                                       .sequence_low_water = kSequenceEndEsn})
            .value();
    }
    [[nodiscard]] test::Bytes seal(size_t outer, bool esn, uint64_t sequence,
                                   const test::Bytes& text) const {
        const auto payload =
            test::raw(50, test::esp_seal(key, esn, kSpi, sequence, sequence, text));
        return test::ethernet(outer == 0 ? test::ipv4({.source = to_string(source[0]),
                                                       .destination = to_string(destination[0])},
                                                      payload)
                                         : test::ipv6({.source = to_string(source[1]),
                                                       .destination = to_string(destination[1])},
                                                      payload));
    }

    // Each buffer of the burst is delivered or discarded, once, and frames lie in their buffers.
    void check_conservation(std::span<OutgoingFrame> delivered,
                            std::span<std::byte* const> discarded, size_t count) const {
        std::vector<bool> seen(kBurstMax, false);
        const auto see = [&](const std::byte* at) {
            const uint32_t index = buffers.index_of(at);
            check(index < count && !seen[index]);
            seen[index] = true;
            return index;
        };
        for (const auto& outgoing : delivered) {
            const uint32_t index = see(outgoing.frame.data);
            check(outgoing.frame.data >= buffers.base(index) + kFrameHeadroomOffset);
            check(outgoing.frame.data + outgoing.frame.bytes <= buffers.base(index) + kFrameBytes);
            check(outgoing.frame.bytes >= 14);
        }
        for (const std::byte* at : discarded) (void)see(at);
        check(delivered.size() + discarded.size() == count);
    }
};

inline World& the_world() {
    static World world;
    return world;
}

}  // namespace sallyport::fuzz
