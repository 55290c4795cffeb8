// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the kernel drops of packets that we have handed to it: those that came in by a port, sp0 or
 * the xfrm interface, and those that direct egress sends by AF_XDP in copy mode.
 *
 * Hears of every packet that the kernel drops (tracepoint kfree_skb), on any device: what is not
 * ours must be told apart soon. Not heard of: packets that were used up, and what a driver drops
 * behind its transmit ring (the device's own counters, `show ports`).
 */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "losses.h"
#include "maps.h"

#define SP_AF_XDP 44

/* Of the kernel's types, what is read here; libbpf finds the members where they are. */
#define SP_KERNEL_TYPE __attribute__((preserve_access_index))

struct ns_common {
    unsigned int inum;
} SP_KERNEL_TYPE;

struct net {
    struct ns_common ns;
} SP_KERNEL_TYPE;

typedef struct {
    struct net* net;
} possible_net_t;

struct net_device {
    int ifindex;
    possible_net_t nd_net;
} SP_KERNEL_TYPE;

struct sock_common {
    unsigned short skc_family;
} SP_KERNEL_TYPE;

struct sock {
    struct sock_common __sk_common;
} SP_KERNEL_TYPE;

struct sk_buff {
    struct net_device* dev;
    struct sock* sk;
    int skb_iif;
} SP_KERNEL_TYPE;

enum skb_drop_reason {
    SKB_CONSUMED,
    SKB_DROP_REASON_NOT_SPECIFIED,
    SKB_DROP_REASON_XDP,
    SKB_DROP_REASON_TC_EGRESS,
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, struct sp_loss_device);
} loss_devices SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(max_entries, SP_LOSS_KEYS_MAX);
    __type(key, struct sp_loss_key);
    __type(value, __u64);
} kernel_losses_by_reason SEC(".maps");

/* Key: port id. What the port's program had dropped on this CPU when one of its packets was dropped
   last. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, __u64);
} loss_dropped_before SEC(".maps");

static __always_inline int sp_is_reason(__u64 reason, enum skb_drop_reason value, int exists) {
    return exists && (__u32)reason == (__u32)value;
}
#define SP_IS_REASON(reason, name)                                        \
    sp_is_reason(reason, bpf_core_enum_value(enum skb_drop_reason, name), \
                 bpf_core_enum_value_exists(enum skb_drop_reason, name))

/* 1: dropped by a program of ours, which has counted it under its own reason. A generic XDP program
   that drops is followed at once, on this CPU, by the kernel's drop of the packet. */
static __always_inline int sp_is_counted(const struct sp_loss_device* device, __u64 reason) {
    struct sp_port_counters* counters;
    __u64* before;
    __u32 port = device->port;

    if (SP_IS_REASON(reason, SKB_CONSUMED) || SP_IS_REASON(reason, SKB_DROP_REASON_XDP) ||
        SP_IS_REASON(reason, SKB_DROP_REASON_TC_EGRESS))
        return 1;
    if (!device->generic || !SP_IS_REASON(reason, SKB_DROP_REASON_NOT_SPECIFIED)) return 0;
    counters = bpf_map_lookup_elem(&port_counters, &port);
    before = bpf_map_lookup_elem(&loss_dropped_before, &port);
    if (!counters || !before || counters->dropped == *before) return 0;
    *before = counters->dropped;
    return 1;
}

static __always_inline void sp_count_loss(const struct sp_loss_key* key) {
    __u64* count = bpf_map_lookup_elem(&kernel_losses_by_reason, key);
    __u64 none = 0;

    if (!count) {
        bpf_map_update_elem(&kernel_losses_by_reason, key, &none, BPF_NOEXIST);
        count = bpf_map_lookup_elem(&kernel_losses_by_reason, key);
    }
    if (count) ++*count;
}

SEC("tp_btf/kfree_skb")
int kernel_losses(__u64* context) {
    const struct sk_buff* skb = (const struct sk_buff*)context[0];
    const struct net_device* dev = skb->dev;
    struct sp_loss_key key = {.reason = (__u32)context[2]};
    struct sp_loss_device* device;
    __u32 ifindex = (__u32)skb->skb_iif;

    if (!dev) return 0; /* a socket had it: it has arrived */
    key.drop = SP_DROP_lost_in_kernel;
    if (ifindex == 0) {
        const struct sock* sk = skb->sk;

        if (!sk || sk->__sk_common.skc_family != SP_AF_XDP) return 0;
        ifindex = (__u32)dev->ifindex;
        key.drop = SP_DROP_lost_in_device;
    }
    device = bpf_map_lookup_elem(&loss_devices, &ifindex);
    if (!device || dev->nd_net.net->ns.inum != device->netns_inode) return 0;
    if (sp_is_counted(device, context[2])) return 0;
    key.port = device->port;
    sp_count_loss(&key);
    return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
