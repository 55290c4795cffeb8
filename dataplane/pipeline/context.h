// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the stages of a pipeline work with beside the packet itself. Owner: one worker.

#include <array>
#include <cstdint>
#include <span>

#include "dataplane/base/frame.h"
#include "dataplane/base/ids.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/exchange/counters.h"
#include "dataplane/exchange/events.h"
#include "dataplane/pipeline/packet.h"
#include "dataplane/sa/sa_tables.h"
#include "dataplane/spd/spd.h"

namespace sallyport {

// The frames that have come through, in order.
class DeliveredFrames {
  public:
    void clear() { count_ = 0; }
    void add(const OutgoingFrame& frame) { frames_[count_++] = frame; }
    [[nodiscard]] uint32_t count() const { return count_; }
    [[nodiscard]] std::span<OutgoingFrame> all() { return {frames_.data(), count_}; }

  private:
    std::array<OutgoingFrame, kBurstMax> frames_;
    uint32_t count_ = 0;
};

struct InboundContext {
    const Sad& sad;
    const crypto::Aead& aead;
    WorkerCounters& counters;
    EventSink& events;
    WorkerId worker;
    DeliveredFrames delivered{};
};

struct OutboundContext {
    const OutboundTable& sas;
    const crypto::Aead& aead;
    WorkerCounters& counters;
    EventSink& events;
    WorkerId worker;
    const Spd* spd = nullptr;  // null: none yet, everything is dropped
    OutboundSource source = OutboundSource::port;
    uint16_t outer_mtu = UINT16_MAX;  // of SAs without a limit of their own, IP bytes
    DeliveredFrames delivered{};
};

}  // namespace sallyport
