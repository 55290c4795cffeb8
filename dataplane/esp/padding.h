// SPDX-License-Identifier: Apache-2.0
#pragma once

// What stands behind the packet within the encrypted text: pad bytes 1, 2, 3 ..., pad length, next
// header (RFC 4303 2.4 to 2.6).

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>

#include "dataplane/base/ip.h"
#include "dataplane/esp/overhead.h"
#include "dataplane/wire/headers.h"

namespace sallyport::esp {

// Of tunnel mode: the whole packet within is of this protocol.
constexpr uint8_t next_header_of(Family inner) {
    return inner == Family::v4 ? wire::kProtocolIpip : wire::kProtocolIpv6;
}

// Eight bytes are written at once; those beyond the trailer lie where the ICV will be.
using TrailerBytes = std::array<uint8_t, 8>;
static_assert(kPadBytesMax + kTrailerBytes <= sizeof(TrailerBytes));
static_assert(sizeof(TrailerBytes) <= kTrailerBytes + crypto::kIcvBytesMax);

constexpr TrailerBytes make_trailer(uint8_t pad_bytes, uint8_t next_header) {
    TrailerBytes trailer{};
    for (uint8_t i = 0; i < pad_bytes; ++i) trailer[i] = static_cast<uint8_t>(i + 1);
    trailer[pad_bytes] = pad_bytes;
    trailer[pad_bytes + 1u] = next_header;
    return trailer;
}
constexpr std::array<TrailerBytes, kAlignment> make_trailers(uint8_t next_header) {
    return {make_trailer(0, next_header), make_trailer(1, next_header),
            make_trailer(2, next_header), make_trailer(3, next_header)};
}
// By family of the inner packet and pad length.
inline constexpr std::array<std::array<TrailerBytes, kAlignment>, 2> kTrailers = {
    make_trailers(next_header_of(Family::v4)), make_trailers(next_header_of(Family::v6))};

// Behind a packet of `inner_bytes` at `inner`.
inline void write_trailer(std::byte* inner, uint32_t inner_bytes, Family family) {
    const bool is_v6 = family == Family::v6;
    std::memcpy(inner + inner_bytes, kTrailers[is_v6][pad_bytes_for(inner_bytes)].data(),
                sizeof(TrailerBytes));
}

struct Trailer {
    uint32_t inner_bytes =
        0;  // what stands before the padding: the packet, perhaps with TFC padding
    uint8_t next_header = 0;
};

// Of a decrypted text, which has at least kTrailerBytes. Nothing: the pad length contradicts the
// text, or the pad bytes are not the ones that a sender must choose.
inline std::optional<Trailer> read_trailer(const std::byte* text, uint32_t text_bytes) {
    const auto pad_bytes = static_cast<uint8_t>(text[text_bytes - 2]);
    const auto next_header = static_cast<uint8_t>(text[text_bytes - 1]);
    if (pad_bytes + kTrailerBytes > text_bytes) return {};
    const uint32_t inner_bytes = text_bytes - kTrailerBytes - pad_bytes;
    for (uint32_t i = 0; i < pad_bytes; ++i) {
        if (static_cast<uint8_t>(text[inner_bytes + i]) != i + 1) return {};
    }
    return Trailer{.inner_bytes = inner_bytes, .next_header = next_header};
}

}  // namespace sallyport::esp
