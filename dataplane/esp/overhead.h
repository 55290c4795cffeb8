// SPDX-License-Identifier: Apache-2.0
#pragma once

// What ESP adds to a packet (RFC 4303 2), in bytes:
//
//   outer IP header | SPI 4 | sequence 4 | IV | packet | padding | pad length 1 | next header 1 |
//   ICV
//                   |<----- header ---------->|<-------------- text -------------------------->|
//                   |<--------------------------------- ESP
//                   ---------------------------------------->|
//
// Padding brings the end of the text to a 4-byte boundary.

#include <cstddef>
#include <cstdint>

#include "dataplane/crypto/suite.h"
#include "dataplane/wire/headers.h"

namespace sallyport::esp {

inline constexpr uint32_t kHeaderBytes = sizeof(wire::Esp) + crypto::kIvBytes;
inline constexpr uint32_t kTrailerBytes = 2;  // pad length, next header
inline constexpr uint32_t kAlignment = 4;     // RFC 4303 2.4; no suite asks for more
inline constexpr uint32_t kPadBytesMax = kAlignment - 1;
// Of ESP without its text, and with the least that a text can be.
inline constexpr uint32_t kBytesAroundText = kHeaderBytes + crypto::kIcvBytesMax;
inline constexpr uint32_t kBytesMin = kBytesAroundText + kAlignment;

// The most that a tunnel adds to a packet: with an outer IPv6 header.
inline constexpr uint32_t kTunnelOverheadMax =
    sizeof(wire::Ipv6) + kBytesAroundText + kPadBytesMax + kTrailerBytes;

constexpr uint32_t pad_bytes_for(uint32_t inner_bytes) {
    return (0u - (inner_bytes + kTrailerBytes)) & (kAlignment - 1);
}
constexpr uint32_t text_bytes_for(uint32_t inner_bytes) {
    return inner_bytes + pad_bytes_for(inner_bytes) + kTrailerBytes;
}
// From SPI to ICV.
constexpr uint32_t esp_bytes_for(uint32_t inner_bytes) {
    return kBytesAroundText + text_bytes_for(inner_bytes);
}

}  // namespace sallyport::esp
