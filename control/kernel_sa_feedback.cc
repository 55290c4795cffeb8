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

#include "control/kernel_sa_control.h"
#include "control/sa_control.h"

namespace sallyport::control {

using ErrorCode = boost::system::error_code;
using xfrm::StateDirection;

namespace {

uint64_t seconds_since_epoch() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(now).count());
}

std::string name_of(const xfrm::SaName& name) {
    char spi[16];
    std::snprintf(spi, sizeof spi, "0x%08x", to_index(name.spi));
    return std::string("SA ") + spi + " to " + to_string(name.destination);
}

}  // namespace

// While a replacement is on its way to the worker, the one before counts.
const InboundSa* KernelSaControl::counting(const Slot& slot) {
    return slot.old_inbound ? slot.old_inbound.get() : slot.inbound.get();
}

uint64_t KernelSaControl::packets_of(const Slot& slot) {
    if (slot.outbound) return slot.outbound->packets.read();
    return slot.inbound ? counting(slot)->packets.read() : 0;
}

uint64_t KernelSaControl::bytes_of(const Slot& slot) {
    if (slot.outbound) return slot.outbound->bytes.read();
    return slot.inbound ? counting(slot)->bytes.read() : 0;
}

xfrm::Usage KernelSaControl::usage_of(const Slot& slot) {
    xfrm::Usage usage = slot.base;
    usage.packets += packets_of(slot);
    usage.bytes += bytes_of(slot);
    usage.use_time = std::max(usage.use_time, slot.last_use);
    return usage;
}

xfrm::CounterUpdate KernelSaControl::counters_of(const Slot& slot) const {
    xfrm::CounterUpdate update{.replay = slot.replay, .usage = usage_of(slot)};
    if (slot.outbound) {
        update.replay.sent = slot.reserved - 1;
        update.replay.top = 0;
    } else {
        update.replay.sent = 0;
        update.replay.top = std::max(slot.written_top, counting(slot)->replay.top());
    }
    return update;
}

void KernelSaControl::note_use(Slot& slot) {
    const uint64_t packets = packets_of(slot);
    if (packets != slot.seen_packets) slot.last_use = seconds_since_epoch();
    slot.seen_packets = packets;
}

void KernelSaControl::tick() {
    if (stopped_) return;
    ++ticks_;
    const bool feedback = ticks_ % kFeedbackTicks == 0;
    commands_->flush();
    if (read_again_due_ && feedback) read_again();
    std::vector<Slot*> slots;
    for (const auto& [name, slot] : by_name_) {
        if (slot->phase == Phase::installed) slots.push_back(slot);
    }
    for (Slot* slot : slots) {
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
    const xfrm::Usage usage = usage_of(slot);
    const bool hard = usage.bytes >= limits.hard_bytes || usage.packets >= limits.hard_packets;
    const bool soft = usage.bytes >= limits.soft_bytes || usage.packets >= limits.soft_packets;
    if (hard ? slot.hard_reported : !soft || slot.soft_reported) return;
    const xfrm::KernelSa* state = mirror_.find(slot.name);
    if (state == nullptr) return;
    write_counters(slot);  // the IKE daemon reads them
    const auto told = socket_->expire(*state, hard);
    if (!told && told.error().number != ESRCH) {
        log_.error(name_of(slot.name) +
                   ": the end of its lifetime cannot be reported: " + told.error().text);
    }
    slot.soft_reported = true;
    slot.hard_reported = hard;  // the kernel has deleted it: the message is on its way
}

void KernelSaControl::write_counters(Slot& slot) {
    const uint64_t packets = packets_of(slot);
    const uint64_t bytes = bytes_of(slot);
    const xfrm::CounterUpdate update = counters_of(slot);
    const bool top_moved = slot.inbound && update.replay.top != slot.written_top;
    if (packets == slot.written_packets && !top_moved) return;
    const xfrm::KernelSa* state = mirror_.find(slot.name);
    if (state == nullptr) return;
    // ESRCH: it was deleted, the message is on its way.
    if (!socket_->write_counters(*state, update)) return;
    slot.written_packets = packets;
    slot.written_bytes = bytes;
    if (slot.inbound) slot.written_top = update.replay.top;
}

void KernelSaControl::extend(Slot& slot) {
    if (slot.phase != Phase::installed || !slot.outbound) return;
    const uint64_t end = sequence_end(slot.esn);
    if (slot.told == slot.reserved) {
        if (slot.reserved >= end) {
            slot.extension_due = false;
            ask_rekey(slot);
            return;
        }
        const xfrm::KernelSa* state = mirror_.find(slot.name);
        if (state == nullptr) return;
        xfrm::CounterUpdate update = counters_of(slot);
        const uint64_t reserved =
            slot.reserved + std::min(sequence_block(slot.esn), end - slot.reserved);
        update.replay.sent = reserved - 1;
        if (!socket_->write_counters(*state, update)) return;  // tried again
        slot.reserved = reserved;
    }
    Command command;
    command.kind = Command::Kind::extend_sequence;
    command.outbound = slot.outbound.get();
    command.number = slot.reserved;
    command.number2 = low_water({.first = slot.told, .end = slot.reserved}, end);
    slot.told = slot.reserved;
    slot.extension_due = false;
    commands_->send(slot.owner, command);
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
        if (state->replay.top <= std::max(slot.written_top, counting(slot)->replay.top())) return;
        if (!std::exchange(slot.used_warned, true)) {
            log_.warning(name_of(name) +
                         ": the kernel has received packets of it too, by a device that is no "
                         "port; make that device a port, or replay protection is split in two");
        }
        return;
    }
    if (state->replay.sent < slot.reserved) return;
    const uint64_t end = sequence_end(slot.esn);
    const uint64_t first = state->replay.sent + 1;
    if (first >= end) return;
    slot.base.packets = state->usage.packets - std::min(state->usage.packets, slot.written_packets);
    slot.base.bytes = state->usage.bytes - std::min(state->usage.bytes, slot.written_bytes);
    xfrm::CounterUpdate update = counters_of(slot);
    const SequenceStore::Range range{
        .first = first, .end = first + std::min(sequence_block(slot.esn), end - first)};
    update.replay.sent = range.end - 1;
    if (!socket_->write_counters(*state, update)) return;
    slot.reserved = range.end;
    slot.told = range.end;
    Command command;
    command.kind = Command::Kind::extend_sequence;
    command.outbound = slot.outbound.get();
    command.number = range.end;
    command.number2 = low_water(range, end);
    command.number3 = range.first;
    commands_->send(slot.owner, command);
    ask_rekey(slot);
    if (!std::exchange(slot.used_warned, true)) {
        log_.warning(name_of(name) +
                     ": the kernel has sent with it too (traffic of this host itself?): the worker "
                     "goes on above its numbers; route such traffic into " +
                     config_.device);
    }
}

void KernelSaControl::ask_rekey(Slot& slot) {
    if (std::exchange(slot.rekey_asked, true)) return;
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
    for (const auto& [name, slot] : by_name_) {
        if (slot->phase != Phase::installed) continue;
        note_use(*slot);
        write_counters(*slot);
        if (slot->written_packets != packets_of(*slot)) ++failed;
        // The kernel goes on with it: a second sender under the key.
        if (slot->outbound && packets_of(*slot) > 0) {
            slot->rekey_asked = true;
            rekey_queue_.push_back(name);
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
            view.usage = usage_of(slot);
            if (slot.outbound) {
                view.sequence =
                    __atomic_load_n(&slot.outbound->sequence_next, __ATOMIC_RELAXED) - 1;
                view.reserved = slot.reserved - 1;
                view.drops = &slot.outbound->drops;
            } else {
                view.sequence = counting(slot)->replay.top();
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
