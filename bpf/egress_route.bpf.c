// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * XDP program of sp0: routes what workers write, by the kernel's own FIB.
 *
 * The source MAC tells what the packet is (abi.h, "frames that workers write to sp0").
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "forward.h"

static __always_inline __u8 sp_kind(const struct xdp_md* ctx) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const struct ethhdr* ethernet = data;

    return (void*)(ethernet + 1) > data_end ? 0 : sp_kind_of_mac(ethernet->h_source);
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
