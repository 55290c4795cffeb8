/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP and UDP whose checksum is still to be completed.
 *
 * A host on this machine (a container, a virtual machine behind a veth or a TAP) leaves the
 * checksum to its device, and that to ours: what stands in the field is the sum of the
 * pseudo-header alone, and that it is not all stands beside the packet, where XDP does not see it.
 * Sent on as it is, every receiver drops it. The kernel still knows, so it may have the packet;
 * workers complete the sum of what they encrypt (dataplane/pipeline/stages/complete_checksum.h).
 *
 * One of 65536 packets with a right checksum looks the same; for it, too, the kernel is a right
 * way.
 */
#ifndef SP_CHECKSUM_H
#define SP_CHECKSUM_H

#include "maps.h"
#include "parse.h"

#define SP_TCP_CHECKSUM 16 /* where it stands in the header */
#define SP_UDP_CHECKSUM 6

/* What BYPASS left to the kernel for that. Writer: steer programs. Reader: control. Key: port id.
 */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, __u64);
} partial_checksums SEC(".maps");

/* 1: the field is what a sender writes who leaves the rest to a device. A fragment is none: it
   cannot be completed later. */
static __always_inline int sp_is_checksum_partial(const struct xdp_md* ctx,
                                                  const struct sp_packet* packet) {
    const void* data_end = (void*)(long)ctx->data_end;
    const __u16* field;
    __u32 offset = packet->upper_offset;
    __u64 sum;

    if (!packet->ports_known || packet->is_fragment || offset > 0x3fff) return 0;
    if (packet->protocol == IPPROTO_TCP)
        offset += SP_TCP_CHECKSUM;
    else if (packet->protocol == IPPROTO_UDP)
        offset += SP_UDP_CHECKSUM;
    else
        return 0;
    field = (void*)(long)ctx->data + offset;
    if ((const void*)(field + 1) > data_end) return 0;
    sum = (__u64)bpf_htonl(sp_upper_bytes(packet)) + bpf_htonl(packet->protocol);
    for (int i = 0; i < 4; ++i) sum += (__u64)packet->src[i] + packet->dst[i];
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return *field == (__u16)sum;
}

static __always_inline void sp_count_partial(__u32 port) {
    __u64* count = bpf_map_lookup_elem(&partial_checksums, &port);

    if (count) ++*count;
}

#endif /* SP_CHECKSUM_H */
