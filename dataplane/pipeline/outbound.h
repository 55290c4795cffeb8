// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/context.h"
#include "dataplane/pipeline/drop.h"
#include "dataplane/pipeline/hold.h"

namespace sallyport {

// Protected to unprotected: inner packets in, ESP packets out. The story is told in outbound.cc.
// Owner: one worker.
class OutboundPipeline {
  public:
    OutboundPipeline(const OutboundTable& sas, const crypto::Aead& aead, WorkerCounters& counters,
                     EventSink& events, WorkerId worker, uint32_t hold_frames = 0,
                     uint64_t hold_age_max = 0)
        : context_{.sas = sas,
                   .aead = aead,
                   .counters = counters,
                   .events = events,
                   .worker = worker},
          hold_(hold_frames, hold_age_max, counters.outbound.held, counters.outbound.on_hold) {}

    // The SPD in force; null: none yet, everything is dropped.
    void set_spd(const Spd* spd) { context_.spd = spd; }
    // The largest outer packet of SAs without a limit of their own, IP bytes.
    void set_outer_mtu(uint16_t bytes) { context_.outer_mtu = bytes; }

    // Takes the frames through all stages. Results stand in delivered() and discarded() until the
    // next call. At most kBurstMax frames.
    void run(std::span<const Frame> frames, OutboundSource source);
    // The same while somebody looks on (observer.h). Passes: parse and policy, encapsulation,
    // encryption.
    static constexpr int kPassCount = 3;
    template <typename Observer>
    void run(std::span<const Frame> frames, OutboundSource source, Observer& observer);

    // Packets that a PROTECT policy covers which has no SA here (yet).
    [[nodiscard]] HoldList& on_hold() { return hold_; }
    [[nodiscard]] const HoldList& on_hold() const { return hold_; }
    // Takes the oldest of them, at most `most` and a burst, through all stages again. Results as
    // from run(). Returns how many; call again until `most` are through.
    uint32_t run_held(uint32_t most, HoldList::Round round);

    [[nodiscard]] std::span<OutgoingFrame> delivered() { return context_.delivered.all(); }
    [[nodiscard]] std::span<std::byte* const> discarded() const { return burst_.discarded(); }

  private:
    friend class Burst;

    template <typename Observer>
    void run_stages(std::span<const Frame> frames, OutboundSource source, Observer& observer);
    // True: the packet waits for its SA. The stages up to lookup_policy only read, so the frame is
    // as it came.
    [[gnu::cold]] bool hold(const Packet& packet, DropReason reason) {
        return reason == DropReason::no_sa && hold_.put(packet.frame, context_.source);
    }
    void drop(const Packet& packet, DropReason reason) { drop_outbound(context_, packet, reason); }

    OutboundContext context_;
    Burst burst_;
    HoldList hold_;
};

}  // namespace sallyport
