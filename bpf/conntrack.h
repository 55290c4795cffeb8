/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's connection tracking, asked from XDP (bpf_xdp_ct_lookup, Linux 5.18).
 *
 * A port may ask that cleartext in transit belongs to an established connection (abi.h, enum
 * sp_conntrack), and a policy may select by connection mark. Only the kernel writes its table: what
 * begins a connection, answers first, ends it, or keeps it from running out is passed to the kernel
 * and goes through its firewall; what lies between goes past it.
 *
 *   no connection, or not answered yet               -> the port's rule: kernel or not_established
 *   handshake, FIN, RST; little life left; NAT, helper -> kernel
 *   the rest of an established connection            -> goes on
 *
 * "Established" is what nftables calls so: both directions were seen, or this is the answer. The
 * lookup knows TCP and UDP in the default zone. All else (ICMP, fragments, whose connection the
 * kernel knows only after reassembly) counts as without a connection.
 */
#ifndef SP_CONNTRACK_H
#define SP_CONNTRACK_H

#include <linux/netfilter/nf_conntrack_common.h>

#include <bpf/bpf_core_read.h>

#include "parse.h"
#include "verdict.h"

/* Minimal forms of kernel structures. CO-RE finds the members' place in the running kernel. */
struct nf_conn {
    __u32 timeout; /* jiffies at which it ends */
    unsigned long status;
    __u32 mark;
} __attribute__((preserve_access_index));

/* The form of 12 bytes, which kernels with longer ones (zones) still take. */
struct bpf_ct_opts {
    __s32 netns_id; /* -1: that of the device */
    __s32 error;
    __u8 l4proto;
    __u8 dir; /* out: direction of the packet within its connection */
    __u8 reserved[2];
};
SP_STATIC_ASSERT(sizeof(struct bpf_ct_opts) == 12, "kernel interface");

extern struct nf_conn* bpf_xdp_ct_lookup(struct xdp_md* ctx, struct bpf_sock_tuple* tuple,
                                         __u32 tuple__sz, struct bpf_ct_opts* opts,
                                         __u32 opts__sz) __ksym __weak;
extern void bpf_ct_release(struct nf_conn* connection) __ksym __weak;

/* Writer: every program that forwards. Reader: control. Key: port id. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, struct sp_conntrack_counters);
} conntrack_counters SEC(".maps");

#define SP_CT_DIR_REPLY 1 /* enum ip_conntrack_dir, which older headers keep elsewhere */

#define SP_TCP_FIN 0x01
#define SP_TCP_SYN 0x02
#define SP_TCP_RST 0x04

/* Segments that move the state of a TCP connection; all of them when the flags cannot be read. */
static __always_inline int sp_moves_tcp_state(const struct xdp_md* ctx,
                                              const struct sp_packet* packet) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    __u32 offset = packet->upper_offset;
    const __u8* upper;

    if (packet->protocol != IPPROTO_TCP) return 0;
    if (offset > 0x3fff) return 1;
    upper = data + offset;
    if ((const void*)(upper + 14) > data_end) return 1;
    return upper[13] & (SP_TCP_FIN | SP_TCP_SYN | SP_TCP_RST);
}

static __always_inline enum sp_ct_state sp_ct_judge(const struct xdp_md* ctx,
                                                    const struct sp_packet* packet,
                                                    const struct nf_conn* connection, __u8 dir) {
    const unsigned long status = connection->status;
    const __s32 life = (__s32)(connection->timeout - (__u32)bpf_jiffies64());
    /* NAT and helpers rewrite packets; only the kernel can. */
    const unsigned long in_the_way = IPS_NAT_MASK | IPS_SEQ_ADJUST | IPS_HELPER | IPS_DYING;

    /* The other fragments cannot be looked up, and the kernel needs all to reassemble. */
    if (packet->is_fragment) return SP_CT_NEW;
    if (!(status & IPS_SEEN_REPLY)) return dir == SP_CT_DIR_REPLY ? SP_CT_WATCHED : SP_CT_NEW;
    if ((status & in_the_way) || !(status & IPS_CONFIRMED)) return SP_CT_WATCHED;
    if (life < (__s32)tune.ct_refresh) return SP_CT_WATCHED;
    if (packet->protocol == IPPROTO_TCP && !(status & IPS_ASSURED)) return SP_CT_WATCHED;
    return sp_moves_tcp_state(ctx, packet) ? SP_CT_WATCHED : SP_CT_ESTABLISHED;
}

/* Fills ct_state and ct_mark, once for a packet. */
__noinline int sp_ct_lookup(struct xdp_md* ctx, struct sp_packet* packet) {
    struct bpf_ct_opts opts = {.netns_id = -1};
    struct bpf_sock_tuple tuple = {};
    struct nf_conn* connection;

    if (!packet) return SP_CT_NONE;
    if (packet->ct_state != SP_CT_NOT_ASKED) return packet->ct_state;
    packet->ct_state = SP_CT_NONE;
    if (packet->protocol_known && packet->protocol != IPPROTO_TCP &&
        packet->protocol != IPPROTO_UDP)
        return SP_CT_NONE;
    if (!packet->protocol_known || !packet->ports_known) {
        packet->ct_state = SP_CT_HIDDEN;
        return SP_CT_HIDDEN;
    }
    /* Control sets it where the kernel has the functions; else what follows is dead code to the
       verifier. Their addresses are not asked for: of a module's functions libbpf 1.1 gives none.
     */
    if (!tune.conntrack) return SP_CT_NONE;

    opts.l4proto = packet->protocol;
    if (packet->family == SP_AF_INET) {
        tuple.ipv4.saddr = packet->src[0];
        tuple.ipv4.daddr = packet->dst[0];
        tuple.ipv4.sport = bpf_htons(packet->src_port);
        tuple.ipv4.dport = bpf_htons(packet->dst_port);
        connection = bpf_xdp_ct_lookup(ctx, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
    } else {
        __builtin_memcpy(tuple.ipv6.saddr, packet->src, sizeof(tuple.ipv6.saddr));
        __builtin_memcpy(tuple.ipv6.daddr, packet->dst, sizeof(tuple.ipv6.daddr));
        tuple.ipv6.sport = bpf_htons(packet->src_port);
        tuple.ipv6.dport = bpf_htons(packet->dst_port);
        connection = bpf_xdp_ct_lookup(ctx, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
    }
    if (!connection) return SP_CT_NONE;
    packet->ct_state = sp_ct_judge(ctx, packet, connection, opts.dir);
    /* A kernel without connection marks has mark 0 everywhere. */
    if (bpf_core_field_exists(connection->mark)) packet->ct_mark = connection->mark;
    bpf_ct_release(connection);
    return packet->ct_state;
}

enum sp_ct_verdict { SP_CT_GO_ON, SP_CT_TO_KERNEL, SP_CT_REFUSED };

/* What `rule` (enum sp_conntrack) says to the packet. Does not count: the caller may still drop it
   for another reason. */
static __always_inline enum sp_ct_verdict sp_ct_verdict(struct xdp_md* ctx,
                                                        struct sp_packet* packet, __u8 rule) {
    int state;

    if (!tune.conntrack || rule == SP_CONNTRACK_OFF) return SP_CT_GO_ON;
    state = sp_ct_lookup(ctx, packet);
    if (state == SP_CT_ESTABLISHED) return SP_CT_GO_ON;
    if (state == SP_CT_WATCHED || rule == SP_CONNTRACK_PUNT) return SP_CT_TO_KERNEL;
    return SP_CT_REFUSED;
}

static __always_inline void sp_ct_count(enum sp_ct_verdict verdict) {
    __u32 port = tune.port;
    struct sp_conntrack_counters* counters = bpf_map_lookup_elem(&conntrack_counters, &port);

    if (!counters) return;
    if (verdict == SP_CT_GO_ON) ++counters->established;
    if (verdict == SP_CT_TO_KERNEL) ++counters->to_kernel;
    if (verdict == SP_CT_REFUSED) ++counters->refused;
}

/* The stricter of what the port the frame came in on and the one it leaves by ask for. */
static __always_inline __u8 sp_ct_rule(const __u32* port_out) {
    __u32 port = tune.port;
    struct sp_port_info* in = bpf_map_lookup_elem(&port_info, &port);
    struct sp_port_info* out = port_out ? bpf_map_lookup_elem(&port_info, port_out) : NULL;
    __u8 rule = in ? in->conntrack_in : SP_CONNTRACK_DROP;

    return out && out->conntrack_out > rule ? out->conntrack_out : rule;
}

#endif /* SP_CONNTRACK_H */
