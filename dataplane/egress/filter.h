// SPDX-License-Identifier: Apache-2.0
#pragma once

// The egress filter of a port, for frames that meet no devmap program. The rule itself is the one
// that those programs have (bpf/abi.h, sp_egress_rule_matches).

#include <cstring>
#include <span>

#include "bpf/abi.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport::egress {

// `packet`: read from the header at `ip`.
inline bool denies(std::span<const sp_egress_rule> rules, const wire::IpPacket& packet,
                   const std::byte* ip) {
    if (rules.empty()) return false;
    sp_egress_subject subject{
        .src = {},
        .dst = {},
        .dst_port = packet.destination_port,
        .family = static_cast<uint8_t>(packet.family == Family::v4 ? SP_AF_INET : SP_AF_INET6),
        .protocol = packet.protocol,
        .protocol_known = packet.protocol_known,
        .ports_known = packet.ports_known,
        .later_fragment = packet.later_fragment};
    const size_t address_bytes = wire::address_bytes(packet.family);
    std::memcpy(subject.src, wire::source_at(ip, packet.family), address_bytes);
    std::memcpy(subject.dst, wire::destination_at(ip, packet.family), address_bytes);
    for (const sp_egress_rule& rule : rules) {
        if (sp_egress_rule_matches(&rule, &subject) != 0) return true;
    }
    return false;
}

}  // namespace sallyport::egress
