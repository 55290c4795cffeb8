// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * XDP program of sp0: routes what workers write, by the kernel's own FIB.
 *
 * The source MAC tells what the packet is (abi.h, "frames that workers write to sp0").
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "forward.h"

/* SP_KIND_*, or 0 when no worker wrote the frame. */
static __always_inline __u8 sp_kind(const struct xdp_md* ctx) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const struct ethhdr* ethernet = data;
    const __u8* mac = ethernet->h_source;

    if ((void*)(ethernet + 1) > data_end) return 0;
    if (mac[0] != 0x02 || mac[1] != 0x53 || mac[2] != 0x50 || mac[3] != 0 || mac[4] != 0) return 0;
    return mac[5];
}

SEC("xdp")
int egress_route(struct xdp_md* ctx) {
    struct sp_packet packet = {};
    enum sp_drop_reason reason;

    sp_begin(ctx);
    reason = sp_parse_ip(ctx, &packet);
    if (!reason) reason = sp_parse_upper(ctx, &packet);
    if (reason) return sp_drop(reason);
    if (packet.family == 0) return sp_drop(SP_DROP_unsupported_packet);

    switch (sp_kind(ctx)) {
        case SP_KIND_ORIGINATED:
            return sp_forward(ctx, &packet, SP_ORIGIN_ORIGINATED);
        case SP_KIND_TRANSIT:
            return sp_forward(ctx, &packet, SP_ORIGIN_TRANSIT);
        default:
            return sp_drop(SP_DROP_unsupported_packet);
    }
}

char _license[] SEC("license") = "Dual BSD/GPL";
