// SPDX-License-Identifier: Apache-2.0
#pragma once

// Worker to control: the ring, and the descriptor that says there is something in it.

#include <array>
#include <cstdint>
#include <deque>

#include "dataplane/base/drop_reason.h"
#include "dataplane/base/spsc_ring.h"
#include "dataplane/exchange/counters.h"
#include "dataplane/exchange/events.h"

namespace sallyport {

class EventChannel final : public EventSink {
  public:
    // An answer for each of max_sas SAs fits at its default several times. Smaller, and answers
    // wait in the worker, which then allocates; larger costs memory in every worker.
    static constexpr uint32_t kRingSize = 16384;
    // Of one kind (the reason of an audit; SequenceExhausted is one). An attacker must not be able
    // to flood the log, nor to hide what is rare behind what he can make often. More, and a flood
    // costs disk; fewer, and what an operator looks for is suppressed (and counted).
    static constexpr uint32_t kRecordsPerSecond = 20;

    // Throws std::system_error when the system has no more file descriptors.
    explicit EventChannel(WorkerCounters& counters);
    ~EventChannel();
    EventChannel(const EventChannel&) = delete;

    // --- worker
    void post(const Event& event) override;
    // Something waits for room in the ring: call notify() again soon.
    [[nodiscard]] bool has_unsent() const { return !unsent_.empty(); }
    // Once per loop, so that a burst of events is one system call.
    void notify();

    // --- control
    bool pop(Event& event);
    // Readable when pop() has something.
    [[nodiscard]] int fd() const { return fd_; }

  private:
    bool may_report(const Event& record);

    WorkerCounters& counters_;
    SpscRing<Event> ring_;
    std::deque<Event> unsent_;  // what must not be lost, while the ring is full
    int fd_;
    bool posted_ = false;
    uint64_t second_ = 0;
    std::array<uint32_t, kDropReasonCount + 1> records_{};  // in that second, by kind
};

}  // namespace sallyport
