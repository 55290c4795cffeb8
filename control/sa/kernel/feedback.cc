// SPDX-License-Identifier: Apache-2.0
//
// The way back to the kernel: counters, limits, reservations, requests to rekey.
//
// Every second the counters of SAs that were used are written into their states (XFRM_MSG_NEWAE),
// so that `ip -s xfrm state` and the IKE daemon show what really happened. Limits in bytes and
// packets are looked at every kTickMs, because the kernel, which enforces them per packet, does not
// see the packets. Limits in seconds are the kernel's own.
#include <algorithm>
#include <chrono>
#include <utility>

#include "control/sa/kernel/kernel_sas.h"
#include "control/sa/static/static_sas.h"

namespace sallyport::control {

using ErrorCode = boost::system::error_code;
using xfrm::StateDirection;

namespace {

std::string name_of(const xfrm::SaName& name) {
    return "SA " + xfrm::to_text(name.spi) + " to " + to_string(name.destination);
}

bool limits_volume(const xfrm::Limits& limits) {
    return std::min({limits.soft_bytes, limits.hard_bytes, limits.soft_packets,
                     limits.hard_packets}) != xfrm::kNoLimit;
}

}  // namespace

uint64_t seconds_since_epoch() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(now).count());
}

bool KernelSaControl::same_key(const Slot& slot, const xfrm::KernelSa& state) {
    return digest_of_key(state.key.bytes()) == slot.memory_name.key;
}

// While a replacement is on its way to the worker, the one before counts.
const InboundSa* KernelSaControl::counting(const Slot& slot) {
    return slot.old_inbound ? slot.old_inbound.get() : slot.inbound.get();
}

// Of a replacement and the one before the greater counts: the replacement begins with nothing and
// takes over what the other has, and nobody knows yet whether it has done so.
KernelSaControl::Work KernelSaControl::work_of(const Slot& slot) {
    Work work;
    if (slot.outbound) {
        work.packets = slot.outbound->packets.read();
        work.bytes = slot.outbound->bytes.read();
    }
    for (const InboundSa* sa : {slot.inbound.get(), slot.old_inbound.get()}) {
        if (sa == nullptr) continue;
        work.packets = std::max(work.packets, sa->packets.read());
        work.bytes = std::max(work.bytes, sa->bytes.read());
        work.top = std::max(work.top, sa->replay.top());
    }
    return work;
}

xfrm::Usage KernelSaControl::usage_of(const Slot& slot, const Work& work) {
    xfrm::Usage usage = slot.base;
    usage.packets += work.packets;
    usage.bytes += work.bytes;
    usage.use_time = std::max(usage.use_time, slot.last_use);
    return usage;
}

// `replay`: nullopt leaves the kernel's own alone.
bool KernelSaControl::write(Slot& slot, const xfrm::KernelSa& state, const Work& work,
                            const std::optional<xfrm::Replay>& replay) {
    if (!socket_->write_counters(state, {.replay = replay, .usage = usage_of(slot, work)})) {
        return false;
    }
    slot.written_packets = work.packets;
    slot.written_bytes = work.bytes;
    if (slot.inbound && replay) slot.written_top = replay->top;
    return true;
}

bool KernelSaControl::write_sent(Slot& slot, const xfrm::KernelSa& state, uint64_t sent) {
    xfrm::Replay replay = slot.replay;
    replay.sent = sent;
    replay.top = 0;
    return write(slot, state, work_of(slot), replay);
}

void KernelSaControl::note_use(Slot& slot) {
    const uint64_t packets = work_of(slot).packets;
    if (packets != slot.seen_packets) slot.last_use = seconds_since_epoch();
    slot.seen_packets = packets;
}

void KernelSaControl::tick() {
    if (stopped_) return;
    ++ticks_;
    const bool feedback = ticks_ % kFeedbackTicks == 0;
    commands_->flush();
    if (read_again_due_ && feedback) read_again();
    for (const auto& [name, slot] : by_name_) {
        if (slot->phase != Phase::installed) continue;
        if (slot->outbound) {
            // A worker asks once; where its event was lost the numbers themselves tell.
            const uint64_t next = __atomic_load_n(&slot->outbound->sequence_next, __ATOMIC_RELAXED);
            const uint64_t left = slot->told - std::min(next, slot->told);
            if (left < sequence_block(slot->esn) / 4) slot->extension_due = true;
            if (slot->extension_due) extend(*slot);
        }
        if (feedback) {
            note_use(*slot);
            write_counters(*slot);
        }
        check_limits(*slot);
    }
    if (feedback) send_rekey_requests(kRekeysPerSecond);
    tick_timer_.expires_after(std::chrono::milliseconds(kTickMs));
    tick_timer_.async_wait([this](ErrorCode error) {
        if (!error) tick();
    });
}

void KernelSaControl::check_limits(Slot& slot) {
    const xfrm::Limits& limits = slot.limits;
    if (!limits_volume(limits)) return;
    const xfrm::Usage usage = usage_of(slot, work_of(slot));
    const bool hard = usage.bytes >= limits.hard_bytes || usage.packets >= limits.hard_packets;
    const bool soft = usage.bytes >= limits.soft_bytes || usage.packets >= limits.soft_packets;
    if (hard ? slot.hard_reported : !soft || slot.soft_reported) return;
    const xfrm::KernelSa* state = mirror_.find(slot.name);
    if (state == nullptr) return;
    write_counters(slot);  // the IKE daemon reads them
    const auto told = socket_->expire(*state, hard);
    if (!told && told.error().number != ESRCH) {
        if (!std::exchange(slot.expiry_failed, true)) {
            log_.error(name_of(slot.name) +
                       ": the end of its lifetime cannot be reported: " + told.error().text);
        }
        return;  // tried again: a hard limit must hold
    }
    slot.expiry_failed = false;
    slot.soft_reported = true;
    slot.hard_reported = hard;  // the kernel has deleted it: the message is on its way
}

void KernelSaControl::write_counters(Slot& slot) {
    const Work work = work_of(slot);
    const xfrm::KernelSa* state = mirror_.find(slot.name);
    if (state == nullptr) return;
    std::optional<xfrm::Replay> replay;
    if (slot.inbound) {
        const uint64_t top = std::max({slot.written_top, work.top, state->replay.top});
        if (top != slot.written_top) {
            replay = slot.replay;
            replay->sent = 0;
            replay->top = top;
        }
    }
    if (work.packets == slot.written_packets && !replay) return;
    // Outbound the usage alone: the kernel may have sent since we looked last, and a number put
    // down again is a nonce used twice. ESRCH: it was deleted, the message is on its way.
    (void)write(slot, *state, work, replay);
}

// What a worker that is done with the SA has used, for the kernel that goes on with it. Counters
// only move up, also where the state was deleted and added again with older ones.
bool KernelSaControl::hand_back(Slot& slot) {
    if ((!slot.inbound && !slot.outbound) || mirror_.find(slot.name) == nullptr) return true;
    const auto state = socket_->get(slot.name);
    if (!state) return state.error().number == ESRCH;
    if (!same_key(slot, *state)) return true;  // another SA
    const Work work = work_of(slot);
    note_use(slot);
    slot.base = without_ours(slot, state->usage);
    std::optional<xfrm::Replay> replay = state->replay;
    if (slot.inbound && (work.top > state->replay.top || work.packets > 0)) {
        // Also where the kernel is ahead: below its top the worker has accepted packets too.
        replay->top = std::max(work.top, state->replay.top);
    } else if (slot.outbound && slot.reserved - 1 > state->replay.sent) {
        replay->sent = slot.reserved - 1;
    } else if (work.packets == slot.written_packets) {
        return true;
    } else {
        replay.reset();
    }
    return write(slot, *state, work, replay);
}

// The kernel's own part of what its state shows.
xfrm::Usage KernelSaControl::without_ours(const Slot& slot, xfrm::Usage usage) {
    usage.packets -= std::min(usage.packets, slot.written_packets);
    usage.bytes -= std::min(usage.bytes, slot.written_bytes);
    return usage;
}

void KernelSaControl::extend(Slot& slot) {
    if (slot.phase != Phase::installed || !slot.outbound) return;
    if (slot.told == slot.reserved) {
        if (slot.reserved >= sequence_end(slot.esn)) {
            slot.extension_due = false;
            ask_rekey(slot, Rekey::always);
            return;
        }
        // The kernel tells of its own use late, or not at all where it is a packet now and then.
        const auto state = socket_->get(slot.name);
        if (!state || !same_key(slot, *state)) return;
        if (state->replay.sent >= slot.reserved) return go_on_above(slot, *state);
        const uint64_t reserved = next_block(slot.reserved, slot.esn).end;
        if (!write_sent(slot, *state, reserved - 1)) return;  // tried again
        slot.reserved = reserved;
    }
    tell_range(slot, {.first = slot.told, .end = slot.reserved}, 0);
}

// `next_at_least`: where the worker goes on if it is behind; 0: where it is.
void KernelSaControl::tell_range(Slot& slot, const SequenceStore::Range& range,
                                 uint64_t next_at_least) {
    slot.told = range.end;
    slot.extension_due = false;
    commands_->send(slot.owner,
                    command::ExtendSequence{.sa = slot.outbound.get(),
                                            .reserved = range.end,
                                            .low_water = low_water(range, sequence_end(slot.esn)),
                                            .next_at_least = next_at_least});
}

// The kernel itself has used a state that a worker serves: outbound, traffic of this host that was
// not routed into sp0; inbound, packets that came in by a device which is no port.
void KernelSaControl::kernel_used(const xfrm::SaName& name) {
    const auto found = by_name_.find(name);
    if (found == by_name_.end() || found->second->phase != Phase::installed) return;
    Slot& slot = *found->second;
    const auto state = socket_->get(name);
    if (!state) return;
    if (slot.inbound) {
        if (state->replay.top <= std::max(slot.written_top, work_of(slot).top)) return;
        if (!std::exchange(slot.used_warned, true)) {
            log_.warning(name_of(name) +
                         ": the kernel has received packets of it too, by a device that is no "
                         "port; make that device a port, or replay protection is split in two");
        }
        return;
    }
    if (state->replay.sent >= slot.reserved && same_key(slot, *state)) go_on_above(slot, *state);
}

// The kernel has sent with numbers behind those that are reserved. `state`: as it is now.
void KernelSaControl::go_on_above(Slot& slot, const xfrm::KernelSa& state) {
    const uint64_t first = state.replay.sent + 1;
    slot.extension_due = false;
    if (first >= sequence_end(slot.esn)) return ask_rekey(slot, Rekey::always);
    slot.base = without_ours(slot, state.usage);
    const SequenceStore::Range range = next_block(first, slot.esn);
    if (!write_sent(slot, state, range.end - 1)) return;
    slot.reserved = range.end;
    tell_range(slot, range, range.first);
    ask_rekey(slot);
    if (!std::exchange(slot.used_warned, true)) {
        log_.warning(name_of(slot.name) +
                     ": the kernel has sent with it too (traffic of this host itself?): the worker "
                     "goes on above its numbers; route such traffic into " +
                     config_.device);
    }
}

// Where the kernel goes on sending for a group, each new SA has two senders too: without a limit
// it would be rekeyed for ever.
void KernelSaControl::ask_rekey(Slot& slot, Rekey when) {
    if (slot.rekey_asked) return;
    if (when == Rekey::paced) {
        const auto now = std::chrono::steady_clock::now();
        RekeyPace& pace = rekey_pace_[slot.group];
        if (pace.asked == 0 || now - pace.since > kRekeyPause) pace = {.since = now};
        // Per-CPU SAs of a group come at once, each with its predecessor.
        if (pace.asked >= 2 * (setup_.cpus.size() + 1)) return;
        ++pace.asked;
    }
    slot.rekey_asked = true;
    rekey_queue_.push_back(slot.name);
}

void KernelSaControl::send_rekey_requests(size_t at_most) {
    for (size_t i = 0; i < at_most && !rekey_queue_.empty(); ++i) {
        const xfrm::SaName name = rekey_queue_.front();
        rekey_queue_.pop_front();
        const xfrm::KernelSa* state = mirror_.find(name);
        if (state == nullptr) continue;
        const auto told = socket_->expire(*state, false);
        if (!told && told.error().number != ESRCH) {
            log_.warning(name_of(name) + " cannot be asked to be rekeyed: " + told.error().text);
        }
    }
}

void KernelSaControl::write_back() {
    if (!socket_) return;
    size_t failed = 0;
    for (const auto& slot : slots_) {  // those on their way out too
        if (!slot) continue;
        if (!hand_back(*slot)) ++failed;
        // The kernel goes on with it: a second sender under the key.
        if (slot->outbound && slot->phase == Phase::installed && work_of(*slot).packets > 0) {
            slot->rekey_asked = true;
            rekey_queue_.push_back(slot->name);
        }
    }
    if (failed > 0) {
        log_.warning("the counters of " + std::to_string(failed) +
                     " SAs could not be written back to xfrm");
    }
    send_rekey_requests(rekey_queue_.size());
}

// ---- views -------------------------------------------------------------------------------------

std::vector<KernelSaView> KernelSaControl::sas() {
    std::vector<KernelSaView> out;
    for (const auto& [name, state] : mirror_.states()) {
        KernelSaView view;
        view.state = &state;
        view.usage = state.usage;
        view.sequence = std::max(state.replay.sent, state.replay.top);
        if (const auto decision = adoption_.sas.find(name); decision != adoption_.sas.end()) {
            view.direction = decision->second.direction;
            view.reason = decision->second.reason;
        }
        if (const auto kept = kept_.find(name); kept != kept_.end()) view.reason = kept->second;
        const auto found = by_name_.find(name);
        if (found == by_name_.end()) {
            if (view.reason.empty()) view.reason = "about to be taken over";
        } else if (const Slot& slot = *found->second; slot.phase == Phase::installed) {
            view.reason.clear();
            view.worker = slot.owner;
            view.usage = usage_of(slot, work_of(slot));
            if (slot.outbound) {
                view.sequence =
                    __atomic_load_n(&slot.outbound->sequence_next, __ATOMIC_RELAXED) - 1;
                view.reserved = slot.reserved - 1;
                view.drops = &slot.outbound->drops;
            } else {
                view.sequence = work_of(slot).top;
                view.drops = &counting(slot)->drops;
            }
        } else {
            view.reason = "about to be taken over";
        }
        out.push_back(std::move(view));
    }
    return out;
}

KernelSaControl::Counts KernelSaControl::counts() const {
    Counts counts;
    for (const auto& [name, slot] : by_name_) {
        if (slot->phase == Phase::installed) ++counts.adopted;
    }
    counts.with_kernel =
        mirror_.states().size() - std::min(mirror_.states().size(), counts.adopted);
    return counts;
}

size_t KernelSaControl::adopted_by(WorkerId worker) const {
    return static_cast<size_t>(std::ranges::count_if(by_name_, [worker](const auto& item) {
        return item.second->phase == Phase::installed && item.second->owner == worker;
    }));
}

}  // namespace sallyport::control
