// SPDX-License-Identifier: Apache-2.0
#pragma once

// A name for a key that does not reveal it: what the numbers used under a key are remembered by,
// on disk (static/sequence_store.h) and in memory (kernel/sequence_memory.h).

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace sallyport::control {

using Sha256 = std::array<uint8_t, 32>;

// SHA-256 of the parts in a row.
Sha256 sha256(std::initializer_list<std::span<const std::byte>> parts);

std::string to_hex(std::span<const uint8_t> bytes);

// SHA-256 over a label and the key material, cut to 128 bits.
struct KeyDigest {
    std::array<uint8_t, 16> bytes{};

    friend auto operator<=>(const KeyDigest&, const KeyDigest&) = default;
    [[nodiscard]] std::string to_hex() const;
};
// `key`: key and salt as the SA has them, because both together make the nonce.
KeyDigest digest_of_key(std::span<const std::byte> key);

}  // namespace sallyport::control
