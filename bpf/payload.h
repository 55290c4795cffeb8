/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a packet is to an IPsec gateway: ESP, IKE or cleartext; and whether it ends here.
 */
#ifndef SP_PAYLOAD_H
#define SP_PAYLOAD_H

#include <linux/udp.h>

#include "steer.h"

#define SP_PORT_IKE 500
#define SP_PORT_NAT_T 4500
#define SP_ESP_MIN_BYTES 8 /* SPI and sequence number */

enum sp_payload { SP_PAYLOAD_CLEARTEXT, SP_PAYLOAD_IKE, SP_PAYLOAD_ESP, SP_PAYLOAD_MALFORMED_ESP };

/* Tells ESP and IKE from the rest; for ESP also its SPI (network order). */
static __always_inline enum sp_payload sp_classify(const struct xdp_md* ctx,
                                                   const struct sp_packet* packet, __u32* spi) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    __u32 offset = packet->upper_offset;
    const struct udphdr* udp;
    const __u32* word;
    __u32 udp_bytes;

    if (!packet->protocol_known || offset > 0x3fff) return SP_PAYLOAD_CLEARTEXT;
    if (packet->protocol == IPPROTO_ESP) {
        word = data + offset;
        /* A later fragment has no SPI; the caller does not need one of a fragment. */
        if (packet->is_fragment) return SP_PAYLOAD_ESP;
        if (sp_upper_bytes(packet) < SP_ESP_MIN_BYTES || (const void*)(word + 1) > data_end)
            return SP_PAYLOAD_MALFORMED_ESP;
        *spi = *word;
        return SP_PAYLOAD_ESP;
    }
    if (packet->protocol != IPPROTO_UDP || !packet->ports_known) return SP_PAYLOAD_CLEARTEXT;
    if (packet->dst_port == SP_PORT_IKE) return SP_PAYLOAD_IKE;
    if (packet->dst_port != SP_PORT_NAT_T) return SP_PAYLOAD_CLEARTEXT;

    udp = data + offset;
    if ((const void*)(udp + 1) > data_end || sp_upper_bytes(packet) < sizeof(*udp))
        return SP_PAYLOAD_CLEARTEXT;
    udp_bytes = bpf_ntohs(udp->len);
    /* RFC 3948 2.3: a keepalive is one byte. All that cannot hold an SPI and a sequence number is
       for whoever listens on the port. */
    if (udp_bytes < sizeof(*udp) + SP_ESP_MIN_BYTES) return SP_PAYLOAD_IKE;
    word = (const void*)(udp + 1);
    if ((const void*)(word + 1) > data_end) return SP_PAYLOAD_CLEARTEXT;
    /* RFC 3948 2.2: the non-ESP marker stands where an SPI would. */
    if (*word == 0) return SP_PAYLOAD_IKE;
    *spi = *word;
    return SP_PAYLOAD_ESP;
}

/* An address of this host, as most that is asked about here is, or what a route says is local. */
static __always_inline int sp_ends_here(struct xdp_md* ctx, const struct sp_packet* packet) {
    return sp_is_own_address(packet, packet->dst) || sp_is_local(ctx, packet);
}

#endif /* SP_PAYLOAD_H */
