// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whose AF_XDP sockets are on a queue that the kernel does not give.
//
// A process that was killed leaves a queue taken for a while: its sockets go when the kernel has
// closed the last descriptor (io_uring closes those it has on its own time), and the queue when a
// kernel worker has let go of it after that. On a busy machine that takes seconds. So a queue that
// no living process can be seen to have is waited for, and one that another has is not.
//
// Owner: control thread, at start.

#include <chrono>
#include <cstdint>
#include <expected>
#include <string>

#include "control/log.h"

namespace sallyport::control {

struct QueueHolder {
    enum class Socket : uint8_t { none, there, unknown };  // unknown: the kernel does not list them
    Socket socket = Socket::unknown;
    uint32_t user = 0;  // of a socket that is there
    // "123 (name)" that has it open; where that is unknown: that has any, here. Empty: none that we
    // may look at.
    std::string process;
};

// The socket on (device, queue), from the kernel's list of this network namespace.
QueueHolder holder_of(uint32_t ifindex, uint16_t queue);

// Of a process that lives: as long as its sockets may take to go where it is just ending.
inline constexpr std::chrono::seconds kStrangerMax{1};
// Of a dead one. Shorter, and the restart after a crash fails where it is needed most; longer, and
// who waits for the service manager waits for nothing.
inline constexpr std::chrono::seconds kReleaseMax{15};

// Whether to go on waiting after `waited`; the error says who has the queue, and what to do.
std::expected<void, std::string> judge_busy_queue(const std::string& device, uint16_t queue,
                                                  const QueueHolder& holder,
                                                  std::chrono::milliseconds waited);

// The same for the queue as it is now; once it is long the log says what is waited for.
class BusyQueues {
  public:
    explicit BusyQueues(Log& log) : log_(log) {}
    std::expected<void, std::string> look(const std::string& device, uint32_t ifindex,
                                          uint16_t queue, std::chrono::milliseconds waited);

  private:
    Log& log_;
    bool said_ = false;
};

}  // namespace sallyport::control
