// SPDX-License-Identifier: Apache-2.0
#pragma once

// One SA of the register on its way through a worker, from being steered to its end.
//
//   steered ---> installed ---> retiring ---> free        order of the steps: handover.h
//      \____________________________________/
//
// Owner: control thread.

#include <chrono>
#include <cstdint>
#include <optional>
#include <variant>

#include "control/adoption/decide.h"
#include "control/sa/kernel/rekey_pacer.h"
#include "control/sa/kernel/sequence_memory.h"
#include "control/xfrm/values.h"
#include "dataplane/sa/sa.h"

namespace sallyport::control {

enum class Phase : uint8_t { steered, installed, retiring };

struct OutboundSide {
    OutboundSaPtr sa;        // since it was installed
    uint64_t reserved = 1;   // first number that is not reserved in the kernel
    uint64_t attempted = 1;  // the same, where the answer may have been lost
    uint64_t told = 1;       // and what the worker knows of it
    uint64_t block = 0;      // how many it was told of last
    uint64_t told_at = 1;    // the number that it was at then
    std::chrono::steady_clock::time_point told_when;
    bool extension_due = false;
    bool nothing_left = false;  // to be reserved
    // See Reservations, "What waited for the SA".
    std::optional<std::chrono::steady_clock::time_point> queue_since;
    unsigned queue_looks = 0;
};

struct InboundSide {
    InboundSaPtr sa;           // since it was installed
    InboundSaPtr before;       // being replaced by `sa`
    uint64_t written_top = 0;  // of the window, in the kernel's state
    bool catch_up_due = false;

    // While a replacement is on its way to the worker, the one before counts.
    [[nodiscard]] const InboundSa* counting() const { return before ? before.get() : sa.get(); }
};

// What a worker has done with an SA so far.
struct Work {
    uint64_t packets = 0;
    uint64_t bytes = 0;
    uint64_t top = 0;  // inbound
};

struct Slot {
    SaId id{};
    xfrm::SaName name;
    SequenceMemory::Name memory_name;
    Phase phase = Phase::steered;
    SaDecision decision;  // direction and owner never change, nor does the group, outbound
    IpAddress source;
    xfrm::Replay replay;  // form of the kernel's state
    bool esn = false;
    bool settle_first = false;  // something may be on its way to the kernel: wait for it
    std::optional<std::chrono::steady_clock::time_point> steered_at;
    std::variant<OutboundSide, InboundSide> side;
    // feedback
    xfrm::Usage base;  // of the kernel, without what the worker did
    xfrm::Limits limits;
    uint64_t written_packets = 0;  // of the worker, in the kernel's counters
    uint64_t written_bytes = 0;
    uint64_t seen_packets = 0;  // of the worker, when it was looked at last
    uint64_t last_use = 0;      // seconds since the epoch; 0: not by a worker
    bool soft_reported = false;
    bool hard_reported = false;
    bool expiry_failed = false;  // said once, not at every attempt
    // That it is asked to be rekeyed, and when it was last.
    std::optional<RekeyPacer::When> rekey_wanted;
    std::chrono::steady_clock::time_point rekey_asked_at;
    // The state is another one than was taken over, though nobody said so: see is_another().
    bool replaced = false;
    // It has lost its owner, so that the kernel sends: the worker gives it up in a moment.
    bool going_back = false;
    bool used_warned = false;

    [[nodiscard]] OutboundSide* outbound() { return std::get_if<OutboundSide>(&side); }
    [[nodiscard]] const OutboundSide* outbound() const { return std::get_if<OutboundSide>(&side); }
    [[nodiscard]] InboundSide* inbound() { return std::get_if<InboundSide>(&side); }
    [[nodiscard]] const InboundSide* inbound() const { return std::get_if<InboundSide>(&side); }
    // A worker has it, or is about to.
    [[nodiscard]] bool with_worker() const {
        return outbound() != nullptr ? outbound()->sa != nullptr : inbound()->sa != nullptr;
    }
    [[nodiscard]] WorkerId owner() const { return decision.owner; }
};

// Of a replacement and the one before the greater counts: the replacement begins with nothing and
// takes over what the other has, and nobody knows yet whether it has done so.
Work work_of(const Slot& slot);
// Of kernel and worker together.
xfrm::Usage usage_of(const Slot& slot, const Work& work);
// The kernel's own part of what its state shows.
xfrm::Usage without_ours(const Slot& slot, xfrm::Usage usage);

SequenceMemory::Name memory_name_of(const xfrm::KernelSa& state);
// The number after the last one that the kernel has sent.
uint64_t next_of(const xfrm::Replay& replay);
// What the kernel has used of a key, before it is forgotten. A state without a key that can be read
// has no name there, and a fresh one has nothing to remember.
void remember(SequenceMemory& memory, const xfrm::KernelSa& last);
bool same_key(const Slot& slot, const xfrm::KernelSa& state);
// Of an SA that is installed: the state of its key is not the one that was taken over but was added
// since, because it has numbers below those that were put into that one, or is younger. `state`: as
// it is now, all that was written is in it.
bool is_another(const Slot& slot, const xfrm::KernelSa& state);
// No number is left to send with, and none can be reserved.
bool is_used_up(const Slot& slot);
// By one that has counted a packet in either direction.
bool used_by_kernel(const xfrm::KernelSa& state);

// "SA 0xc0ffee to 192.0.2.1"
std::string to_text(const xfrm::SaName& name);

}  // namespace sallyport::control
