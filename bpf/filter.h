/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The egress filter of a port: a short deny list.
 *
 * It holds on both ways out: in the devmap program, and where a frame is passed to the kernel,
 * which sends it without any XDP program.
 */
#ifndef SP_FILTER_H
#define SP_FILTER_H

#include "maps.h"
#include "parse.h"

/* 1: the rule denies the packet (abi.h), or is not there. A function of its own for the verifier:
   verified once, and not again for each rule of the loop below. */
__noinline int sp_rule_denies(struct sp_packet* packet, __u32 key) {
    struct sp_egress_rule* rule = bpf_map_lookup_elem(&egress_rules, &key);
    struct sp_egress_subject subject;

    if (!rule || !packet) return 1;
    subject = (struct sp_egress_subject){.dst_port = packet->dst_port,
                                         .family = packet->family,
                                         .protocol = packet->protocol,
                                         .protocol_known = packet->protocol_known,
                                         .ports_known = packet->ports_known,
                                         .later_fragment = packet->later_fragment};
    __builtin_memcpy(subject.src, packet->src, sizeof(subject.src));
    __builtin_memcpy(subject.dst, packet->dst, sizeof(subject.dst));
    return sp_egress_rule_matches(rule, &subject);
}

/* 1: a rule of the port denies the packet. */
__noinline int sp_egress_denied(struct sp_packet* packet, __u32 port) {
    struct sp_port_info* info;

    if (!packet) return 1;
    info = bpf_map_lookup_elem(&port_info, &port);
    if (!info) return 1;
    for (__u32 i = 0; i < SP_EGRESS_RULES_MAX; ++i) {
        if (i >= info->rule_count) break;
        if (sp_rule_denies(packet, port * SP_EGRESS_RULES_MAX + i)) return 1;
    }
    return 0;
}

#endif /* SP_FILTER_H */
