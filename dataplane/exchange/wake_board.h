// SPDX-License-Identifier: Apache-2.0
#pragma once

// Ends the sleep of workers. One board for all of them, made by control before they start.
//
//   waker: does its work, then wake()            worker: fall_asleep(), a last look, poll(fd)
//
// A full fence on both sides: either the worker's last look sees the work, or the waker sees the
// worker asleep and signals its descriptor.

#include <atomic>
#include <cstdint>
#include <vector>

#include "dataplane/base/ids.h"

namespace sallyport {

class WakeBoard {
  public:
    // Throws std::system_error when the system has no more file descriptors.
    explicit WakeBoard(uint16_t workers);
    ~WakeBoard();
    WakeBoard(const WakeBoard&) = delete;

    // Any thread. A system call only when the worker sleeps.
    void wake(WorkerId worker);

    // --- that worker's thread only
    // Readable when it was woken; to be polled.
    [[nodiscard]] int fd(WorkerId worker) const { return seats_[to_index(worker)].fd; }
    // From here on wake() signals. What was done before it is seen by looks after it.
    void fall_asleep(WorkerId worker);
    void woke_up(WorkerId worker);

  private:
    struct alignas(64) Seat {
        int fd = -1;
        std::atomic<bool> asleep = false;  // writer: that worker; reader: anyone
    };
    std::vector<Seat> seats_;
};

}  // namespace sallyport
