// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whoever looks on while a pipeline runs is a template parameter of it: begin() before the first
// pass, end_of_pass() behind each, with the burst as it stands then. Workers run with NoObserver,
// which compiles to nothing; benches count cycles.

#include <x86intrin.h>

#include <array>
#include <cstdint>

#include "dataplane/pipeline/burst.h"

namespace sallyport {

struct NoObserver {
    void begin() {}
    void end_of_pass(int /*pass*/, const Burst& /*burst*/) {}
};

// TSC cycles per pass, summed over bursts.
class CycleObserver {
  public:
    void begin() { last_ = __rdtsc(); }
    void end_of_pass(int pass, const Burst& /*burst*/) {
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
