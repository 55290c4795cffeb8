// SPDX-License-Identifier: Apache-2.0
#pragma once

// Numbers of outbound SAs: reserved in the kernel's state, given to the worker that sends.
//
//   reserve()        looks, writes the kernel's number above a block, looks again
//   extend()         a worker is given the next block before it has used up what it has
//   follow()         the kernel has sent: the worker goes on above
//
// What a number may be used for, and why never twice: handover.h.
//
// Between the look and the writing the kernel can send, for the host itself, with numbers right
// above those that were seen. How many is known exactly: the kernel counts packets and numbers
// under one lock, only we write the count, and not here. So with P and S of the first look, W
// written, P' of the second:
//
//     S .......... S + k ....................... W ........ the kernel from now on
//       the kernel       the worker: S + k + 1 .. W         k from P' - P: numbers_at_most()
//
// P' - P also counts what was sent behind W, which makes k too large, never too small: a count is
// raised after its number, and what took its number before W was written had raised the count by
// then. Where nothing was sent, as nearly always, k is 0: an SA's first number is 1, and no time
// has to be guessed. Where the kernel has sent too much to leave room, it is done again with the
// new S. Only a kernel that sends a whole block between two system calls has its number put down.
//
// A kernel that sends too
// -----------------------
// Where the kernel sends for the host with an SA that a worker has, its numbers are above the
// worker's, and a peer takes what is far below the last for a replay. The worker goes on above: a
// round, which costs what was on the wire and a block of numbers. After kRoundsMax rounds of one
// tunnel within RekeyPacer::kPause the SA goes back to the kernel, and its successors stay there
// until that has passed: with one sender nothing is lost, and no numbers are.
//
// What waited for the SA
// ----------------------
// With net.core.xfrm_larval_drop = 0 the kernel keeps the packets that made it ask for an SA
// (acquire), up to 101 of each policy, and sends them when a policy is written or by a timer,
// whose steps double: up to as long after the state has come as the first of them had waited. By
// then a worker may have the SA. The worker goes on above them, and the key is replaced as after a
// round; but nobody will go on sending, so it is none. A host that does is found when kQueueTime
// or kQueueLooks are over, which are counted once for each SA.
//
// Owner: control thread.

#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "control/sa/kernel/feedback.h"
#include "control/sa/kernel/sequence_memory.h"
#include "control/sa/kernel/slot.h"
#include "control/sa/kernel/slot_table.h"
#include "control/sa/kernel/surroundings.h"
#include "control/sa/sequence_block.h"

namespace sallyport::control {

class Reservations {
  public:
    // A packet that the kernel segments late (GSO, with esp4_offload on any device) counts once and
    // takes a number for each segment: of UDP at most UDP_MAX_SEGMENTS, of TCP one for each MSS,
    // whose least is 48 (net.ipv4.tcp_min_snd_mss) with 40 of options. Too few numbers for a
    // packet, and two senders use one; more are lost to the worker where the host itself sends.
    static constexpr uint64_t kSegmentsOfUdpMax = 128;
    static constexpr uint64_t kSegmentBytesMin = 8;
    // So often is a reservation done again that leaves too little.
    static constexpr int kReserveAttempts = 4;
    // The first is for a route that is not there yet, the second for its successor; more cost
    // transit packets.
    static constexpr unsigned kRoundsMax = 2;
    // So long after the kernel asked for an SA packets that waited for it are expected. Shorter
    // than IKE takes twice, and they count as a round; longer, and more of a host's first ones do
    // not.
    static constexpr std::chrono::seconds kQueueAge{60};
    // From the first to the last of them. Shorter, and a busy machine makes a round of them;
    // longer, and a host that keeps sending costs transit packets for longer.
    static constexpr std::chrono::seconds kQueueTime{1};
    // Each costs a block of numbers. Fewer, and a machine that sends them slowly makes a round of
    // them.
    static constexpr unsigned kQueueLooks = 32;
    static constexpr const char* kWhatUsesIt =
        "a socket bound to a device does that, and what show status has as left to the kernel";

    // `leave_to_kernel`: the host uses the SA again and again.
    Reservations(const Surroundings& around, SlotTable& slots, SequenceMemory& memory,
                 Feedback& feedback, std::function<void(const Slot&)> leave_to_kernel)
        : around_(around),
          slots_(slots),
          memory_(memory),
          feedback_(feedback),
          leave_to_kernel_(std::move(leave_to_kernel)) {}

    // `state`: as it was read just now, because messages may have been lost. One that was deleted
    // and added again is removed, and then comes.
    void compare(Slot& slot, const xfrm::KernelSa& state);

    // --- before it is installed
    [[nodiscard]] uint64_t next_unused(const Slot& slot, const xfrm::KernelSa& state) const;
    // `looked_at`: its state as it was read just now.
    struct Wish {
        Slot* slot = nullptr;
        const xfrm::KernelSa* looked_at = nullptr;
        uint64_t size = 0;
    };
    using Reserved = std::expected<SequenceRange, std::string>;
    // Numbers that nobody has used and the kernel will not, in the order of `wishes`. They begin
    // above what is used when another sender has used some since.
    std::vector<Reserved> reserve(std::span<const Wish> wishes);
    [[nodiscard]] uint64_t first_block(const xfrm::KernelSa& state) const;
    void note_told(OutboundSide& side, const SequenceRange& range, uint64_t next) const;

    // --- afterwards
    // Of those that are installed; others are left out.
    void extend(std::span<Slot* const> slots);
    // A worker asks once; where its word was lost the numbers themselves tell.
    [[nodiscard]] static bool is_low(const Slot& slot);
    // Of an outbound SA whose state is `state` now.
    void follow(Slot& slot, const xfrm::KernelSa& state);
    // Of an outbound state: see "A kernel that sends too".
    [[nodiscard]] bool host_uses(const xfrm::KernelSa& state) const;
    // The kernel asked for an SA of this tunnel.
    void note_acquire(const IpAddress& source, const IpAddress& destination) {
        acquired_[{source, destination}] = around_.clock.now();
    }
    // What is too long ago to matter. Now and then, so that no tunnel is remembered for ever.
    void forget_old();

  private:
    struct Attempt {
        const Wish* wish = nullptr;
        Reserved* out = nullptr;
        uint64_t next = 0;  // of the kernel, and what it has counted, when it was looked at last
        xfrm::Usage usage;
        SequenceRange block;  // that is asked for
    };
    void raise_above(std::vector<Attempt>& attempts);
    void look_again(std::vector<Attempt>& attempts);
    [[nodiscard]] uint64_t further_block(const Slot& slot, const OutboundSide& side) const;
    [[nodiscard]] bool kernel_has_sent(const Slot& slot, const OutboundSide& side,
                                       const xfrm::KernelSa& state) const;
    // `state`: as it is now.
    struct Looked {
        Slot* slot = nullptr;
        const xfrm::KernelSa* state = nullptr;
    };
    void advance(std::span<const Looked> all);
    bool is_from_queue(OutboundSide& side, const xfrm::KernelSa& state);
    void note_second_sender(Slot& slot, const xfrm::KernelSa& state);
    void note_round(Slot& slot, const xfrm::KernelSa& state);
    void tell_range(const Slot& slot, OutboundSide& side, const SequenceRange& range);

    const Surroundings& around_;
    SlotTable& slots_;
    SequenceMemory& memory_;
    Feedback& feedback_;
    std::function<void(const Slot&)> leave_to_kernel_;
    // Tunnels, by addresses and reqid: the SAs of one follow each other.
    using Tunnel = std::tuple<IpAddress, IpAddress, uint32_t>;
    static Tunnel tunnel_of(const xfrm::KernelSa& state) {
        return {state.source, state.name.destination, state.reqid};
    }
    struct Rounds {
        std::chrono::steady_clock::time_point since;
        unsigned count = 0;
    };
    std::map<Tunnel, Rounds> rounds_;
    // By source and destination: when the kernel asked for an SA last.
    std::map<std::pair<IpAddress, IpAddress>, std::chrono::steady_clock::time_point> acquired_;
};

}  // namespace sallyport::control
