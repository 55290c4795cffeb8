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
    slots_.doubt(slot.name);
    around_.another_round(kRoundSoon);
}

// By whoever it was, also before the state was deleted and added again.
uint64_t Reservations::next_unused(const Slot& slot, const xfrm::KernelSa& state) const {
    return std::max(next_of(state.replay), memory_.find(slot.memory_name).outbound_next);
}

// One key may be that of several wishes: what is about to be reserved is remembered at once.
std::vector<Reservations::Reserved> Reservations::reserve(std::span<const Wish> wishes) {
    std::vector<Reserved> out(wishes.size(),
                              std::unexpected("the kernel itself sends with it all the time"));
    std::vector<Attempt> attempts;
    for (size_t i = 0; i < wishes.size(); ++i) {
        attempts.push_back({.wish = &wishes[i],
                            .out = &out[i],
                            .next = next_of(wishes[i].looked_at->replay),
                            .usage = wishes[i].looked_at->usage,
                            .block = {}});
    }
    for (int turn = 0; turn < kReserveAttempts && !attempts.empty(); ++turn) {
        raise_above(attempts);
        look_again(attempts);
    }
    return out;
}

// Those that are left are written.
void Reservations::raise_above(std::vector<Attempt>& attempts) {
    std::vector<xfrm::CounterWrite> writes;
    std::erase_if(attempts, [&](Attempt& each) {
        Slot& slot = *each.wish->slot;
        const uint64_t first = std::max(each.next, memory_.find(slot.memory_name).outbound_next);
        if (first >= sequence_end(slot.esn)) return true;
        each.block = next_block(first, slot.esn, each.wish->size);
        slot.outbound()->attempted = each.block.end;
        memory_.raise(slot.memory_name, {.outbound_next = each.block.end});
        xfrm::Replay replay = each.wish->looked_at->replay;
        replay.sent = each.block.end - 1;
        writes.push_back(
            {.state = each.wish->looked_at, .update = {.replay = replay, .usage = std::nullopt}});
        return false;
    });
    const auto done = around_.kernel.write_all(writes);
    size_t i = 0;
    std::erase_if(attempts, [&](Attempt& each) {
        const auto& result = done[i++];
        if (result) {
            each.wish->slot->outbound()->reserved = each.block.end;
            return false;
        }
        *each.out = std::unexpected(result.error().text);
        return true;
    });
}

// Those that are left have too little, and are tried again.
void Reservations::look_again(std::vector<Attempt>& attempts) {
    std::vector<xfrm::SaName> names;
    for (const Attempt& each : attempts) names.push_back(each.wish->slot->name);
    const auto states = around_.kernel.get_all(names);
    size_t i = 0;
    std::erase_if(attempts, [&](Attempt& each) {
        const auto& now = states[i++];
        if (!now) {
            *each.out = std::unexpected(now.error().text);
            return true;
        }
        if (!same_key(*each.wish->slot, *now) || now->replay.sent < each.block.end - 1) {
            *each.out = std::unexpected("it was replaced");
            return true;
        }
        const uint64_t used = numbers_at_most(each.usage, now->usage);
        if (used <= (each.block.end - each.block.first) / 2) {
            *each.out = SequenceRange{.first = each.block.first + used, .end = each.block.end};
            return true;
        }
        each.next = next_of(now->replay);
        each.usage = now->usage;
        return false;
    });
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

bool Reservations::is_low(const Slot& slot) {
    const OutboundSide* side = slot.outbound();
    if (side == nullptr || side->nothing_left) return false;
    const uint64_t next = side->sa->sequence_next.read();
    return side->extension_due || side->told - std::min(next, side->told) < side->block / 4;
}

void Reservations::extend(std::span<Slot* const> slots) {
    std::vector<Slot*> low;
    std::vector<xfrm::SaName> names;
    for (Slot* slot : slots) {
        OutboundSide* side = slot->outbound();
        if (side == nullptr || slot->phase != Phase::installed) continue;
        side->extension_due = true;
        low.push_back(slot);
        names.push_back(slot->name);
    }
    // The kernel tells of its own use late, or not at all where it is a packet now and then.
    const auto states = around_.kernel.get_all(names);
    std::vector<Looked> looked;
    for (size_t i = 0; i < low.size(); ++i) {
        if (!states[i]) continue;
        compare(*low[i], *states[i]);
        if (!low[i]->replaced) looked.push_back({.slot = low[i], .state = &*states[i]});
    }
    advance(looked);
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
    if (slot.going_back || !kernel_has_sent(slot, *slot.outbound(), state)) return;
    const Looked looked{.slot = &slot, .state = &state};
    advance({&looked, 1});
}

void Reservations::advance(std::span<const Looked> all) {
    struct Going {
        Looked looked;
        uint64_t first = 0;
        bool sent_before = false;  // by the kernel
    };
    std::vector<Going> going;
    std::vector<Wish> wishes;
    for (const Looked& each : all) {
        Slot& slot = *each.slot;
        OutboundSide& side = *slot.outbound();
        const uint64_t first = next_unused(slot, *each.state);
        if (first >= sequence_end(slot.esn)) {
            side.nothing_left = true;
            side.extension_due = false;
            feedback_.ask_rekey(slot, RekeyPacer::When::always);
            continue;
        }
        const bool sent_before = !slot.going_back && kernel_has_sent(slot, side, *each.state);
        if (sent_before && host_uses(*each.state)) {
            leave_to_kernel_(slot);
            continue;
        }
        going.push_back({.looked = each, .first = first, .sent_before = sent_before});
        wishes.push_back(
            {.slot = &slot, .looked_at = each.state, .size = further_block(slot, side)});
    }
    const auto ranges = reserve(wishes);
    for (size_t i = 0; i < going.size(); ++i) {
        Slot& slot = *going[i].looked.slot;
        const Reserved& range = ranges[i];  // none: tried again
        if (range) {
            tell_range(slot, *slot.outbound(), *range);
            if (range->end >= sequence_end(slot.esn)) {
                feedback_.ask_rekey(slot, RekeyPacer::When::always);
            }
        }
        const bool sent_meanwhile = range && range->first > going[i].first;
        if (!slot.going_back && (going[i].sent_before || sent_meanwhile)) {
            note_second_sender(slot, *going[i].looked.state);
        }
    }
}

bool Reservations::host_uses(const xfrm::KernelSa& state) const {
    const auto found = rounds_.find(tunnel_of(state));
    return found != rounds_.end() && found->second.count >= kRoundsMax &&
           around_.clock.now() - found->second.since <= RekeyPacer::kPause;
}

void Reservations::forget_old() {
    const auto now = around_.clock.now();
    std::erase_if(rounds_,
                  [now](const auto& each) { return now - each.second.since > RekeyPacer::kPause; });
    std::erase_if(acquired_, [now](const auto& each) { return now - each.second > kQueueAge; });
}

// See "What waited for the SA".
bool Reservations::is_from_queue(OutboundSide& side, const xfrm::KernelSa& state) {
    const auto now = around_.clock.now();
    if (!side.queue_since) {
        const auto acquired = acquired_.find({state.source, state.name.destination});
        if (acquired == acquired_.end() || now - acquired->second > kQueueAge) return false;
        side.queue_since = now;
    }
    return now - *side.queue_since <= kQueueTime && ++side.queue_looks <= kQueueLooks;
}

void Reservations::note_second_sender(Slot& slot, const xfrm::KernelSa& state) {
    slot.base = without_ours(slot, state.usage);
    feedback_.ask_rekey(slot);
    if (!is_from_queue(*slot.outbound(), state)) note_round(slot, state);
}

void Reservations::note_round(Slot& slot, const xfrm::KernelSa& state) {
    forget_old();
    const auto now = around_.clock.now();
    Rounds& rounds = rounds_.try_emplace(tunnel_of(state), Rounds{.since = now}).first->second;
    ++rounds.count;
    if (std::exchange(slot.used_warned, true)) return;
    around_.notices.warning(to_text(slot.name) +
                            ": the kernel has sent with it too (traffic of this host itself?): the "
                            "worker goes on above its numbers; " +
                            kWhatUsesIt);
}

}  // namespace sallyport::control
