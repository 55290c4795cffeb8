/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which worker owns an inbound SA.
 *
 * The kernel's xfrm is the register of SAs. Where XDP can ask it (bpf_xdp_get_xfrm_state, Linux
 * 6.8), an SA exists exactly when the kernel has it. There are two arrangements
 * (tune.register_mode):
 *
 *   SAs of the configuration   the kernel is asked first and its pcpu_num (RFC 9611) names the
 *                              owner, but of an SA with an if_id (which stays with the
 *                              kernel, xfrm_interface.h); without the kfunc the owner map
 *                              alone decides
 *   SAs of an IKE daemon       the owner map is asked first: it lists what workers have taken over.
 *                              All others are the kernel's, which is asked only to tell them from
 *                              SPIs that nobody knows; without the kfunc the kernel gets both
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

/* Writer: control. Readers: steer_unprotected, steer_protected. Key: an inbound SA, while control
   knows it. */
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

/* Whether the kernel can be asked. The verifier removes the calls where not. */
static __always_inline int sp_kernel_tells(void) {
    return tune.use_kfunc && bpf_xdp_get_xfrm_state && bpf_xdp_xfrm_state_release;
}

/* 1: the kernel has the SA. `cpu`: its pcpu_num, if it has one; `if_id`: its own, or 0. */
static __always_inline int sp_kernel_has_state(struct xdp_md* ctx, const struct sp_packet* packet,
                                               __u32 spi, __u32* cpu, __u32* if_id) {
    struct bpf_xfrm_state_opts opts = {
        .netns_id = -1,
        .spi = spi,
        .protocol = IPPROTO_ESP,
        .family = packet->family,
    };
    struct xfrm_state* state;

    __builtin_memcpy(opts.daddr.a6, packet->dst, sizeof(opts.daddr.a6));
    state = bpf_xdp_get_xfrm_state(ctx, &opts, sizeof(opts));
    if (!state) return 0;
    /* Kernels before 6.13 have SAs without pcpu_num. */
    if (bpf_core_field_exists(state->pcpu_num)) *cpu = state->pcpu_num;
    if (bpf_core_field_exists(state->if_id)) *if_id = state->if_id;
    bpf_xdp_xfrm_state_release(state);
    return 1;
}

static __always_inline struct sp_owner* sp_listed_owner(const struct sp_packet* packet, __u32 spi) {
    struct sp_owner_key key = {
        .spi = spi,
        .family = packet->family,
        .protocol = IPPROTO_ESP,
    };

    __builtin_memcpy(key.daddr, packet->dst, sizeof(key.daddr));
    return bpf_map_lookup_elem(&owner_map, &key);
}

static __always_inline __u32 sp_find_registered_owner(struct xdp_md* ctx,
                                                      const struct sp_packet* packet, __u32 spi) {
    struct sp_owner* owner = sp_listed_owner(packet, spi);
    __u32 if_id;
    __u32 cpu;

    if (owner) return owner->worker;
    if (!sp_kernel_tells()) return SP_OWNER_KERNEL;
    return sp_kernel_has_state(ctx, packet, spi, &cpu, &if_id) ? SP_OWNER_KERNEL
                                                               : SP_OWNER_UNKNOWN_SA;
}

/* Worker index, SP_OWNER_KERNEL or SP_OWNER_UNKNOWN_SA. */
static __always_inline __u32 sp_find_owner(struct xdp_md* ctx, const struct sp_packet* packet,
                                           __u32 spi) {
    struct sp_owner* owner;
    int state_found = 0;
    __u32 if_id = 0;

    if (tune.register_mode) return sp_find_registered_owner(ctx, packet, spi);
    if (sp_kernel_tells()) {
        __u32 cpu = 0xffffffff;

        state_found = sp_kernel_has_state(ctx, packet, spi, &cpu, &if_id);
        if (state_found && !if_id) {
            __u32* worker = bpf_map_lookup_elem(&cpu_worker, &cpu);

            if (worker && *worker != SP_OWNER_NONE) return *worker;
        }
    }
    owner = sp_listed_owner(packet, spi);
    if (owner) return owner->worker;
    if (!state_found) return SP_OWNER_UNKNOWN_SA;
    return if_id ? SP_OWNER_KERNEL
                 : sp_sa_hash(spi, sp_last_word(packet, packet->dst)) % tune.workers;
}

#endif /* SP_OWNER_H */
