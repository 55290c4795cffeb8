// SPDX-License-Identifier: Apache-2.0
#pragma once

// Cycles per pass of a pipeline, for benches. Workers run with NoClock, which compiles to nothing.

#include <x86intrin.h>

#include <array>
#include <cstdint>

namespace sallyport {

struct NoClock {
    void start() {}
    void mark(int /*pass*/) {}
};

class TscClock {
  public:
    void start() { last_ = __rdtsc(); }
    void mark(int pass) {
        const uint64_t now = __rdtsc();
        cycles_[static_cast<size_t>(pass)] += now - last_;
        last_ = now;
    }
    [[nodiscard]] uint64_t cycles(int pass) const { return cycles_[static_cast<size_t>(pass)]; }

  private:
    std::array<uint64_t, 8> cycles_{};
    uint64_t last_ = 0;
};

}  // namespace sallyport
