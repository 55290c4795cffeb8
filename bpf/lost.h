/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What redirect_watch and send_probe share with control: frames that a program has redirected and
 * that the kernel could not hand over afterwards.
 */
#ifndef SP_LOST_H
#define SP_LOST_H

#include "abi.h"

/* ARRAY lost_setup, one element. Writer: control, before a program is attached. Reader:
   redirect_watch. Tracepoints tell of all devices and maps of the machine; these are ours. */
struct sp_lost_setup {
    __u32 netns;    /* inode number of our network namespace: an ifindex is of one */
    __u32 tx_ports; /* id of the devmap */
};
SP_STATIC_ASSERT(sizeof(struct sp_lost_setup) == 8, "abi");

/* What send_probe sends seems to come from the loopback device. */
#define SP_LOOPBACK_IFINDEX 1

/* ARRAY send_probe_state, one element. */
struct sp_send_probe {
    __u32 netns;          /* writer: control */
    __u32 ifindex;        /* writer: control; of the device that is probed */
    __u32 map;            /* writer: control; id of the probe's devmap */
    __u32 taken;          /* frames that came as far as the devmap program */
    __u32 sent;           /* of those, taken by the driver */
    __s32 redirect_error; /* why one did not come so far; 0: none */
    __s32 send_error;     /* why the driver took none; 0: none */
};
SP_STATIC_ASSERT(sizeof(struct sp_send_probe) == 28, "abi");

#endif /* SP_LOST_H */
