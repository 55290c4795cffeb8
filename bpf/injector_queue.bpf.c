// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Queue selection of sp0 (TUNSETSTEERINGEBPF): what the kernel routes into sp0 is read by the
 * worker that holds the outbound SA, which alone may use its sequence numbers.
 *
 * A packet without such a worker goes to any of them, which drops it with its reason.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "spd.h"

/* An skb is read by copies; there is no direct access in this kind of program. */
static __always_inline int sp_read(const struct __sk_buff* skb, __u32 offset, void* to,
                                   __u32 bytes) {
    return bpf_skb_load_bytes(skb, offset, to, bytes) == 0;
}

static __always_inline int sp_read_ipv4(const struct __sk_buff* skb, struct sp_packet* packet) {
    struct iphdr ip;

    if (!sp_read(skb, ETH_HLEN, &ip, sizeof(ip))) return 0;
    packet->family = SP_AF_INET;
    packet->src[0] = ip.saddr;
    packet->dst[0] = ip.daddr;
    packet->protocol = ip.protocol;
    packet->is_fragment =
        (ip.frag_off & bpf_htons(SP_IPV4_MORE_FRAGMENTS | SP_IPV4_FRAGMENT_OFFSET)) != 0;
    packet->later_fragment = (ip.frag_off & bpf_htons(SP_IPV4_FRAGMENT_OFFSET)) != 0;
    packet->upper_offset = ETH_HLEN + ip.ihl * 4u;
    return 1;
}

static __always_inline int sp_read_ipv6(const struct __sk_buff* skb, struct sp_packet* packet) {
    struct ipv6hdr ip;
    __u8 header[8];

    if (!sp_read(skb, ETH_HLEN, &ip, sizeof(ip))) return 0;
    packet->family = SP_AF_INET6;
    __builtin_memcpy(packet->src, &ip.saddr, sizeof(packet->src));
    __builtin_memcpy(packet->dst, &ip.daddr, sizeof(packet->dst));
    packet->protocol = ip.nexthdr;
    packet->upper_offset = ETH_HLEN + sizeof(ip);
    for (int i = 0; i < SP_EXTENSION_HEADERS_MAX; ++i) {
        if (!sp_is_extension_header(packet->protocol) || packet->later_fragment) break;
        if (!sp_read(skb, packet->upper_offset, header, sizeof(header))) return 0;
        if (packet->protocol == IPPROTO_FRAGMENT) {
            packet->is_fragment = 1;
            packet->later_fragment = ((header[2] << 8 | header[3]) & SP_IPV6_FRAGMENT_OFFSET) != 0;
            packet->upper_offset += 8;
        } else {
            packet->upper_offset += (header[1] + 1u) * 8u;
        }
        packet->protocol = header[0];
    }
    return 1;
}

SEC("socket")
int injector_queue(struct __sk_buff* skb) {
    struct sp_packet packet = {};
    struct sp_spd_entry* entry;
    __u8 ports[4];
    __u32 index;
    int found;
    int read;

    if (skb->protocol == bpf_htons(ETH_P_IP))
        read = sp_read_ipv4(skb, &packet);
    else if (skb->protocol == bpf_htons(ETH_P_IPV6))
        read = sp_read_ipv6(skb, &packet);
    else
        return 0;
    if (!read) return 0;
    packet.protocol_known = !sp_is_extension_header(packet.protocol);
    if (!packet.later_fragment &&
        (packet.protocol == IPPROTO_TCP || packet.protocol == IPPROTO_UDP ||
         packet.protocol == IPPROTO_SCTP) &&
        sp_read(skb, packet.upper_offset, ports, sizeof(ports))) {
        packet.src_port = (__u16)(ports[0] << 8 | ports[1]);
        packet.dst_port = (__u16)(ports[2] << 8 | ports[3]);
        packet.ports_known = 1;
    }

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
