// SPDX-License-Identifier: Apache-2.0
#include "dataplane/crypto/suite.h"

#include <algorithm>
#include <array>

namespace sallyport::crypto {
namespace {

constexpr SuiteForm combined(Engine engine, uint8_t variant, uint8_t salt_bytes) {
    return {.engine = engine,
            .variant = variant,
            .salt_bytes = salt_bytes,
            .iv_bytes = kIvBytes,
            .icv_bytes = kIcvBytesMax,
            .alignment = 4,
            .iv_rule = IvRule::counter,
            .aad = AadForm::sequence};
}
constexpr SuiteForm gcm_16(GcmVariant variant) {
    return combined(Engine::gcm, variant, 4);
}

constexpr std::array kSuites = {
    Suite{.name = "aes-gcm-16-128",
          .family = "AES-GCM",
          .kernel = {.aead = "rfc4106(gcm(aes))"},
          .key_bytes = 16,
          .key_block_bytes = kGcmKeyBlockBytes,
          .form = gcm_16(kGcm128),
          .rfc = "RFC 4106",
          .rfc_8221 = "MUST"},
    Suite{.name = "aes-gcm-16-192",
          .family = "AES-GCM",
          .kernel = {.aead = "rfc4106(gcm(aes))"},
          .key_bytes = 24,
          .key_block_bytes = kGcmKeyBlockBytes,
          .form = gcm_16(kGcm192),
          .rfc = "RFC 4106",
          .rfc_8221 = "MAY"},
    Suite{.name = "aes-gcm-16-256",
          .family = "AES-GCM",
          .kernel = {.aead = "rfc4106(gcm(aes))"},
          .key_bytes = 32,
          .key_block_bytes = kGcmKeyBlockBytes,
          .form = gcm_16(kGcm256),
          .rfc = "RFC 4106",
          .rfc_8221 = "MUST"},
    Suite{.name = "chacha20-poly1305",
          .family = "ChaCha20-Poly1305",
          .kernel = {.aead = "rfc7539esp(chacha20,poly1305)"},
          .key_bytes = 32,
          .key_block_bytes = kChaCha20KeyBlockBytes,
          .form = combined(Engine::jobs, kChaCha20Poly1305, 4),
          .rfc = "RFC 7634",
          .rfc_8221 = "SHOULD"},
    // The library has no AES-CCM with 192 bits.
    Suite{.name = "aes-ccm-16-128",
          .family = "AES-CCM",
          .kernel = {.aead = "rfc4309(ccm(aes))"},
          .key_bytes = 16,
          .key_block_bytes = kCcmKeyBlockBytes,
          .form = combined(Engine::jobs, kCcm128, 3),
          .rfc = "RFC 4309",
          .rfc_8221 = "MAY"},
    Suite{.name = "aes-ccm-16-256",
          .family = "AES-CCM",
          .kernel = {.aead = "rfc4309(ccm(aes))"},
          .key_bytes = 32,
          .key_block_bytes = kCcmKeyBlockBytes,
          .form = combined(Engine::jobs, kCcm256, 3),
          .rfc = "RFC 4309",
          .rfc_8221 = "MAY"},
};

}  // namespace

std::span<const Suite> suites() {
    return kSuites;
}

const Suite* find_suite(std::string_view name, std::span<const Suite> table) {
    const auto found = std::ranges::find(table, name, &Suite::name);
    return found == table.end() ? nullptr : &*found;
}

}  // namespace sallyport::crypto
