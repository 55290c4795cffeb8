// SPDX-License-Identifier: Apache-2.0
#pragma once

// A copy of the kernel's register of SAs: states and policies of one network namespace.
//
//   RegisterSocket -> bytes -> next_message() -> RegisterMirror::apply() -> changes
//
// The kernel announces each change; what does not fit what is known (and ENOBUFS, see
// RegisterSocket) asks for a resync: begin_dump(), load() of every message of both dumps,
// end_dump(), which compares: what was not in the dump has gone, what differs has changed.
//
// Rules:
// - UPDSA counts as NEWSA. A state that is already there with the same keys is an update. An UPDSA
//   that would change a state with keys asks for a resync: the kernel keeps the old keys, whatever
//   the message says.
// - What waits in the socket may be older than the dump, so messages only move counters up.
// - A state without SPI (the kernel's placeholder for an acquire) has no name and is left out.
// - XFRM_MSG_EXPIRE with hard set, DELSA, FLUSHSA take states away; DELPOLICY, POLEXPIRE with hard
//   set, FLUSHPOLICY take policies away. MIGRATE, and types too new to be known here, ask for a
//   resync.
// - NEWAE and EXPIRE that this process caused (`own_port`: the netlink port of our requests) come
//   back by multicast and change nothing; only a hard EXPIRE has deleted the state all the same.
// - XFRM_MSG_NEWAE of others says that the kernel itself has used a state: counters change.
// - What is known of a state's counters is told (when_forgotten) before it is forgotten: when the
//   state goes, is replaced, or is there again with lower ones. The message about a deletion has
//   the last of them, a flush and an expiry do not: then it is what was heard before.
// - Our own states and policies (reqid 0x5350xxxx, index 0x53xxxxxx) are left out.
//
// Pure: no sockets, no clock, so it can be tested and fuzzed. Owner: control thread.

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "control/xfrm/messages.h"
#include "control/xfrm/values.h"

namespace sallyport::xfrm {

// What one message (or a dump) changed. Sets, because a burst of messages is applied as one.
struct RegisterChanges {
    bool resync = false;       // what is known cannot be trusted: dump again
    std::set<SaName> added;    // new, or the same name with other keys, addresses, mode or limits
    std::set<SaName> removed;  // not there any more. In both sets: it went and came again.
    std::set<SaName> used;     // counters moved by the kernel itself (NEWAE)
    // Of a dump: they came in another order than was known, or have lower numbers than before, as
    // one has that went and came again within a second.
    std::set<SaName> moved;
    std::set<uint32_t> policies;  // by index: those that came, went or changed
    struct Acquire {
        KernelPolicy policy;
        IpAddress source;
        IpAddress destination;
    };
    std::vector<Acquire> acquires;  // packets wait for an SA; the IKE daemon acts on them
    static constexpr size_t kAcquiresMax = 64;  // more are only counted

    [[nodiscard]] bool empty() const {
        return !resync && policies.empty() && added.empty() && removed.empty() && used.empty() &&
               moved.empty() && acquires.empty();
    }
};

class RegisterMirror {
  public:
    explicit RegisterMirror(uint32_t own_port = 0) : own_port_(own_port) {}
    void set_own_port(uint32_t own_port) { own_port_ = own_port; }
    void when_forgotten(std::function<void(const KernelSa& last)> tell) { tell_ = std::move(tell); }

    // One message of the running kernel. Malformed or unknown ones change nothing and are counted.
    void apply(const Message& message, RegisterChanges& changes);

    // A dump of both tables. Between begin and end apply() must not be called. The end makes good
    // whatever `changes` asked a resync for.
    void begin_dump();
    void load(const Message& message);
    void end_dump(RegisterChanges& changes);

    [[nodiscard]] const std::map<SaName, KernelSa>& states() const { return states_; }
    // By policy index.
    [[nodiscard]] const std::map<uint32_t, KernelPolicy>& policies() const { return policies_; }
    [[nodiscard]] const KernelSa* find(const SaName& name) const;
    // Takes over what a later XFRM_MSG_GETSA said of one state's counters.
    void refresh(const KernelSa& state);
    // Notifications were lost: what is known cannot be trusted.
    void request_resync(RegisterChanges& changes);

    // messages = applied + own + malformed + ignored
    struct Counters {
        uint64_t messages = 0;
        uint64_t applied = 0;
        uint64_t own = 0;  // caused by this process, or about its states and policies
        uint64_t malformed = 0;
        uint64_t ignored = 0;  // types of no interest, and states that are not mirrored
        uint64_t resyncs = 0;
        uint64_t soft_expiries = 0;
        uint64_t acquires = 0;
        uint64_t mappings = 0;  // XFRM_MSG_MAPPING: the peer's address behind NAT changed
    };
    [[nodiscard]] const Counters& counters() const { return counters_; }

  private:
    enum class Outcome : uint8_t { applied, own, malformed, ignored };

    void count(Outcome outcome);
    Outcome dispatch(const Message& message, RegisterChanges& changes);
    Outcome take_state(const Message& message, RegisterChanges& changes);
    Outcome take_counters(const Message& message, RegisterChanges& changes);
    Outcome take_expiry(const Message& message, RegisterChanges& changes);
    Outcome flush_states(const Message& message, RegisterChanges& changes);
    Outcome take_policy(const Message& message, RegisterChanges& changes);
    Outcome flush_policies(const Message& message, RegisterChanges& changes);
    Outcome take_acquire(const Message& message, RegisterChanges& changes);
    Outcome take_deletion(const Message& message, RegisterChanges& changes);
    void remove_state(const SaName& name, RegisterChanges& changes);
    void tell_last(const KernelSa& state) const;
    void remove_policy(uint32_t index, RegisterChanges& changes);
    Outcome load_one(const Message& message);

    uint32_t own_port_;
    std::function<void(const KernelSa&)> tell_;
    uint64_t arrivals_ = 0;
    std::map<SaName, KernelSa> states_;
    std::map<uint32_t, KernelPolicy> policies_;
    // During a dump: what has been seen in it. A state's `arrival` is its position there meanwhile.
    uint64_t dump_position_ = 0;
    std::map<SaName, KernelSa> dumped_states_;
    std::map<uint32_t, KernelPolicy> dumped_policies_;
    Counters counters_;
};

}  // namespace sallyport::xfrm
