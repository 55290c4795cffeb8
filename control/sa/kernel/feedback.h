// SPDX-License-Identifier: Apache-2.0
#pragma once

// The way back to the kernel: counters, limits, requests to rekey.
//
// Every second the counters of SAs that were used are written into their states (XFRM_MSG_NEWAE),
// so that `ip -s xfrm state` and the IKE daemon show what really happened. Limits in bytes and
// packets are looked at every kTickMs, because the kernel, which enforces them per packet, does not
// see the packets. Limits in seconds are the kernel's own.
//
// Outbound, usage alone is written here: the kernel may have sent since we looked last, and a
// number put down again is a nonce used twice. Only Handover writes numbers, after a look.
//
// Owner: control thread.

#include <chrono>
#include <cstddef>
#include <optional>

#include "control/sa/kernel/rekey_pacer.h"
#include "control/sa/kernel/slot.h"
#include "control/sa/kernel/surroundings.h"

namespace sallyport::control {

class Feedback {
  public:
    // A request to rekey that is not obeyed is made again after this. Shorter, and an IKE daemon
    // whose peer does not answer is asked while it is still at it.
    static constexpr std::chrono::seconds kAskAgain{30};
    Feedback(const Surroundings& around, RekeyPacer& pacer) : around_(around), pacer_(pacer) {}

    // Of an SA that is installed: what its worker has done since, into the kernel's state.
    void write_counters(Slot& slot);
    // Tells the IKE daemon of a limit that was reached; at the hard one, and when its numbers are
    // used up, the kernel deletes it: the daemon makes a new one.
    void check_limits(Slot& slot);
    void ask_rekey(Slot& slot, RekeyPacer::When when = RekeyPacer::When::paced);
    // Once more, if it is time.
    void ask_again(Slot& slot);
    void send_rekey_requests(size_t at_most);

    // `replay`: nullopt leaves the kernel's own alone.
    bool write(Slot& slot, const xfrm::KernelSa& state, const Work& work,
               const std::optional<xfrm::Replay>& replay);
    void note_use(Slot& slot) const;

  private:
    const Surroundings& around_;
    RekeyPacer& pacer_;
};

}  // namespace sallyport::control
