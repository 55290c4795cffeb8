// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>

namespace sallyport {

// A value that one thread writes and others read.
//
// writer: the owning thread; reader: anyone, who sees some value that was there, whole. Relaxed
// loads and stores compile to plain moves, so it costs what a plain T costs. It orders nothing
// else: what must be seen together goes through a ring. Not for two writers.
template <typename T>
class SingleWriter {
  public:
    SingleWriter() = default;
    explicit SingleWriter(T value) : value_(value) {}

    void set(T value) { value_.store(value, std::memory_order_relaxed); }
    [[nodiscard]] T read() const { return value_.load(std::memory_order_relaxed); }

  private:
    static_assert(std::atomic<T>::is_always_lock_free);
    std::atomic<T> value_{};
};

// A number that one thread counts up and others read.
class Counter : public SingleWriter<uint64_t> {
  public:
    void add(uint64_t amount) { set(read() + amount); }
};
static_assert(sizeof(Counter) == 8);

}  // namespace sallyport
