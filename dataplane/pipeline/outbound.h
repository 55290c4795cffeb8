// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "dataplane/exchange/counters.h"
#include "dataplane/exchange/events.h"
#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/hold.h"
#include "dataplane/pipeline/observer.h"

namespace sallyport {

// Who had the packet before us, which decides whether its TTL is still to be decremented.
enum class OutboundSource : uint8_t {
    port,    // steered from a protected port: forwarding it is our hop
    kernel,  // read from sp0: the kernel sent or forwarded it and has done its part
};

// Protected to unprotected: inner packets in, ESP packets out. The stages stand in outbound.cc.
// Owner: one worker.
class OutboundPipeline {
  public:
    OutboundPipeline(const OutboundTable& sas, const crypto::Aead& aead, WorkerCounters& counters,
                     EventSink& events, WorkerId worker, uint32_t hold_frames = 0,
                     uint64_t hold_age_max = 0)
        : sas_(sas),
          aead_(aead),
          counters_(counters),
          events_(events),
          worker_(worker),
          hold_(hold_frames, hold_age_max, counters.outbound.held, counters.outbound.on_hold) {}

    // The SPD in force; null: none yet, everything is dropped.
    void set_spd(const Spd* spd) { spd_ = spd; }

    // Takes the frames through all stages. Results stand in delivered() and discarded() until the
    // next call. At most kBurstMax frames.
    void run(std::span<const Frame> frames, OutboundSource source);
    // The same with cycles per pass: parse and policy, encapsulation, encryption.
    static constexpr int kPassCount = 3;
    template <typename Clock>
    void run(std::span<const Frame> frames, OutboundSource source, Clock& clock);

    // Packets that a PROTECT policy covers which has no SA here (yet).
    [[nodiscard]] HoldList& on_hold() { return hold_; }
    [[nodiscard]] const HoldList& on_hold() const { return hold_; }
    // Takes the oldest of them, at most `most` and a burst, through all stages again. Results as
    // from run(). Returns how many; call again until `most` are through.
    uint32_t run_held(uint32_t most, HoldList::Round round);

    [[nodiscard]] std::span<OutgoingFrame> delivered() {
        return {delivered_.data(), delivered_count_};
    }
    [[nodiscard]] std::span<std::byte* const> discarded() const { return burst_.discarded(); }

  private:
    friend class Burst;

    template <typename Clock>
    void run_stages(std::span<const Frame> frames, OutboundSource source, Clock& clock);
    DropReason parse_inner(Packet& packet);
    DropReason lookup_policy(Packet& packet);
    DropReason check_mtu(Packet& packet);
    DropReason assign_sequence(Packet& packet);
    DropReason encapsulate(Packet& packet);
    DropReason deliver(Packet& packet);
    void encrypt();  // the burst at once

    bool hold(const Packet& packet, DropReason reason);
    void drop(const Packet& packet, DropReason reason);

    const OutboundTable& sas_;
    const crypto::Aead& aead_;
    WorkerCounters& counters_;
    EventSink& events_;
    WorkerId worker_;
    const Spd* spd_ = nullptr;
    OutboundSource source_ = OutboundSource::port;
    Burst burst_;
    std::array<OutgoingFrame, kBurstMax> delivered_;
    uint32_t delivered_count_ = 0;
    HoldList hold_;
};

}  // namespace sallyport
