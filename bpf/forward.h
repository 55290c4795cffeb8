/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Forwarding by the kernel's own FIB and neighbours, out through the devmap entry of a port.
 *
 * What XDP cannot finish (no neighbour yet, fragmentation, ICMP errors, packets for this host) is
 * passed to the kernel. The kernel's way out meets no devmap program, so the egress filter of the
 * port it will use is applied before the frame is passed.
 */
#ifndef SP_FORWARD_H
#define SP_FORWARD_H

#include "conntrack.h"
#include "fib.h"
#include "filter.h"
#include "own_address.h"
#include "spd.h"
#include "unresolved.h"
#include "verdict.h"

/* Writer: control. Reader: forwarding programs. Key: port id, for the port's lifetime. */
struct {
    __uint(type, BPF_MAP_TYPE_DEVMAP);
    __uint(max_entries, SP_PORTS_MAX);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(struct bpf_devmap_val));
} tx_ports SEC(".maps");

enum sp_origin {
    SP_ORIGIN_BYPASS_OUT, /* received in clear on a protected port, the outbound SPD lets it out */
    SP_ORIGIN_BYPASS_IN,  /* received in clear on an unprotected port */
    SP_ORIGIN_TRANSIT,    /* decrypted here */
    SP_ORIGIN_ORIGINATED, /* made here: TTL stays, the packet is ESP or was never ours to protect */
};

static __always_inline int sp_redirect(__u32 port) {
    struct sp_port_counters* counters;

    /* An empty slot: the port has gone. */
    if (bpf_redirect_map(&tx_ports, port, 0) != XDP_REDIRECT) return sp_drop(SP_DROP_no_route);
    counters = sp_counters();
    if (counters) ++counters->redirected;
    return XDP_REDIRECT;
}

static __always_inline long sp_fib_lookup(struct xdp_md* ctx, const struct sp_packet* packet,
                                          __u32 ip_bytes, struct bpf_fib_lookup* fib) {
    sp_fib_question(fib, packet, ip_bytes, ctx->ingress_ifindex);
    return bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
}

/*
 * By its address alone. For FWD_DISABLED, which the FIB lookup answers before it has looked
 * anything up, because the device that the packet came in by does not forward. That is no word for
 * "the kernel keeps it": IPv6 is forwarded by another setting (conf.all), and either may be on
 * again when the kernel comes to the packet.
 */
static __always_inline int sp_is_for_own_address(const struct sp_packet* packet) {
    return sp_is_host_scope_address(packet) || sp_is_own_address(packet, packet->dst);
}

/* 1: it came in by a device, in clear or through a tunnel, and no packet can do so with these
   addresses. Nobody but this host sends with its own (RFC 1812 5.3.8): the kernel drops those of
   IPv4, but for sp0, and takes those of IPv6 for its own. */
static __always_inline int sp_is_impossible(const struct sp_packet* packet) {
    return sp_is_martian_packet(packet) || sp_is_own_address(packet, packet->src);
}

/* The kernel keeps the packet: it is for this host, or nothing would route it on. */
static __always_inline int sp_is_local(struct xdp_md* ctx, const struct sp_packet* packet) {
    struct bpf_fib_lookup fib;
    long result = sp_fib_lookup(ctx, packet, 0, &fib);

    if (result == BPF_FIB_LKUP_RET_FWD_DISABLED) return sp_is_for_own_address(packet);
    return result == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* FWD_DISABLED for a packet that was to be forwarded. No route was looked up, so neither the SPD
   nor an egress filter of the way out can be asked. ESP of our own needs neither. */
static __always_inline int sp_without_forwarding(const struct sp_packet* packet,
                                                 enum sp_origin origin) {
    if (origin == SP_ORIGIN_ORIGINATED || sp_is_for_own_address(packet)) return sp_pass();
    return sp_drop(SP_DROP_forwarding_off);
}

/*
 * The port that the kernel's route leads to; NULL: a device that is no port, where neither the SPD
 * nor an egress filter stands. 0: what is in transit must not go there. ESP of our own may.
 */
static __always_inline int sp_find_way_out(const struct bpf_fib_lookup* fib, enum sp_origin origin,
                                           __u32** port) {
    *port = bpf_map_lookup_elem(&port_by_ifindex, &fib->ifindex);
    if (!*port) return origin == SP_ORIGIN_ORIGINATED;
    if (**port == SP_PORT_NONE) *port = NULL;
    return 1;
}

/* The kernel would drop it without a word to us. */
static __always_inline int sp_exceeds_port(const struct sp_packet* packet, __u32 port) {
    const struct sp_port_info* info = bpf_map_lookup_elem(&port_info, &port);

    return info && packet->ip_bytes > info->mtu;
}

/* One hop less, and the link addresses of the next one. */
static __always_inline int sp_rewrite(struct xdp_md* ctx, const struct bpf_fib_lookup* fib,
                                      __u32 family, enum sp_origin origin) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    struct ethhdr* ethernet = data;

    if (family == SP_AF_INET) {
        struct iphdr* ip = (void*)(ethernet + 1);
        __u32 check;

        if ((void*)(ip + 1) > data_end) return 0;
        if (origin != SP_ORIGIN_ORIGINATED) {
            /* RFC 1141: TTL is the high byte of its word, so the sum grows by 0x0100. */
            check = ip->check;
            check += bpf_htons(0x0100);
            ip->check = (__sum16)(check + (check >= 0xffff));
            --ip->ttl;
        }
    } else {
        struct ipv6hdr* ip = (void*)(ethernet + 1);

        if ((void*)(ip + 1) > data_end) return 0;
        if (origin != SP_ORIGIN_ORIGINATED) --ip->hop_limit;
    }
    __builtin_memcpy(ethernet->h_dest, fib->dmac, ETH_ALEN);
    __builtin_memcpy(ethernet->h_source, fib->smac, ETH_ALEN);
    return 1;
}

/* BYPASS of the SPD in use may be believed: abi.h, sp_spd_active. */
static __always_inline int sp_bypass_holds(void) {
    struct sp_spd_active* active;
    __u32 zero = 0;
    __u64 until;

    active = bpf_map_lookup_elem(&spd_active, &zero);
    if (!active) return 0;
    until = *(const volatile __u64*)&active->bypass_until_ns;
    return until == SP_BYPASS_FOREVER || bpf_ktime_get_ns() < until;
}

/* RFC 4301 5.1: whatever leaves through an unprotected port is what the outbound SPD lets leave in
   clear. Packets from elsewhere than a protected port have not met it yet: one tunnel's traffic
   must not continue in clear towards another. `by_kernel`: set where only the kernel may say so. */
static __always_inline enum sp_drop_reason sp_refuse_in_clear(struct xdp_md* ctx,
                                                              struct sp_packet* packet, __u32 port,
                                                              enum sp_origin origin,
                                                              int* by_kernel) {
    struct sp_port_info* info = bpf_map_lookup_elem(&port_info, &port);
    enum sp_drop_reason reason;
    struct sp_spd_entry* entry;

    if (origin == SP_ORIGIN_ORIGINATED || origin == SP_ORIGIN_BYPASS_OUT) return SP_DROP_none;
    if (!info) return SP_DROP_no_route;
    if (info->role != SP_ROLE_UNPROTECTED) return SP_DROP_none;
    if (tune.ct_marks) sp_ct_lookup(ctx, packet);
    entry = sp_spd_entry_of(packet, SP_SPD_OUTBOUND, &reason);
    if (!entry) return reason;
    if (entry->action == SP_SPD_PROTECT) return SP_DROP_protect_in_clear;
    if (entry->action != SP_SPD_BYPASS) return SP_DROP_policy_discard;
    *by_kernel = !sp_bypass_holds();
    return SP_DROP_none;
}

/* What the ports on both ends of the way ask of the connection. ESP of our own has none. */
static __always_inline enum sp_ct_verdict sp_connection_verdict(struct xdp_md* ctx,
                                                                struct sp_packet* packet,
                                                                const __u32* port_out,
                                                                enum sp_origin origin) {
    enum sp_ct_verdict verdict;
    __u8 rule;

    if (!tune.conntrack || origin == SP_ORIGIN_ORIGINATED) return SP_CT_GO_ON;
    rule = sp_ct_rule(port_out);
    if (rule == SP_CONNTRACK_OFF) return SP_CT_GO_ON;
    verdict = sp_ct_verdict(ctx, packet, rule);
    sp_ct_count(verdict);
    return verdict;
}

static __always_inline int sp_forward(struct xdp_md* ctx, struct sp_packet* packet,
                                      enum sp_origin origin) {
    struct bpf_fib_lookup fib;
    enum sp_ct_verdict verdict;
    enum sp_drop_reason reason;
    int by_kernel = 0;
    __u32* port;
    long result;
    int resolved;

    if (origin != SP_ORIGIN_ORIGINATED) {
        if (sp_is_impossible(packet)) return sp_drop(SP_DROP_martian);
        /* The kernel answers with ICMP time exceeded, or takes the packet in; it never forwards
           it. */
        if (packet->ttl <= 1) return sp_pass();
    }

    /* Of our own ESP the path's MTU is for those to respect who make it: anybody can have the
       kernel believe in a small one, by a forged ICMP message that quotes an empty packet of ours.
     */
    result =
        sp_fib_lookup(ctx, packet, origin == SP_ORIGIN_ORIGINATED ? 0 : packet->ip_bytes, &fib);
    resolved = result == BPF_FIB_LKUP_RET_SUCCESS;
    /* Too big for the route: the kernel fragments or answers. Ask again only for the port. */
    if (result == BPF_FIB_LKUP_RET_FRAG_NEEDED) result = sp_fib_lookup(ctx, packet, 0, &fib);

    switch (result) {
        case BPF_FIB_LKUP_RET_SUCCESS:
        case BPF_FIB_LKUP_RET_NO_NEIGH:
            break;
        case BPF_FIB_LKUP_RET_NOT_FWDED:
            return sp_pass();
        case BPF_FIB_LKUP_RET_FWD_DISABLED:
            return sp_without_forwarding(packet, origin);
        case BPF_FIB_LKUP_RET_BLACKHOLE:
        case BPF_FIB_LKUP_RET_UNREACHABLE:
        case BPF_FIB_LKUP_RET_PROHIBIT:
            /* The kernel does not forward it either, and answers the sender. */
            return origin <= SP_ORIGIN_BYPASS_IN ? sp_pass() : sp_drop(SP_DROP_no_route);
        default:
            /* Routes with encapsulation and failed lookups: the port, and with it the egress filter
               that must hold, is not known. */
            return sp_drop(SP_DROP_no_route);
    }

    if (!sp_find_way_out(&fib, origin, &port)) return sp_drop(SP_DROP_not_a_port);
    if (port) {
        reason = sp_refuse_in_clear(ctx, packet, *port, origin, &by_kernel);
        if (reason) return sp_drop(reason);
        if (origin == SP_ORIGIN_ORIGINATED && sp_exceeds_port(packet, *port))
            return sp_drop(SP_DROP_too_big);
    }
    verdict = sp_connection_verdict(ctx, packet, port, origin);
    if (verdict == SP_CT_REFUSED) return sp_drop(SP_DROP_not_established);
    if (!port) return sp_pass();
    /* Own ESP has to_neighbour behind it. */
    if (result == BPF_FIB_LKUP_RET_NO_NEIGH && origin != SP_ORIGIN_ORIGINATED)
        sp_note_unresolved(&fib);
    if (!resolved || by_kernel || verdict == SP_CT_TO_KERNEL)
        return sp_egress_denied(packet, *port) ? sp_drop(SP_DROP_egress_denied) : sp_pass();
    if (!sp_rewrite(ctx, &fib, packet->family, origin)) return sp_drop(SP_DROP_truncated);
    return sp_redirect(*port);
}

/* The same checks, and the kernel does it. */
static __always_inline int sp_forward_by_kernel(struct xdp_md* ctx, struct sp_packet* packet,
                                                enum sp_origin origin) {
    struct bpf_fib_lookup fib;
    enum sp_drop_reason reason;
    int by_kernel = 0; /* it is anyway */
    __u32* port;
    long result;

    if (sp_is_impossible(packet)) return sp_drop(SP_DROP_martian);
    result = sp_fib_lookup(ctx, packet, 0, &fib);
    if (result == BPF_FIB_LKUP_RET_FWD_DISABLED) return sp_without_forwarding(packet, origin);
    if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
        return result < 0 || result == BPF_FIB_LKUP_RET_UNSUPP_LWT ? sp_drop(SP_DROP_no_route)
                                                                   : sp_pass();
    if (!sp_find_way_out(&fib, origin, &port)) return sp_drop(SP_DROP_not_a_port);
    if (port) {
        reason = sp_refuse_in_clear(ctx, packet, *port, origin, &by_kernel);
        if (reason) return sp_drop(reason);
    }
    if (sp_connection_verdict(ctx, packet, port, origin) == SP_CT_REFUSED)
        return sp_drop(SP_DROP_not_established);
    if (!port) return sp_pass();
    return sp_egress_denied(packet, *port) ? sp_drop(SP_DROP_egress_denied) : sp_pass();
}

#endif /* SP_FORWARD_H */
