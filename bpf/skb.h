/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The headers of an skb, for programs that are not XDP: like parse.h, but by copies, because some
 * of these kinds of program have no direct access, and packets may be in pieces.
 */
#ifndef SP_SKB_H
#define SP_SKB_H

#include "parse.h"

/* Offsets count from the first byte of the skb, or, where the including program says so by
   SP_SKB_FROM_NETWORK_HEADER, from the IP header: what stands before it depends on the device that
   the packet came from. */
#ifdef SP_SKB_FROM_NETWORK_HEADER
static __always_inline int sp_skb_read(struct __sk_buff* skb, __u32 offset, void* to, __u32 bytes) {
    __u32 end = ETH_HLEN + offset + bytes;

    if (bpf_skb_load_bytes_relative(skb, offset, to, bytes, BPF_HDR_START_NET) == 0) return 1;
    /* That helper sees only the first piece of the packet. */
    if (bpf_skb_pull_data(skb, end < skb->len ? end : skb->len)) return 0;
    return bpf_skb_load_bytes_relative(skb, offset, to, bytes, BPF_HDR_START_NET) == 0;
}
#else
static __always_inline int sp_skb_read(struct __sk_buff* skb, __u32 offset, void* to, __u32 bytes) {
    return bpf_skb_load_bytes(skb, offset, to, bytes) == 0;
}
#endif

static __always_inline enum sp_drop_reason sp_skb_read_ipv4(struct __sk_buff* skb, __u32 offset,
                                                            struct sp_packet* packet) {
    struct iphdr ip;

    if (!sp_skb_read(skb, offset, &ip, sizeof(ip))) return SP_DROP_truncated;
    if (ip.version != 4 || ip.ihl < 5) return SP_DROP_malformed_ip;
    packet->family = SP_AF_INET;
    packet->ip_bytes = bpf_ntohs(ip.tot_len);
    packet->tos = ip.tos;
    packet->src[0] = ip.saddr;
    packet->dst[0] = ip.daddr;
    packet->protocol = ip.protocol;
    packet->is_fragment =
        (ip.frag_off & bpf_htons(SP_IPV4_MORE_FRAGMENTS | SP_IPV4_FRAGMENT_OFFSET)) != 0;
    packet->later_fragment = (ip.frag_off & bpf_htons(SP_IPV4_FRAGMENT_OFFSET)) != 0;
    packet->protocol_known = 1;
    packet->upper_offset = offset + ip.ihl * 4u;
    return SP_DROP_none;
}

static __always_inline enum sp_drop_reason sp_skb_read_ipv6(struct __sk_buff* skb, __u32 offset,
                                                            struct sp_packet* packet) {
    struct ipv6hdr ip;
    __u8 header[8];

    if (!sp_skb_read(skb, offset, &ip, sizeof(ip))) return SP_DROP_truncated;
    if (ip.version != 6) return SP_DROP_malformed_ip;
    packet->family = SP_AF_INET6;
    packet->ip_bytes = sizeof(ip) + bpf_ntohs(ip.payload_len);
    __builtin_memcpy(&packet->flowinfo, &ip, sizeof(packet->flowinfo));
    packet->flowinfo &= bpf_htonl(0x0fffffff);
    __builtin_memcpy(packet->src, &ip.saddr, sizeof(packet->src));
    __builtin_memcpy(packet->dst, &ip.daddr, sizeof(packet->dst));
    packet->protocol = ip.nexthdr;
    packet->upper_offset = offset + sizeof(ip);
    for (int i = 0; i < SP_EXTENSION_HEADERS_MAX; ++i) {
        if (!sp_is_extension_header(packet->protocol) || packet->later_fragment) break;
        if (!sp_skb_read(skb, packet->upper_offset, header, sizeof(header)))
            return SP_DROP_truncated;
        if (packet->protocol == IPPROTO_FRAGMENT) {
            packet->is_fragment = 1;
            packet->later_fragment = ((header[2] << 8 | header[3]) & SP_IPV6_FRAGMENT_OFFSET) != 0;
            packet->upper_offset += 8;
        } else {
            packet->upper_offset += (header[1] + 1u) * 8u;
        }
        packet->protocol = header[0];
    }
    packet->protocol_known = !sp_is_extension_header(packet->protocol);
    /* A longer chain is refused, as in XDP: what stands behind it would not be known. */
    return packet->protocol_known || packet->later_fragment ? SP_DROP_none : SP_DROP_malformed_ip;
}

/* `type`: the ethertype. */
static __always_inline enum sp_drop_reason sp_skb_read_ip(struct __sk_buff* skb, __be16 type,
                                                          __u32 offset, struct sp_packet* packet) {
    if (type == bpf_htons(ETH_P_IP)) return sp_skb_read_ipv4(skb, offset, packet);
    if (type == bpf_htons(ETH_P_IPV6)) return sp_skb_read_ipv6(skb, offset, packet);
    return SP_DROP_unsupported_packet;
}

/* Behind the IP header. A packet without ports is no error. */
static __always_inline enum sp_drop_reason sp_skb_read_ports(struct __sk_buff* skb,
                                                             struct sp_packet* packet) {
    __u8 ports[4];

    if (packet->later_fragment) return SP_DROP_none;
    if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP &&
        packet->protocol != IPPROTO_SCTP)
        return SP_DROP_none;
    if (!sp_skb_read(skb, packet->upper_offset, ports, sizeof(ports))) return SP_DROP_truncated;
    packet->src_port = (__u16)(ports[0] << 8 | ports[1]);
    packet->dst_port = (__u16)(ports[2] << 8 | ports[3]);
    packet->ports_known = 1;
    return SP_DROP_none;
}

/* `offset`: where the IP header begins. What SPD and FIB are asked by; ttl stays 0. */
static __always_inline enum sp_drop_reason sp_skb_parse(struct __sk_buff* skb, __u32 offset,
                                                        struct sp_packet* packet) {
    enum sp_drop_reason reason = sp_skb_read_ip(skb, (__be16)skb->protocol, offset, packet);

    return reason ? reason : sp_skb_read_ports(skb, packet);
}

#endif /* SP_SKB_H */
