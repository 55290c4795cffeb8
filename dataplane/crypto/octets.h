// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the engines share. Inside this folder only.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dataplane/crypto/suite.h"

namespace sallyport::crypto {

// As the library has bytes.
inline uint8_t* octets(std::byte* bytes) {
    return reinterpret_cast<uint8_t*>(bytes);
}
inline const uint8_t* octets(const std::byte* bytes) {
    return reinterpret_cast<const uint8_t*>(bytes);
}

// Takes the same time wherever the first difference is.
inline bool equal_icv(const std::byte* a, const std::byte* b) {
    static_assert(kIcvBytesMax == 16);
    uint64_t left[2];
    uint64_t right[2];
    std::memcpy(left, a, sizeof left);
    std::memcpy(right, b, sizeof right);
    return ((left[0] ^ right[0]) | (left[1] ^ right[1])) == 0;
}

}  // namespace sallyport::crypto
