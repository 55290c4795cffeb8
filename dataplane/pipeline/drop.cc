// SPDX-License-Identifier: Apache-2.0
#include "dataplane/pipeline/drop.h"

#include "dataplane/wire/frame_ip.h"

namespace sallyport {
namespace {

// What RFC 4303 section 4 and RFC 4301 5.2 want on record.
bool is_auditable(DropReason reason) {
    return reason == DropReason::unknown_spi || reason == DropReason::icv_mismatch ||
           reason == DropReason::replayed || reason == DropReason::before_window ||
           reason == DropReason::outer_fragment || reason == DropReason::selector_mismatch;
}

event::Audit audit_of(const Packet& packet, DropReason reason) {
    event::Audit audit{.reason = reason};
    if (reason == DropReason::outer_fragment) {
        // Nothing behind the IP header was read.
        const std::byte* ip = packet.frame.data + wire::kEthernetBytes;
        const Family family = wire::ether_type_at(packet.frame.data) == wire::kEtherTypeIpv4
                                  ? Family::v4
                                  : Family::v6;
        audit.source = wire::source_of(family, ip);
        audit.destination = wire::destination_of(family, ip);
        return audit;
    }
    const Family family =
        reason == DropReason::selector_mismatch ? packet.inner.family : packet.outer_family;
    audit.spi = Spi{packet.spi.host()};
    audit.sequence =
        packet.inbound_sa != nullptr ? packet.sequence : wire::read<Be32>(packet.esp + 4).host();
    audit.source = wire::source_of(family, packet.ip);
    audit.destination = wire::destination_of(family, packet.ip);
    return audit;
}

}  // namespace

[[gnu::cold]] void drop_inbound(InboundContext& context, const Packet& packet, DropReason reason) {
    context.counters.drops[static_cast<size_t>(reason)].add(1);
    if (packet.inbound_sa != nullptr) {
        packet.inbound_sa->drops[static_cast<size_t>(reason)].add(1);
    }
    if (is_auditable(reason)) context.events.post(audit_of(packet, reason));
}

[[gnu::cold]] void drop_outbound(OutboundContext& context, const Packet& packet,
                                 DropReason reason) {
    context.counters.drops[static_cast<size_t>(reason)].add(1);
    OutboundSa* sa = packet.outbound_sa;
    if (sa == nullptr) return;
    sa->drops[static_cast<size_t>(reason)].add(1);
    if (reason == DropReason::sequence_exhausted) {
        context.events.post(event::SequenceExhausted{
            .id = sa->id, .spi = Spi{sa->spi.host()}, .next = sa->sequence_next.read()});
    }
}

}  // namespace sallyport
