/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which worker owns an inbound SA.
 *
 * The kernel's xfrm is the register of SAs. Where XDP can ask it (bpf_xdp_get_xfrm_state, Linux
 * 6.8), an SA exists exactly when the kernel has it, and its pcpu_num (RFC 9611) names the owner;
 * an SA with an if_id belongs to an IPsec connection of the kernel's and stays there.
 * Where it cannot, the owner map alone decides.
 */
#ifndef SP_OWNER_H
#define SP_OWNER_H

#include "steer.h"

/* Minimal forms of kernel structures. CO-RE finds the member's place in the running kernel. */
struct xfrm_state {
    __u32 if_id;
    __u32 pcpu_num;
} __attribute__((preserve_access_index));

/* The kernel takes exactly 36 bytes. */
struct bpf_xfrm_state_opts {
    __s32 error;
    __s32 netns_id; /* -1: that of the device */
    __u32 mark;
    union {
        __u32 a4;
        __u32 a6[4];
    } daddr;
    __u32 spi;
    __u8 protocol;
    __u16 family;
};
SP_STATIC_ASSERT(sizeof(struct bpf_xfrm_state_opts) == 36, "kernel interface");

extern struct xfrm_state* bpf_xdp_get_xfrm_state(struct xdp_md* ctx,
                                                 struct bpf_xfrm_state_opts* opts,
                                                 __u32 opts__sz) __ksym __weak;
extern void bpf_xdp_xfrm_state_release(struct xfrm_state* state) __ksym __weak;

/* Writer: control. Reader: steer_unprotected. Key: an inbound SA, while control knows it. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4096); /* loader */
    __type(key, struct sp_owner_key);
    __type(value, struct sp_owner);
} owner_map SEC(".maps");

/* Writer: control, at start. Reader: steer_unprotected. Key: CPU number, forever. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, SP_CPUS_MAX);
    __type(key, __u32);
    __type(value, __u32);
} cpu_worker SEC(".maps");

#define SP_OWNER_UNKNOWN_SA 0xfffffffdu

/* Worker index, SP_OWNER_KERNEL or SP_OWNER_UNKNOWN_SA. */
static __always_inline __u32 sp_find_owner(struct xdp_md* ctx, const struct sp_packet* packet,
                                           __u32 spi) {
    struct sp_owner_key key = {
        .spi = spi,
        .family = packet->family,
        .protocol = IPPROTO_ESP,
    };
    struct sp_owner* owner;
    __u32 unassigned = SP_OWNER_UNKNOWN_SA;

    if (tune.use_kfunc && bpf_xdp_get_xfrm_state && bpf_xdp_xfrm_state_release) {
        struct bpf_xfrm_state_opts opts = {
            .netns_id = -1,
            .spi = spi,
            .protocol = IPPROTO_ESP,
            .family = packet->family,
        };
        struct xfrm_state* state;

        __builtin_memcpy(opts.daddr.a6, packet->dst, sizeof(opts.daddr.a6));
        state = bpf_xdp_get_xfrm_state(ctx, &opts, sizeof(opts));
        if (state) {
            __u32 cpu = 0xffffffff;
            __u32 if_id = 0;
            __u32* worker;

            if (bpf_core_field_exists(state->if_id)) if_id = state->if_id;
            /* Kernels before 6.13 have SAs without pcpu_num. */
            if (bpf_core_field_exists(state->pcpu_num)) cpu = state->pcpu_num;
            bpf_xdp_xfrm_state_release(state);
            unassigned = sp_sa_hash(spi, sp_last_word(packet, packet->dst)) % tune.workers;
            if (if_id) {
                /* An IPsec connection of the kernel's, until control says otherwise. */
                unassigned = SP_OWNER_KERNEL;
            } else {
                worker = bpf_map_lookup_elem(&cpu_worker, &cpu);
                if (worker && *worker != SP_OWNER_NONE) return *worker;
            }
        }
    }

    __builtin_memcpy(key.daddr, packet->dst, sizeof(key.daddr));
    owner = bpf_map_lookup_elem(&owner_map, &key);
    return owner ? owner->worker : unassigned;
}

#endif /* SP_OWNER_H */
