// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Cpumap program of a port with bypass_cpus: forwards, on the flow's CPU, what the port's steering
 * program found to be BYPASS (spread.h). The policy is not asked again.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "spread.h"

SEC("xdp/cpumap")
int bypass_cpu(struct xdp_md* ctx) {
    struct sp_spread_counters* counters = sp_spread();
    struct sp_packet packet = {};
    enum sp_drop_reason reason;
    struct sp_port_info* info;
    __u32 port = tune.port;

    /* Counted in where it was received. */
    if (counters) ++counters->taken;
    reason = sp_parse_ip(ctx, &packet);
    if (!reason) reason = sp_parse_upper(ctx, &packet);
    if (reason) return sp_drop(reason);
    info = bpf_map_lookup_elem(&port_info, &port);
    if (!info || packet.family == 0) return sp_drop(SP_DROP_unsupported_packet);
    return sp_forward(ctx, &packet,
                      info->role == SP_ROLE_PROTECTED ? SP_ORIGIN_BYPASS_OUT : SP_ORIGIN_BYPASS_IN);
}

char _license[] SEC("license") = "Dual BSD/GPL";
