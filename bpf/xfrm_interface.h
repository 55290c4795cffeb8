/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SAs that stay with the kernel, chosen and checked by the SPD of the XDP programs.
 *
 * One xfrm interface in external mode carries all of them. What the kernel routes into it has no SA
 * until interface_out gives it the if_id that the packet's policy names; the kernel then looks only
 * at xfrm policies and SAs with that if_id. What an SA with an if_id has decrypted comes
 * out of the interface with the if_id beside it, and interface_in compares it with the policy.
 * A packet without an if_id is refused by the kernel, so without these programs nothing passes.
 *
 * Only the kernel's module that has the interface has the two functions. libbpf before 1.3 cannot
 * test a weak symbol of a module (it looks for it in the kernel proper), so tune.use_kfunc says
 * whether they are there, and the verifier takes the calls out where they are not.
 */
#ifndef SP_XFRM_INTERFACE_H
#define SP_XFRM_INTERFACE_H

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

static __always_inline int sp_set_if_id(struct __sk_buff* skb, const struct bpf_xfrm_info* info) {
    return tune.use_kfunc && bpf_skb_set_xfrm_info(skb, info) == 0;
}

static __always_inline int sp_get_if_id(struct __sk_buff* skb, struct bpf_xfrm_info* info) {
    return tune.use_kfunc && bpf_skb_get_xfrm_info(skb, info) == 0;
}

/* Described in abi.h. Size: loader. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 4096);
    __type(key, __u32);
    __type(value, struct sp_if_id_counters);
} if_id_counters SEC(".maps");

/* NULL: no policy names this if_id. */
static __always_inline struct sp_if_id_counters* sp_counters_of_if_id(__u32 if_id) {
    return bpf_map_lookup_elem(&if_id_counters, &if_id);
}

#endif /* SP_XFRM_INTERFACE_H */
