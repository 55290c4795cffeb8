// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Devmap program of every port: the last look at a frame that XDP sends out.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "filter.h"
#include "verdict.h"

SEC("xdp/devmap")
int egress_port(struct xdp_md* ctx) {
    struct sp_packet packet = {};
    enum sp_drop_reason reason;
    struct sp_port_info* info;
    __u32 port = tune.port;

    sp_egress_begin(ctx);
    reason = sp_parse_ip(ctx, &packet);
    if (!reason) reason = sp_parse_upper(ctx, &packet);
    if (reason) return sp_egress_drop(reason);
    if (packet.family == 0) return sp_egress_drop(SP_DROP_unsupported_packet);
    if (sp_egress_denied(&packet, port)) return sp_egress_drop(SP_DROP_egress_denied);
    info = bpf_map_lookup_elem(&port_info, &port);
    if (!info || packet.ip_bytes > info->mtu) return sp_egress_drop(SP_DROP_too_big);
    return sp_egress_send();
}

char _license[] SEC("license") = "Dual BSD/GPL";
