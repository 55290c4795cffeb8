// SPDX-License-Identifier: Apache-2.0
#pragma once

// What RFC 4303 4 wants on record and nobody reports by itself: XDP programs only count what they
// drop, so its record has a number and a port, no addresses; and what workers could not report.
// Owner: control thread.

#include <array>
#include <cstdint>
#include <vector>

#include "control/appliance.h"
#include "control/log.h"

namespace sallyport::control {

class Audits {
  public:
    Audits(const Appliance& appliance, Log& log);

    // Writes down what has come since the last look.
    void look();

  private:
    struct Seen {
        DropReason reason;
        std::vector<uint64_t> by_port;
    };
    void look_at_programs();
    void look_at_workers();
    void look_at_checksums();
    void look_at_commands();

    const Appliance& appliance_;
    Log& log_;
    std::vector<Seen> seen_;
    uint64_t suppressed_ = 0;
    uint64_t events_lost_ = 0;
    uint64_t by_bypass_ = 0;  // TCP and UDP checksums left to the kernel, of ports with many
    bool partial_checksums_seen_ = false;
    std::vector<bool> stuck_;  // by worker: commands waited at the last look
};

}  // namespace sallyport::control
