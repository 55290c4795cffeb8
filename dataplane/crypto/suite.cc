// SPDX-License-Identifier: Apache-2.0
#include "dataplane/crypto/suite.h"

#include <algorithm>
#include <array>

namespace sallyport::crypto {
namespace {

constexpr SuiteForm gcm_16(GcmVariant variant) {
    return {.engine = Engine::gcm,
            .variant = variant,
            .salt_bytes = kGcmSaltBytes,
            .iv_bytes = kGcmIvBytes,
            .icv_bytes = kGcmIcvBytes,
            .alignment = 4,
            .iv_rule = IvRule::counter,
            .aad = AadForm::sequence};
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
