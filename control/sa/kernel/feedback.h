// SPDX-License-Identifier: Apache-2.0
#pragma once

// The way back to the kernel: counters, limits, requests to rekey.
//
// Every second the counters of SAs that were used are written into their states (XFRM_MSG_NEWAE),
// so that `ip -s xfrm state` and the IKE daemon show what really happened. Limits in bytes and
// packets are looked at ten times as often (tour.h), because the kernel, which enforces them per
// packet, does not see the packets. Limits in seconds are the kernel's own.
//
// Outbound, usage alone is written here: the kernel may have sent since we looked last, and a
// number put down again is a nonce used twice. Only Handover writes numbers, after a look.
//
// Owner: control thread.

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>

#include "control/sa/kernel/rekey_pacer.h"
#include "control/sa/kernel/slot.h"
#include "control/sa/kernel/surroundings.h"

namespace sallyport::control {

class Feedback {
  public:
    // From one SA to the next, after a stop: 10 000 of them are rekeyed within ten minutes.
    // Shorter, and IKE daemons at both ends do little else; longer, and keys with two senders live
    // longer.
    static constexpr std::chrono::milliseconds kSpread{60};
    // A request to rekey that is not obeyed is made again after this. Shorter, and an IKE daemon
    // whose peer does not answer is asked while it is still at it.
    static constexpr std::chrono::seconds kAskAgain{30};
    Feedback(const Surroundings& around, RekeyPacer& pacer) : around_(around), pacer_(pacer) {}

    // Of SAs that are installed: what their workers have done since, into the kernel's states.
    void write_counters(std::span<Slot* const> slots);
    // Whether there is something to write; costs next to nothing.
    [[nodiscard]] static bool has_news(const Slot& slot);
    // Tells the IKE daemon of a limit that was reached; at the hard one, and when its numbers are
    // used up, the kernel deletes it: the daemon makes a new one.
    // True: the kernel was asked to, which takes a moment.
    bool check_limits(Slot& slot);
    void ask_rekey(Slot& slot, RekeyPacer::When when = RekeyPacer::When::paced);
    // Once more, if it is time.
    void ask_again(Slot& slot);
    [[nodiscard]] bool asks_again(const Slot& slot) const;
    void send_rekey_requests(size_t at_most);
    // Nobody will send them: soft lifetimes of those that wait come up one after another, kSpread
    // apart, so that the kernel asks by itself. None comes later than it would have.
    void leave_rekey_requests();

    // `replay`: nullopt leaves the kernel's own alone.
    bool write(Slot& slot, const xfrm::KernelSa& state, const Work& work,
               const std::optional<xfrm::Replay>& replay);
    void note_use(Slot& slot) const;
    // What stands in the kernel's state now.
    static void note_written(Slot& slot, const Work& work,
                             const std::optional<xfrm::Replay>& replay);

  private:
    [[nodiscard]] std::optional<xfrm::Limits> sooner(const xfrm::KernelSa& state,
                                                     std::chrono::seconds in) const;
    void ask_now(const xfrm::KernelSa& state);

    const Surroundings& around_;
    RekeyPacer& pacer_;
};

}  // namespace sallyport::control
