// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/handover.h"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace sallyport::control {

using xfrm::StateDirection;

namespace {

constexpr std::chrono::milliseconds kSoon{2};
constexpr std::chrono::milliseconds kLater{100};

constexpr const char* kWhatUsesIt =
    "a socket bound to a device does that, and what show status has as left to the kernel";

// How many numbers the kernel may have taken from one look to the next.
uint64_t numbers_at_most(const xfrm::Usage& before, const xfrm::Usage& after) {
    if (after.packets < before.packets || after.bytes < before.bytes) return ~uint64_t{0};
    return (after.packets - before.packets) * Handover::kSegmentsOfUdpMax +
           (after.bytes - before.bytes) / Handover::kSegmentBytesMin;
}

}  // namespace

Handover::Handover(const Surroundings& around, const Parts& parts, const crypto::Aead& aead,
                   Setup setup)
    : around_(around),
      slots_(parts.slots),
      memory_(parts.memory),
      feedback_(parts.feedback),
      pacer_(parts.pacer),
      aead_(aead),
      setup_(setup) {}

// ---- to a worker -------------------------------------------------------------------------------

void Handover::steer(const xfrm::KernelSa& state, const SaDecision& decision,
                     bool group_is_served) {
    const bool outbound = decision.direction == StateDirection::outbound;
    if (slots_.full()) {
        kept_.emplace(state.name, kNoRoom);
        return;
    }
    if (!outbound) {
        const auto inserted = around_.steering.insert(state.name, decision.owner);
        if (!inserted) {
            kept_.emplace(state.name, inserted.error());
            return;
        }
    }
    Slot& slot = slots_.create(state.name, memory_name_of(state));
    slot.decision = decision;
    slot.source = state.source;
    slot.esn = state.esn;
    slot.replay = state.replay;
    slot.limits = state.limits;
    // What was on its way when it was steered goes through the kernel, also the first packets of an
    // SA that is unused until now. Only where a worker serves a group already is nothing of the
    // group on its way.
    slot.settle_first = !outbound || !group_is_served || used_by_kernel(state);
    if (outbound) return;  // steered when the owners of its policy are published
    slot.side.emplace<InboundSide>();
    slot.steered_at = around_.clock.now();
}

// Each by its own time: a round that is due may be that of an earlier one.
bool Handover::is_settled(const Slot& slot) const {
    if (slot.phase != Phase::steered || !slots_.is_clear(slot)) return false;
    return !slot.settle_first ||
           (slot.steered_at && *slot.steered_at + kSettle <= around_.clock.now());
}

void Handover::go_on(Slot& slot) {
    if (!is_settled(slot)) return;
    const auto state = around_.kernel.get(slot.name);
    if (!state) {
        if (state.error().number != ESRCH) return keep_with_kernel(slot, state.error().text);
        // It has gone meanwhile; the message about that is on its way.
        return keep_with_kernel(slot, "it was deleted");
    }
    if (!same_key(slot, *state)) return keep_with_kernel(slot, "it was replaced");
    // Its first packets came between the message about it and now: they too must have passed.
    if (!slot.settle_first && used_by_kernel(*state)) {
        slot.settle_first = true;
        return;
    }
    slot.replay = state->replay;
    slot.base = state->usage;
    if (InboundSide* side = slot.inbound()) {
        install_inbound(slot, *side, *state);
    } else {
        install_outbound(slot, *slot.outbound(), *state);
    }
    around_.kernel.note(*state);
}

InboundSaParameters Handover::inbound_parameters(const Slot& slot,
                                                 const xfrm::KernelSa& state) const {
    return {.id = slot.id,
            .policy = slot.decision.group,
            .spi = slot.name.spi,
            .source = state.source,
            .destination = slot.name.destination,
            .suite = slot.decision.suite,
            .key = state.key.bytes(),
            .esn = state.esn,
            .replay_window = state.replay.window,
            .replay_top = std::max(state.replay.top, memory_.find(slot.memory_name).inbound_top),
            .owner = slot.owner(),
            .selectors = slot.decision.selectors};
}

void Handover::install_inbound(Slot& slot, InboundSide& side, const xfrm::KernelSa& state) {
    auto made = make_inbound_sa(aead_, inbound_parameters(slot, state));
    if (!made) return keep_with_kernel(slot, made.error());
    side.sa = std::move(*made);
    side.written_top = state.replay.top;
    side.catch_up_due = true;
    slot.phase = Phase::installed;
    around_.workers.send(slot.owner(), command::InstallInbound{side.sa.get()});
}

void Handover::look_after(Slot& slot) {
    catch_up(slot);
    extend_if_low(slot);
    ask_again(slot);
}

void Handover::compare(Slot& slot, const xfrm::KernelSa& state) {
    if (slot.phase != Phase::installed || slot.replaced || !is_another(slot, state)) return;
    slot.replaced = true;
    around_.another_round(kSoon);
}

void Handover::catch_up(Slot& slot) {
    InboundSide* side = slot.inbound();
    if (side == nullptr || slot.phase != Phase::installed || !side->catch_up_due) return;
    const auto state = around_.kernel.get(slot.name);
    if (!state) return;
    compare(slot, *state);
    if (slot.replaced) return;
    side->catch_up_due = false;
    if (state->replay.top <= side->written_top) return;
    side->written_top = state->replay.top;
    around_.workers.send(slot.owner(), command::SkipReplay{.id = slot.id,
                                                           .spi = slot.name.spi,
                                                           .destination = slot.name.destination,
                                                           .last = state->replay.top});
}

OutboundSaParameters Handover::outbound_parameters(const Slot& slot, const xfrm::KernelSa& state,
                                                   const SequenceRange& range,
                                                   uint64_t iv_mask) const {
    return {.id = slot.id,
            .policy = slot.decision.group,
            .spi = slot.name.spi,
            .source = state.source,
            .destination = slot.name.destination,
            .suite = slot.decision.suite,
            .key = state.key.bytes(),
            .esn = state.esn,
            .sequence_next = range.first,
            .sequence_reserved = range.end,
            .sequence_low_water = low_water(range, sequence_end(state.esn)),
            .iv_mask = iv_mask,
            .rank = slot.decision.rank,
            .owner = slot.owner(),
            .mtu = setup_.mtu,
            .df = slot.decision.df,
            .copy_dscp = slot.decision.copy_dscp,
            .outer_ttl = 64};
}

void Handover::install_outbound(Slot& slot, OutboundSide& side, const xfrm::KernelSa& state) {
    if (next_unused(slot, state) >= sequence_end(state.esn)) {
        return keep_with_kernel(slot, "its sequence numbers are used up");
    }
    // Drawn for each SA that is built: see "Never a nonce twice".
    const auto mask = around_.random.bits();
    if (!mask) return keep_with_kernel(slot, mask.error());
    const auto range = reserve(slot, state, first_block(state));
    if (!range) {
        return keep_with_kernel(slot,
                                "sequence numbers cannot be reserved in it: " + range.error());
    }
    auto made = make_outbound_sa(aead_, outbound_parameters(slot, state, *range, *mask));
    if (!made) return keep_with_kernel(slot, made.error());
    side.sa = std::move(*made);
    note_told(side, *range, range->first);
    slot.phase = Phase::installed;
    around_.workers.send(slot.owner(), command::InstallOutbound{side.sa.get()});
    if (range->first > 1) ask_rekey(slot);  // another sender has used the key
}

void Handover::change_selectors(Slot& slot, const xfrm::KernelSa& state) {
    InboundSide& side = *slot.inbound();
    if (side.before) {
        around_.another_round(kLater);  // one replacement at a time
        slot.decision.selectors.clear();
        return;
    }
    auto made = make_inbound_sa(aead_, inbound_parameters(slot, state));
    if (!made) {
        around_.notices.error("an SA keeps its earlier selectors: " + made.error());
        return;
    }
    side.before = std::move(side.sa);
    side.sa = std::move(*made);
    around_.workers.send(slot.owner(),
                         command::ReplaceInbound{.old = side.before.get(), .sa = side.sa.get()});
}

// ---- reservations ------------------------------------------------------------------------------

// By whoever it was, also before the state was deleted and added again.
uint64_t Handover::next_unused(const Slot& slot, const xfrm::KernelSa& state) const {
    return std::max(next_of(state.replay), memory_.find(slot.memory_name).outbound_next);
}

// Of the state that had `written` put into it.
std::expected<xfrm::KernelSa, std::string> Handover::look_again(const Slot& slot,
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
std::expected<SequenceRange, std::string> Handover::reserve(Slot& slot,
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
uint64_t Handover::first_block(const xfrm::KernelSa& state) const {
    if (!used_by_kernel(state)) return sequence_block(state.esn);
    const uint64_t now = around_.clock.seconds();
    const uint64_t age = now - std::min(now, state.usage.add_time);
    return sequence_block(state.esn, state.usage.packets,
                          std::chrono::seconds(std::max(age, uint64_t{1})));
}

// By what it has sent since it was told of numbers last.
uint64_t Handover::further_block(const Slot& slot, const OutboundSide& side) const {
    const uint64_t next = side.sa->sequence_next.read();
    return sequence_block(slot.esn, next - std::min(next, side.told_at),
                          around_.clock.now() - side.told_when);
}

void Handover::note_told(OutboundSide& side, const SequenceRange& range, uint64_t next) const {
    side.told = range.end;
    side.block = range.end - range.first;
    side.told_at = next;
    side.told_when = around_.clock.now();
    side.extension_due = false;
}

void Handover::extend_if_low(Slot& slot) {
    OutboundSide* side = slot.outbound();
    if (side == nullptr || slot.phase != Phase::installed || side->nothing_left) return;
    const uint64_t next = side->sa->sequence_next.read();
    const uint64_t left = side->told - std::min(next, side->told);
    if (left < side->block / 4) side->extension_due = true;
    if (side->extension_due) extend(slot);
}

void Handover::extend(Slot& slot) {
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
void Handover::tell_range(const Slot& slot, OutboundSide& side, const SequenceRange& range) {
    const uint64_t next_at_least = range.first == side.told ? 0 : range.first;
    note_told(side, range, std::max(next_at_least, side.sa->sequence_next.read()));
    around_.workers.send(
        slot.owner(), command::ExtendSequence{.sa = side.sa.get(),
                                              .reserved = range.end,
                                              .low_water = low_water(range, sequence_end(slot.esn)),
                                              .next_at_least = next_at_least});
}

void Handover::kernel_used(Slot& slot) {
    if (slot.phase != Phase::installed) return;
    const auto state = around_.kernel.get(slot.name);
    if (!state) return;
    compare(slot, *state);
    if (slot.replaced) return;
    if (const InboundSide* side = slot.inbound()) {
        if (state->replay.top <= std::max(side->written_top, work_of(slot).top)) return;
        if (!std::exchange(slot.used_warned, true)) {
            around_.notices.warning(
                to_text(slot.name) +
                ": the kernel has received packets of it too, by a device that is no "
                "port; make that device a port, or replay protection is split in two");
        }
        return;
    }
    OutboundSide& side = *slot.outbound();
    if (kernel_has_sent(slot, side, *state)) advance(slot, side, *state);
}

// With numbers behind those that were asked for; the answer to the last may have been lost.
bool Handover::kernel_has_sent(const Slot& slot, const OutboundSide& side,
                               const xfrm::KernelSa& state) const {
    return next_unused(slot, state) > std::max(side.reserved, side.attempted);
}

// `state`: as it is now.
void Handover::advance(Slot& slot, OutboundSide& side, const xfrm::KernelSa& state) {
    const uint64_t first = next_unused(slot, state);
    if (first >= sequence_end(slot.esn)) {
        side.nothing_left = true;
        side.extension_due = false;
        return ask_rekey(slot, RekeyPacer::When::always);
    }
    const bool sent_before = kernel_has_sent(slot, side, state);
    if (sent_before && host_uses(state)) return leave_to_kernel(slot);
    const auto range = reserve(slot, state, further_block(slot, side));
    if (!range) {  // tried again
        if (sent_before) note_round(slot, state);
        return;
    }
    tell_range(slot, side, *range);
    if (range->end >= sequence_end(slot.esn)) ask_rekey(slot, RekeyPacer::When::always);
    if (sent_before || range->first > first) note_round(slot, state);
}

bool Handover::host_uses(const xfrm::KernelSa& state) const {
    const auto found = rounds_.find(tunnel_of(state));
    return found != rounds_.end() && found->second.count >= kRoundsMax &&
           around_.clock.now() - found->second.since <= RekeyPacer::kPause;
}

// It stays in place until its policy has another owner.
void Handover::leave_to_kernel(Slot& slot) {
    if (!kept_.emplace(slot.name, kHostUsesIt).second) return;
    around_.notices.warning(to_text(slot.name) + ": " + kHostUsesIt +
                            " again and again: it and its successors stay with the kernel for a "
                            "while; " +
                            kWhatUsesIt);
    around_.another_round(kSoon);
}

void Handover::note_round(Slot& slot, const xfrm::KernelSa& state) {
    const auto now = around_.clock.now();
    std::erase_if(rounds_,
                  [now](const auto& each) { return now - each.second.since > RekeyPacer::kPause; });
    Rounds& rounds = rounds_.try_emplace(tunnel_of(state), Rounds{.since = now}).first->second;
    ++rounds.count;
    slot.base = without_ours(slot, state.usage);
    ask_rekey(slot);
    if (std::exchange(slot.used_warned, true)) return;
    around_.notices.warning(to_text(slot.name) +
                            ": the kernel has sent with it too (traffic of this host itself?): the "
                            "worker goes on above its numbers; " +
                            kWhatUsesIt);
}

void Handover::ask_rekey(Slot& slot, RekeyPacer::When when) {
    const auto now = around_.clock.now();
    if (slot.rekey_wanted && (*slot.rekey_wanted == when || when == RekeyPacer::When::paced)) {
        return;  // ask_again() does
    }
    slot.rekey_wanted = when;
    slot.rekey_asked_at = now;
    pacer_.ask(slot.name, slot.decision.group, now, when);
}

// One that is rekeyed goes soon after.
void Handover::ask_again(Slot& slot) {
    const auto now = around_.clock.now();
    if (!slot.rekey_wanted || now - slot.rekey_asked_at < kAskAgain) return;
    slot.rekey_asked_at = now;
    pacer_.ask(slot.name, slot.decision.group, now, *slot.rekey_wanted);
}

// ---- with the kernel ---------------------------------------------------------------------------

// What the counters of `state` must be at least. Outbound a block more, as for a reservation: the
// kernel may send between the look and the writing, and its number must not go down.
xfrm::Replay Handover::raised(const xfrm::KernelSa& state,
                              const std::optional<StateDirection>& direction) const {
    xfrm::Replay replay = state.replay;
    const SequenceMemory::Name name = memory_name_of(state);
    const SequenceMemory::State used = memory_.find(name);
    if (direction != StateDirection::inbound && used.outbound_next > next_of(replay)) {
        const uint64_t first = std::min(used.outbound_next, sequence_end(state.esn));
        replay.sent = next_block(first, state.esn, sequence_block(state.esn, 0, {})).end - 1;
    }
    // What a worker has accepted is known when it has let go; numbers to send were reserved before.
    if (direction != StateDirection::outbound && !slots_.is_leaving(name)) {
        replay.top = std::max(replay.top, used.inbound_top);
    }
    return replay;
}

bool Handover::is_behind(const xfrm::KernelSa& state,
                         const std::optional<StateDirection>& direction) const {
    // Of most nothing is known: their keys need no digest.
    return !state.key.bytes().empty() && memory_.knows(state.name.spi, state.name.protocol) &&
           raised(state, direction) != state.replay;
}

void Handover::raise_in_kernel(const xfrm::SaName& name,
                               const std::optional<StateDirection>& direction) {
    auto state = around_.kernel.get(name);
    if (!state) {
        if (state.error().number != ESRCH) around_.another_round(kLater);
        return;
    }
    const xfrm::Replay replay = raised(*state, direction);
    if (replay != state->replay) {
        const xfrm::CounterUpdate update{.replay = replay, .usage = std::nullopt};
        if (const auto done = around_.kernel.write_counters(*state, update); !done) {
            if (done.error().number != ESRCH) around_.another_round(kLater);
            return;
        }
        state->replay = replay;
    }
    around_.kernel.note(*state);
}

// ---- back to the kernel ------------------------------------------------------------------------

void Handover::forget_kept(const xfrm::RegisterChanges& changes) {
    for (const auto* names : {&changes.added, &changes.removed}) {
        for (const xfrm::SaName& name : *names) kept_.erase(name);
    }
    std::erase_if(kept_, [](const auto& kept) { return kept.second == kNoRoom; });
}

void Handover::keep_with_kernel(Slot& slot, const std::string& reason) {
    kept_[slot.name] = reason;
    steer_away(slot);
    slots_.release(slot);
    around_.another_round(kSoon);  // the owners of its policy
}

// Where another has its name, the frames are that one's.
void Handover::steer_away(const Slot& slot) {
    if (slot.inbound() != nullptr && slots_.is_only_one_of_name(slot)) {
        around_.steering.remove(slot.name);
    }
}

// Outbound traffic is not steered to the SA any more. Inbound traffic is until the worker has let
// go and the kernel knows what it has accepted: earlier, the kernel would accept it once more.
void Handover::retire(Slot& slot) {
    if (!slot.with_worker()) {
        steer_away(slot);
        return slots_.release(slot);
    }
    if (const InboundSide* side = slot.inbound()) {
        around_.workers.send(slot.owner(), command::RetireInbound{side->sa.get()});
    } else {
        around_.workers.send(slot.owner(), command::RetireOutbound{slot.outbound()->sa.get()});
    }
}

// Numbers that were sent are remembered since they were reserved.
void Handover::note_accepted(const Slot& slot) {
    if (slot.inbound() != nullptr) {
        memory_.raise(slot.memory_name, {.inbound_top = work_of(slot).top});
    }
}

// What a worker that is done with the SA has used, for the kernel that goes on with it. Counters
// only move up, also where the state was deleted and added again with older ones.
bool Handover::hand_back(Slot& slot) {
    if (!slot.with_worker() || around_.kernel.find(slot.name) == nullptr) return true;
    const auto state = around_.kernel.get(slot.name);
    if (!state) return state.error().number == ESRCH;
    if (!same_key(slot, *state)) return true;  // another SA
    const Work work = work_of(slot);
    feedback_.note_use(slot);
    slot.base = without_ours(slot, state->usage);
    std::optional<xfrm::Replay> replay = state->replay;
    const SequenceMemory::State used = memory_.find(slot.memory_name);
    const uint64_t top = std::max(work.top, used.inbound_top);
    if (slot.inbound() != nullptr && (top > state->replay.top || work.packets > 0)) {
        // Also where the kernel is ahead: below its top the worker has accepted packets too.
        replay->top = std::max(top, state->replay.top);
    } else if (slot.outbound() != nullptr && used.outbound_next > next_of(state->replay)) {
        replay = raised(*state, StateDirection::outbound);
    } else if (work.packets == slot.written_packets) {
        return true;
    } else {
        replay.reset();
    }
    return feedback_.write(slot, *state, work, replay);
}

// The worker is done with it.
void Handover::let_go(Slot& slot) {
    note_accepted(slot);
    if (!hand_back(slot)) around_.notices.warning("the counters of an SA are not written back");
    if (slot.phase != Phase::retiring) {
        return keep_with_kernel(slot, "its worker has no room: raise gateway.max_sas");
    }
    // Where the kernel goes on with it, the key has a second sender.
    if (slot.outbound() != nullptr && work_of(slot).packets > 0 &&
        around_.kernel.find(slot.name) != nullptr) {
        ask_rekey(slot);
    }
    steer_away(slot);
    slots_.release(slot);
    around_.another_round(kSoon);  // one of the same name may be waiting for this
}

bool Handover::write_back(Slot& slot) {
    const bool done = hand_back(slot);
    // The kernel goes on with it: a second sender under the key.
    if (slot.outbound() != nullptr && slot.phase == Phase::installed && work_of(slot).packets > 0) {
        ask_rekey(slot, RekeyPacer::When::always);
    }
    return done;
}

// ---- what workers say --------------------------------------------------------------------------

void Handover::take(const event::SequenceLow& news) {
    Slot* slot = slots_.find(news.id);
    if (slot == nullptr || slot->outbound() == nullptr) return;
    slot->outbound()->extension_due = true;
    extend(*slot);
}

void Handover::take(const event::SequenceExhausted& news) {
    if (Slot* slot = slots_.find(news.id)) ask_rekey(*slot, RekeyPacer::When::always);
}

void Handover::take(const event::InboundRetired& news) {
    Slot* slot = slots_.find(news.id);
    if (slot == nullptr || slot->inbound() == nullptr) return;
    InboundSide& side = *slot->inbound();
    if (side.before && news.sa == side.before.get()) {
        side.before.reset();  // replaced
        return;
    }
    if (!side.before) return let_go(*slot);
    // The new form was refused: the earlier one is still in place, and leaves now.
    side.sa = std::move(side.before);
    kept_[slot->name] = "its worker cannot change it";
    if (slot->phase != Phase::retiring) slots_.leave(*slot);
    retire(*slot);
    around_.another_round(kSoon);
}

void Handover::take(const event::OutboundRetired& news) {
    if (Slot* slot = slots_.find(news.id)) let_go(*slot);
}

}  // namespace sallyport::control
