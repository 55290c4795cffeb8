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
#include "control/sa/kernel/rows.h"
#include "control/sa/sequence_block.h"

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

bool KernelSas::same_key(const Slot& slot, const xfrm::KernelSa& state) {
    return digest_of_key(state.key.bytes()) == slot.memory_name.key;
}

// While a replacement is on its way to the worker, the one before counts.
const InboundSa* KernelSas::counting(const Slot& slot) {
    return slot.old_inbound ? slot.old_inbound.get() : slot.inbound.get();
}

// Of a replacement and the one before the greater counts: the replacement begins with nothing and
// takes over what the other has, and nobody knows yet whether it has done so.
KernelSas::Work KernelSas::work_of(const Slot& slot) {
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

xfrm::Usage KernelSas::usage_of(const Slot& slot, const Work& work) {
    xfrm::Usage usage = slot.base;
    usage.packets += work.packets;
    usage.bytes += work.bytes;
    usage.use_time = std::max(usage.use_time, slot.last_use);
    return usage;
}

// `replay`: nullopt leaves the kernel's own alone.
bool KernelSas::write(Slot& slot, const xfrm::KernelSa& state, const Work& work,
                      const std::optional<xfrm::Replay>& replay) {
    if (!socket_->write_counters(state, {.replay = replay, .usage = usage_of(slot, work)})) {
        return false;
    }
    slot.written_packets = work.packets;
    slot.written_bytes = work.bytes;
    if (slot.inbound && replay) slot.written_top = replay->top;
    return true;
}

bool KernelSas::write_sent(Slot& slot, const xfrm::KernelSa& state, uint64_t sent) {
    xfrm::Replay replay = slot.replay;
    replay.sent = sent;
    replay.top = 0;
    return write(slot, state, work_of(slot), replay);
}

void KernelSas::note_use(Slot& slot) {
    const uint64_t packets = work_of(slot).packets;
    if (packets != slot.seen_packets) slot.last_use = seconds_since_epoch();
    slot.seen_packets = packets;
}

void KernelSas::on_tick() {
    if (stopped_) return;
    ++ticks_;
    const bool feedback = ticks_ % kFeedbackTicks == 0;

    if (read_again_due_ && feedback) read_again();
    for (const auto& [name, slot] : by_name_) {
        if (slot->phase != Phase::installed) continue;
        if (slot->outbound) {
            // A worker asks once; where its event was lost the numbers themselves tell.
            const uint64_t next = slot->outbound->sequence_next.read();
            const uint64_t left = slot->told - std::min(next, slot->told);
            if (left < sequence_left_min(slot->esn)) slot->extension_due = true;
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
        if (!error) on_tick();
    });
}

void KernelSas::check_limits(Slot& slot) {
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

void KernelSas::write_counters(Slot& slot) {
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
bool KernelSas::hand_back(Slot& slot) {
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
xfrm::Usage KernelSas::without_ours(const Slot& slot, xfrm::Usage usage) {
    usage.packets -= std::min(usage.packets, slot.written_packets);
    usage.bytes -= std::min(usage.bytes, slot.written_bytes);
    return usage;
}

void KernelSas::extend(Slot& slot) {
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
void KernelSas::tell_range(Slot& slot, const SequenceRange& range, uint64_t next_at_least) {
    slot.told = range.end;
    slot.extension_due = false;
    commands_.send(slot.owner,
                   command::ExtendSequence{.sa = slot.outbound.get(),
                                           .reserved = range.end,
                                           .low_water = low_water(range, sequence_end(slot.esn)),
                                           .next_at_least = next_at_least});
}

// The kernel itself has used a state that a worker serves: outbound, traffic of this host that was
// not routed into sp0; inbound, packets that came in by a device which is no port.
void KernelSas::kernel_used(const xfrm::SaName& name) {
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
void KernelSas::go_on_above(Slot& slot, const xfrm::KernelSa& state) {
    const uint64_t first = state.replay.sent + 1;
    slot.extension_due = false;
    if (first >= sequence_end(slot.esn)) return ask_rekey(slot, Rekey::always);
    slot.base = without_ours(slot, state.usage);
    const SequenceRange range = next_block(first, slot.esn);
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
void KernelSas::ask_rekey(Slot& slot, Rekey when) {
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

void KernelSas::send_rekey_requests(size_t at_most) {
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

void KernelSas::give_back() {
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

std::vector<SaRow> KernelSas::sas() const {
    std::vector<SaRow> out;
    for (const auto& [name, state] : mirror_.states()) {
        const auto decision = adoption_.sas.find(name);
        SaRow row = row_of(state, decision != adoption_.sas.end() ? &decision->second : nullptr);
        if (const auto kept = kept_.find(name); kept != kept_.end()) row.reason = kept->second;
        const auto found = by_name_.find(name);
        if (found == by_name_.end()) {
            if (row.reason.empty()) row.reason = "about to be taken over";
        } else if (const Slot& slot = *found->second; slot.phase == Phase::installed) {
            row.state = SaRow::State::active;
            row.reason.clear();
            row.worker = slot.owner;
            const Work work = work_of(slot);
            set_usage(row, usage_of(slot, work));
            if (slot.outbound) {
                row.sequence = slot.outbound->sequence_next.read() - 1;
                row.sequence_reserved = slot.reserved - 1;
                set_drops(row, slot.outbound->drops);
            } else {
                row.sequence = work.top;
                set_drops(row, counting(slot)->drops);
            }
        } else {
            row.reason = "about to be taken over";
        }
        out.push_back(std::move(row));
    }
    return out;
}

std::vector<PolicyRow> KernelSas::policies() const {
    std::vector<PolicyRow> out;
    for (const PolicyView& view : adoption_.policies) {
        const auto found = mirror_.policies().find(view.index);
        if (found != mirror_.policies().end()) out.push_back(row_of(found->second, view));
    }
    return out;
}

SourceCounts KernelSas::counts() const {
    size_t adopted = 0;
    for (const auto& [name, slot] : by_name_) {
        if (slot->phase == Phase::installed) ++adopted;
    }
    const size_t sas = mirror_.states().size();
    return {.policies = mirror_.policies().size(),
            .sas = sas,
            .sas_with_kernel = sas - std::min(sas, adopted)};
}

std::string KernelSas::inventory() const {
    return std::to_string(mirror_.policies().size()) + " policies and " +
           std::to_string(mirror_.states().size()) + " SAs in xfrm";
}

size_t KernelSas::served_by(WorkerId worker) const {
    return static_cast<size_t>(std::ranges::count_if(by_name_, [worker](const auto& item) {
        return item.second->phase == Phase::installed && item.second->owner == worker;
    }));
}

}  // namespace sallyport::control
