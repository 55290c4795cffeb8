// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>

namespace sallyport {

// A number that one thread counts up and others read.
//
// writer: the owning worker; reader: anyone. Relaxed load and store compile to plain moves, so
// counting costs what a plain integer costs. Not for two writers.
class Counter {
  public:
    void add(uint64_t amount) {
        value_.store(value_.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
    }
    void set(uint64_t value) { value_.store(value, std::memory_order_relaxed); }
    [[nodiscard]] uint64_t read() const { return value_.load(std::memory_order_relaxed); }

  private:
    std::atomic<uint64_t> value_ = 0;
};
static_assert(sizeof(Counter) == 8);

}  // namespace sallyport
