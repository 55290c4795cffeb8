// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/feedback.h"

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

namespace sallyport::control {
namespace {

bool limits_volume(const xfrm::Limits& limits) {
    return std::min({limits.soft_bytes, limits.hard_bytes, limits.soft_packets,
                     limits.hard_packets}) != xfrm::kNoLimit;
}

}  // namespace

bool Feedback::write(Slot& slot, const xfrm::KernelSa& state, const Work& work,
                     const std::optional<xfrm::Replay>& replay) {
    const xfrm::CounterUpdate update{.replay = replay, .usage = usage_of(slot, work)};
    if (!around_.kernel.write_counters(state, update)) return false;
    note_written(slot, work, replay);
    return true;
}

void Feedback::note_written(Slot& slot, const Work& work,
                            const std::optional<xfrm::Replay>& replay) {
    slot.written_packets = work.packets;
    slot.written_bytes = work.bytes;
    if (InboundSide* side = slot.inbound(); side != nullptr && replay) {
        side->written_top = replay->top;
    }
}

void Feedback::note_use(Slot& slot) const {
    const uint64_t packets = work_of(slot).packets;
    if (packets != slot.seen_packets) slot.last_use = around_.clock.seconds();
    slot.seen_packets = packets;
}

bool Feedback::has_news(const Slot& slot) {
    const Work work = work_of(slot);
    const InboundSide* side = slot.inbound();
    return work.packets != slot.written_packets || work.packets != slot.seen_packets ||
           (side != nullptr && work.top > side->written_top);
}

void Feedback::write_counters(std::span<Slot* const> slots) {
    struct Written {
        Slot* slot;
        Work work;
    };
    std::vector<Written> written;
    std::vector<xfrm::CounterWrite> writes;
    for (Slot* slot : slots) {
        note_use(*slot);
        const Work work = work_of(*slot);
        const xfrm::KernelSa* state = around_.kernel.find(slot->name);
        if (state == nullptr) continue;
        std::optional<xfrm::Replay> replay;
        if (const InboundSide* side = slot->inbound()) {
            const uint64_t top = std::max({side->written_top, work.top, state->replay.top});
            if (top != side->written_top) {
                replay = slot->replay;
                replay->sent = 0;
                replay->top = top;
            }
        }
        if (work.packets == slot->written_packets && !replay) continue;
        written.push_back({.slot = slot, .work = work});
        writes.push_back(
            {.state = state, .update = {.replay = replay, .usage = usage_of(*slot, work)}});
    }
    const auto done = around_.kernel.write_all(writes);
    for (size_t i = 0; i < done.size(); ++i) {
        // ESRCH: it was deleted, the message is on its way.
        if (done[i]) note_written(*written[i].slot, written[i].work, writes[i].update.replay);
    }
}

bool Feedback::check_limits(Slot& slot) {
    const xfrm::Limits& limits = slot.limits;
    const bool used_up = is_used_up(slot);
    if (!limits_volume(limits) && !used_up) return false;
    const xfrm::Usage usage = usage_of(slot, work_of(slot));
    const bool hard =
        used_up || usage.bytes >= limits.hard_bytes || usage.packets >= limits.hard_packets;
    const bool soft = usage.bytes >= limits.soft_bytes || usage.packets >= limits.soft_packets;
    if (hard ? slot.hard_reported : !soft || slot.soft_reported) return false;
    const xfrm::KernelSa* state = around_.kernel.find(slot.name);
    if (state == nullptr) return false;
    Slot* one = &slot;
    write_counters({&one, 1});  // the IKE daemon reads them
    const auto told = around_.kernel.expire(*state, hard);
    if (!told && told.error().number != ESRCH) {
        if (!std::exchange(slot.expiry_failed, true)) {
            around_.notices.error(
                to_text(slot.name) +
                ": the end of its lifetime cannot be reported: " + told.error().text);
        }
        return true;  // tried again: a hard limit must hold
    }
    slot.expiry_failed = false;
    slot.soft_reported = true;
    slot.rekey_wanted = RekeyPacer::When::always;  // and asked for again, see Handover
    slot.rekey_asked_at = around_.clock.now();
    slot.hard_reported = hard;  // the kernel has deleted it: the message is on its way
    return true;
}

void Feedback::ask_rekey(Slot& slot, RekeyPacer::When when) {
    const auto now = around_.clock.now();
    if (slot.rekey_wanted && (*slot.rekey_wanted == when || when == RekeyPacer::When::paced)) {
        return;  // ask_again() does
    }
    slot.rekey_wanted = when;
    slot.rekey_asked_at = now;
    pacer_.ask(slot.name, slot.decision.group, now, when);
}

bool Feedback::asks_again(const Slot& slot) const {
    return slot.rekey_wanted && around_.clock.now() - slot.rekey_asked_at >= kAskAgain;
}

// One that is rekeyed goes soon after.
void Feedback::ask_again(Slot& slot) {
    if (!asks_again(slot)) return;
    const auto now = around_.clock.now();
    slot.rekey_asked_at = now;
    pacer_.ask(slot.name, slot.decision.group, now, *slot.rekey_wanted);
}

void Feedback::send_rekey_requests(size_t at_most) {
    for (size_t sent = 0; sent < at_most; ++sent) {
        const auto name = pacer_.next();
        if (!name) return;
        if (const xfrm::KernelSa* state = around_.kernel.find(*name)) ask_now(*state);
    }
}

void Feedback::ask_now(const xfrm::KernelSa& state) {
    const auto told = around_.kernel.expire(state, false);
    if (told || told.error().number == ESRCH) return;
    around_.notices.warning(to_text(state.name) +
                            " cannot be asked to be rekeyed: " + told.error().text);
}

// Its limits with a soft lifetime that comes up in so long. Nullopt: its own does before.
std::optional<xfrm::Limits> Feedback::sooner(const xfrm::KernelSa& state,
                                             std::chrono::seconds in) const {
    const uint64_t now = around_.clock.seconds();
    const uint64_t age = now - std::min(now, state.usage.add_time);
    const uint64_t soft = age + static_cast<uint64_t>(in.count());
    xfrm::Limits limits = state.limits;
    if (limits.soft_add_s != 0 && limits.soft_add_s <= soft) return std::nullopt;
    limits.soft_add_s = soft;
    return limits;
}

void Feedback::leave_rekey_requests() {
    std::vector<xfrm::LimitWrite> writes;
    std::chrono::milliseconds in{1000};
    while (const auto name = pacer_.next()) {
        const xfrm::KernelSa* state = around_.kernel.find(*name);
        if (state == nullptr) continue;
        const auto limits = sooner(*state, std::chrono::duration_cast<std::chrono::seconds>(in));
        in += kSpread;
        if (limits) writes.push_back({.state = state, .limits = *limits});
    }
    const auto done = around_.kernel.limit_all(writes);
    for (size_t i = 0; i < done.size(); ++i) {
        if (!done[i] && done[i].error().number != ESRCH) ask_now(*writes[i].state);
    }
}

}  // namespace sallyport::control
