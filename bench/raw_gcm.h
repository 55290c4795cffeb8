// SPDX-License-Identifier: Apache-2.0
#pragma once

// The floor every figure is compared with: ipsec-mb's own calls in a bare loop over buffers.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace sallyport::bench {

class RawGcm {
  public:
    explicit RawGcm(uint32_t keys);
    ~RawGcm();

    // The ICV is written behind the text, where ESP has it.
    struct Text {
        std::byte* data;
        uint32_t bytes;
        uint32_t key;
    };
    void encrypt(std::span<const Text> texts);
    void decrypt(std::span<const Text> texts);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace sallyport::bench
