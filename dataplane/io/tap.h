// SPDX-License-Identifier: Apache-2.0
#pragma once

// sp0: the multi-queue TAP between workers and the kernel, one queue per worker.
//
// A frame written here meets the XDP program on sp0 without an skb being made. The kernel takes
// this way (tun_can_build_skb) for a write to a non-blocking descriptor whose send buffer is
// INT_MAX, if the frame fits one page together with 64 bytes in front and the skb's tail (320
// bytes here): up to 3712 bytes, that is an MTU of 3698. A longer frame is first made an skb and
// meets XDP in generic mode: slower, with the same result. What the kernel routes into sp0 is
// read from the same queue.

#include <array>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dataplane/base/frame.h"

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
    // The address of sp0, locally administered, and the largest MTU that fits a frame.
    static constexpr MacAddress kMac = {0x02, 0x53, 0x50, 0x00, 0x01, 0x00};
    static constexpr uint32_t kMtuMax = kFrameDataBytesMax - 14;

    // Moves a device from the network namespace of the calling thread into that of `netns_fd`.
    using MoveDevice =
        std::function<std::expected<void, std::string>(const std::string& name, int netns_fd)>;

    // Creates `name` with `queues` queues, all of them open on return. Only our user and group may
    // attach to it, or who has CAP_NET_ADMIN; at no moment may others. Needs CAP_SYS_ADMIN for a
    // namespace to make it in (`move` is netlink::move_link). Address, MTU and taking it up are
    // control's (control/netlink/link.h, set_up_tap), and so are its sysctls. Fails when a device
    // of that name exists and still does after two seconds: one may be on its way out.
    static std::expected<Tap, std::string> create(const std::string& name, uint16_t queues,
                                                  const MoveDevice& move);
    [[nodiscard]] uint32_t ifindex() const { return ifindex_; }
    [[nodiscard]] TapQueue& queue(uint16_t index) { return queues_[index]; }
    // Which queue gets a packet that the kernel routes into the device: the return value of a
    // socket filter program (TUNSETSTEERINGEBPF). Without it the kernel spreads by flow.
    std::expected<void, std::string> choose_queues_by(int program_fd);

  private:
    uint32_t ifindex_ = 0;
    std::vector<TapQueue> queues_;
};

}  // namespace sallyport::io
