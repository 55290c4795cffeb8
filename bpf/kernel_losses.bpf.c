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
#include <linux/if_ether.h>
#include <linux/in.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "losses.h"
#include "net_device.h"

#define SP_AF_XDP 44

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
    __be16 protocol;
    __u16 network_header;
    unsigned char* head;
} SP_KERNEL_TYPE;

/* The values are those of the running kernel (CO-RE). */
enum skb_drop_reason {
    SKB_CONSUMED,
    SKB_DROP_REASON_NOT_SPECIFIED,
    SKB_DROP_REASON_XDP,
    SKB_DROP_REASON_TC_INGRESS,
    SKB_DROP_REASON_TC_EGRESS,
    SKB_DROP_REASON_NEIGH_FAILED,
    SKB_DROP_REASON_NEIGH_QUEUEFULL,
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

static __always_inline int sp_is_reason(__u64 reason, enum skb_drop_reason value, int exists) {
    return exists && (__u32)reason == (__u32)value;
}
#define SP_IS_REASON(reason, name)                                        \
    sp_is_reason(reason, bpf_core_enum_value(enum skb_drop_reason, name), \
                 bpf_core_enum_value_exists(enum skb_drop_reason, name))

static __always_inline int sp_is_esp(const struct sk_buff* skb) {
    const int v6 = skb->protocol == bpf_htons(ETH_P_IPV6);
    __u8 protocol = 0;

    bpf_probe_read_kernel(&protocol, sizeof(protocol),
                          skb->head + skb->network_header + (v6 ? 6 : 9));
    return protocol == IPPROTO_ESP;
}

/* 1: dropped by a program of ours, or counted by one, under a reason of its own. The kernel does
   not say why it drops what a generic program, or one of a devmap behind it, has dropped. */
static __always_inline int sp_is_counted(const struct sk_buff* skb,
                                         const struct sp_loss_device* device, __u64 reason) {
    if (SP_IS_REASON(reason, SKB_CONSUMED) || SP_IS_REASON(reason, SKB_DROP_REASON_XDP) ||
        SP_IS_REASON(reason, SKB_DROP_REASON_TC_EGRESS))
        return 1;
    if (device->generic && SP_IS_REASON(reason, SKB_DROP_REASON_NOT_SPECIFIED)) return 1;
    if (device->port < SP_PORT_INTERFACE) return 0;
    if (SP_IS_REASON(reason, SKB_DROP_REASON_TC_INGRESS)) return 1;
    return (SP_IS_REASON(reason, SKB_DROP_REASON_NEIGH_FAILED) ||
            SP_IS_REASON(reason, SKB_DROP_REASON_NEIGH_QUEUEFULL)) &&
           sp_is_esp(skb); /* to_neighbour */
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
    if (sp_is_counted(skb, device, context[2])) return 0;
    key.port = device->port;
    sp_count_loss(&key);
    return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
