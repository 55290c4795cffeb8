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

/* Network-order mask of the address word that begins at bit `from` of a prefix. */
static __always_inline __u32 sp_word_mask(__u32 prefix_bits, __u32 from) {
    if (prefix_bits <= from) return 0;
    if (prefix_bits >= from + 32) return 0xffffffff;
    return bpf_htonl(0xffffffffu << ((from + 32 - prefix_bits) & 31));
}

static __always_inline int sp_in_prefix(const __u32* address, const __u8* prefix,
                                        __u32 prefix_bits) {
    const __u32* words = (const __u32*)prefix;

    return !(((address[0] ^ words[0]) & sp_word_mask(prefix_bits, 0)) |
             ((address[1] ^ words[1]) & sp_word_mask(prefix_bits, 32)) |
             ((address[2] ^ words[2]) & sp_word_mask(prefix_bits, 64)) |
             ((address[3] ^ words[3]) & sp_word_mask(prefix_bits, 96)));
}

/*
 * 1: a rule denies the packet. Later fragments pass rules with ports: without the first fragment,
 * which carries the ports and is denied, nobody can reassemble them.
 */
__noinline int sp_egress_denied(struct sp_packet* packet, __u32 port) {
    struct sp_port_info* info;

    if (!packet) return 1;
    info = bpf_map_lookup_elem(&port_info, &port);
    if (!info) return 1;
    for (__u32 i = 0; i < SP_EGRESS_RULES_MAX; ++i) {
        __u32 key = port * SP_EGRESS_RULES_MAX + i;
        struct sp_egress_rule* rule;

        if (i >= info->rule_count) break;
        rule = bpf_map_lookup_elem(&egress_rules, &key);
        if (!rule) return 1;
        if (rule->family && rule->family != packet->family) continue;
        if (rule->protocol && packet->protocol_known && rule->protocol != packet->protocol)
            continue;
        if (rule->dst_port_lo != 0 || rule->dst_port_hi != 65535) {
            if (packet->later_fragment) continue;
            if (packet->ports_known &&
                (packet->dst_port < rule->dst_port_lo || packet->dst_port > rule->dst_port_hi))
                continue;
        }
        if (!sp_in_prefix(packet->src, rule->src, rule->src_bits) ||
            !sp_in_prefix(packet->dst, rule->dst, rule->dst_bits))
            continue;
        return 1;
    }
    return 0;
}

#endif /* SP_FILTER_H */
