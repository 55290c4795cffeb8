/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * IPsec connections that stay with the kernel, chosen and checked by the SPD of the XDP programs.
 *
 * One xfrm interface in external mode carries all of them. What the kernel routes into it has no SA
 * until interface_out names the connection (if_id) that the packet's policy names; the kernel then
 * looks only at xfrm policies and SAs with that if_id. What an SA with an if_id has decrypted comes
 * out of the interface with the if_id beside it, and interface_in compares it with the policy.
 * A packet without a name is refused by the kernel, so without these programs nothing passes.
 *
 * Only the kernel's module that has the interface has the two functions. libbpf before 1.3 cannot
 * test a weak symbol of a module (it looks for it in the kernel proper), so tune.use_kfunc says
 * whether they are there, and the verifier takes the calls out where they are not.
 */
#ifndef SP_CONNECTION_H
#define SP_CONNECTION_H

#include <linux/pkt_cls.h>

/* Decrypted packets have the link header of their outer packet before them, others have none. */
#define SP_SKB_FROM_NETWORK_HEADER
#include "skb.h"
#include "spd.h"
#include "verdict.h"

/* The kernel's, fixed: it takes exactly these 8 bytes. link is the device of the outer packets,
   0: by its routes. */
struct bpf_xfrm_info {
    __u32 if_id;
    int link;
};
SP_STATIC_ASSERT(sizeof(struct bpf_xfrm_info) == 8, "kernel interface");

extern int bpf_skb_set_xfrm_info(struct __sk_buff* skb,
                                 const struct bpf_xfrm_info* from) __ksym __weak;
extern int bpf_skb_get_xfrm_info(struct __sk_buff* skb, struct bpf_xfrm_info* to) __ksym __weak;

static __always_inline int sp_set_connection(struct __sk_buff* skb,
                                             const struct bpf_xfrm_info* info) {
    return tune.use_kfunc && bpf_skb_set_xfrm_info(skb, info) == 0;
}

static __always_inline int sp_get_connection(struct __sk_buff* skb, struct bpf_xfrm_info* info) {
    return tune.use_kfunc && bpf_skb_get_xfrm_info(skb, info) == 0;
}

/* Described in abi.h. Size: loader. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 4096);
    __type(key, __u32);
    __type(value, struct sp_connection_counters);
} connection_counters SEC(".maps");

/* NULL: no policy names this connection. */
static __always_inline struct sp_connection_counters* sp_connection(__u32 if_id) {
    return bpf_map_lookup_elem(&connection_counters, &if_id);
}

/* The entry that decides for the packet, or NULL and the reason why there is none. */
static __always_inline struct sp_spd_entry* sp_connection_entry(struct sp_packet* packet,
                                                                __u32 direction,
                                                                enum sp_drop_reason* reason) {
    int found = sp_spd_find(packet, direction);
    __u32 index = (__u32)found;

    if (found == SP_SPD_NEEDS_PORTS) {
        *reason = SP_DROP_fragment_without_ports;
        return NULL;
    }
    *reason = SP_DROP_no_policy;
    return found < 0 ? NULL : bpf_map_lookup_elem(&spd_entries, &index);
}

#endif /* SP_CONNECTION_H */
