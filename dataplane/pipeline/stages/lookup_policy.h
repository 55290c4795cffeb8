// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport::stages {

// The outbound SPD (RFC 4301 5.1), and the SA that serves the policy it found. Without one the
// frame may be put on hold, so up to here nothing has changed it. Asks for the SA.
[[gnu::always_inline]] inline DropReason lookup_policy(OutboundContext& context, Packet& packet) {
    if (context.spd == nullptr) return DropReason::no_policy;
    const SpdKey key{.family = packet.inner.family,
                     .source = wire::source_at(packet.ip, packet.inner.family),
                     .destination = wire::destination_at(packet.ip, packet.inner.family),
                     .protocol = packet.inner.protocol,
                     .protocol_known = packet.inner.protocol_known,
                     .ports_known = packet.inner.ports_known,
                     .source_port = packet.inner.source_port,
                     .destination_port = packet.inner.destination_port};
    const SpdVerdict verdict = context.spd->lookup(SpdDirection::outbound, key);
    switch (verdict.kind) {
        case SpdVerdict::Kind::matched:
            break;
        case SpdVerdict::Kind::no_match:
            return DropReason::no_policy;
        case SpdVerdict::Kind::ports_unknown:
            return DropReason::fragment_without_ports;
    }
    switch (verdict.action) {
        case SpdAction::protect:
            break;
        case SpdAction::bypass:
            return DropReason::bypass_in_tunnel;
        case SpdAction::discard:
            return DropReason::policy_discard;
    }
    OutboundSa* sa = context.sas.find(verdict.policy);
    if (sa == nullptr) return DropReason::no_sa;
    packet.outbound_sa = sa;
    __builtin_prefetch(sa, 1);
    __builtin_prefetch(&sa->outer);
    return DropReason::none;
}

}  // namespace sallyport::stages
