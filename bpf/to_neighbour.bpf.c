// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC program of sp0, ingress: ESP of workers whose next hop is not resolved.
 *
 * egress_route has passed it. The kernel would forward it, and on that way it can die without a
 * word to us: in a forward chain that drops (Docker's default), or by rp_filter. So it is handed to
 * the kernel's entry of the neighbour itself, which asks for the MAC and keeps some packets until
 * it knows.
 *
 *   no ESP of workers (decrypted, for this host)  -> the kernel's stack
 *   no way out by a port                          -> the kernel's stack
 *   few wait for this next hop                    -> to the neighbour
 *   more                                          -> no_neighbour
 *
 * Those that waited in vain the kernel has dropped. They are counted as no_neighbour when the next
 * packet finds it still unresolved; what is counted here was counted as passed before.
 *
 * Decrypted packets stay with the kernel's stack: it may have to track their connection, to
 * translate or to refuse them. kernel_out lets ESP of this host pass.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#include "fib.h"
#include "skb.h"
#include "unresolved.h"

/* Whether the kernel may keep one more packet for it. */
static __always_inline int sp_may_wait(const struct sp_next_hop* hop, __u32 bytes) {
    struct sp_unresolved first = {
        .since_ns = bpf_ktime_get_ns(), .waiting = 1, .waiting_bytes = bytes};
    struct sp_unresolved* now = bpf_map_lookup_elem(&unresolved_hops, hop);
    __u64 since;

    if (!now && bpf_map_update_elem(&unresolved_hops, hop, &first, BPF_NOEXIST) == 0) return 1;
    if (!now) now = bpf_map_lookup_elem(&unresolved_hops, hop);
    if (!now || now->waiting == 0) { /* noted by XDP, for a packet of another kind */
        bpf_map_update_elem(&unresolved_hops, hop, &first, BPF_ANY);
        return 1;
    }
    since = now->since_ns;
    /* One of several CPUs that find it over counts them. */
    if (first.since_ns > since + SP_WAITING_NS &&
        __sync_val_compare_and_swap(&now->since_ns, since, first.since_ns) == since) {
        sp_count_drops(tune.port, SP_DROP_no_neighbour, now->waiting);
        now->waiting = 1;
        now->waiting_bytes = bytes;
        return 1;
    }
    if (now->waiting_bytes + bytes > SP_WAITING_BYTES_MAX) return 0;
    __sync_fetch_and_add(&now->waiting, 1);
    __sync_fetch_and_add(&now->waiting_bytes, bytes);
    return 1;
}

SEC("tc")
int to_neighbour(struct __sk_buff* skb) {
    struct bpf_redir_neigh neighbour = {};
    struct sp_packet packet = {};
    struct bpf_fib_lookup fib;
    struct sp_next_hop hop;
    __u8 source[ETH_ALEN];
    __u32* port;
    long result;

    if (!sp_skb_read(skb, ETH_ALEN, source, sizeof(source)) ||
        sp_kind_of_mac(source) != SP_KIND_ORIGINATED || sp_skb_parse(skb, ETH_HLEN, &packet))
        return TC_ACT_UNSPEC;
    /* As in XDP, which has applied the egress filter of the port by what it found. */
    sp_fib_question(&fib, &packet, 0, skb->ingress_ifindex);
    result = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
    if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
        return TC_ACT_UNSPEC;
    port = bpf_map_lookup_elem(&port_by_ifindex, &fib.ifindex);
    if (!port || *port == SP_PORT_NONE) return TC_ACT_UNSPEC;

    if (result == BPF_FIB_LKUP_RET_NO_NEIGH) {
        sp_next_hop_of(&fib, &hop);
        if (!sp_may_wait(&hop, skb->len + SP_WAITING_BYTES_EACH)) {
            sp_count_drop(SP_DROP_no_neighbour);
            return TC_ACT_SHOT;
        }
    }
    neighbour.nh_family = fib.family;
    if (fib.family == SP_AF_INET)
        neighbour.ipv4_nh = fib.ipv4_dst;
    else
        __builtin_memcpy(neighbour.ipv6_nh, fib.ipv6_dst, sizeof(neighbour.ipv6_nh));
    return (int)bpf_redirect_neigh(fib.ifindex, &neighbour, sizeof(neighbour), 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
