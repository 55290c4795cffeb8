// SPDX-License-Identifier: Apache-2.0
#pragma once

// The AF_XDP sockets of one port: one for each (queue, worker), all on one UMEM of the port's own.
//
// A redirect reaches only sockets bound to the frame's own queue, so steering to W workers takes W
// sockets on each queue. RX and TX rings belong to a socket and so to its worker. The FILL and
// COMPLETION rings belong to the queue: exactly one worker, its *home*, touches them.
//
//   queue q --FILL--> kernel --redirect--> RX(q, w) --> worker w --> pool --> home(q) --> FILL
//
// A home that sleeps would starve its queue while another worker is busy on it. Whoever takes
// frames from a queue looks at its FILL level and wakes the home below the low-water mark. The
// same trap lies on the way out: sent frames wait on COMPLETION until the home reclaims them, so
// whoever transmits wakes the home above the high-water mark.
//
// Sockets of one queue share its rings and buffer pool in the kernel: the first one brings FILL
// and COMPLETION, the others are bound to the first one's fd. (libxdp's own set-up refuses the
// second socket on any queue but the first of a UMEM, so the set-up here is made of the system
// calls; the ring accessors are libxdp's.)
//
// The kernel binds all sockets of a UMEM in one mode. So each port registers packet memory as a
// UMEM of its own: the pages and the addresses in it are the same, a frame of one port may be sent
// by another, and a card with zero-copy need not wait for a veth beside it. (Pages are pinned, and
// counted against RLIMIT_MEMLOCK, once for each port.) `automatic` tries zero-copy on every queue;
// one queue that refuses puts the whole port into copy mode, and mode_reason() says why.
//
// Frames the kernel holds when the sockets close do not come back by themselves: see
// PacketMemory::recover().

#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "dataplane/base/frame.h"
#include "dataplane/base/ids.h"
#include "dataplane/io/bind.h"
#include "dataplane/io/packet_memory.h"

namespace sallyport::io {

// Asked every few milliseconds while the kernel says that a queue is taken. The error ends the wait
// and says whose the queue is.
using WhenBusy = std::function<std::expected<void, std::string>(uint16_t queue,
                                                                std::chrono::milliseconds waited)>;

struct PortSocketsSetup {
    std::string device;
    uint32_t ifindex = 0;
    uint16_t queues = 1;
    uint16_t workers = 1;
    Bind bind = Bind::automatic;
    uint32_t fill_entries = 2048;  // of each queue; powers of two
    uint32_t rx_entries = 1024;    // of each socket
    uint32_t tx_entries = 512;     // of each socket; only used by direct egress, 0: no TX
    WhenBusy when_busy;            // none: after a second somebody else has it
    std::string copy_reason;       // of Bind::copy; empty: it was asked for
};

// What was redirected to the sockets of one queue and did not reach them, in frames.
//
// The kernel (XDP_STATISTICS) has no such list: `rx_dropped` of a socket counts frames that found
// the FILL ring empty and those that no buffer can hold; `rx_fill_ring_empty_descs` is a number of
// the ring, told by each socket that shares it: each time somebody looked for a buffer in vain.
// Where frames are copied that is once for a frame. With zero-copy it is the driver, which looks
// ahead of frames: what it has no buffer for then, the card drops and counts.
struct QueueStatistics {
    uint64_t rx_ring_full = 0;
    uint64_t too_big = 0;          // for a buffer
    uint64_t fill_ring_empty = 0;  // while packet memory had frames
    uint64_t no_frame = 0;         // while it had none
    uint64_t fill_misses = 0;      // as the kernel counts them; no frames with zero-copy

    QueueStatistics& operator+=(const QueueStatistics& other) {
        rx_ring_full += other.rx_ring_full;
        too_big += other.too_big;
        fill_ring_empty += other.fill_ring_empty;
        no_frame += other.no_frame;
        fill_misses += other.fill_misses;
        return *this;
    }
};

class PortSockets {
  public:
    // Control, before workers start.
    static std::expected<std::unique_ptr<PortSockets>, std::string> create(
        const PortSocketsSetup& setup, PacketMemory& memory);
    ~PortSockets();

    [[nodiscard]] uint16_t queues() const;
    [[nodiscard]] uint16_t workers() const;
    [[nodiscard]] bool zero_copy() const;
    // Why frames are copied, or who asked for what is done.
    [[nodiscard]] const std::string& mode_reason() const;
    [[nodiscard]] int fd(QueueId queue, WorkerId worker) const;  // for the XSKMAP and poll()
    [[nodiscard]] WorkerId home(QueueId queue) const;            // queue % workers

    // --- owner of (queue, worker) ---
    // Takes up to out.size() received frames.
    uint32_t receive(QueueId queue, WorkerId worker, std::span<Frame> out);
    // Puts frames on the TX ring; returns how many it took. Buffers come back through the home.
    uint32_t transmit(QueueId queue, WorkerId worker, std::span<const Frame> frames);
    // Tells the kernel that there is something to send, if it asked to be told. Returns how many
    // frames stay on the ring: call again later. In copy mode that happens when COMPLETION is full
    // (the home must reclaim first) or the device is.
    uint32_t kick_transmit(QueueId queue, WorkerId worker);

    // --- home of the queue ---
    // Moves frames from the pool to the FILL ring until it is full or the pool is empty, and
    // wakes the kernel if it asked for it. Returns how many were added.
    uint32_t refill(QueueId queue);
    // Gives completed TX frames back to the pool. Returns how many.
    uint32_t reclaim(QueueId queue);

    // --- any thread ---
    // Frames on the FILL ring right now; a hint.
    [[nodiscard]] uint32_t fill_level(QueueId queue) const;
    [[nodiscard]] uint32_t fill_low_water(QueueId queue) const;
    // Sent frames that wait for the home to reclaim them; a hint.
    [[nodiscard]] uint32_t completion_level(QueueId queue) const;
    [[nodiscard]] uint32_t completion_high_water(QueueId queue) const;
    [[nodiscard]] QueueStatistics statistics(QueueId queue) const;
    // Frames the kernel holds for this port: given to FILL or TX and not yet come back, those that
    // wait on RX and COMPLETION included. Exact when the workers stand still.
    [[nodiscard]] uint64_t frames_in_kernel() const;

  private:
    struct Impl;
    explicit PortSockets(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace sallyport::io
