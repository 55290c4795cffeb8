// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * XDP program of protected ports: what a PROTECT policy covers goes to a worker.
 *
 *   not IP, multicast, ND and link-local for this host -> kernel
 *   IP behind a priority tag, or to another MAC        -> dropped
 *   IPv4 with a wrong header checksum                  -> dropped
 *   ESP, ESP in UDP 4500, that a worker has the SA of  -> dropped
 *   PROTECT   -> a worker that holds an outbound SA of the policy, by flow;
 *                none: in register mode left to the kernel's own out policies;
 *                none, and the policy has an if_id: the kernel, if it routes the packet into the
 *                xfrm interface;
 *                none: dropped
 *   BYPASS    -> FIB and devmap, here or on the CPU of the flow (spread.h)
 *   DISCARD, no policy -> dropped
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "owner.h"
#include "payload.h"

/* interface_out chooses the SA's if_id, by this same entry. A route elsewhere would let the packet
   leave in clear. */
static __always_inline int sp_protect_by_interface(struct xdp_md* ctx,
                                                   const struct sp_packet* packet) {
    __u32 interface = SP_PORT_INTERFACE;
    struct sp_port_info* info = bpf_map_lookup_elem(&port_info, &interface);
    struct bpf_fib_lookup fib;
    long result = sp_fib_lookup(ctx, packet, 0, &fib);

    if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
        return sp_drop(SP_DROP_no_route);
    if (!info || info->ifindex == 0 || fib.ifindex != info->ifindex)
        return sp_drop(SP_DROP_protect_in_clear);
    return sp_pass_protect();
}

/*
 * No worker can encrypt the packet. SAs and policies of the configuration live in workers only, so
 * it ends here. In register mode the kernel holds the policy that the entry was made from: its out
 * policy encrypts, acquires an SA or blocks, and where it has changed its mind, its word counts.
 *
 * The kernel reads no ports of fragments, the first one neither (xfrm's flow decoding), and takes
 * them for 0. Of entries that select by ports it might choose another than was found here, even
 * one that lets the packet out in clear: so a fragment is passed only if ports made no difference.
 */
static __always_inline int sp_without_worker(struct sp_packet* packet, enum sp_drop_reason reason) {
    if (!tune.register_mode) return sp_drop(reason);
    if (packet->is_fragment) {
        int found = sp_spd_find(packet, SP_SPD_OUTBOUND);

        packet->ports_known = 0;
        if (sp_spd_find(packet, SP_SPD_OUTBOUND) != found)
            return sp_drop(SP_DROP_fragment_without_ports);
    }
    return sp_pass_protect();
}

/* Frames that a worker would encrypt and that the kernel must see: it may have them only when its
   route leads into sp0, from where a worker reads them. */
static __always_inline int sp_protect_by_kernel(struct xdp_md* ctx,
                                                const struct sp_packet* packet) {
    __u32 injector = SP_PORT_INJECTOR;
    struct sp_port_info* info = bpf_map_lookup_elem(&port_info, &injector);
    struct bpf_fib_lookup fib;
    long result = sp_fib_lookup(ctx, packet, 0, &fib);

    if (!info || info->ifindex == 0 || fib.ifindex != info->ifindex ||
        (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)) {
        sp_ct_count(SP_CT_REFUSED);
        return sp_drop(SP_DROP_not_established);
    }
    sp_ct_count(SP_CT_TO_KERNEL);
    return sp_pass();
}

static __always_inline int sp_protect(struct xdp_md* ctx, struct sp_packet* packet,
                                      const struct sp_spd_entry* entry) {
    enum sp_ct_verdict connection;
    int verdict;
    __u8 rule;

    if (sp_is_martian_packet(packet)) return sp_drop(SP_DROP_martian);
    /* The tunnel is a hop (RFC 4301 5.1.2). A packet that may make none goes to the kernel, which
       answers with ICMP time exceeded and never forwards it: nothing leaves in clear. */
    if (packet->ttl <= 1) return sp_pass();
    /* In register mode the kernel's own policy holds, with an interface or without. */
    if (entry->owner_count == 0 && entry->if_id && !tune.register_mode)
        return sp_protect_by_interface(ctx, packet);
    if (entry->owner_count == 0 || entry->owner_count > SP_OWNERS_MAX)
        return sp_without_worker(packet, SP_DROP_no_sa);
    rule = tune.conntrack ? sp_ct_rule(NULL) : SP_CONNTRACK_OFF;
    if (rule != SP_CONNTRACK_OFF) {
        connection = sp_ct_verdict(ctx, packet, rule);
        if (connection == SP_CT_TO_KERNEL) return sp_protect_by_kernel(ctx, packet);
        sp_ct_count(connection);
        if (connection == SP_CT_REFUSED) return sp_drop(SP_DROP_not_established);
    }
    verdict = sp_steer(ctx, sp_owner_of_flow(packet, entry));
    return verdict == SP_NO_SOCKET ? sp_without_worker(packet, SP_DROP_steer_failed) : verdict;
}

/*
 * Workers receive ESP by unprotected ports alone. In register mode the kernel has the same SA, and
 * its replay window knows little of what a worker has received (RFC 4303 3.4.3): who repeats on
 * this side what he has seen on the other must not have it accepted once more. Of what is no whole
 * ESP packet nobody can tell whose it is.
 */
static __always_inline enum sp_drop_reason sp_refuse_esp(struct xdp_md* ctx,
                                                         const struct sp_packet* packet) {
    __u32 spi = 0;
    enum sp_payload payload = sp_classify(ctx, packet, &spi);
    struct sp_owner* owner;

    if (payload != SP_PAYLOAD_ESP && payload != SP_PAYLOAD_MALFORMED_ESP) return SP_DROP_none;
    if (!sp_ends_here(ctx, packet)) return SP_DROP_none;
    if (packet->is_fragment) return SP_DROP_outer_fragment;
    if (payload == SP_PAYLOAD_MALFORMED_ESP) return SP_DROP_malformed_esp;
    owner = sp_listed_owner(packet, spi);
    return owner && owner->worker != SP_OWNER_KERNEL ? SP_DROP_steer_failed : SP_DROP_none;
}

SEC("xdp")
int steer_protected(struct xdp_md* ctx) {
    struct sp_packet packet = {};
    struct sp_spd_entry* entry;
    enum sp_drop_reason reason;

    sp_begin(ctx);
    reason = sp_parse_ip(ctx, &packet);
    if (reason) return sp_drop(reason);
    if (packet.family == 0) return sp_pass();
    if (sp_is_for_other_station(ctx)) return sp_drop(SP_DROP_other_station);
    if (!sp_header_checksum_is_right(ctx, &packet)) return sp_drop(SP_DROP_bad_ip_checksum);
    if (sp_is_host_scope(ctx, &packet)) return sp_pass();
    reason = sp_parse_upper(ctx, &packet);
    if (reason) return sp_drop(reason);
    /* Only what ends here: an exception for packets on their way through would be a hole in the
       SPD. */
    if ((sp_is_neighbour_discovery(ctx, &packet) || sp_is_link_local_ipv4(&packet)) &&
        sp_is_local(ctx, &packet))
        return sp_pass();

    reason = sp_refuse_esp(ctx, &packet);
    if (reason) return sp_drop(reason);
    if (tune.ct_marks) sp_ct_lookup(ctx, &packet);
    entry = sp_spd_entry_of(&packet, SP_SPD_OUTBOUND, &reason);
    if (!entry)
        return reason == SP_DROP_no_policy ? sp_without_policy(ctx, &packet) : sp_drop(reason);
    switch (entry->action) {
        case SP_SPD_PROTECT:
            return sp_protect(ctx, &packet, entry);
        case SP_SPD_BYPASS:
            return sp_bypass(ctx, &packet, SP_ORIGIN_BYPASS_OUT);
        default:
            return sp_drop(SP_DROP_policy_discard);
    }
}

char _license[] SEC("license") = "Dual BSD/GPL";
