// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one door to ipsec-mb: AES-GCM with a 16-byte ICV, by the library's direct calls.
//
// The library's own header stays inside aead.cc. Keys are expanded in place into AeadKey, which
// lies inside the SA, so that one prefetch pattern covers both. All calls are per burst: the
// loop over packets is inside, the call across the library boundary costs nothing visible.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>

#include "dataplane/base/secret_bytes.h"

namespace sallyport::crypto {

enum class Suite : uint8_t { aes_gcm_16_128, aes_gcm_16_192, aes_gcm_16_256 };

inline constexpr size_t kGcmSaltBytes = 4;
inline constexpr size_t kGcmIvBytes = 8;
inline constexpr size_t kGcmIcvBytes = 16;
inline constexpr size_t kGcmNonceBytes = kGcmSaltBytes + kGcmIvBytes;

// Key bytes without salt.
constexpr size_t key_bytes(Suite suite) {
    switch (suite) {
        case Suite::aes_gcm_16_128:
            return 16;
        case Suite::aes_gcm_16_192:
            return 24;
        case Suite::aes_gcm_16_256:
            return 32;
    }
    return 0;
}

// An expanded key with its hash powers. Wiped by wipe_key(), not by a destructor: it lives in SA
// memory that is managed as a whole.
struct alignas(64) AeadKey {
    std::byte expanded[1024];
};

// Brings to the cache what every packet needs first of the key: the round keys, which stand at the
// beginning, and the lowest hash powers, at the very end. A long packet needs more powers, but only
// later, and finds them by itself while it works: asking for all of them ahead costs more.
inline void prefetch_key(const AeadKey& key, uint32_t text_bytes) {
    constexpr uint32_t kLines = sizeof key.expanded / 64;
    constexpr uint32_t kRoundKeyLines = 4;
    for (uint32_t i = 0; i < kRoundKeyLines; ++i) __builtin_prefetch(key.expanded + i * 64);
    __builtin_prefetch(key.expanded + (kLines - 1) * 64);
    if (text_bytes >= 64) __builtin_prefetch(key.expanded + (kLines - 2) * 64);
}

// One packet to encrypt or decrypt in place. All pointers stay valid during the call.
struct AeadJob {
    const AeadKey* key;
    std::byte* text;  // plaintext in, ciphertext out (or the reverse)
    uint32_t text_bytes;
    Suite suite;
    uint8_t aad_bytes;  // 8, or 12 with ESN (RFC 4106 5)
    bool authentic;     // written by open()
    std::byte nonce[kGcmNonceBytes];
    std::byte aad[12];
    std::byte* icv;  // seal: written; open: compared
};

// A worker's own library context. Owner: one thread.
class Aead {
  public:
    // Fails when the library's self-test does or the CPU lacks what it needs.
    static std::expected<Aead, std::string> create();
    Aead(Aead&&) noexcept;
    Aead& operator=(Aead&&) noexcept;
    ~Aead();

    // Encrypts and writes ICVs.
    void seal(std::span<AeadJob* const> jobs) const;
    // Decrypts, compares ICVs in constant time and says in each job whether it is authentic. The
    // text of a job that is not is wiped before this returns.
    void open(std::span<AeadJob* const> jobs) const;

    // Library version and instruction set, for the start-up log.
    [[nodiscard]] std::string description() const;

  private:
    friend void expand_key(const Aead& aead, Suite suite, std::span<const std::byte> key,
                           AeadKey& out);
    struct Impl;
    explicit Aead(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// Any thread. `key` without salt, of key_bytes(suite) bytes.
void expand_key(const Aead& aead, Suite suite, std::span<const std::byte> key, AeadKey& out);
void wipe_key(AeadKey& key);

}  // namespace sallyport::crypto
