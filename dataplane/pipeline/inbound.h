// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/context.h"
#include "dataplane/pipeline/drop.h"
#include "dataplane/pipeline/hold.h"

namespace sallyport {

// Unprotected to protected: ESP packets in, inner packets out. The story is told in inbound.cc.
// Owner: one worker.
class InboundPipeline {
  public:
    InboundPipeline(const Sad& sad, const crypto::Aead& aead, WorkerCounters& counters,
                    EventSink& events, WorkerId worker, uint32_t hold_frames = 0,
                    uint64_t hold_age_max = 0)
        : context_{.sad = sad,
                   .aead = aead,
                   .counters = counters,
                   .events = events,
                   .worker = worker},
          hold_(hold_frames, hold_age_max, counters.inbound.held, counters.inbound.on_hold) {}

    // Takes the frames through all stages. Results stand in delivered() and discarded() until the
    // next call. At most kBurstMax frames.
    void run(std::span<const Frame> frames);
    // The same while somebody looks on (observer.h). Passes: parse, SA lookup, replay check,
    // decryption, all after it.
    static constexpr int kPassCount = 5;
    template <typename Observer>
    void run(std::span<const Frame> frames, Observer& observer);

    // Packets whose SA is not there (yet).
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
    void run_stages(std::span<const Frame> frames, Observer& observer);
    // True: the packet waits for its SA. The stages up to lookup_sa only read, so the frame is as
    // it came.
    [[gnu::cold]] bool hold(const Packet& packet, DropReason reason) {
        return reason == DropReason::unknown_spi && hold_.put(packet.frame);
    }
    void drop(const Packet& packet, DropReason reason) { drop_inbound(context_, packet, reason); }

    InboundContext context_;
    Burst burst_;
    HoldList hold_;
};

}  // namespace sallyport
