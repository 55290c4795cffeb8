// SPDX-License-Identifier: Apache-2.0
#pragma once

// A worker: one pinned thread that owns its SAs, its sockets' rings and its way out.
//
// The loop: take commands, receive a burst from each of its sockets and from its TAP queue, run
// the inbound or outbound pipeline over it, hand the results to the egress, refill the queues it
// is the home of. Without work it spins for a while, then sleeps in poll(). Frames that wait for an
// SA go through their pipeline again when a command has brought one, before newer ones are
// received.

#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/base/ids.h"
#include "dataplane/exchange/commands.h"
#include "dataplane/exchange/counters.h"
#include "dataplane/exchange/events.h"
#include "dataplane/exchange/wake_board.h"

namespace sallyport {

namespace io {
class PacketMemory;
class PortSockets;
class TapQueue;
}  // namespace io
namespace egress {
class Egress;
}

struct WorkerSetup {
    WorkerId id{};
    uint16_t cpu = 0;
    uint32_t spin_us = 50;
    uint32_t max_sas = 4096;
    uint32_t max_policies = 4096;
    // Frames that may wait in this worker for an SA, of each direction, and for how long. They take
    // buffers out of circulation: packet memory must be the larger for it.
    uint32_t hold_frames = 0;  // 0: such frames are dropped at once
    uint32_t hold_ms = 500;
    uint16_t outer_mtu = 1500;  // of SAs without a limit of their own, IP bytes
    WakeBoard* wake_board = nullptr;
    io::PacketMemory* memory = nullptr;
    // One per port, in port order. Role decides the pipeline its frames go through.
    struct PortInput {
        io::PortSockets* sockets = nullptr;
        bool unprotected_side = false;
    };
    std::vector<PortInput> ports;
    io::TapQueue* tap = nullptr;  // this worker's queue of sp0
    std::unique_ptr<egress::Egress> egress;
    // Called on the worker's thread before its loop: gives away what the loop does not need. May be
    // empty.
    std::function<std::expected<void, std::string>()> confine;
};

class Worker {
  public:
    static std::expected<std::unique_ptr<Worker>, std::string> create(WorkerSetup setup);
    ~Worker();  // stops
    Worker(const Worker&) = delete;

    // Control thread. Starts the thread and waits until it is pinned and ready.
    std::expected<void, std::string> start();
    // Control thread. Ends the loop after the burst in hand and joins.
    void stop();

    // Control thread. False: the ring is full, try again later.
    bool submit(const Command& command);
    bool next_event(Event& event);
    // Becomes readable when next_event() has something (eventfd, non-blocking).
    [[nodiscard]] int event_fd() const;

    [[nodiscard]] const WorkerCounters& counters() const;
    [[nodiscard]] const egress::Egress& egress() const;
    [[nodiscard]] WorkerId id() const;
    [[nodiscard]] uint16_t cpu() const;
    // CPU time the thread has used, while it runs.
    [[nodiscard]] uint64_t cpu_time_ns() const;

  private:
    struct Impl;
    explicit Worker(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace sallyport
