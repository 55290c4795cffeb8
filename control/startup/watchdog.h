// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whether the workers move. A worker turns its loop at least four times a second, also without
// traffic, so one whose count stands still hangs: what it owns is not forwarded, and nobody else
// may take it over, because it may go on at any time. The service manager hears that all is well
// only while all workers move and this thread has time to say so; systemd ends and restarts a
// service that it has not heard of for WatchdogSec. Owner: control thread.

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

namespace sallyport::control {

class Watchdog {
  public:
    using Time = std::chrono::steady_clock::time_point;
    // Shorter, and a machine that is short of CPU looks like a hung worker; longer, and an outage
    // is said late.
    static constexpr std::chrono::seconds kHungAfter{3};

    struct Look {
        std::vector<size_t> hung;   // since the last look
        std::vector<size_t> moved;  // that were hung at the last look
        bool all_move = true;
    };
    // `loops`: of each worker, in their order.
    Look look(std::span<const uint64_t> loops, Time now);

  private:
    struct Seen {
        uint64_t loops = 0;
        Time since;  // it has this count
        bool hung = false;
    };
    std::vector<Seen> seen_;
};

}  // namespace sallyport::control
