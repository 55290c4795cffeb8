/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What programs and daemon share about next hops whose MAC is not known. Like abi.h, of which it
 * would be a part if it were not so much younger: for BPF C and C++.
 */
#ifndef SP_NEXT_HOP_H
#define SP_NEXT_HOP_H

#include "abi.h"

#define SP_UNRESOLVED_MAX 256

/* LRU_HASH unresolved_hops. Writer: programs, when a packet finds its next hop unresolved. Control
   has the kernel resolve it, and deletes it when that is done. */
struct sp_next_hop {
    __u32 ifindex;
    __u16 family; /* AF_INET or AF_INET6 */
    __u16 pad;
    __u8 address[16]; /* IPv4 in the first 4 bytes, rest zero */
};
SP_STATIC_ASSERT(sizeof(struct sp_next_hop) == 24, "abi");

struct sp_unresolved {
    __u64 since_ns;
    __u32 waiting; /* packets of ours that the kernel keeps for it since then */
    __u32 waiting_bytes;
};
SP_STATIC_ASSERT(sizeof(struct sp_unresolved) == 16, "abi");

/* So much the kernel is given to keep for one next hop, with what a packet costs beside its bytes.
   It must be below the kernel's own limit (unres_qlen_bytes, 212992 unless somebody has changed
   it), where it drops the oldest without telling us. */
#define SP_WAITING_BYTES_MAX 163840
#define SP_WAITING_BYTES_EACH 1024
/* The kernel asks three times with a second between (ucast_solicit, mcast_solicit,
   retrans_time_ms), then it drops what waits. Shorter than that, and packets that the kernel still
   keeps are counted as lost; longer, and it is noticed later. */
#define SP_WAITING_NS 4000000000ull

#endif /* SP_NEXT_HOP_H */
