// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>

#include "dataplane/io/frame.h"

namespace sallyport::io {

// Starts DPDK's EAL for memory only (no PCI, no telemetry, no files left behind). Once per
// process, before anything else here. `hugepages`: use them when the system has any free.
std::expected<void, std::string> start_eal(uint32_t frame_count, bool hugepages);

// All packet buffers of the process: one rte_mempool that is also the AF_XDP UMEM.
//
// take() and give() may be called from any thread that was registered by register_thread();
// each then has its own cache. Created and destroyed by control.
class PacketMemory {
  public:
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

  private:
    struct Impl;
    explicit PacketMemory(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace sallyport::io
