// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/pass_clock.h"
#include "dataplane/worker/counters.h"

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
                     EventSink& events, WorkerId worker)
        : sas_(sas), aead_(aead), counters_(counters), events_(events), worker_(worker) {}

    // The SPD in force; null: none yet, everything is dropped.
    void set_spd(const Spd* spd) { spd_ = spd; }

    // Takes the frames through all stages. Results stand in delivered() and discarded() until the
    // next call. At most kBurstMax frames.
    void run(std::span<const Frame> frames, OutboundSource source);
    // The same with cycles per pass: parse and policy, encapsulation, encryption.
    static constexpr int kPassCount = 3;
    template <typename Clock>
    void run(std::span<const Frame> frames, OutboundSource source, Clock& clock);

    [[nodiscard]] std::span<io::OutgoingFrame> delivered() {
        return {delivered_.data(), delivered_count_};
    }
    [[nodiscard]] std::span<std::byte* const> discarded() const { return burst_.discarded(); }

  private:
    friend class Burst;

    DropReason parse_inner(Packet& packet);
    DropReason lookup_policy(Packet& packet);
    DropReason check_mtu(Packet& packet);
    DropReason assign_sequence(Packet& packet);
    DropReason encapsulate(Packet& packet);
    DropReason deliver(Packet& packet);
    void encrypt();  // the burst at once

    void drop(const Packet& packet, DropReason reason);

    const OutboundTable& sas_;
    const crypto::Aead& aead_;
    WorkerCounters& counters_;
    EventSink& events_;
    WorkerId worker_;
    const Spd* spd_ = nullptr;
    OutboundSource source_ = OutboundSource::port;
    Burst burst_;
    std::array<io::OutgoingFrame, kBurstMax> delivered_;
    uint32_t delivered_count_ = 0;
};

}  // namespace sallyport
