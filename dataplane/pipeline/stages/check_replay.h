// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cassert>

#include "dataplane/esp/job.h"
#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// Before the ICV: cheap refusal of what cannot be new (RFC 4303 3.4.3). Also prepares decryption,
// since the extended sequence number that it infers is part of what the ICV covers.
[[gnu::always_inline]] inline DropReason check_replay(InboundContext& context, Packet& packet) {
    const InboundSa& sa = *packet.inbound_sa;
    assert(sa.owner == context.worker);
    static_cast<void>(context);
    const uint32_t low = wire::read<Be32>(packet.esp + offsetof(wire::Esp, sequence_low)).host();
    packet.sequence = sa.esn ? sa.replay.infer_esn(low) : low;
    switch (sa.replay.would_accept(packet.sequence)) {
        case ReplayVerdict::fresh:
            break;
        case ReplayVerdict::replayed:
            return DropReason::replayed;
        case ReplayVerdict::before_window:
            return DropReason::before_window;
    }
    const auto iv = wire::read<uint64_t>(packet.esp + sizeof(wire::Esp));
    esp::fill_job(packet.job, sa, packet.esp, packet.esp_bytes, packet.sequence, iv);
    return DropReason::none;
}

}  // namespace sallyport::stages
