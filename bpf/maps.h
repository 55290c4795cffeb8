/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Maps that all programs share. The loader creates each once, by name, and hands it to every
 * program; sizes marked "loader" are set there. Layouts are described in abi.h.
 */
#ifndef SP_MAPS_H
#define SP_MAPS_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "abi.h"

/* Writer: every program. Reader: control. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, struct sp_port_counters);
} port_counters SEC(".maps");

/* Writer: every program. Reader: control. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX* SP_DROP_COUNT);
    __type(key, __u32);
    __type(value, __u64);
} drop_counters SEC(".maps");

static __always_inline void sp_count_drops(__u32 port, enum sp_drop_reason reason, __u64 frames) {
    __u32 key = port * SP_DROP_COUNT + reason;
    __u64* count = bpf_map_lookup_elem(&drop_counters, &key);

    if (count) *count += frames;
}

/* Writer: control, when a port is added or its MTU or filter changes. Reader: all programs. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, struct sp_port_info);
} port_info SEC(".maps");

/* Writer: control. Reader: egress_port, and the programs that pass a frame on to the kernel. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, SP_PORTS_MAX* SP_EGRESS_RULES_MAX);
    __type(key, __u32);
    __type(value, struct sp_egress_rule);
} egress_rules SEC(".maps");

/* Writer: control. Reader: programs that forward, and redirect_watch. Key: ifindex of each port and
   of each device beside them that packets may be routed to, for its lifetime. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, SP_PORTS_MAX + SP_FORWARD_TO_MAX);
    __type(key, __u32);
    __type(value, __u32);
} port_by_ifindex SEC(".maps");

/* Key: port id. Value: what the port's devmap program did with the last 64 frames on this CPU, the
   last one in bit 0; 1: dropped. Writer: that program. Reader: redirect_watch, behind it. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, SP_PORTS_MAX);
    __type(key, __u32);
    __type(value, __u64);
} egress_verdicts SEC(".maps");

#endif /* SP_MAPS_H */
