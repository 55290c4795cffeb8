// SPDX-License-Identifier: Apache-2.0
#pragma once

// sp0: the multi-queue TAP between workers and the kernel, one queue per worker.
//
// A frame written here meets the XDP program on sp0 without an skb being made (which needs
// O_NONBLOCK, TUNSETSNDBUF = INT_MAX and frame + headroom + tailroom within a page). What the
// kernel routes into sp0 is read from the same queue.

#include <array>
#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dataplane/io/egress.h"
#include "dataplane/io/frame.h"
#include "dataplane/io/packet_memory.h"

namespace sallyport::io {

using MacAddress = std::array<uint8_t, 6>;

// One queue. Owner: one worker.
class TapQueue {
  public:
    explicit TapQueue(int fd) : fd_(fd) {}
    TapQueue(TapQueue&& other) noexcept;
    TapQueue& operator=(TapQueue&&) noexcept;
    ~TapQueue();

    [[nodiscard]] int fd() const { return fd_; }
    // Reads frames the kernel routed into sp0, at most buffers.size(). `buffers` come from packet
    // memory; those that were filled are returned as frames, in order. Never blocks.
    uint32_t read(std::span<std::byte* const> buffers, std::span<Frame> out) const;

  private:
    int fd_ = -1;
};

// The device. Exists as long as a queue is open: a killed daemon leaves none behind.
class Tap {
  public:
    // Creates `name` with `queues` queues and the addresses sp0 has: locally administered MAC,
    // MTU, up, no IPv6 autoconfiguration. Fails when a device of that name exists already.
    static std::expected<Tap, std::string> create(const std::string& name, uint16_t queues,
                                                  uint32_t mtu);
    [[nodiscard]] uint32_t ifindex() const { return ifindex_; }
    [[nodiscard]] MacAddress mac() const { return mac_; }
    [[nodiscard]] TapQueue& queue(uint16_t index) { return queues_[index]; }

  private:
    uint32_t ifindex_ = 0;
    MacAddress mac_{};
    std::vector<TapQueue> queues_;
};

// Writes finished frames to a TAP queue in io_uring batches of up to 64. On the way it fills in the
// Ethernet addresses: destination sp0's own MAC, source 02:53:50:00:00:KIND.
// Drop reason: injector_full.
std::expected<std::unique_ptr<Egress>, std::string> make_tap_egress(TapQueue& queue, MacAddress mac,
                                                                    PacketMemory& memory);

}  // namespace sallyport::io
