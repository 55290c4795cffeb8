// SPDX-License-Identifier: Apache-2.0
#pragma once

// For how long the programs believe BYPASS.
//
// What they look at is a copy of the kernel's policies, and a copy is worth something only while
// somebody keeps it: an IKE daemon may have loaded a trap policy a moment ago, and this thread may
// be stopped, blocked, or not have heard of it. So BYPASS holds for kFor and is extended while what
// is published is what the register has. It is taken away as soon as a message says that policies
// are others, until they are published. Without it the kernel forwards what BYPASS covers, by its
// policies of today; that only costs speed.
//
// Owner: control thread.

#include <chrono>
#include <cstdint>

#include "control/sa/kernel/publication.h"
#include "control/sa/kernel/surroundings.h"

namespace sallyport::control {

class BypassLease {
  public:
    // A policy that the kernel has had for longer than this holds for all packets, whatever becomes
    // of us. Shorter, and a machine where this thread waits for its CPU loses the fast way again
    // and again; longer, and cleartext leaves for that much longer. An IKE daemon's own exchange
    // takes tens of milliseconds, and a round with ten thousand tunnels 0.2 s.
    static constexpr std::chrono::milliseconds kFor{1000};

    BypassLease(const Clock& clock, Notices& notices) : clock_(clock), notices_(notices) {}
    // Nothing is believed from here on. `programs` outlives the use of this object.
    void open(Programs& programs);
    // What is published is what the register has at this moment.
    void extend();
    void take_away();
    // How often it has ended by itself: this thread was too late.
    [[nodiscard]] uint64_t lapses() const { return lapses_; }

  private:
    void set(std::chrono::steady_clock::time_point until);

    const Clock& clock_;
    Notices& notices_;
    Programs* programs_ = nullptr;
    std::chrono::steady_clock::time_point until_;  // begin of time: taken away
    uint64_t lapses_ = 0;
    bool failed_ = false;  // said once
};

}  // namespace sallyport::control
