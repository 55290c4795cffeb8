// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC program of the xfrm interface, egress: chooses the if_id of what the kernel routes
 * into it, by the same SPD entry that steer_protected found.
 *
 *   PROTECT with an if_id            -> that one
 *   PROTECT without                  -> no_connection: workers protect it, in sp0
 *   BYPASS, DISCARD, no policy       -> dropped
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "xfrm_interface.h"

static __always_inline int sp_is_multicast(const struct sp_packet* packet) {
    __u32 first = bpf_ntohl(packet->dst[0]);

    return packet->family == SP_AF_INET ? first >> 28 == 0xe : first >> 24 == 0xff;
}

/* The if_id, or the reason why there is none. */
static __always_inline enum sp_drop_reason sp_choose(struct __sk_buff* skb,
                                                     struct sp_packet* packet, __u32* if_id) {
    enum sp_drop_reason reason = sp_skb_parse(skb, 0, packet);
    struct sp_spd_entry* entry;

    if (reason) return reason;
    entry = sp_spd_entry_of(packet, SP_SPD_OUTBOUND, &reason);
    if (!entry)
        return reason == SP_DROP_no_policy && sp_is_multicast(packet) ? SP_DROP_kernel_multicast
                                                                      : reason;
    if (entry->action == SP_SPD_BYPASS) return SP_DROP_bypass_in_tunnel;
    if (entry->action != SP_SPD_PROTECT) return SP_DROP_policy_discard;
    *if_id = entry->if_id;
    return entry->if_id ? SP_DROP_none : SP_DROP_no_connection;
}

SEC("tc")
int interface_out(struct __sk_buff* skb) {
    struct sp_port_counters* counters = sp_counters();
    struct sp_if_id_counters* traffic;
    struct bpf_xfrm_info info = {};
    struct sp_packet packet = {};
    enum sp_drop_reason reason;

    if (counters) {
        ++counters->egress_frames;
        counters->egress_bytes += skb->len;
    }
    reason = sp_choose(skb, &packet, &info.if_id);
    if (!reason && !sp_set_if_id(skb, &info)) reason = SP_DROP_no_connection;
    if (reason) {
        sp_count_drop(reason);
        return TC_ACT_SHOT;
    }
    if (counters) ++counters->egress_sent;
    traffic = sp_counters_of_if_id(info.if_id);
    if (traffic) {
        ++traffic->out_packets;
        traffic->out_bytes += packet.ip_bytes;
    }
    return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";
