// SPDX-License-Identifier: Apache-2.0
#include "tests/support/frame_buffers.h"

#include <cstdlib>
#include <cstring>

#include "tests/support/sanitizers.h"

namespace sallyport::test {

FrameBuffers::FrameBuffers(uint32_t count)
    : count_(count),
      memory_(
          static_cast<std::byte*>(std::aligned_alloc(kFrameBytes, size_t{count} * kFrameBytes))) {}

FrameBuffers::~FrameBuffers() {
    SP_TEST_UNPOISON(memory_, size_t{count_} * kFrameBytes);
    std::free(memory_);
}

uint32_t FrameBuffers::index_of(const std::byte* at) const {
    if (at < memory_ || at >= memory_ + size_t{count_} * kFrameBytes) return count_;
    return static_cast<uint32_t>(static_cast<size_t>(at - memory_) / kFrameBytes);
}

Frame FrameBuffers::put(uint32_t index, std::span<const std::byte> frame, uint8_t pattern) const {
    SP_TEST_UNPOISON(base(index), kFrameBytes);
    std::memset(base(index), pattern, kFrameBytes);
    std::byte* data = base(index) + kFrameDataOffset;
    if (!frame.empty()) std::memcpy(data, frame.data(), frame.size());
    return {.data = data, .bytes = static_cast<uint32_t>(frame.size())};
}

}  // namespace sallyport::test
