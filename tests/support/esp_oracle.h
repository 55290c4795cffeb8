// SPDX-License-Identifier: Apache-2.0
#pragma once

// ESP once more, by OpenSSL and by the RFCs' own words, slow and independent of
// dataplane/: what the pipelines make is opened here and what they take is made here.

#include <cstdint>
#include <optional>
#include <span>

#include "tests/support/packets.h"

namespace sallyport::test {

// With a 16-byte tag. Of AES the key length chooses the variant; nonces have 12 bytes, of
// AES-CCM 11.
enum class Algorithm : uint8_t { aes_gcm, aes_ccm, chacha20_poly1305 };
Bytes aead_seal(Algorithm algorithm, std::span<const std::byte> key,
                std::span<const std::byte> nonce, std::span<const std::byte> aad,
                std::span<const std::byte> plaintext);

Bytes gcm_seal(std::span<const std::byte> key, std::span<const std::byte> nonce,
               std::span<const std::byte> aad, std::span<const std::byte> plaintext);
std::optional<Bytes> gcm_open(std::span<const std::byte> key, std::span<const std::byte> nonce,
                              std::span<const std::byte> aad,
                              std::span<const std::byte> ciphertext_and_tag);

// What ESP encrypts: packet, TFC padding, pad bytes 1 2 3 ..., pad length, next header
// (RFC 4303 2). Without `pad_bytes` as many as the 4-byte boundary needs.
Bytes esp_text(const Bytes& packet, uint8_t next_header, std::optional<uint8_t> pad_bytes = {},
               size_t tfc_bytes = 0);

// SPI to ICV. `key`: key and 4-byte salt. `sequence`: extended when `esn`, which puts all of it
// into the AAD and its low half into the packet (RFC 4106 5).
Bytes esp_seal(const Bytes& key, bool esn, uint32_t spi, uint64_t sequence, uint64_t iv,
               const Bytes& text);

// The text, when the ICV is right. `sequence_high` matters with ESN only.
std::optional<Bytes> esp_open(const Bytes& key, bool esn, uint32_t sequence_high,
                              std::span<const std::byte> esp);

struct OpenedText {
    Bytes packet;
    uint8_t next_header;
    uint8_t pad_bytes;
};
// Nothing when pad bytes or pad length are not as RFC 4303 2.4 has them.
std::optional<OpenedText> read_text(const Bytes& text);

}  // namespace sallyport::test
