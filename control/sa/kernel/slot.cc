// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/slot.h"

#include <algorithm>

namespace sallyport::control {

Work work_of(const Slot& slot) {
    Work work;
    if (const OutboundSide* side = slot.outbound()) {
        if (side->sa == nullptr) return work;
        return {.packets = side->sa->packets.read(), .bytes = side->sa->bytes.read()};
    }
    for (const InboundSa* sa : {slot.inbound()->sa.get(), slot.inbound()->before.get()}) {
        if (sa == nullptr) continue;
        work.packets = std::max(work.packets, sa->packets.read());
        work.bytes = std::max(work.bytes, sa->bytes.read());
        work.top = std::max(work.top, sa->replay.top());
    }
    return work;
}

xfrm::Usage usage_of(const Slot& slot, const Work& work) {
    xfrm::Usage usage = slot.base;
    usage.packets += work.packets;
    usage.bytes += work.bytes;
    usage.use_time = std::max(usage.use_time, slot.last_use);
    return usage;
}

xfrm::Usage without_ours(const Slot& slot, xfrm::Usage usage) {
    usage.packets -= std::min(usage.packets, slot.written_packets);
    usage.bytes -= std::min(usage.bytes, slot.written_bytes);
    return usage;
}

SequenceMemory::Name memory_name_of(const xfrm::KernelSa& state) {
    return {.spi = state.name.spi,
            .protocol = state.name.protocol,
            .key = digest_of_key(state.key.bytes())};
}

uint64_t next_of(const xfrm::Replay& replay) {
    return replay.sent + (replay.sent == ~uint64_t{0} ? 0 : 1);
}

void remember(SequenceMemory& memory, const xfrm::KernelSa& last) {
    if (last.key.bytes().empty() || (last.replay.sent == 0 && last.replay.top == 0)) return;
    memory.raise(memory_name_of(last),
                 {.outbound_next = next_of(last.replay), .inbound_top = last.replay.top});
}

bool same_key(const Slot& slot, const xfrm::KernelSa& state) {
    return digest_of_key(state.key.bytes()) == slot.memory_name.key;
}

bool is_another(const Slot& slot, const xfrm::KernelSa& state) {
    if (!same_key(slot, state) || state.usage.add_time > slot.base.add_time) return true;
    if (const OutboundSide* side = slot.outbound()) return next_of(state.replay) < side->reserved;
    return state.replay.top < slot.inbound()->written_top;
}

bool is_used_up(const Slot& slot) {
    const OutboundSide* side = slot.outbound();
    return side != nullptr && side->nothing_left && side->sa != nullptr &&
           side->sa->sequence_next.read() >= side->told;
}

bool used_by_kernel(const xfrm::KernelSa& state) {
    return state.replay.sent > 0 || state.replay.top > 0 || state.usage.packets > 0;
}

std::string to_text(const xfrm::SaName& name) {
    return "SA " + xfrm::to_text(name.spi) + " to " + to_string(name.destination);
}

}  // namespace sallyport::control
