// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What the kernel drops of packets that we have handed to it: those that came in by a port, sp0 or
 * the xfrm interface, those that direct egress sends by AF_XDP in copy mode, and those that a
 * generic program has redirected.
 *
 * Hears of every packet that the kernel drops (tracepoint kfree_skb), on any device: what is not
 * ours must be told apart soon. Not counted: multicast and broadcast; what has come to this host
 * and nobody has a socket for; what a TC program drops on the way out, ours or another's; what a
 * driver drops behind its transmit ring, and the device below a VLAN, macvlan or bond (their own
 * counters). A driver that frees what it has sent as if it were dropped makes a loss of each.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "losses.h"
#include "net_device.h"

#define SP_AF_XDP 44
#define SP_PACKET_HOST 0      /* for this station */
#define SP_PACKET_OTHERHOST 3 /* for another one */

struct sock_common {
    unsigned short skc_family;
} SP_KERNEL_TYPE;
struct sock {
    struct sock_common __sk_common;
} SP_KERNEL_TYPE;
struct sk_buff {
    struct net_device* dev;
    struct sock* sk;
    unsigned long _skb_refdst;
    int skb_iif;
    __u8 pkt_type : 3;
    __be16 protocol;
    __u16 network_header;
    unsigned char* head;
} SP_KERNEL_TYPE;

/* The values are those of the running kernel (CO-RE). */
enum skb_drop_reason {
    SKB_CONSUMED,
    SKB_DROP_REASON_NOT_SPECIFIED,
    SKB_DROP_REASON_NO_SOCKET,
    SKB_DROP_REASON_XDP,
    SKB_DROP_REASON_TC_INGRESS,
    SKB_DROP_REASON_TC_EGRESS,
    SKB_DROP_REASON_NEIGH_FAILED,
    SKB_DROP_REASON_NEIGH_QUEUEFULL,
    SKB_DROP_REASON_QUEUE_PURGE,
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

/* The value of one that the running kernel has not is an instruction that must not be reached. */
#define SP_IS_REASON(reason, name)                                                             \
    ({                                                                                         \
        int sp_is = 0;                                                                         \
        if (bpf_core_enum_value_exists(enum skb_drop_reason, name)) {                          \
            barrier();                                                                         \
            sp_is = (__u32)(reason) == (__u32)bpf_core_enum_value(enum skb_drop_reason, name); \
        }                                                                                      \
        sp_is;                                                                                 \
    })

static __always_inline __u8 sp_byte(const struct sk_buff* skb, __u32 offset) {
    __u8 value = 0;

    bpf_probe_read_kernel(&value, sizeof(value), skb->head + skb->network_header + offset);
    return value;
}

static __always_inline int sp_is_v6(const struct sk_buff* skb) {
    return skb->protocol == bpf_htons(ETH_P_IPV6);
}

static __always_inline int sp_is_esp(const struct sk_buff* skb) {
    return sp_byte(skb, sp_is_v6(skb) ? 6 : 9) == IPPROTO_ESP;
}

/* Older kernels free what they have heard of neighbours as if it were dropped. */
static __always_inline int sp_is_discovery(const struct sk_buff* skb) {
    return sp_is_v6(skb) && sp_byte(skb, 6) == IPPROTO_ICMPV6 && sp_byte(skb, 40) >= 133 &&
           sp_byte(skb, 40) <= 137;
}

/* 1: to_neighbour counts it, which has given it the device of the way out. For IPv6 the kernel does
   not say why. */
static __always_inline int sp_has_waited(const struct sk_buff* skb, __u64 reason) {
    return skb->dev->ifindex != skb->skb_iif && sp_is_esp(skb) &&
           (SP_IS_REASON(reason, SKB_DROP_REASON_NEIGH_FAILED) ||
            SP_IS_REASON(reason, SKB_DROP_REASON_NEIGH_QUEUEFULL) ||
            SP_IS_REASON(reason, SKB_DROP_REASON_QUEUE_PURGE) ||
            SP_IS_REASON(reason, SKB_DROP_REASON_NOT_SPECIFIED));
}

/* 1: nothing but a program has seen it since it came in by a device. */
static __always_inline int sp_is_fresh(const struct sk_buff* skb) {
    return skb->dev->ifindex == skb->skb_iif && !skb->_skb_refdst;
}

/* 1: a generic program has redirected it: it has the MAC of the next hop, by which the kernel has
   told its type, and is with the device that it is to leave by. */
static __always_inline int sp_is_redirected(const struct sk_buff* skb,
                                            const struct sp_loss_device* device) {
    return device->generic && skb->dev->ifindex != skb->skb_iif &&
           BPF_CORE_READ_BITFIELD(skb, pkt_type) == SP_PACKET_OTHERHOST;
}

/* 1: no loss of what was passed on, or dropped by a program of ours, or counted by one, under a
   reason of its own. The kernel does not say why it drops what a generic program, or one of a
   devmap behind it, has dropped. */
static __always_inline int sp_is_counted(const struct sk_buff* skb,
                                         const struct sp_loss_device* device, __u64 reason) {
    if (SP_IS_REASON(reason, SKB_CONSUMED) || SP_IS_REASON(reason, SKB_DROP_REASON_NO_SOCKET) ||
        SP_IS_REASON(reason, SKB_DROP_REASON_XDP) ||
        SP_IS_REASON(reason, SKB_DROP_REASON_TC_EGRESS))
        return 1;
    if (SP_IS_REASON(reason, SKB_DROP_REASON_NOT_SPECIFIED) &&
        ((device->generic && sp_is_fresh(skb)) || sp_is_discovery(skb)))
        return 1;
    if (device->port < SP_PORT_INTERFACE) return 0;
    if (SP_IS_REASON(reason, SKB_DROP_REASON_TC_INGRESS)) return 1;
    return device->port == SP_PORT_INJECTOR && sp_has_waited(skb, reason);
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
    if (key.drop == SP_DROP_lost_in_kernel && sp_is_redirected(skb, device)) {
        ifindex = (__u32)dev->ifindex;
        device = bpf_map_lookup_elem(&loss_devices, &ifindex);
        if (!device) return 0;
        key.drop = SP_DROP_lost_in_device;
    }
    if (key.drop == SP_DROP_lost_in_kernel) {
        /* Multicast and broadcast that nobody here wants is no loss. */
        if (BPF_CORE_READ_BITFIELD(skb, pkt_type) != SP_PACKET_HOST) return 0;
        if (sp_is_counted(skb, device, context[2])) return 0;
    }
    key.port = device->port;
    sp_count_loss(&key);
    return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
