// SPDX-License-Identifier: Apache-2.0
#pragma once

// Moves SAs between the kernel and workers, a batch at a time (reconcile.h); each goes its own way.
//
// Taking an SA over
// -----------------
// The kernel serves every SA that no worker has. The order makes sure that two never serve one SA
// at a time:
//   1. steer    owner map (inbound) or owners of the policy (outbound): frames now reach the
//               worker, which holds those without an SA for a moment (dataplane/pipeline/hold.h)
//   2. settle   It is read kSettle later, when what was on its way to the kernel has passed (of a
//               group that a worker serves nothing is), and not before each of the same name or key
//               that is on its way out has let go: what that one has used is known only then.
//   3. read     XFRM_MSG_GETSA: the counters where the kernel has stopped
//   4. reserve  outbound: XFRM_MSG_NEWAE puts the kernel's counter *above* the numbers that the
//               worker may use, so that the kernel can go on at once, by itself, if we die; then it
//               is read again: what the kernel has sent meanwhile is not the worker's
//   5. install  the worker runs what it holds
//   6. look     inbound, the state is read once more at the next tick, for what was on its way for
//               longer than kSettle (a guest whose CPU was taken away)
// Back to the kernel it goes the other way round: the worker gives it up (retire), its counters are
// written, inbound frames are steered to the kernel. At a stop all go so (way_back.h). The kernel's
// counter is never put down again:
// only a reservation writes it, after a look at what the kernel has sent; the rest is usage alone
// (feedback.h).
//
// A state that comes back with counters older than those that its key has used, and that no worker
// takes, has them raised in the kernel in the next round, a block above: the kernel sends with it
// between the look and the writing.
//
// Never a nonce twice (RFC 4106 3)
// --------------------------------
// Sequence numbers of one key only move up, in the kernel's state, here (SequenceMemory, also when
// the state is deleted and added again) and in the worker. So no two packets under one key, whoever
// sends them, have the same number, as long as at most one sends at a time, see above. What the
// kernel itself has used of a state that is deleted is known from the message about the deletion;
// whoever looks at a state (Register::get) has heard all messages before.
//
// The IV is not the number itself: the kernel's (seqiv) is the number XOR 64 random bits of its
// own, drawn per state and not known to us; ours is the number XOR 64 random bits, drawn for each
// SA that is built. Two numbers under *different* masks can make the same IV: s XOR a = t XOR b
// exactly when s XOR t = a XOR b. With numbers below 2^32 the upper halves of both masks must agree
// for that to be possible at all, which happens with a chance of 2^-32 per pair of masks: the bound
// that NIST SP 800-38D 8 sets. With ESN, where n bits of the number are in use, it is 2^-(64 - n).
// Because a key that has had two senders has used up that chance once, every SA that is taken over
// from another sender is asked to be rekeyed at once (XFRM_MSG_EXPIRE, soft; rekey_pacer.h), and
// all those at a clean stop, when the kernel becomes the second sender: then the kernel asks by
// itself, for one after another (Feedback::leave_rekey_requests()).
//
// How numbers are reserved beside a kernel that may send at any time: reservations.h.
//
// What this does not cover: a state that is added again is the kernel's until its counters are
// raised; and where the message about a deletion was lost, or there was none (a flush, a hard
// expiry), what the kernel has used since it spoke last is not known. The simulation shows them by
// name (KnownGap).
//
// Replay (RFC 4303 3.4.3)
// -----------------------
// The window starts with everything up to the kernel's top counted as seen; the top that is written
// back was authenticated by the worker. Between two writings (a second at most) a crash leaves the
// kernel with an older top: packets that arrived in that second could then be replayed, once. What
// the kernel accepts of an SA that a worker has, longer than kSettle after it was steered, can be
// replayed to the worker until the look of step 6.
//
// Owner: control thread.

#include <chrono>
#include <expected>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "control/sa/kernel/feedback.h"
#include "control/sa/kernel/reservations.h"
#include "control/sa/kernel/sequence_memory.h"
#include "control/sa/kernel/slot_table.h"
#include "control/sa/kernel/surroundings.h"
#include "control/sa/sequence_block.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/exchange/events.h"

namespace sallyport::control {

class Handover {
  public:
    // What was on its way through the kernel when an SA was steered away has passed after this.
    // Shorter, and the kernel may use a number after its counter was read; longer, and the first
    // packets wait that much longer in the worker.
    static constexpr std::chrono::milliseconds kSettle{3};
    static constexpr const char* kHostUsesIt = "traffic of this host uses it";
    static constexpr const char* kNoRoom = "there is no room for it: raise gateway.max_sas";

    struct Parts {
        SlotTable& slots;
        SequenceMemory& memory;
        Feedback& feedback;
    };
    Handover(const Surroundings& around, const Parts& parts, const crypto::Aead& aead);

    // --- to a worker
    // `group_is_served`: a worker sends for its group already.
    void steer(const xfrm::KernelSa& state, const SaDecision& decision, bool group_is_served);
    // Takes a step with those that are steered, if it is time: read, reserve, install. One that
    // stays with the kernel is gone afterwards.
    void go_on(std::span<Slot* const> slots);
    // Of those that are installed: what can have been missed, or is due.
    void look_after(std::span<Slot* const> slots);
    // Whether there is something; costs next to nothing.
    [[nodiscard]] bool needs_look(const Slot& slot) const;
    // Of an inbound SA that is installed, to those of its decision.
    void change_selectors(Slot& slot, const xfrm::KernelSa& state);

    // The kernel itself has used a state that a worker serves: outbound, traffic of this host that
    // was not routed into sp0; inbound, packets that came in by a device which is no port.
    void kernel_used(std::span<Slot* const> slots);

    // See Reservations.
    void compare(Slot& slot, const xfrm::KernelSa& state) { reservations_.compare(slot, state); }

    // --- with the kernel
    // The key of a state has been used further than its counters say, as far as is known without
    // asking the kernel.
    [[nodiscard]] bool is_behind(const xfrm::KernelSa& state,
                                 const std::optional<xfrm::StateDirection>& direction) const;
    // Of a state that no worker has.
    void raise_in_kernel(const xfrm::SaName& name,
                         const std::optional<xfrm::StateDirection>& direction);

    // --- back to the kernel
    // `slot` has given up its name, and its policy names another owner.
    void retire(Slot& slot);
    // After the workers have stopped. False: its counters are not written.
    bool write_back(Slot& slot);
    // All go, and do not come again.
    void begin_return() { returning_ = true; }

    // --- what workers say
    void take(const event::InboundRetired& news);
    void take(const event::OutboundRetired& news);
    void take(const event::SequenceLow& news);  // then extend_some()
    void take(const event::SequenceExhausted& news);

    // Numbers for those that said they are low, as many at once as go in one system call. True:
    // more of them wait.
    bool extend_some();
    [[nodiscard]] bool some_are_low() const { return !low_.empty(); }

    // Those that were tried and left to the kernel: why.
    [[nodiscard]] const std::map<xfrm::SaName, std::string>& kept() const { return kept_; }
    // See Reservations.
    [[nodiscard]] bool host_uses(const xfrm::KernelSa& state) const {
        return reservations_.host_uses(state);
    }
    void note_acquire(const IpAddress& source, const IpAddress& destination) {
        reservations_.note_acquire(source, destination);
    }
    void forget_old() { reservations_.forget_old(); }
    // It was not tried, and stays with the kernel.
    void keep(const xfrm::SaName& name, const char* reason) { kept_[name] = reason; }
    // They may be tried again: those that came or went, and those of `names` that found no room.
    void forget_kept(const xfrm::RegisterChanges& changes, const std::set<xfrm::SaName>& names);

  private:
    // Inbound, once, some time after it was installed: what the kernel has accepted since it was
    // read counts as received.
    void catch_up(std::span<Slot* const> slots);
    void catch_up(Slot& slot, const xfrm::KernelSa& state);
    void kernel_used(Slot& slot, const xfrm::KernelSa& state);
    [[nodiscard]] bool is_settled(const Slot& slot) const;
    [[nodiscard]] xfrm::Replay raised(const xfrm::KernelSa& state,
                                      const std::optional<xfrm::StateDirection>& direction) const;
    [[nodiscard]] InboundSaParameters inbound_parameters(const Slot& slot,
                                                         const xfrm::KernelSa& state) const;
    [[nodiscard]] OutboundSaParameters outbound_parameters(const Slot& slot,
                                                           const xfrm::KernelSa& state,
                                                           const SequenceRange& range,
                                                           uint64_t iv_mask) const;
    struct Read {
        Slot* slot = nullptr;
        const xfrm::KernelSa* state = nullptr;  // just now
    };
    bool is_as_steered(Slot& slot, const std::expected<xfrm::KernelSa, netlink::Error>& state);
    void install_inbound(Slot& slot, InboundSide& side, const xfrm::KernelSa& state);
    void install_outbound(std::span<const Read> all);
    void install_outbound(const Read& read, const Reservations::Reserved& range);
    void leave_to_kernel(const Slot& slot);
    void keep_with_kernel(Slot& slot, const std::string& reason);
    void steer_away(const Slot& slot);
    void note_accepted(const Slot& slot);
    bool hand_back(Slot& slot);
    void let_go(Slot& slot);

    const Surroundings& around_;
    SlotTable& slots_;
    SequenceMemory& memory_;
    Feedback& feedback_;
    Reservations reservations_;
    const crypto::Aead& aead_;
    std::map<xfrm::SaName, std::string> kept_;
    bool returning_ = false;
    std::vector<SaId> low_;
};

}  // namespace sallyport::control
