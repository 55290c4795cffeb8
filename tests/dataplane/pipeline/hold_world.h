// SPDX-License-Identifier: Apache-2.0
#pragma once

// A TunnelWorld whose frames stay in their buffers from one burst to the next, as in packet memory,
// so that some can wait for an SA. After each step every buffer is free or on hold.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/support/tunnel_world.h"

namespace sallyport::test {

inline constexpr uint64_t kAgeMax = 1000;

class HoldWorld {
  public:
    static constexpr uint32_t kBuffers = 512;

    explicit HoldWorld(uint32_t hold_frames, uint64_t age_max = kAgeMax)
        : world(64, hold_frames, age_max), buffers_(kBuffers), taken_(kBuffers, false) {
        for (uint32_t i = kBuffers; i > 0; --i) free_.push_back(i - 1);
    }

    struct Result {
        std::vector<Bytes> delivered;  // without Ethernet header, in order
        size_t discarded = 0;
    };
    Result inbound(const std::vector<Bytes>& frames) {
        const auto burst = load(frames);
        world.in.run(burst);
        return collect(world.in);
    }
    Result outbound(const std::vector<Bytes>& frames,
                    OutboundSource source = OutboundSource::port) {
        const auto burst = load(frames);
        world.out.run(burst, source);
        return collect(world.out);
    }
    // All that waits, as a worker does after an install or, with Round::last, at its end.
    template <typename Pipeline>
    Result all_held(Pipeline& pipeline, HoldList::Round round) {
        return held(pipeline, pipeline.on_hold().count(), round);
    }
    template <typename Pipeline>
    Result expire(Pipeline& pipeline, uint64_t now) {
        pipeline.on_hold().set_now(now);
        return held(pipeline, pipeline.on_hold().expired(), HoldList::Round::last);
    }

    // Each buffer is free or on hold.
    void check_buffers() {
        EXPECT_EQ(free_.size() + world.in.on_hold().count() + world.out.on_hold().count(),
                  kBuffers);
    }

    TunnelWorld world;

  private:
    std::vector<Frame> load(const std::vector<Bytes>& frames) {
        std::vector<Frame> burst;
        for (const Bytes& frame : frames) {
            const uint32_t index = free_.back();
            free_.pop_back();
            taken_[index] = true;
            burst.push_back(buffers_.put(index, frame));
        }
        return burst;
    }
    void give_back(const std::byte* at) {
        const uint32_t index = buffers_.index_of(at);
        ASSERT_LT(index, kBuffers);
        ASSERT_TRUE(taken_[index]) << "a buffer came back twice";
        taken_[index] = false;
        free_.push_back(index);
    }
    template <typename Pipeline>
    Result held(Pipeline& pipeline, uint32_t count, HoldList::Round round) {
        Result all;
        while (count != 0) {
            const uint32_t through = pipeline.run_held(count, round);
            EXPECT_GT(through, 0u);
            EXPECT_LE(through, std::min(count, kBurstMax));
            if (through == 0) break;
            count -= through;
            Result part = collect(pipeline);
            all.delivered.insert(all.delivered.end(), part.delivered.begin(), part.delivered.end());
            all.discarded += part.discarded;
        }
        return all;
    }
    template <typename Pipeline>
    Result collect(Pipeline& pipeline) {
        Result result;
        for (const auto& outgoing : pipeline.delivered()) {
            const Frame frame = outgoing.frame;
            result.delivered.emplace_back(frame.data + 14, frame.data + frame.bytes);
            give_back(frame.data);
        }
        for (const std::byte* data : pipeline.discarded()) give_back(data);
        result.discarded = pipeline.discarded().size();
        check_buffers();
        return result;
    }

    FrameBuffers buffers_;
    std::vector<uint32_t> free_;
    std::vector<bool> taken_;
};

}  // namespace sallyport::test
