/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Steering to workers, and the verdicts both steer programs share.
 */
#ifndef SP_STEER_H
#define SP_STEER_H

#include "checksum.h"
#include "spd.h"
#include "spread.h"

/* Writer: every steer program. Reader: control. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX* SP_QUEUES_MAX* SP_WORKERS_MAX);
    __type(key, __u32);
    __type(value, __u64);
} steer_counters SEC(".maps");

/* One for each port, because a redirect reaches only sockets of the frame's own device and queue.
   Writer: control; the kernel clears a slot when its socket closes. Size: loader. */
struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, 64);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(__u32));
} xsks SEC(".maps");

#define SP_NO_SOCKET (-1)

/*
 * 1: a unicast frame to another MAC than the port's. It came by because the port is promiscuous,
 * or a switch floods. Dropped and not passed: the kernel drops it too, except where a bridge or a
 * macvlan on the port makes it the host's own, and then no program would have judged what it
 * forwards. A MAC that changed and that control has not heard of yet stops the port's traffic for a
 * moment; it opens nothing.
 */
static __always_inline int sp_is_for_other_station(const struct xdp_md* ctx) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const struct ethhdr* ethernet = data;
    __u32 port = tune.port;
    const struct sp_port_info* info = bpf_map_lookup_elem(&port_info, &port);
    const __u16* us;
    const __u16* them;

    if ((void*)(ethernet + 1) > data_end || !info) return 1;
    us = (const __u16*)info->mac;
    them = (const __u16*)ethernet->h_dest;
    return !(ethernet->h_dest[0] & 1) &&
           ((us[0] ^ them[0]) | (us[1] ^ them[1]) | (us[2] ^ them[2]));
}

/*
 * Hands the frame to `worker`. SP_NO_SOCKET: nobody reads there, the daemon is gone or not ready;
 * nothing was counted and the caller decides. A queue without a slot is another matter: its worker
 * may well live, and an SA must not be used by it and by the kernel at once.
 */
static __always_inline int sp_steer(struct xdp_md* ctx, __u32 worker) {
    __u32 queue = ctx->rx_queue_index;
    struct sp_port_counters* counters;
    __u64* count;
    __u32 key;

    if (queue >= tune.queues || worker >= tune.workers) return sp_drop(SP_DROP_steer_failed);
    if (bpf_redirect_map(&xsks, queue * tune.workers + worker, XDP_PASS) != XDP_REDIRECT)
        return SP_NO_SOCKET;

    counters = sp_counters();
    if (counters) ++counters->steered;
    key = (tune.port * SP_QUEUES_MAX + queue) * SP_WORKERS_MAX + worker;
    count = bpf_map_lookup_elem(&steer_counters, &key);
    if (count) ++*count;
    return XDP_REDIRECT;
}

/*
 * Cleartext that a BYPASS policy lets through. In register mode the kernel's policies change
 * without us, and a copy of them that nobody keeps is worth nothing: once the daemon is gone (its
 * first socket is) or does not extend its lease, a new tunnel's traffic would pass here by an old
 * BYPASS. So the kernel, which looks at its policies of today, forwards it; PROTECT and DISCARD are
 * believed as they are.
 */
static __always_inline int sp_bypass(struct xdp_md* ctx, struct sp_packet* packet,
                                     enum sp_origin origin) {
    __u32 first = 0;

    if (tune.register_mode && (!sp_bypass_holds() || !bpf_map_lookup_elem(&xsks, &first)))
        return sp_forward_by_kernel(ctx, packet, origin);
    if (sp_is_checksum_partial(ctx, packet)) {
        sp_count_partial(tune.port);
        return sp_forward_by_kernel(ctx, packet, origin);
    }
    return sp_forward_spread(ctx, packet, origin);
}

/* No policy covers the packet. The host's own packets need none (its sockets have their own rules);
   everything else ends at the SPD's implicit DISCARD. */
static __always_inline int sp_without_policy(struct xdp_md* ctx, const struct sp_packet* packet) {
    return sp_is_local(ctx, packet) ? sp_pass() : sp_drop(SP_DROP_no_policy);
}

/* IPv6 neighbour discovery to a unicast address (probes, answers). RFC 4861 7.1: hop limit 255. */
static __always_inline int sp_is_neighbour_discovery(const struct xdp_md* ctx,
                                                     const struct sp_packet* packet) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const __u8* type = data + ETH_HLEN + sizeof(struct ipv6hdr);

    if (packet->family != SP_AF_INET6 || packet->protocol != IPPROTO_ICMPV6 || packet->ttl != 255 ||
        packet->is_fragment || packet->upper_offset != ETH_HLEN + sizeof(struct ipv6hdr))
        return 0;
    if ((const void*)(type + 1) > data_end) return 0;
    return *type >= 133 && *type <= 137;
}

#endif /* SP_STEER_H */
