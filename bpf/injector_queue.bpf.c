// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Queue selection of sp0 (TUNSETSTEERINGEBPF): what the kernel routes into sp0 is read by the
 * worker that holds the outbound SA, which alone may use its sequence numbers.
 *
 * A packet without such a worker goes to any of them, which drops it with its reason.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "skb.h"
#include "spd.h"

SEC("socket")
int injector_queue(struct __sk_buff* skb) {
    struct sp_packet packet = {};
    struct sp_spd_entry* entry;
    __u32 index;
    int found;

    if (sp_skb_parse(skb, ETH_HLEN, &packet)) return 0;
    found = sp_spd_find(&packet, SP_SPD_OUTBOUND);
    if (found < 0) return 0;
    index = (__u32)found;
    entry = bpf_map_lookup_elem(&spd_entries, &index);
    if (!entry || entry->action != SP_SPD_PROTECT || entry->owner_count == 0 ||
        entry->owner_count > SP_OWNERS_MAX)
        return 0;
    return (int)sp_owner_of_flow(&packet, entry);
}

char _license[] SEC("license") = "Dual BSD/GPL";
