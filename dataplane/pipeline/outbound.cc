// SPDX-License-Identifier: Apache-2.0
// A packet's way from the protected side into its tunnel. Each stage is a file of its name in
// stages/.
#include "dataplane/pipeline/outbound.h"

#include "dataplane/pipeline/observer.h"
#include "dataplane/pipeline/stages/assign_sequence.h"
#include "dataplane/pipeline/stages/check_mtu.h"
#include "dataplane/pipeline/stages/complete_checksum.h"
#include "dataplane/pipeline/stages/encapsulate.h"
#include "dataplane/pipeline/stages/encrypt.h"
#include "dataplane/pipeline/stages/line_up.h"
#include "dataplane/pipeline/stages/lookup_policy.h"
#include "dataplane/pipeline/stages/parse_inner.h"

namespace sallyport {

// Outer headers are written in front of the packet.
constexpr uint32_t kHeadroomNeeded = sizeof(wire::Ipv6) + esp::kHeaderBytes;
static_assert(kHeadroomNeeded <= kFrameHeadroomBytes);

template <typename Observer>
inline void OutboundPipeline::run_stages(std::span<const Frame> frames, OutboundSource source,
                                         Observer& observer) {
    burst_.load(frames);
    context_.delivered.clear();
    context_.source = source;

    using namespace stages;
    burst_.pass<parse_inner, lookup_policy>(  // asks for the SA; without one: on hold
        *this, [](const Packet& packet) { __builtin_prefetch(packet.frame.data); });
    observer.end_of_pass(0, burst_);
    burst_.pass<check_mtu, complete_checksum, assign_sequence, encapsulate, line_up>(
        *this, [](const Packet& packet) {
            __builtin_prefetch(packet.ip, 1);
            __builtin_prefetch(packet.ip - kHeadroomNeeded, 1);
            __builtin_prefetch(packet.ip + packet.inner.total_bytes, 1);
        });
    observer.end_of_pass(1, burst_);
    encrypt(context_, burst_);
    context_.counters.outbound.delivered.add(context_.delivered.count());
    observer.end_of_pass(2, burst_);
}

template <typename Observer>
void OutboundPipeline::run(std::span<const Frame> frames, OutboundSource source,
                           Observer& observer) {
    observer.begin();
    uint64_t bytes = 0;
    for (const Frame& frame : frames) bytes += frame.bytes;
    DirectionCounters& counters = context_.counters.outbound;
    counters.frames.add(frames.size());
    counters.bytes.add(bytes);
    counters.bursts.add(1);
    run_stages(frames, source, observer);
}
template void OutboundPipeline::run(std::span<const Frame> frames, OutboundSource source,
                                    CycleObserver& observer);

void OutboundPipeline::run(std::span<const Frame> frames, OutboundSource source) {
    NoObserver nobody;
    run(frames, source, nobody);
}

uint32_t OutboundPipeline::run_held(uint32_t most, HoldList::Round round) {
    const auto again = hold_.take(most, round);
    NoObserver nobody;
    run_stages(again.frames, again.source, nobody);
    hold_.settle();
    return static_cast<uint32_t>(again.frames.size());
}

}  // namespace sallyport
