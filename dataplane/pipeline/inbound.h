// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "dataplane/exchange/counters.h"
#include "dataplane/exchange/events.h"
#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/hold.h"
#include "dataplane/pipeline/observer.h"

namespace sallyport {

// Unprotected to protected: ESP packets in, inner packets out. The stages stand in inbound.cc.
// Owner: one worker.
class InboundPipeline {
  public:
    InboundPipeline(const Sad& sad, const crypto::Aead& aead, WorkerCounters& counters,
                    EventSink& events, WorkerId worker, uint32_t hold_frames = 0,
                    uint64_t hold_age_max = 0)
        : sad_(sad),
          aead_(aead),
          counters_(counters),
          events_(events),
          worker_(worker),
          hold_(hold_frames, hold_age_max, counters.inbound.held, counters.inbound.on_hold) {}

    // Takes the frames through all stages. Results stand in delivered() and discarded() until the
    // next call. At most kBurstMax frames.
    void run(std::span<const Frame> frames);
    // The same with cycles per pass: parse, SA lookup, replay check, decryption, all after it.
    static constexpr int kPassCount = 5;
    template <typename Clock>
    void run(std::span<const Frame> frames, Clock& clock);

    // Packets whose SA is not there (yet).
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
    void run_stages(std::span<const Frame> frames, Clock& clock);
    DropReason parse_esp(Packet& packet);
    DropReason lookup_sa(Packet& packet);
    DropReason check_replay(Packet& packet);
    void decrypt();  // the burst at once
    DropReason check_icv(Packet& packet);
    DropReason commit_replay(Packet& packet);
    DropReason decapsulate(Packet& packet);
    DropReason check_selectors(Packet& packet);
    DropReason deliver(Packet& packet);

    bool hold(const Packet& packet, DropReason reason);
    void drop(const Packet& packet, DropReason reason);

    const Sad& sad_;
    const crypto::Aead& aead_;
    WorkerCounters& counters_;
    EventSink& events_;
    WorkerId worker_;
    Burst burst_;
    std::array<OutgoingFrame, kBurstMax> delivered_;
    uint32_t delivered_count_ = 0;
    HoldList hold_;
};

}  // namespace sallyport
