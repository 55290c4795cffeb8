// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC program of the xfrm interface, ingress: what an SA of the kernel has decrypted must be
 * what its policy lets it carry (RFC 4301 5.2).
 *
 *   PROTECT with the if_id of the SA -> kernel, which routes it on
 *   PROTECT with another, or none    -> wrong_connection
 *   BYPASS                           -> selector_mismatch: should have come in clear
 *   DISCARD, no policy               -> dropped
 *
 * SAs without an if_id come out of the interface too, as if_id 0: they serve policies without.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "xfrm_interface.h"

static __always_inline enum sp_drop_reason sp_judge(struct __sk_buff* skb, struct sp_packet* packet,
                                                    __u32 if_id) {
    enum sp_drop_reason reason = sp_skb_parse(skb, 0, packet);
    struct sp_spd_entry* entry;

    if (reason) return reason;
    entry = sp_spd_entry_of(packet, SP_SPD_INBOUND, &reason);
    if (!entry) return reason;
    if (entry->action == SP_SPD_BYPASS) return SP_DROP_selector_mismatch;
    if (entry->action != SP_SPD_PROTECT) return SP_DROP_policy_discard;
    return entry->if_id == if_id ? SP_DROP_none : SP_DROP_wrong_connection;
}

SEC("tc")
int interface_in(struct __sk_buff* skb) {
    struct sp_port_counters* counters = sp_counters();
    struct sp_if_id_counters* traffic;
    struct bpf_xfrm_info info = {};
    struct sp_packet packet = {};
    enum sp_drop_reason reason;

    if (counters) {
        ++counters->rx_frames;
        counters->rx_bytes += skb->len;
    }
    /* No SA has decrypted what has no if_id. */
    if (!sp_get_if_id(skb, &info)) {
        if (counters) ++counters->dropped;
        sp_count_drop(SP_DROP_wrong_connection);
        return TC_ACT_SHOT;
    }
    reason = sp_judge(skb, &packet, info.if_id);
    traffic = sp_counters_of_if_id(info.if_id);
    if (reason) {
        if (counters) ++counters->dropped;
        if (traffic) ++traffic->in_dropped;
        sp_count_drop(reason);
        return TC_ACT_SHOT;
    }
    if (counters) ++counters->passed;
    if (traffic) {
        ++traffic->in_packets;
        traffic->in_bytes += packet.ip_bytes;
    }
    return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
