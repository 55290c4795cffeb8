/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The addresses of this host, for programs to which no route says what is local.
 */
#ifndef SP_OWN_ADDRESS_H
#define SP_OWN_ADDRESS_H

#include "maps.h"
#include "parse.h"

/* Writer: control, as the kernel tells of addresses. Reader: forwarding programs and kernel_out.
   Key: abi.h, as long as the address is there. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, SP_OWN_ADDRESSES_MAX);
    __type(key, struct sp_own_address);
    __type(value, __u8);
} own_addresses SEC(".maps");

/* `address`: the packet's source or destination. */
static __always_inline int sp_is_own_address(const struct sp_packet* packet, const __u32* address) {
    struct sp_own_address key = {.family = packet->family};

    __builtin_memcpy(key.address, address, sizeof(key.address));
    return bpf_map_lookup_elem(&own_addresses, &key) != NULL;
}

#endif /* SP_OWN_ADDRESS_H */
