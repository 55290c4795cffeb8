// SPDX-License-Identifier: Apache-2.0
#pragma once

// Engine::gcm: AES-GCM with a 16-byte ICV by the library's direct calls, one packet at a time.
// Inside this folder only.

#include <intel-ipsec-mb.h>

#include <cstddef>
#include <span>

#include "dataplane/crypto/engine.h"

namespace sallyport::crypto {

class Gcm {
  public:
    explicit Gcm(const IMB_MGR& manager);

    void seal(std::span<AeadJob* const> jobs);
    void open(std::span<AeadJob* const> jobs);
    // Any thread.
    void expand_key(GcmVariant variant, std::span<const std::byte> key, std::byte* block) const;

  private:
    // By variant, so that the loop over packets has no switch.
    aes_gcm_enc_dec_t seal_[kGcmVariantCount];
    aes_gcm_enc_dec_t open_[kGcmVariantCount];
    aes_gcm_pre_t expand_[kGcmVariantCount];
    // Scratch of the library, valid within one call.
    alignas(64) gcm_context_data context_ = {};
};

}  // namespace sallyport::crypto
