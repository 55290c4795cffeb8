// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * XDP program of unprotected ports: ESP to the worker that owns its SA.
 *
 *   not IP, multicast                           -> kernel
 *   IP behind a priority tag, or to another MAC -> dropped
 *   IPv4 with a wrong header checksum           -> dropped
 *   ESP, ESP in UDP 4500, that ends here        -> owner's socket | kernel | unknown_spi
 *   IKE, ND and link-local for this host        -> kernel
 *   all else, also ESP of others                -> inbound SPD
 */
#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "owner.h"
#include "payload.h"

/* RFC 4301 5.2: what arrives in clear must be what the SPD lets arrive in clear. */
static __always_inline int sp_check_cleartext(struct xdp_md* ctx, struct sp_packet* packet) {
    enum sp_drop_reason reason;
    struct sp_spd_entry* entry;

    if (tune.ct_marks) sp_ct_lookup(ctx, packet);
    entry = sp_spd_entry_of(packet, SP_SPD_INBOUND, &reason);
    if (!entry)
        return reason == SP_DROP_no_policy ? sp_without_policy(ctx, packet) : sp_drop(reason);
    switch (entry->action) {
        case SP_SPD_PROTECT:
            return sp_drop(SP_DROP_cleartext_for_protect);
        case SP_SPD_BYPASS:
            return sp_bypass(ctx, packet, SP_ORIGIN_BYPASS_IN);
        default:
            return sp_drop(SP_DROP_policy_discard);
    }
}

/*
 * ESP that ends here is an SA's. What others send to one another through this gateway (a VPN of a
 * host behind it) is one protocol of many to the SPD, as to the kernel. Whose it is is asked only
 * where no worker has the SA.
 */
static __always_inline int sp_steer_esp(struct xdp_md* ctx, struct sp_packet* packet,
                                        enum sp_payload payload, __u32 spi) {
    int no_whole_esp = packet->is_fragment || payload == SP_PAYLOAD_MALFORMED_ESP;
    __u32 owner;

    /* RFC 4303 3.4.1: reassembly comes before ESP, and workers do not reassemble. The kernel does,
       but its replay window knows little of what a worker has received: anybody could cut a
       recorded packet in two and have it accepted once more. */
    if (no_whole_esp && sp_ends_here(ctx, packet))
        return sp_drop(packet->is_fragment ? SP_DROP_outer_fragment : SP_DROP_malformed_esp);
    /* Neither we nor the kernel, which would decrypt it: nobody sends to all what one has the key
       of. Nor is it forwarded (RFC 1812 5.3.4). */
    if (sp_is_link_broadcast(ctx)) return sp_drop(SP_DROP_other_station);
    if (no_whole_esp) return sp_check_cleartext(ctx, packet);
    owner = sp_find_owner(ctx, packet, spi);
    if (owner != SP_OWNER_UNKNOWN_SA && owner != SP_OWNER_KERNEL) {
        int verdict = sp_steer(ctx, owner);

        if (verdict != SP_NO_SOCKET) return verdict;
    }
    if (!sp_ends_here(ctx, packet)) return sp_check_cleartext(ctx, packet);
    if (owner == SP_OWNER_UNKNOWN_SA && !tune.punt_unknown_spi) return sp_drop(SP_DROP_unknown_spi);
    return sp_pass_esp();
}

SEC("xdp")
int steer_unprotected(struct xdp_md* ctx) {
    struct sp_packet packet = {};
    enum sp_payload payload;
    enum sp_drop_reason reason;
    __u32 spi = 0;

    sp_begin(ctx);
    reason = sp_parse_ip(ctx, &packet);
    if (reason) return sp_drop(reason);
    if (packet.family == 0) return sp_pass();
    if (sp_is_for_other_station(ctx)) return sp_drop(SP_DROP_other_station);
    if (!sp_header_checksum_is_right(ctx, &packet)) return sp_drop(SP_DROP_bad_ip_checksum);
    if (sp_is_host_scope_address(&packet)) return sp_pass();
    reason = sp_parse_upper(ctx, &packet);
    if (reason) return sp_drop(reason);

    payload = sp_classify(ctx, &packet, &spi);
    if (payload == SP_PAYLOAD_ESP || payload == SP_PAYLOAD_MALFORMED_ESP)
        return sp_steer_esp(ctx, &packet, payload, spi);
    if (sp_is_link_broadcast(ctx)) return sp_pass();
    /* Only what ends here: an exception for packets on their way through would be a hole in the
       SPD. */
    if ((payload == SP_PAYLOAD_IKE || sp_is_neighbour_discovery(ctx, &packet) ||
         sp_is_link_local_ipv4(&packet)) &&
        sp_is_local(ctx, &packet))
        return sp_pass();
    return sp_check_cleartext(ctx, &packet);
}

char _license[] SEC("license") = "Dual BSD/GPL";
