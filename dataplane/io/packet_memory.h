// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>

#include "dataplane/base/frame.h"

namespace sallyport::io {

// Starts DPDK's EAL for memory only (no PCI, no telemetry, no files left behind). Once per
// process, before anything else here. `hugepages`: use them when the system has any free.
std::expected<void, std::string> start_eal(uint32_t frame_count, bool hugepages);

// All packet buffers of the process: one rte_mempool that is also the AF_XDP UMEM.
//
//   one buffer, 4096 bytes, aligned to 4096 (dataplane/base/frame.h):
//   +0 mempool header | +64 mbuf | +192 headroom | +320 packet ...
//
// The mempool keeps free buffers in a ring that all threads share; a registered thread has a
// private cache of some hundred buffers in front of it, so that most bursts touch no shared line.
// The price: a buffer in one thread's cache is out of reach of the others, so plan for
// `kThreadCacheMax` idle buffers per thread.
//
// take() and give() work on any thread; only those registered by register_thread(), and the one
// that called start_eal(), have a cache. Created and destroyed by control, after the workers and
// sockets that use it. The memory is left out of core dumps: it holds decrypted packets.
class PacketMemory {
  public:
    static constexpr uint32_t kThreadCacheMax = 384;

    static std::expected<PacketMemory, std::string> create(uint32_t frame_count, bool hugepages);
    PacketMemory(PacketMemory&&) noexcept;
    PacketMemory& operator=(PacketMemory&&) noexcept;
    ~PacketMemory();

    // Gives the calling worker thread its mempool cache. Once per thread, before take().
    static bool register_thread();
    // Returns cached buffers to the pool. Last call of a registered thread.
    void unregister_thread();

    // Fills `out` with buffers, each pointing to its kFrameDataOffset. All or nothing.
    [[nodiscard]] bool take(std::span<std::byte*> out);
    // Returns buffers; each pointer may point anywhere into its buffer.
    void give(std::span<std::byte* const> frames);

    [[nodiscard]] std::byte* base() const;  // page aligned
    [[nodiscard]] size_t bytes() const;
    [[nodiscard]] uint32_t frame_count() const;
    [[nodiscard]] uint32_t available() const;  // in the pool and all caches
    [[nodiscard]] bool on_hugepages() const;

    // Puts every buffer that is not in the pool back into it and returns how many there were:
    // those that the kernel held when the sockets closed. Control, after all sockets and egresses
    // have gone and all other threads are unregistered. Conservation says that the result equals
    // the sum of PortSockets::frames_in_kernel() just before.
    uint32_t recover();

  private:
    struct Impl;
    explicit PacketMemory(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace sallyport::io
