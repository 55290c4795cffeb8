/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The little that programs on tracepoints read of the kernel's own structures. Offsets are those of
 * the running kernel (CO-RE).
 */
#ifndef SP_NET_DEVICE_H
#define SP_NET_DEVICE_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>

#define SP_KERNEL_TYPE __attribute__((preserve_access_index))

struct ns_common {
    unsigned int inum;
} SP_KERNEL_TYPE;
struct net {
    struct ns_common ns;
} SP_KERNEL_TYPE;
typedef struct {
    struct net* net;
} SP_KERNEL_TYPE possible_net_t;
struct net_device {
    int ifindex;
    possible_net_t nd_net;
} SP_KERNEL_TYPE;

static __always_inline __u32 sp_ifindex_of(const struct net_device* device) {
    return (__u32)BPF_CORE_READ(device, ifindex);
}

static __always_inline __u32 sp_netns_of(const struct net_device* device) {
    return BPF_CORE_READ(device, nd_net.net, ns.inum);
}

#endif /* SP_NET_DEVICE_H */
