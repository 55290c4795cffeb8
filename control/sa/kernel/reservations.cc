// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/reservations.h"

#include <algorithm>
#include <utility>

namespace sallyport::control {

namespace {

constexpr std::chrono::milliseconds kRoundSoon{2};

// How many numbers the kernel may have taken from one look to the next.
uint64_t numbers_at_most(const xfrm::Usage& before, const xfrm::Usage& after) {
    if (after.packets < before.packets || after.bytes < before.bytes) return ~uint64_t{0};
    return (after.packets - before.packets) * Reservations::kSegmentsOfUdpMax +
           (after.bytes - before.bytes) / Reservations::kSegmentBytesMin;
}

}  // namespace

void Reservations::compare(Slot& slot, const xfrm::KernelSa& state) {
    if (slot.phase != Phase::installed || slot.replaced || !is_another(slot, state)) return;
    slot.replaced = true;
    around_.another_round(kRoundSoon);
}

// By whoever it was, also before the state was deleted and added again.
uint64_t Reservations::next_unused(const Slot& slot, const xfrm::KernelSa& state) const {
    return std::max(next_of(state.replay), memory_.find(slot.memory_name).outbound_next);
}

// Of the state that had `written` put into it.
std::expected<xfrm::KernelSa, std::string> Reservations::look_again(const Slot& slot,
                                                                    uint64_t written) {
    auto state = around_.kernel.get(slot.name);
    if (!state) return std::unexpected(state.error().text);
    if (!same_key(slot, *state) || state->replay.sent < written) {
        return std::unexpected("it was replaced");
    }
    return std::move(*state);
}

// Numbers that nobody has used and the kernel will not. They begin above what is used when another
// sender has used some since: see "Never a nonce twice".
std::expected<SequenceRange, std::string> Reservations::reserve(Slot& slot,
                                                                const xfrm::KernelSa& looked_at,
                                                                uint64_t size) {
    OutboundSide& side = *slot.outbound();
    uint64_t first = next_unused(slot, looked_at);
    xfrm::Usage usage = looked_at.usage;
    for (int attempt = 0; attempt < kReserveAttempts; ++attempt) {
        if (first >= sequence_end(slot.esn)) break;
        const SequenceRange block = next_block(first, slot.esn, size);
        xfrm::Replay replay = looked_at.replay;
        replay.sent = block.end - 1;
        side.attempted = block.end;
        const xfrm::CounterUpdate update{.replay = replay, .usage = std::nullopt};
        if (const auto done = around_.kernel.write_counters(looked_at, update); !done) {
            return std::unexpected(done.error().text);
        }
        side.reserved = block.end;
        memory_.raise(slot.memory_name, {.outbound_next = block.end});
        const auto now = look_again(slot, replay.sent);
        if (!now) return std::unexpected(now.error());
        const uint64_t used = numbers_at_most(usage, now->usage);
        if (used <= (block.end - block.first) / 2) {
            return SequenceRange{.first = block.first + used, .end = block.end};
        }
        first = next_unused(slot, *now);
        usage = now->usage;
    }
    return std::unexpected("the kernel itself sends with it all the time");
}

// Of an SA that a worker has not had yet: what it has sent since it was made is known, unless it is
// new, when all numbers are there.
uint64_t Reservations::first_block(const xfrm::KernelSa& state) const {
    if (!used_by_kernel(state)) return sequence_block(state.esn);
    const uint64_t now = around_.clock.seconds();
    const uint64_t age = now - std::min(now, state.usage.add_time);
    return sequence_block(state.esn, state.usage.packets,
                          std::chrono::seconds(std::max(age, uint64_t{1})));
}

// By what it has sent since it was told of numbers last.
uint64_t Reservations::further_block(const Slot& slot, const OutboundSide& side) const {
    const uint64_t next = side.sa->sequence_next.read();
    return sequence_block(slot.esn, next - std::min(next, side.told_at),
                          around_.clock.now() - side.told_when);
}

void Reservations::note_told(OutboundSide& side, const SequenceRange& range, uint64_t next) const {
    side.told = range.end;
    side.block = range.end - range.first;
    side.told_at = next;
    side.told_when = around_.clock.now();
    side.extension_due = false;
}

void Reservations::extend_if_low(Slot& slot) {
    OutboundSide* side = slot.outbound();
    if (side == nullptr || slot.phase != Phase::installed || side->nothing_left) return;
    const uint64_t next = side->sa->sequence_next.read();
    const uint64_t left = side->told - std::min(next, side->told);
    if (left < side->block / 4) side->extension_due = true;
    if (side->extension_due) extend(slot);
}

void Reservations::extend(Slot& slot) {
    OutboundSide* side = slot.outbound();
    if (side == nullptr || slot.phase != Phase::installed) return;
    // The kernel tells of its own use late, or not at all where it is a packet now and then.
    const auto state = around_.kernel.get(slot.name);
    if (!state) return;
    compare(slot, *state);
    if (!slot.replaced) advance(slot, *side, *state);
}

// Where `range` does not follow what the worker has, the kernel has sent in between, or may have:
// the worker goes on in it at once, because a peer does not accept what is far below the last.
void Reservations::tell_range(const Slot& slot, OutboundSide& side, const SequenceRange& range) {
    const uint64_t next_at_least = range.first == side.told ? 0 : range.first;
    note_told(side, range, std::max(next_at_least, side.sa->sequence_next.read()));
    around_.workers.send(
        slot.owner(), command::ExtendSequence{.sa = side.sa.get(),
                                              .reserved = range.end,
                                              .low_water = low_water(range, sequence_end(slot.esn)),
                                              .next_at_least = next_at_least});
}

// With numbers behind those that were asked for; the answer to the last may have been lost.
bool Reservations::kernel_has_sent(const Slot& slot, const OutboundSide& side,
                                   const xfrm::KernelSa& state) const {
    return next_unused(slot, state) > std::max(side.reserved, side.attempted);
}

void Reservations::follow(Slot& slot, const xfrm::KernelSa& state) {
    OutboundSide& side = *slot.outbound();
    if (kernel_has_sent(slot, side, state)) advance(slot, side, state);
}

// `state`: as it is now.
void Reservations::advance(Slot& slot, OutboundSide& side, const xfrm::KernelSa& state) {
    const uint64_t first = next_unused(slot, state);
    if (first >= sequence_end(slot.esn)) {
        side.nothing_left = true;
        side.extension_due = false;
        return feedback_.ask_rekey(slot, RekeyPacer::When::always);
    }
    const bool sent_before = kernel_has_sent(slot, side, state);
    if (sent_before && host_uses(state)) return leave_to_kernel_(slot);
    const auto range = reserve(slot, state, further_block(slot, side));
    if (!range) {  // tried again
        if (sent_before) note_round(slot, state);
        return;
    }
    tell_range(slot, side, *range);
    if (range->end >= sequence_end(slot.esn)) feedback_.ask_rekey(slot, RekeyPacer::When::always);
    if (sent_before || range->first > first) note_round(slot, state);
}

bool Reservations::host_uses(const xfrm::KernelSa& state) const {
    const auto found = rounds_.find(tunnel_of(state));
    return found != rounds_.end() && found->second.count >= kRoundsMax &&
           around_.clock.now() - found->second.since <= RekeyPacer::kPause;
}

void Reservations::note_round(Slot& slot, const xfrm::KernelSa& state) {
    const auto now = around_.clock.now();
    std::erase_if(rounds_,
                  [now](const auto& each) { return now - each.second.since > RekeyPacer::kPause; });
    Rounds& rounds = rounds_.try_emplace(tunnel_of(state), Rounds{.since = now}).first->second;
    ++rounds.count;
    slot.base = without_ours(slot, state.usage);
    feedback_.ask_rekey(slot);
    if (std::exchange(slot.used_warned, true)) return;
    around_.notices.warning(to_text(slot.name) +
                            ": the kernel has sent with it too (traffic of this host itself?): the "
                            "worker goes on above its numbers; " +
                            kWhatUsesIt);
}

}  // namespace sallyport::control
