// SPDX-License-Identifier: Apache-2.0
#pragma once

// A bounded queue from one thread to one other thread, without locks.
//
//            head_ (next to read)          tail_ (next to write)
//               |                             |
//   [ free  ][ a ][ b ][ c ][ d ][ e ][ f ][ free ][ free ]
//               consumer ->                   producer ->
//
// The producer owns tail_, the consumer owns head_. Both only ever grow; the slot is the index
// modulo the capacity, and tail_ - head_ is the number of elements (unsigned arithmetic makes the
// wrap harmless).
//
// Two orderings carry everything. The producer writes the slot and then stores tail_ with release;
// the consumer that loads this tail_ with acquire therefore sees the slot's content. The consumer
// reads the slot and then stores head_ with release; the producer that loads this head_ with
// acquire therefore overwrites the slot only after it was read. No read-modify-write is needed,
// because each index has one writer.
//
// Looking at the other side's index costs a cache miss whenever that side moved, so each side
// remembers the value it saw last and looks again only when that value says full (or empty).
// A thread's own index and its memory of the other one share a cache line, which no third line
// of the other thread falls into.

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace sallyport {

template <typename T>
    requires std::is_trivially_copyable_v<T>
class SpscRing {
  public:
    // Room for at least `capacity` elements: rounded up to a power of two.
    explicit SpscRing(uint32_t capacity)
        : mask_(std::bit_ceil(capacity < 2 ? 2u : capacity) - 1),
          slots_(std::make_unique<T[]>(size_t{mask_} + 1)) {}
    SpscRing(const SpscRing&) = delete;
    SpscRing& operator=(const SpscRing&) = delete;

    // Producer. False: full, nothing was stored.
    [[nodiscard]] bool push(const T& value) {
        const uint32_t tail = tail_.load(std::memory_order_relaxed);
        if (tail - head_seen_ > mask_) {
            head_seen_ = head_.load(std::memory_order_acquire);
            if (tail - head_seen_ > mask_) return false;
        }
        slots_[tail & mask_] = value;
        tail_.store(tail + 1, std::memory_order_release);
        return true;
    }

    // Consumer. False: empty, `value` is untouched.
    [[nodiscard]] bool pop(T& value) {
        const uint32_t head = head_.load(std::memory_order_relaxed);
        if (head == tail_seen_) {
            tail_seen_ = tail_.load(std::memory_order_acquire);
            if (head == tail_seen_) return false;
        }
        value = slots_[head & mask_];
        head_.store(head + 1, std::memory_order_release);
        return true;
    }

    // Any thread; exact only when both sides stand still.
    [[nodiscard]] uint32_t size() const {
        const uint32_t head = head_.load(std::memory_order_acquire);
        return tail_.load(std::memory_order_acquire) - head;
    }
    [[nodiscard]] bool empty() const { return size() == 0; }
    [[nodiscard]] uint32_t capacity() const { return mask_ + 1; }

  private:
    // Two lines apart, because the hardware prefetches cache lines in pairs.
    static constexpr size_t kApart = 128;

    const uint32_t mask_;
    const std::unique_ptr<T[]> slots_;
    alignas(kApart) std::atomic<uint32_t> tail_ = 0;  // writer: producer; reader: both
    uint32_t head_seen_ = 0;                          // producer only
    alignas(kApart) std::atomic<uint32_t> head_ = 0;  // writer: consumer; reader: both
    uint32_t tail_seen_ = 0;                          // consumer only
};

}  // namespace sallyport
