// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the engines share. Inside this folder only.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dataplane/base/secret_bytes.h"
#include "dataplane/crypto/engine.h"

namespace sallyport::crypto {

// As the library has bytes.
inline uint8_t* octets(std::byte* bytes) {
    return reinterpret_cast<uint8_t*>(bytes);
}
inline const uint8_t* octets(const std::byte* bytes) {
    return reinterpret_cast<const uint8_t*>(bytes);
}

// What open() makes of the ICV that it has computed. Takes the same time wherever the first
// difference is.
inline void judge(AeadJob& job, const std::byte* computed) {
    static_assert(kIcvBytesMax == 16);
    uint64_t left[2];
    uint64_t right[2];
    std::memcpy(left, computed, sizeof left);
    std::memcpy(right, job.icv, sizeof right);
    job.authentic = ((left[0] ^ right[0]) | (left[1] ^ right[1])) == 0;
    // Plaintext that is not authentic must not be seen, not even by a later bug.
    if (!job.authentic) wipe(job.text, job.text_bytes);
}

}  // namespace sallyport::crypto
