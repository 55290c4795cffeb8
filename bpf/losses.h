/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What kernel_losses shares with control: where packets are looked for, and what it counts.
 */
#ifndef SP_LOSSES_H
#define SP_LOSSES_H

#include "abi.h"

/* HASH loss_devices, key: __u32 ifindex. Writer: control. Reader: kernel_losses. */
struct sp_loss_device {
    __u32 port;        /* port id */
    __u32 netns_inode; /* other network namespaces have devices of the same index */
    __u32 generic;     /* 1: its XDP program is a generic one */
};
SP_STATIC_ASSERT(sizeof(struct sp_loss_device) == 12, "abi");

/* PERCPU_HASH kernel_losses_by_reason, value: __u64 packets. Writer: kernel_losses, which adds
   keys. Reader: control. */
struct sp_loss_key {
    __u32 port;
    __u32 drop;   /* SP_DROP_lost_in_kernel or SP_DROP_lost_in_device */
    __u32 reason; /* enum skb_drop_reason of the running kernel */
};
SP_STATIC_ASSERT(sizeof(struct sp_loss_key) == 12, "abi");
#define SP_LOSS_KEYS_MAX 2048

#endif /* SP_LOSSES_H */
