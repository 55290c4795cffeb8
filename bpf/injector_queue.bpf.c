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
    enum sp_drop_reason reason;
    struct sp_spd_entry* entry;

    if (sp_skb_parse(skb, ETH_HLEN, &packet)) return 0;
    entry = sp_spd_entry_of(&packet, SP_SPD_OUTBOUND, &reason);
    if (!entry || entry->action != SP_SPD_PROTECT || entry->owner_count == 0 ||
        entry->owner_count > SP_OWNERS_MAX)
        return 0;
    return (int)sp_owner_of_flow(&packet, entry);
}

char _license[] SEC("license") = "Dual BSD/GPL";
