// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "dataplane/base/drop_reason.h"
#include "dataplane/base/frame.h"
#include "dataplane/base/single_writer.h"

namespace sallyport {
class NextHops;
}

namespace sallyport::egress {

// The way out of a worker. Two implementations: TapEgress (frames enter XDP again on sp0 and leave
// through devmap programs) and DirectEgress (AF_XDP TX with next hops mirrored from the kernel).
//
// Owner: one worker. send() takes ownership of the frames; buffers return to packet memory when
// they are sent or dropped.
class Egress {
  public:
    virtual ~Egress() = default;

    virtual void send(std::span<OutgoingFrame> frames) = 0;
    // Pushes out what send() collected and reclaims what is done. Called once per loop.
    virtual void flush() = 0;
    // Frames wait for another flush(): come back soon.
    [[nodiscard]] virtual bool has_unsent() const { return in_flight() != 0; }
    // Takes a new mirror of the kernel's routes into use. Direct egress reads it in every send()
    // until the next call; devmap egress leaves routing to the kernel.
    virtual void set_next_hops(const NextHops* /*next_hops*/) {}
    // Frames sent but not yet reclaimed by this object.
    [[nodiscard]] virtual uint32_t in_flight() const = 0;

    // writer: the owning worker; reader: anyone.
    [[nodiscard]] const std::array<Counter, kDropReasonCount>& drops() const { return drops_; }
    [[nodiscard]] const Counter& sent() const { return sent_; }

  protected:
    void count_drop(DropReason reason, uint64_t frames = 1) {
        drops_[static_cast<size_t>(reason)].add(frames);
    }
    std::array<Counter, kDropReasonCount> drops_;
    Counter sent_;
};

}  // namespace sallyport::egress
