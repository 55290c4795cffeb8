// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dataplane/base/frame.h"

namespace sallyport::test {

// Buffers as packet memory has them: 4096 bytes, aligned to their size.
class FrameBuffers {
  public:
    explicit FrameBuffers(uint32_t count);
    ~FrameBuffers();
    FrameBuffers(const FrameBuffers&) = delete;
    FrameBuffers& operator=(const FrameBuffers&) = delete;

    [[nodiscard]] uint32_t count() const { return count_; }
    [[nodiscard]] std::byte* base(uint32_t index) const {
        return memory_ + size_t{index} * kFrameBytes;
    }
    // Which buffer a pointer lies in; count() when in none.
    [[nodiscard]] uint32_t index_of(const std::byte* at) const;
    // The buffer filled with a pattern and the frame at its place.
    Frame put(uint32_t index, std::span<const std::byte> frame, uint8_t pattern = 0xa5) const;

  private:
    uint32_t count_;
    std::byte* memory_;
};

}  // namespace sallyport::test
