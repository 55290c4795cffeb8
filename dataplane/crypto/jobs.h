// SPDX-License-Identifier: Apache-2.0
#pragma once

// Engine::jobs: combined algorithms that the library has for its job interface only:
// ChaCha20-Poly1305 and AES-CCM. A lane is submitted whole and flushed before this returns, so the
// library works on several packets at once where it can (AES-CCM), and keeps none.
// Inside this folder only.

#include <intel-ipsec-mb.h>

#include <array>
#include <cstddef>
#include <span>

#include "dataplane/base/frame.h"
#include "dataplane/crypto/engine.h"

namespace sallyport::crypto {

class Jobs {
  public:
    explicit Jobs(IMB_MGR& manager) : manager_(manager) {}

    void seal(std::span<AeadJob* const> jobs);
    void open(std::span<AeadJob* const> jobs);
    // Any thread.
    void expand_key(JobsVariant variant, std::span<const std::byte> key, std::byte* block) const;

  private:
    IMB_MGR& manager_;
    // What open() compares.
    std::array<std::array<std::byte, kIcvBytesMax>, kBurstMax> computed_;
};

}  // namespace sallyport::crypto
