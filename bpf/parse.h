/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Ethernet, IPv4 and IPv6 up to the first bytes of the upper protocol.
 *
 * Two steps, because what goes to the kernel in any case (multicast, link-local) is known after the
 * first: sp_parse_ip() reads the fixed header, sp_parse_upper() walks options and extension headers
 * and reads ports. Both return SP_DROP_none or the reason why the frame is not a valid packet.
 */
#ifndef SP_PARSE_H
#define SP_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* RFC 8200 4.1: hop-by-hop, destination options, routing, fragment, destination options. A longer
   chain is not one that a sender may make. */
#define SP_EXTENSION_HEADERS_MAX 5

#define SP_IPV4_MORE_FRAGMENTS 0x2000
#define SP_IPV4_FRAGMENT_OFFSET 0x1fff
#define SP_IPV6_FRAGMENT_OFFSET 0xfff8
#define SP_IPV6_MORE_FRAGMENTS 0x0001

struct sp_packet {
    __u32 src[4]; /* network order; IPv4 in the first word, rest zero */
    __u32 dst[4];
    __u32 ip_bytes;     /* whole packet, as its header says */
    __u32 upper_offset; /* from the start of the frame */
    __u32 flowinfo;     /* IPv6: first word without version, network order */
    __u16 src_port;     /* host order; 0 when not known */
    __u16 dst_port;
    __u8 family;         /* 0: not IP */
    __u8 protocol;       /* upper protocol */
    __u8 protocol_known; /* 0: a later fragment that begins inside extension headers */
    __u8 ports_known;
    __u8 is_fragment;    /* first or later */
    __u8 later_fragment; /* does not hold the upper header */
    __u8 ttl;            /* or hop limit */
    __u8 tos;            /* IPv4 */
    __u8 ct_state;       /* enum sp_ct_state (conntrack.h) */
    __u32 ct_mark;       /* mark of the connection, when there is one */
};

/* What the kernel's connection tracking knows of a packet; from SP_CT_NEW on it has a mark. */
enum sp_ct_state {
    SP_CT_NOT_ASKED,
    SP_CT_HIDDEN,     /* a later fragment: its connection cannot be looked up */
    SP_CT_NONE,       /* no connection, or a protocol that XDP cannot look up */
    SP_CT_NEW,        /* tracked, and not answered yet */
    SP_CT_WATCHED,    /* established, and the kernel must see this packet */
    SP_CT_ESTABLISHED /* established, and the kernel needs not see this packet */
};

static __always_inline __u32 sp_last_word(const struct sp_packet* packet, const __u32* address) {
    return packet->family == SP_AF_INET ? address[0] : address[3];
}

/* Bytes of the upper protocol, as the IP header says. */
static __always_inline __u32 sp_upper_bytes(const struct sp_packet* packet) {
    return packet->ip_bytes - (packet->upper_offset - ETH_HLEN);
}

static __always_inline int sp_is_vlan_type(__be16 type) {
    return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* A priority tag (802.1Q, VLAN 0) around IP or around a further tag. The kernel takes the tag off
   and routes what is in it like an untagged packet, which no program would have judged. Other VLANs
   are devices of their own, or end in the kernel. */
static __always_inline enum sp_drop_reason sp_refuse_priority_tag(const struct xdp_md* ctx) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const __be16* tag = data + ETH_HLEN; /* VLAN id and priority, then the type within */

    if ((const void*)(tag + 2) > data_end) return SP_DROP_truncated;
    if (tag[0] & bpf_htons(0x0fff)) return SP_DROP_none;
    return tag[1] == bpf_htons(ETH_P_IP) || tag[1] == bpf_htons(ETH_P_IPV6) ||
                   sp_is_vlan_type(tag[1])
               ? SP_DROP_unsupported_packet
               : SP_DROP_none;
}

/*
 * RFC 1812 5.2.2: for programs that see a packet first. Nobody checks it after them: what workers
 * encrypt or the devmap sends would arrive with its mistake. TCP and UDP may wait for a device to
 * complete their checksums, this one is always complete.
 */
static __always_inline int sp_header_checksum_is_right(const struct xdp_md* ctx,
                                                       const struct sp_packet* packet) {
    const void* data_end = (void*)(long)ctx->data_end;
    const __u32* word = (void*)(long)ctx->data + ETH_HLEN;
    __u32 words = (packet->upper_offset - ETH_HLEN) / 4;
    __u64 sum;

    if (packet->family != SP_AF_INET) return 1;
    if ((const void*)(word + 5) > data_end) return 0;
    sum = (__u64)word[0] + word[1] + word[2] + word[3] + word[4];
    for (__u32 i = 5; i < 15; ++i) {
        if (i >= words) break;
        if ((const void*)(word + i + 1) > data_end) return 0;
        sum += word[i];
    }
    /* Of fifteen words at most: four folds leave no carry. */
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return sum == 0xffff;
}

/* A frame that is not IP is no error: family stays 0. */
static __always_inline enum sp_drop_reason sp_parse_ip(const struct xdp_md* ctx,
                                                       struct sp_packet* packet) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const struct ethhdr* ethernet = data;

    if ((void*)(ethernet + 1) > data_end) return SP_DROP_truncated;

    if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
        const struct iphdr* ip = (void*)(ethernet + 1);
        __u16 fragment;

        if ((void*)(ip + 1) > data_end) return SP_DROP_truncated;
        packet->ip_bytes = bpf_ntohs(ip->tot_len);
        if (ip->version != 4 || ip->ihl < 5 || packet->ip_bytes < ip->ihl * 4u)
            return SP_DROP_malformed_ip;
        if ((void*)ip + ip->ihl * 4 > data_end) return SP_DROP_truncated;
        packet->family = SP_AF_INET;
        packet->src[0] = ip->saddr;
        packet->dst[0] = ip->daddr;
        packet->protocol = ip->protocol;
        packet->ttl = ip->ttl;
        packet->tos = ip->tos;
        packet->upper_offset = ETH_HLEN + ip->ihl * 4u;
        fragment = bpf_ntohs(ip->frag_off);
        packet->is_fragment = (fragment & (SP_IPV4_MORE_FRAGMENTS | SP_IPV4_FRAGMENT_OFFSET)) != 0;
        packet->later_fragment = (fragment & SP_IPV4_FRAGMENT_OFFSET) != 0;
    } else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
        const struct ipv6hdr* ip = (void*)(ethernet + 1);

        if ((void*)(ip + 1) > data_end) return SP_DROP_truncated;
        if (ip->version != 6) return SP_DROP_malformed_ip;
        packet->ip_bytes = sizeof(*ip) + bpf_ntohs(ip->payload_len);
        packet->family = SP_AF_INET6;
        __builtin_memcpy(packet->src, &ip->saddr, sizeof(packet->src));
        __builtin_memcpy(packet->dst, &ip->daddr, sizeof(packet->dst));
        packet->protocol = ip->nexthdr;
        packet->ttl = ip->hop_limit;
        packet->flowinfo = *(const __u32*)ip & bpf_htonl(0x0fffffff);
        packet->upper_offset = ETH_HLEN + sizeof(*ip);
    } else {
        return sp_is_vlan_type(ethernet->h_proto) ? sp_refuse_priority_tag(ctx) : SP_DROP_none;
    }
    if (ETH_HLEN + packet->ip_bytes > (__u64)(data_end - data)) return SP_DROP_malformed_ip;
    packet->protocol_known = 1;
    return SP_DROP_none;
}

static __always_inline int sp_is_extension_header(__u8 protocol) {
    return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
           protocol == IPPROTO_FRAGMENT || protocol == IPPROTO_DSTOPTS;
}

static __always_inline enum sp_drop_reason sp_walk_extension_headers(const struct xdp_md* ctx,
                                                                     struct sp_packet* packet) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    __u32 offset = ETH_HLEN + sizeof(struct ipv6hdr);
    __u8 protocol = packet->protocol;

    for (int i = 0; i < SP_EXTENSION_HEADERS_MAX; ++i) {
        const __u8* header;

        if (!sp_is_extension_header(protocol)) break;
        /* At most 5 * 2048 bytes; said again for the verifier. */
        if (offset > 0x3fff) return SP_DROP_malformed_ip;
        header = data + offset;
        if ((const void*)(header + 8) > data_end) return SP_DROP_truncated;
        if (protocol == IPPROTO_FRAGMENT) {
            __u16 fragment = (__u16)(header[2] << 8 | header[3]);

            offset += 8;
            packet->is_fragment =
                packet->is_fragment ||
                (fragment & (SP_IPV6_FRAGMENT_OFFSET | SP_IPV6_MORE_FRAGMENTS)) != 0;
            if (fragment & SP_IPV6_FRAGMENT_OFFSET) {
                packet->later_fragment = 1;
                protocol = header[0];
                packet->protocol_known = !sp_is_extension_header(protocol);
                break;
            }
        } else {
            offset += (header[1] + 1u) * 8u;
        }
        protocol = header[0];
    }
    if (sp_is_extension_header(protocol) && !packet->later_fragment) return SP_DROP_malformed_ip;
    if (offset - ETH_HLEN > packet->ip_bytes) return SP_DROP_malformed_ip;
    packet->protocol = protocol;
    packet->upper_offset = offset;
    return SP_DROP_none;
}

static __always_inline enum sp_drop_reason sp_parse_upper(const struct xdp_md* ctx,
                                                          struct sp_packet* packet) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const __u8* upper;
    __u32 offset;

    if (packet->family == SP_AF_INET6) {
        enum sp_drop_reason reason = sp_walk_extension_headers(ctx, packet);

        if (reason) return reason;
    }
    if (packet->later_fragment) return SP_DROP_none;
    if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP &&
        packet->protocol != IPPROTO_SCTP)
        return SP_DROP_none;
    offset = packet->upper_offset;
    if (offset > 0x3fff) return SP_DROP_malformed_ip;
    upper = data + offset;
    if ((const void*)(upper + 4) > data_end || sp_upper_bytes(packet) < 4) return SP_DROP_truncated;
    packet->src_port = (__u16)(upper[0] << 8 | upper[1]);
    packet->dst_port = (__u16)(upper[2] << 8 | upper[3]);
    packet->ports_known = 1;
    return SP_DROP_none;
}

static __always_inline int sp_is_martian_packet(const struct sp_packet* packet) {
    return sp_is_martian(packet->family, (const __u8*)packet->src, (const __u8*)packet->dst);
}

/* RFC 3927 2.7 says not to forward these. Linux does, by any route that covers them. */
static __always_inline int sp_is_link_local_ipv4(const struct sp_packet* packet) {
    return packet->family == SP_AF_INET && bpf_ntohl(packet->dst[0]) >> 16 == 0xa9fe;
}

/* RFC 1812 5.3.4: what came as a link-layer broadcast or multicast is not forwarded; the kernel
   takes such frames in and does not route them. */
static __always_inline int sp_is_link_broadcast(const struct xdp_md* ctx) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    const struct ethhdr* ethernet = data;

    return (void*)(ethernet + 1) > data_end || (ethernet->h_dest[0] & 1);
}

/* Multicast, broadcast and IPv6 link-local destinations are the host's own affairs: Linux does not
   forward them by its unicast table, or not off the link. */
static __always_inline int sp_is_host_scope_address(const struct sp_packet* packet) {
    __u32 first = bpf_ntohl(packet->dst[0]);

    if (packet->family == SP_AF_INET) return first >> 28 == 0xe || first == 0xffffffff;
    return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6;
}

static __always_inline int sp_is_host_scope(const struct xdp_md* ctx,
                                            const struct sp_packet* packet) {
    return sp_is_link_broadcast(ctx) || sp_is_host_scope_address(packet);
}

#endif /* SP_PARSE_H */
