// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <liburing.h>

#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "dataplane/base/frame.h"
#include "dataplane/io/tap.h"

namespace sallyport::io {

// Writes frames to a queue of sp0 in io_uring batches of up to kBurstMax.
//
// A write to a TAP never waits, so each batch is complete when its submission returns: one system
// call carries it. Owner: one worker.
class TapWriter {
  public:
    TapWriter() = default;
    ~TapWriter();
    TapWriter(const TapWriter&) = delete;
    TapWriter& operator=(const TapWriter&) = delete;

    // First of all, once. `queue` outlives the writer.
    std::expected<void, std::string> open(const TapQueue& queue);

    // Puts a frame into the batch. False: the batch is full; submit() and collect().
    bool add(const Frame& frame);
    // Hands the batch to the kernel. What an interruption leaves goes with the next one.
    void submit();
    // Frames that are through, at most kBurstMax: their buffers into `done`, and how many of them
    // the kernel took (it refuses when it has no memory, or sp0 is down). Call until there are
    // none.
    struct Collected {
        uint32_t count = 0;
        uint32_t written = 0;
    };
    Collected collect(std::span<std::byte*, kBurstMax> done);
    // Added and not collected.
    [[nodiscard]] uint32_t in_flight() const { return in_flight_; }

  private:
    io_uring ring_{};
    bool ready_ = false;
    uint32_t in_flight_ = 0;
};

}  // namespace sallyport::io
