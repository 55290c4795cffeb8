// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Somebody else's XDP program, for the dispatcher's tests: counts what it sees, by what it is, drops
 * UDP to one port, and lets the rest go on to the next program. Built for each PRIORITY of libxdp (a
 * lower one runs earlier; ours has the default, 50) and with or without `xdp.frags`.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <xdp/xdp_helpers.h>

#define REFUSED_PORT 9999

enum seen { SEEN_all, SEEN_esp, SEEN_icmp, SEEN_refused, SEEN_kinds };

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, SEEN_kinds);
    __type(key, __u32);
    __type(value, __u64);
} foreign_seen SEC(".maps");

struct {
    __uint(priority, PRIORITY);
    __uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(foreign);

static __always_inline void count(__u32 kind) {
    __u64* counter = bpf_map_lookup_elem(&foreign_seen, &kind);
    if (counter) __sync_fetch_and_add(counter, 1);
}

#ifdef FRAGS
SEC("xdp.frags")
#else
SEC("xdp")
#endif
int foreign(struct xdp_md* ctx) {
    void* data = (void*)(long)ctx->data;
    void* end = (void*)(long)ctx->data_end;
    const struct ethhdr* ethernet = data;
    const struct iphdr* ip = (void*)(ethernet + 1);
    count(SEEN_all);
    if ((void*)(ip + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP)) return XDP_PASS;
    if (ip->protocol == IPPROTO_ESP) count(SEEN_esp);
    if (ip->protocol == IPPROTO_ICMP) count(SEEN_icmp);
    if (ip->protocol == IPPROTO_UDP && ip->ihl == 5) {
        const struct udphdr* udp = (void*)(ip + 1);
        if ((void*)(udp + 1) <= end && udp->dest == bpf_htons(REFUSED_PORT)) {
            count(SEEN_refused);
            return XDP_DROP;
        }
    }
    return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
