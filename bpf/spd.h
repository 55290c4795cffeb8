/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The SPD lookup of abi.h: destination class, cell, first entry whose protocol and ports match,
 * and the same in wider classes where one there may come earlier.
 *
 * Functions of their own for the verifier (global, each verified once), because each holds a loop.
 */
#ifndef SP_SPD_H
#define SP_SPD_H

#include "maps.h"
#include "parse.h"

/* All four: writer control, reader the steer programs. Rows of a generation may change while it
   is in use, one after another (dataplane/spd/classes.h). Sizes: loader. */
struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 1024);
    __type(key, struct sp_lpm_key);
    __type(value, struct sp_spd_class);
} spd_dst SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LPM_TRIE);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 1024);
    __type(key, struct sp_lpm_key);
    __type(value, struct sp_spd_cell);
} spd_src SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, struct sp_spd_entry);
} spd_entries SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct sp_spd_active);
} spd_active SEC(".maps");

#define SP_SPD_NO_MATCH (-1)
/* RFC 4301 7: a later fragment cannot be compared with what this entry selects on. */
#define SP_SPD_NEEDS_PORTS (-2)

/* The answer of one class, as below; *order is that of the entry where there is one. */
__noinline int sp_spd_find_in_class(struct sp_packet* packet, __u32 class, __u32* order) {
    struct sp_lpm_key key = {};
    struct sp_spd_cell* cell;

    if (!packet || !order) return SP_SPD_NO_MATCH;
    key.prefix_bits = 32 + (packet->family == SP_AF_INET ? 32 : 128);
    key.table = class;
    __builtin_memcpy(key.address, packet->src, sizeof(key.address));
    cell = bpf_map_lookup_elem(&spd_src, &key);
    if (!cell) return SP_SPD_NO_MATCH;

    for (__u32 i = 0; i < SP_CELL_ENTRIES_MAX; ++i) {
        struct sp_spd_entry* entry;
        __u32 index = cell->first + i;

        if (i >= cell->count) break;
        entry = bpf_map_lookup_elem(&spd_entries, &index);
        if (!entry) break;
        *order = entry->order;
        if (entry->protocol) {
            if (!packet->protocol_known) return SP_SPD_NEEDS_PORTS;
            if (entry->protocol != packet->protocol) continue;
        }
        if (entry->has_ports) {
            if (!packet->ports_known) return SP_SPD_NEEDS_PORTS;
            if (packet->src_port < entry->src_port_lo || packet->src_port > entry->src_port_hi ||
                packet->dst_port < entry->dst_port_lo || packet->dst_port > entry->dst_port_hi)
                continue;
        }
        if (entry->ct_mark_mask) {
            if (packet->ct_state == SP_CT_HIDDEN) return SP_SPD_NEEDS_PORTS;
            if (packet->ct_state < SP_CT_NEW ||
                (packet->ct_mark & entry->ct_mark_mask) != entry->ct_mark)
                continue;
        }
        return (int)index;
    }
    return SP_SPD_NO_MATCH;
}

/* Index into spd_entries, or one of the two above. */
__noinline int sp_spd_find(struct sp_packet* packet, __u32 direction) {
    struct sp_lpm_key key = {};
    struct sp_spd_active* active;
    int best = SP_SPD_NO_MATCH;
    __u32 best_order = SP_SPD_NO_ORDER;
    __u32 zero = 0;

    if (!packet) return SP_SPD_NO_MATCH;
    active = bpf_map_lookup_elem(&spd_active, &zero);
    if (!active || !active->enabled) return SP_SPD_NO_MATCH;

    key.prefix_bits = 32 + (packet->family == SP_AF_INET ? 32 : 128);
    key.table =
        SP_SPD_TABLE(active->generation, direction, packet->family == SP_AF_INET6 ? 1u : 0u);
    __builtin_memcpy(key.address, packet->dst, sizeof(key.address));

    for (__u32 i = 0; i < SP_SPD_CLASSES_MAX; ++i) {
        struct sp_spd_class* class = bpf_map_lookup_elem(&spd_dst, &key);
        __u32 order = SP_SPD_NO_ORDER;
        int found;

        if (!class) break;
        found = sp_spd_find_in_class(packet, class->id, &order);
        if (found != SP_SPD_NO_MATCH && order < best_order) {
            best = found;
            best_order = order;
        }
        if (best_order <= class->order_above) break;
        key.prefix_bits = class->prefix_bits - 1;
    }
    return best;
}

/* The entry that decides for the packet, or NULL and the reason why there is none. */
static __always_inline struct sp_spd_entry* sp_spd_entry_of(struct sp_packet* packet,
                                                            __u32 direction,
                                                            enum sp_drop_reason* reason) {
    int found = sp_spd_find(packet, direction);
    __u32 index = (__u32)found;

    *reason = found == SP_SPD_NEEDS_PORTS ? SP_DROP_fragment_without_ports : SP_DROP_no_policy;
    return found < 0 ? NULL : bpf_map_lookup_elem(&spd_entries, &index);
}

/* The worker, among those that hold an outbound SA of the policy, which the flow belongs to. Ports
   do not count for fragments, so that all of one packet reach the same worker. The caller has
   checked that owner_count is 1 .. SP_OWNERS_MAX. */
static __always_inline __u32 sp_owner_of_flow(const struct sp_packet* packet,
                                              const struct sp_spd_entry* entry) {
    __u32 src_port = packet->is_fragment ? 0 : packet->src_port;
    __u32 dst_port = packet->is_fragment ? 0 : packet->dst_port;
    __u32 hash = sp_flow_hash(sp_last_word(packet, packet->src), sp_last_word(packet, packet->dst),
                              packet->protocol, src_port, dst_port);
    __u32 slot = hash % entry->owner_count;

    /* The verifier cannot see what the compiler can: that the slot is in range. */
    barrier_var(slot);
    slot &= SP_OWNERS_MAX - 1;
    return entry->owners[slot];
}

#endif /* SP_SPD_H */
