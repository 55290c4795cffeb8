/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Next hops that are not resolved: noted for control, which has the kernel resolve them.
 */
#ifndef SP_UNRESOLVED_H
#define SP_UNRESOLVED_H

#include "next_hop.h"
#include "verdict.h"

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, SP_UNRESOLVED_MAX);
    __type(key, struct sp_next_hop);
    __type(value, struct sp_unresolved);
} unresolved_hops SEC(".maps");

/* `fib`: after a lookup, which has put the gateway in the place of the destination. */
static __always_inline void sp_next_hop_of(const struct bpf_fib_lookup* fib,
                                           struct sp_next_hop* hop) {
    __builtin_memset(hop, 0, sizeof(*hop));
    hop->ifindex = fib->ifindex;
    hop->family = fib->family;
    if (fib->family == SP_AF_INET)
        __builtin_memcpy(hop->address, &fib->ipv4_dst, sizeof(fib->ipv4_dst));
    else
        __builtin_memcpy(hop->address, fib->ipv6_dst, sizeof(hop->address));
}

/* The packet itself goes to the kernel, which keeps it where its forward chain lets it come so far;
   where not, the ones after it find the next hop resolved. */
static __always_inline void sp_note_unresolved(const struct bpf_fib_lookup* fib) {
    struct sp_unresolved none = {};
    struct sp_next_hop hop;

    sp_next_hop_of(fib, &hop);
    bpf_map_update_elem(&unresolved_hops, &hop, &none, BPF_NOEXIST);
}

#endif /* SP_UNRESOLVED_H */
