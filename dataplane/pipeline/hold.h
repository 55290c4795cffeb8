// SPDX-License-Identifier: Apache-2.0
#pragma once

// Frames that found no SA and wait for one: control asks an IKE daemon for it, or the peer was
// faster than our copy of the kernel's register. One list per pipeline.
//
//   stage: no SA --put()--> [ oldest | ... | newest ] --take()--> the pipeline once more
//
// A frame is put on hold by the stage that looks for its SA, before anything has changed it, so
// going through the whole pipeline again gives what it would have given with the SA there. When an
// SA is installed (Round::again) all frames go, oldest first; those that still find none return to
// the list, in order and with the age they have. What is too old goes a last time (Round::last):
// nothing is put back then, so the pipeline itself says why the frame must be dropped.
//
// Bounds: `frames`, reserved at the start; when they are taken, put() refuses and the frame is
// dropped at once. A frame is counted in `held` when it is put on hold first, and is part of
// `on_hold` until it is taken: frames = delivered + dropped + on_hold, between bursts.
//
// Ages are in whatever unit set_now() and `age_max` are given in; workers give TSC cycles, so the
// list costs nothing where it is empty. Owner: one worker.

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "dataplane/base/frame.h"
#include "dataplane/base/single_writer.h"

namespace sallyport {

enum class OutboundSource : uint8_t;

class HoldList {
  public:
    enum class Round : uint8_t { again, last };

    struct Burst {
        std::span<const Frame> frames;
        OutboundSource source{};
    };

    HoldList(uint32_t frames, uint64_t age_max, Counter& held, Counter& on_hold)
        : entries_(frames), age_max_(age_max), held_(held), on_hold_(on_hold) {}

    void set_now(uint64_t now) { now_ = now; }
    void set_age_max(uint64_t age_max) { age_max_ = age_max; }

    [[nodiscard]] bool empty() const { return count_ == 0; }
    [[nodiscard]] uint32_t count() const { return count_; }
    // How many have waited longer than they may; they are the first ones.
    [[nodiscard]] uint32_t expired() const {
        uint32_t expired = 0;
        while (expired < count_ && now_ - at(expired).since > age_max_) ++expired;
        return expired;
    }
    // Until the next one has, for a list that is not empty.
    [[nodiscard]] uint64_t time_left() const {
        const uint64_t age = now_ - at(0).since;
        return age > age_max_ ? 0 : age_max_ - age;
    }

    // From a stage. False: no room, or the frame's last round; it stays with the caller.
    bool put(const Frame& frame, OutboundSource source = {}) {
        if (taken_count_ != 0) return put_back(frame);
        if (count_ == entries_.size()) return false;
        append({.frame = frame, .since = now_, .source = source});
        held_.add(1);
        return true;
    }

    // The oldest frames, at most `most` and kBurstMax and of one source. They are the pipeline's
    // until settle(), which must follow before the next take().
    Burst take(uint32_t most, Round round) {
        round_ = round;
        most = std::min({most, count_, kBurstMax});
        for (; taken_count_ < most && at(0).source == taken_source(); ++taken_count_) {
            taken_[taken_count_] = at(0);
            frames_[taken_count_] = at(0).frame;
            first_ = first_ + 1 == entries_.size() ? 0 : first_ + 1;
            --count_;
        }
        return {.frames = {frames_.data(), taken_count_}, .source = taken_[0].source};
    }
    void settle() {
        taken_count_ = 0;
        put_back_from_ = 0;
        on_hold_.set(count_);
    }

  private:
    struct Entry {
        Frame frame;
        uint64_t since = 0;
        OutboundSource source{};
    };

    [[nodiscard]] const Entry& at(uint32_t index) const {
        const size_t place = size_t{first_} + index;
        return entries_[place < entries_.size() ? place : place - entries_.size()];
    }
    [[nodiscard]] OutboundSource taken_source() const {
        return taken_count_ == 0 ? at(0).source : taken_[0].source;
    }
    void append(const Entry& entry) {
        const size_t place = size_t{first_} + count_;
        entries_[place < entries_.size() ? place : place - entries_.size()] = entry;
        ++count_;
        on_hold_.set(count_);
    }
    // Stages keep the order of a burst, so the entry stands behind the one put back before. There
    // is room: it was taken from here.
    bool put_back(const Frame& frame) {
        if (round_ == Round::last) return false;
        while (taken_[put_back_from_].frame.data != frame.data) ++put_back_from_;
        append(taken_[put_back_from_]);
        return true;
    }

    std::vector<Entry> entries_;  // a ring
    uint32_t first_ = 0;
    uint32_t count_ = 0;
    uint64_t now_ = 0;
    uint64_t age_max_;
    Counter& held_;
    Counter& on_hold_;
    // The burst that goes through the pipeline again.
    Round round_ = Round::again;
    uint32_t taken_count_ = 0;
    uint32_t put_back_from_ = 0;
    std::array<Entry, kBurstMax> taken_;
    std::array<Frame, kBurstMax> frames_;
};

}  // namespace sallyport
