// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/handover.h"

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

namespace sallyport::control {

using xfrm::StateDirection;

namespace {

constexpr std::chrono::milliseconds kSoon{2};
constexpr std::chrono::milliseconds kLater{100};

}  // namespace

Handover::Handover(const Surroundings& around, const Parts& parts, const crypto::Aead& aead)
    : around_(around),
      slots_(parts.slots),
      memory_(parts.memory),
      feedback_(parts.feedback),
      reservations_(around, parts.slots, parts.memory, parts.feedback,
                    [this](const Slot& slot) { leave_to_kernel(slot); }),
      aead_(aead) {}

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
    if (outbound)
        return slots_.join_group(slot);  // steered when the owners of its policy are published
    slot.side.emplace<InboundSide>();
    slot.steered_at = around_.clock.now();
}

// Each by its own time: a round that is due may be that of an earlier one.
bool Handover::is_settled(const Slot& slot) const {
    if (slot.phase != Phase::steered || !slots_.is_clear(slot)) return false;
    return !slot.settle_first ||
           (slot.steered_at && *slot.steered_at + kSettle <= around_.clock.now());
}

void Handover::go_on(std::span<Slot* const> slots) {
    std::vector<Slot*> settled;
    std::vector<xfrm::SaName> names;
    for (Slot* slot : slots) {
        if (!is_settled(*slot)) continue;
        settled.push_back(slot);
        names.push_back(slot->name);
    }
    const auto states = around_.kernel.get_all(names);
    std::vector<Read> outbound;
    for (size_t i = 0; i < settled.size(); ++i) {
        Slot& slot = *settled[i];
        if (!is_as_steered(slot, states[i])) continue;
        slot.replay = states[i]->replay;
        slot.base = states[i]->usage;
        if (InboundSide* side = slot.inbound()) {
            install_inbound(slot, *side, *states[i]);
            around_.kernel.note(*states[i]);
        } else {
            outbound.push_back({.slot = &slot, .state = &*states[i]});
        }
    }
    install_outbound(outbound);
}

// False: it is left to the kernel and gone, or it has to settle first.
bool Handover::is_as_steered(Slot& slot,
                             const std::expected<xfrm::KernelSa, netlink::Error>& state) {
    if (!state) {
        // One that has gone meanwhile: the message about that is on its way.
        const bool gone = state.error().number == ESRCH;
        keep_with_kernel(slot, gone ? "it was deleted" : state.error().text);
        return false;
    }
    if (!same_key(slot, *state)) {
        keep_with_kernel(slot, "it was replaced");
        return false;
    }
    // Its first packets came between the message about it and now: they too must have passed.
    if (slot.settle_first || !used_by_kernel(*state)) return true;
    slot.settle_first = true;
    return false;
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

bool Handover::needs_look(const Slot& slot) const {
    const InboundSide* side = slot.inbound();
    return (side != nullptr && side->catch_up_due) || Reservations::is_low(slot) ||
           feedback_.asks_again(slot);
}

void Handover::look_after(std::span<Slot* const> slots) {
    catch_up(slots);
    std::vector<Slot*> low;
    for (Slot* slot : slots) {
        if (Reservations::is_low(*slot)) low.push_back(slot);
    }
    reservations_.extend(low);
    for (Slot* slot : slots) feedback_.ask_again(*slot);
}

void Handover::catch_up(std::span<Slot* const> slots) {
    std::vector<Slot*> due;
    std::vector<xfrm::SaName> names;
    for (Slot* slot : slots) {
        const InboundSide* side = slot->inbound();
        if (side == nullptr || slot->phase != Phase::installed || !side->catch_up_due) continue;
        due.push_back(slot);
        names.push_back(slot->name);
    }
    const auto states = around_.kernel.get_all(names);
    for (size_t i = 0; i < due.size(); ++i) {
        if (states[i]) catch_up(*due[i], *states[i]);
    }
}

void Handover::catch_up(Slot& slot, const xfrm::KernelSa& state) {
    compare(slot, state);
    if (slot.replaced) return;
    InboundSide& side = *slot.inbound();
    side.catch_up_due = false;
    if (state.replay.top <= side.written_top) return;
    side.written_top = state.replay.top;
    around_.workers.send(slot.owner(), command::SkipReplay{.id = slot.id,
                                                           .spi = slot.name.spi,
                                                           .destination = slot.name.destination,
                                                           .last = state.replay.top});
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
            .df = slot.decision.df,
            .copy_dscp = slot.decision.copy_dscp,
            .outer_ttl = 64};
}

void Handover::install_outbound(std::span<const Read> all) {
    std::vector<Read> left;
    std::vector<Reservations::Wish> wishes;
    for (const Read& each : all) {
        if (reservations_.next_unused(*each.slot, *each.state) >= sequence_end(each.state->esn)) {
            keep_with_kernel(*each.slot, "its sequence numbers are used up");
            continue;
        }
        left.push_back(each);
        wishes.push_back({.slot = each.slot,
                          .looked_at = each.state,
                          .size = reservations_.first_block(*each.state)});
    }
    const auto ranges = reservations_.reserve(wishes);
    for (size_t i = 0; i < left.size(); ++i) install_outbound(left[i], ranges[i]);
}

void Handover::install_outbound(const Read& read, const Reservations::Reserved& range) {
    Slot& slot = *read.slot;
    if (!range) {
        return keep_with_kernel(slot,
                                "sequence numbers cannot be reserved in it: " + range.error());
    }
    // Drawn for each SA that is built: see "Never a nonce twice".
    const auto mask = around_.random.bits();
    if (!mask) return keep_with_kernel(slot, mask.error());
    auto made = make_outbound_sa(aead_, outbound_parameters(slot, *read.state, *range, *mask));
    if (!made) return keep_with_kernel(slot, made.error());
    OutboundSide& side = *slot.outbound();
    side.sa = std::move(*made);
    reservations_.note_told(side, *range, range->first);
    slot.phase = Phase::installed;
    around_.workers.send(slot.owner(), command::InstallOutbound{side.sa.get()});
    if (range->first > 1) feedback_.ask_rekey(slot);  // another sender has used the key
    around_.kernel.note(*read.state);
}

void Handover::change_selectors(Slot& slot, const xfrm::KernelSa& state) {
    InboundSide& side = *slot.inbound();
    if (!same_key(slot, state)) return;  // another one by now: this one goes in the next round
    if (side.before) {
        around_.another_round(kLater);  // one replacement at a time
        slot.decision.selectors.clear();
        slots_.doubt(slot.name);
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

void Handover::kernel_used(std::span<Slot* const> slots) {
    std::vector<Slot*> installed;
    std::vector<xfrm::SaName> names;
    for (Slot* slot : slots) {
        if (slot->phase != Phase::installed) continue;
        installed.push_back(slot);
        names.push_back(slot->name);
    }
    const auto states = around_.kernel.get_all(names);
    for (size_t i = 0; i < installed.size(); ++i) {
        if (states[i]) kernel_used(*installed[i], *states[i]);
    }
}

void Handover::kernel_used(Slot& slot, const xfrm::KernelSa& state) {
    compare(slot, state);
    if (slot.replaced) return;
    const InboundSide* side = slot.inbound();
    if (side == nullptr) return reservations_.follow(slot, state);
    if (state.replay.top <= std::max(side->written_top, work_of(slot).top)) return;
    if (std::exchange(slot.used_warned, true)) return;
    around_.notices.warning(to_text(slot.name) +
                            ": the kernel has received packets of it too, by a device that is no "
                            "port; make that device a port, or replay protection is split in two");
}

// It stays in place until its policy has another owner.
void Handover::leave_to_kernel(const Slot& slot) {
    if (!kept_.emplace(slot.name, kHostUsesIt).second) return;
    slots_.doubt(slot.name);
    around_.notices.warning(to_text(slot.name) + ": " + kHostUsesIt +
                            " again and again: it and its successors stay with the kernel for a "
                            "while; " +
                            Reservations::kWhatUsesIt);
    around_.another_round(kSoon);
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
        if (state.error().number == ESRCH) return;
        slots_.doubt(name);
        around_.another_round(kLater);
        return;
    }
    const xfrm::Replay replay = raised(*state, direction);
    if (replay != state->replay) {
        const xfrm::CounterUpdate update{.replay = replay, .usage = std::nullopt};
        if (const auto done = around_.kernel.write_counters(*state, update); !done) {
            if (done.error().number == ESRCH) return;
            slots_.doubt(name);
            around_.another_round(kLater);
            return;
        }
        state->replay = replay;
    }
    around_.kernel.note(*state);
}

// ---- back to the kernel ------------------------------------------------------------------------

void Handover::forget_kept(const xfrm::RegisterChanges& changes,
                           const std::set<xfrm::SaName>& names) {
    for (const auto* others : {&changes.added, &changes.removed}) {
        for (const xfrm::SaName& name : *others) kept_.erase(name);
    }
    for (const xfrm::SaName& name : names) {
        const auto kept = kept_.find(name);
        if (kept != kept_.end() && kept->second == kNoRoom) kept_.erase(kept);
    }
}

void Handover::keep_with_kernel(Slot& slot, const std::string& reason) {
    kept_[slot.name] = reason;
    slots_.doubt(slot.name);
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
        slots_.doubt(slot.name);
        steer_away(slot);
        slots_.release(slot);
        return around_.another_round(kSoon);  // one of its key may be behind in the kernel
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
        feedback_.ask_rekey(slot, returning_ ? RekeyPacer::When::always : RekeyPacer::When::paced);
    }
    slots_.doubt(slot.name);
    steer_away(slot);
    slots_.release(slot);
    if (!returning_) around_.another_round(kSoon);  // one of the same name may wait for this
}

bool Handover::write_back(Slot& slot) {
    const bool done = hand_back(slot);
    // The kernel goes on with it: a second sender under the key.
    if (slot.outbound() != nullptr && slot.phase == Phase::installed && work_of(slot).packets > 0) {
        feedback_.ask_rekey(slot, RekeyPacer::When::always);
    }
    return done;
}

// ---- what workers say --------------------------------------------------------------------------

void Handover::take(const event::SequenceLow& news) {
    Slot* slot = slots_.find(news.id);
    if (slot == nullptr || slot->outbound() == nullptr) return;
    slot->outbound()->extension_due = true;
    low_.push_back(news.id);
}

bool Handover::extend_some() {
    constexpr size_t kAtOnce = 64;
    std::vector<Slot*> slots;
    while (slots.size() < kAtOnce && !low_.empty()) {
        Slot* slot = slots_.find(low_.back());
        low_.pop_back();
        // Of several words of one SA the first is enough; it is due until numbers have been told.
        if (slot != nullptr && std::exchange(slot->outbound()->extension_due, false)) {
            slots.push_back(slot);
        }
    }
    reservations_.extend(slots);
    return !low_.empty();
}

void Handover::take(const event::SequenceExhausted& news) {
    if (Slot* slot = slots_.find(news.id)) feedback_.ask_rekey(*slot, RekeyPacer::When::always);
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
    slots_.doubt(slot->name);
    if (slot->phase != Phase::retiring) slots_.leave(*slot);
    retire(*slot);
    around_.another_round(kSoon);
}

void Handover::take(const event::OutboundRetired& news) {
    if (Slot* slot = slots_.find(news.id)) let_go(*slot);
}

}  // namespace sallyport::control
