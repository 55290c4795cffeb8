// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC program of unprotected ports, egress: the last look at what the kernel itself sends there.
 *
 * Forwarded (it came in by a device)
 *   of a VLAN: by a device above the port         -> on its way
 *   from an address of this host: ESP, and
 *   what the kernel has translated                -> on its way
 *   BYPASS, and no rule of the port denies it     -> on its way
 *   PROTECT                                       -> protect_in_clear
 *   PROTECT of register mode that no worker has
 *   an SA for: the kernel alone judges it         -> on its way
 *   DISCARD, no policy                            -> dropped
 *   a rule of the port denies it                  -> egress_denied
 *
 * An XDP program has seen it before, where one was on the device; but what the kernel then does
 * with it, it could only guess: routes by a mark, translated destinations, devices that are no
 * ports. A device above the port is no port itself: what may go there, the configuration says.
 *
 * Made here
 *   no ICMP error: ESP, IKE, all else             -> on its way
 *   the quoted packet was to come in by PROTECT,
 *   or the answer to it is to leave so            -> error_in_clear
 *   nobody can tell (quote in pieces, hidden)     -> error_in_clear
 *   other ICMP errors                             -> on their way
 *
 * An ICMP error quotes up to 1232 bytes of the packet that it is about. About a packet that came
 * out of a tunnel the kernel answers in clear: with the address of the device by which the error
 * leaves, which no policy covers.
 *
 * What is protected itself is ESP when it comes here, and what XDP sends does not come here. The
 * SPD holds as it was published last, also when its BYPASS is not believed any more: the kernel
 * looks at its policies of today before.
 *
 * A later fragment of an error passes. The kernel makes its errors small enough, and without the
 * first one nobody can reassemble others. So does a fragment that only ports could tell of: it was
 * made here, of a packet that an XDP program has seen whole.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_helpers.h>

#include "filter.h"
#include "own_address.h"
#include "skb.h"
#include "spd.h"
#include "verdict.h"

#define SP_VLAN_TAGS_MAX 4
#define SP_VLAN_TAG_BYTES 4
#define SP_VID_MASK 0x0fff
#define SP_ICMP_BYTES 8        /* before the quote, in both versions */
#define SP_REDIRECT6 137       /* RFC 4861 4.5: an error in all but its number */
#define SP_REDIRECT6_BYTES 40  /* before its options */
#define SP_REDIRECTED_HEADER 4 /* RFC 4861 4.6.3: the option with the quote */
#define SP_REDIRECT6_OPTIONS_MAX 4

/* Where the IP header begins, behind tags that stand in the frame; 0: no IP. */
static __always_inline __u32 sp_ip_offset(struct __sk_buff* skb, __be16* type) {
    __u32 offset = ETH_HLEN;

    for (int i = 0; i <= SP_VLAN_TAGS_MAX; ++i) {
        if (!sp_skb_read(skb, offset - sizeof(*type), type, sizeof(*type))) return 0;
        if (!sp_is_vlan_type(*type)) return offset;
        offset += SP_VLAN_TAG_BYTES;
    }
    return 0;
}

/* RFC 1122 3.2.2: unreachable, source quench, redirect, time exceeded, parameter problem. */
static __always_inline int sp_is_icmp4_error(__u8 type) {
    return (type >= 3 && type <= 5) || type == 11 || type == 12;
}

enum sp_quote { SP_QUOTE_NONE, SP_QUOTE_HIDDEN, SP_QUOTE_FOUND };

/* `offset`: of the redirect's options on entry, of the quote on return. */
static __always_inline enum sp_quote sp_find_redirected(struct __sk_buff* skb, __u32* offset) {
    for (int i = 0; i < SP_REDIRECT6_OPTIONS_MAX; ++i) {
        __u8 option[2]; /* type, length in units of 8 bytes */

        if (!sp_skb_read(skb, *offset, option, sizeof(option))) return SP_QUOTE_NONE;
        if (option[0] == SP_REDIRECTED_HEADER) {
            *offset += 8;
            return SP_QUOTE_FOUND;
        }
        *offset += option[1] * 8u; /* without a length: the same one until the end */
    }
    return SP_QUOTE_HIDDEN;
}

/* Whether the packet is an ICMP error, and where what it quotes begins. */
static __always_inline enum sp_quote sp_find_quote(struct __sk_buff* skb,
                                                   const struct sp_packet* packet, __u32* offset) {
    const int is_v6 = packet->family == SP_AF_INET6;
    __u8 type;

    if (packet->later_fragment || packet->protocol != (is_v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
        return SP_QUOTE_NONE;
    if (!sp_skb_read(skb, packet->upper_offset, &type, sizeof(type))) return SP_QUOTE_NONE;
    if (is_v6 && type == SP_REDIRECT6) {
        *offset = packet->upper_offset + SP_REDIRECT6_BYTES;
        return sp_find_redirected(skb, offset);
    }
    *offset = packet->upper_offset + SP_ICMP_BYTES;
    /* RFC 4443 2.1: errors are all types below 128. */
    return (is_v6 ? type < 128 : sp_is_icmp4_error(type)) ? SP_QUOTE_FOUND : SP_QUOTE_NONE;
}

/* Also where only what the quote does not show could tell. */
static __always_inline int sp_may_be_protected(struct sp_packet* packet, __u32 direction) {
    enum sp_drop_reason reason;
    struct sp_spd_entry* entry = sp_spd_entry_of(packet, direction, &reason);

    return entry ? entry->action == SP_SPD_PROTECT : reason == SP_DROP_fragment_without_ports;
}

static __always_inline void sp_turn_round(struct sp_packet* packet) {
    const __u16 port = packet->src_port;

    packet->src_port = packet->dst_port;
    packet->dst_port = port;
    for (int i = 0; i < 4; ++i) {
        const __u32 word = packet->src[i];

        packet->src[i] = packet->dst[i];
        packet->dst[i] = word;
    }
}

/* Of those that have connections, these are not looked up here. */
static __always_inline void sp_hide_connection(struct sp_packet* packet) {
    if (tune.ct_marks && (!packet->protocol_known || packet->protocol == IPPROTO_TCP ||
                          packet->protocol == IPPROTO_UDP))
        packet->ct_state = SP_CT_HIDDEN;
}

/* `offset`: where the quoted packet begins, which is IP of the error's version. */
static __always_inline int sp_quotes_protected(struct __sk_buff* skb, __be16 type, __u32 offset) {
    struct sp_packet quoted = {};
    enum sp_drop_reason reason = sp_skb_read_ip(skb, type, offset, &quoted);

    if (!quoted.family) return 1;
    /* What the quote does not show of upper protocol and ports stays unknown. */
    if (!reason) sp_skb_read_ports(skb, &quoted);
    sp_hide_connection(&quoted);
    if (sp_may_be_protected(&quoted, SP_SPD_INBOUND)) return 1;
    sp_turn_round(&quoted);
    return sp_may_be_protected(&quoted, SP_SPD_OUTBOUND);
}

static __always_inline enum sp_drop_reason sp_refuse_forwarded(struct __sk_buff* skb,
                                                               struct sp_packet* packet) {
    enum sp_drop_reason reason;
    struct sp_spd_entry* entry;

    if (sp_is_own_address(packet, packet->src)) return SP_DROP_none;
    sp_skb_read_ports(skb, packet);
    sp_hide_connection(packet);
    if (sp_egress_denied(packet, tune.port)) return SP_DROP_egress_denied;
    entry = sp_spd_entry_of(packet, SP_SPD_OUTBOUND, &reason);
    if (!entry) return reason == SP_DROP_no_policy ? reason : SP_DROP_none;
    if (entry->action == SP_SPD_PROTECT)
        return tune.register_mode && entry->owner_count == 0 ? SP_DROP_none
                                                             : SP_DROP_protect_in_clear;
    return entry->action == SP_SPD_BYPASS ? SP_DROP_none : SP_DROP_policy_discard;
}

/* A frame of a device above the port. A tag with VID 0 has a priority and no VLAN (802.1Q 6.9.1):
   who receives it takes the packet for an untagged one. */
static __always_inline int sp_is_of_vlan(struct __sk_buff* skb, __u32 ip_offset) {
    __be16 tag;

    if (skb->vlan_present && (skb->vlan_tci & SP_VID_MASK)) return 1;
    for (__u32 i = 0, at = ETH_HLEN; i < SP_VLAN_TAGS_MAX; ++i, at += SP_VLAN_TAG_BYTES) {
        if (at >= ip_offset || !sp_skb_read(skb, at, &tag, sizeof(tag))) return 0;
        if (tag & bpf_htons(SP_VID_MASK)) return 1;
    }
    return 0;
}

static __always_inline enum sp_drop_reason sp_refuse(struct __sk_buff* skb) {
    struct sp_packet packet = {};
    __be16 type = 0;
    __u32 offset = sp_ip_offset(skb, &type);
    enum sp_drop_reason reason;
    enum sp_quote quote;

    if (!offset) return SP_DROP_none;
    reason = sp_skb_read_ip(skb, type, offset, &packet);
    if (reason == SP_DROP_unsupported_packet) return SP_DROP_none;
    if (skb->ingress_ifindex) {
        if (sp_is_of_vlan(skb, offset)) return SP_DROP_none;
        return reason ? reason : sp_refuse_forwarded(skb, &packet);
    }
    if (reason) return SP_DROP_none;
    quote = sp_find_quote(skb, &packet, &offset);
    if (quote == SP_QUOTE_NONE) return SP_DROP_none;
    if (quote == SP_QUOTE_FOUND && !sp_quotes_protected(skb, type, offset)) return SP_DROP_none;
    return SP_DROP_error_in_clear;
}

SEC("tc")
int kernel_out(struct __sk_buff* skb) {
    enum sp_drop_reason reason = sp_refuse(skb);

    if (!reason) return TC_ACT_UNSPEC;
    sp_count_drop(reason);
    return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
