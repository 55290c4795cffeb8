/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel's FIB is asked about a packet: the same in every program, since one relies on
 * what another has found.
 */
#ifndef SP_FIB_H
#define SP_FIB_H

#include "parse.h"

/* `ip_bytes`: 0, where the MTU of the way out is not asked about. `ifindex`: where it came in. */
static __always_inline void sp_fib_question(struct bpf_fib_lookup* fib,
                                            const struct sp_packet* packet, __u32 ip_bytes,
                                            __u32 ifindex) {
    __builtin_memset(fib, 0, sizeof(*fib));
    fib->family = packet->family;
    fib->l4_protocol = packet->protocol;
    fib->sport = bpf_htons(packet->src_port);
    fib->dport = bpf_htons(packet->dst_port);
    fib->tot_len = (__u16)ip_bytes;
    fib->ifindex = ifindex;
    if (packet->family == SP_AF_INET) {
        fib->tos = packet->tos;
        fib->ipv4_src = packet->src[0];
        fib->ipv4_dst = packet->dst[0];
    } else {
        fib->flowinfo = packet->flowinfo;
        __builtin_memcpy(fib->ipv6_src, packet->src, sizeof(fib->ipv6_src));
        __builtin_memcpy(fib->ipv6_dst, packet->dst, sizeof(fib->ipv6_dst));
    }
}

#endif /* SP_FIB_H */
