// SPDX-License-Identifier: Apache-2.0
// An ESP packet's way to the protected side. Each stage is a file of its name in stages/.
#include "dataplane/pipeline/inbound.h"

#include "dataplane/pipeline/observer.h"
#include "dataplane/pipeline/stages/check_icv.h"
#include "dataplane/pipeline/stages/check_replay.h"
#include "dataplane/pipeline/stages/check_selectors.h"
#include "dataplane/pipeline/stages/commit_replay.h"
#include "dataplane/pipeline/stages/decapsulate.h"
#include "dataplane/pipeline/stages/decrypt.h"
#include "dataplane/pipeline/stages/deliver.h"
#include "dataplane/pipeline/stages/lookup_sa.h"
#include "dataplane/pipeline/stages/parse_esp.h"

namespace sallyport {

template <typename Observer>
inline void InboundPipeline::run_stages(std::span<const Frame> frames, Observer& observer) {
    burst_.load(frames);
    context_.delivered.clear();

    using namespace stages;
    const auto nothing = [](const Packet&) {};
    burst_.pass<parse_esp>(  // asks for the SAD's slot
        *this, [](const Packet& packet) { __builtin_prefetch(packet.frame.data); });
    observer.end_of_pass(0, burst_);
    burst_.pass<lookup_sa>(*this, nothing);  // asks for the SA; without one: on hold
    observer.end_of_pass(1, burst_);
    burst_.pass<check_replay>(*this, [](const Packet& packet) {
        __builtin_prefetch(packet.esp);
        // Needed in the last pass only.
        __builtin_prefetch(&packet.inbound_sa->selector);
    });
    observer.end_of_pass(2, burst_);
    decrypt(context_, burst_);
    observer.end_of_pass(3, burst_);
    burst_.pass<check_icv, commit_replay, decapsulate, check_selectors, deliver>(
        *this, [](const Packet& packet) {
            __builtin_prefetch(packet.job.text, 1);
            __builtin_prefetch(packet.job.text + packet.job.text_bytes - 1);
        });
    context_.counters.inbound.delivered.add(context_.delivered.count());
    observer.end_of_pass(4, burst_);
}

template <typename Observer>
void InboundPipeline::run(std::span<const Frame> frames, Observer& observer) {
    observer.begin();
    uint64_t bytes = 0;
    for (const Frame& frame : frames) bytes += frame.bytes;
    DirectionCounters& counters = context_.counters.inbound;
    counters.frames.add(frames.size());
    counters.bytes.add(bytes);
    counters.bursts.add(1);
    run_stages(frames, observer);
}
template void InboundPipeline::run(std::span<const Frame> frames, CycleObserver& observer);

void InboundPipeline::run(std::span<const Frame> frames) {
    NoObserver nobody;
    run(frames, nobody);
}

uint32_t InboundPipeline::run_held(uint32_t most, HoldList::Round round) {
    const auto again = hold_.take(most, round);
    NoObserver nobody;
    run_stages(again.frames, nobody);
    hold_.settle();
    return static_cast<uint32_t>(again.frames.size());
}

}  // namespace sallyport
