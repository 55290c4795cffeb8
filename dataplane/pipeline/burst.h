// SPDX-License-Identifier: Apache-2.0
#pragma once

// A burst on its way through a pipeline: up to 64 packets.
//
// A stage looks at one packet that is still alive and says why it must go, or DropReason::none;
// the survivors move up, so later stages never see the others. Conservation follows from the form:
// each packet ends in alive(), in discarded(), or with the pipeline, which may put it on hold.

#include <array>
#include <cstdint>
#include <span>

#include "dataplane/base/drop_reason.h"
#include "dataplane/base/frame.h"
#include "dataplane/pipeline/packet.h"

namespace sallyport {

class Burst {
  public:
    // Begins with these frames, at most kBurstMax.
    void load(std::span<const Frame> frames) {
        count_ = static_cast<uint32_t>(frames.size());
        discarded_count_ = 0;
        for (uint32_t i = 0; i < count_; ++i) {
            packets_[i].frame = frames[i];
            packets_[i].inbound_sa = nullptr;
            packets_[i].outbound_sa = nullptr;
            alive_[i] = &packets_[i];
        }
    }

    [[nodiscard]] std::span<Packet* const> alive() const { return {alive_.data(), count_}; }
    // Buffers of packets that were dropped; the caller gives them back to packet memory.
    [[nodiscard]] std::span<std::byte* const> discarded() const {
        return {discarded_.data(), discarded_count_};
    }

    // Takes each living packet through `Stages` in order: functions of the pipeline's context and
    // the packet that return why it must go or DropReason::none. Stages in one call share a pass
    // over the burst; a new pass begins where memory that the stage before asked for is needed.
    //
    // `touch(Packet&)` asks for the packet's own bytes a few packets before their turn. All frames
    // have their headers at the same place of a page and so compete for few cache sets: what a
    // pass over 64 packets read is gone when the next pass begins.
    template <auto... Stages, typename Pipeline, typename Touch>
    [[gnu::always_inline]] void pass(Pipeline& pipeline, Touch touch) {
        constexpr uint32_t kTouchAhead = 4;
        for (uint32_t i = 0; i < kTouchAhead && i < count_; ++i) touch(*alive_[i]);
        uint32_t kept = 0;
        for (uint32_t i = 0; i < count_; ++i) {
            if (i + kTouchAhead < count_) touch(*alive_[i + kTouchAhead]);
            Packet& packet = *alive_[i];
            DropReason reason = DropReason::none;
            // Short-circuits at the first stage that finds a reason.
            if ((((reason = Stages(pipeline.context_, packet)) == DropReason::none) && ...))
                [[likely]] {
                alive_[kept++] = &packet;
            } else if (!pipeline.hold(packet, reason)) {
                pipeline.drop(packet, reason);
                discarded_[discarded_count_++] = packet.frame.data;
            }
        }
        count_ = kept;
    }

  private:
    std::array<Packet, kBurstMax> packets_;
    std::array<Packet*, kBurstMax> alive_;
    std::array<std::byte*, kBurstMax> discarded_;
    uint32_t count_ = 0;
    uint32_t discarded_count_ = 0;
};

}  // namespace sallyport
