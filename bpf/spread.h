/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * BYPASS traffic of one port on several CPUs.
 *
 * A port with fewer queues than the machine has CPUs would forward all its BYPASS traffic on the
 * few that its queues interrupt. With bypass_cpus the steering program only decides; the frame goes
 * on to the queue of another CPU, where bypass_cpu.bpf.c looks the route up and redirects. A flow
 * has one CPU, so its frames stay in order (fragments go by addresses alone, and so may overtake or
 * be overtaken by whole packets of the same flow, as everywhere here).
 *
 * A full queue loses frames without telling the program: they are handed_over and never taken.
 */
#ifndef SP_SPREAD_H
#define SP_SPREAD_H

#include "forward.h"

/* One for each port. Writer: control, before the port is attached. Key: CPU, for the port's
   lifetime. Size: loader. */
struct {
    __uint(type, BPF_MAP_TYPE_CPUMAP);
    __uint(max_entries, 1);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(struct bpf_cpumap_val));
} bypass_queues SEC(".maps");

/* Writer: steer programs and bypass_cpu. Reader: control. Key: port id. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, struct sp_spread_counters);
} spread_counters SEC(".maps");

static __always_inline struct sp_spread_counters* sp_spread(void) {
    __u32 port = tune.port;

    return bpf_map_lookup_elem(&spread_counters, &port);
}

/* Forwards in clear what a BYPASS policy covers. */
static __always_inline int sp_forward_spread(struct xdp_md* ctx, struct sp_packet* packet,
                                             enum sp_origin origin) {
    struct sp_spread_counters* counters;
    __u32 slot;
    __u32 hash;

    if (tune.bypass_cpu_count == 0 || tune.bypass_cpu_count > SP_BYPASS_CPUS_MAX)
        return sp_forward(ctx, packet, origin);
    hash = sp_flow_hash(sp_last_word(packet, packet->src), sp_last_word(packet, packet->dst),
                        packet->protocol, packet->is_fragment ? 0 : packet->src_port,
                        packet->is_fragment ? 0 : packet->dst_port);
    slot = hash % tune.bypass_cpu_count;
    /* The verifier cannot see what the compiler can: that the slot is in range. */
    barrier_var(slot);
    slot &= SP_BYPASS_CPUS_MAX - 1;
    /* No queue there: forwarded here. */
    if (bpf_redirect_map(&bypass_queues, tune.bypass_cpus[slot], 0) != XDP_REDIRECT)
        return sp_forward(ctx, packet, origin);
    counters = sp_spread();
    if (counters) ++counters->handed_over;
    return XDP_REDIRECT;
}

#endif /* SP_SPREAD_H */
