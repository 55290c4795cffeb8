// SPDX-License-Identifier: Apache-2.0
/*
 * Puts another SPI into the packet and goes on in the program under test. BPF_PROG_TEST_RUN repeats
 * one packet; so each repetition is the packet of another SA, at the same small cost for any number
 * of SAs.
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define DRAWS 65536

/* SPIs in network order, drawn at random from those of the SAs. Writer: bench. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, DRAWS);
    __type(key, __u32);
    __type(value, __u32);
} draws SEC(".maps");

/* Slot 0: the program under test. Writer: bench. */
struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 1);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(__u32));
} target SEC(".maps");

/* Element 0: where the SPI goes, from the start of the frame. Element 1: the next draw. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u32);
} position SEC(".maps");

SEC("xdp")
int next_spi(struct xdp_md* ctx) {
    void* data = (void*)(long)ctx->data;
    void* data_end = (void*)(long)ctx->data_end;
    __u32 zero = 0;
    __u32 one = 1;
    __u32* offset = bpf_map_lookup_elem(&position, &zero);
    __u32* next = bpf_map_lookup_elem(&position, &one);
    __u32* spi;
    __u32 key;

    if (!offset || !next) return XDP_ABORTED;
    key = (*next)++ % DRAWS;
    spi = bpf_map_lookup_elem(&draws, &key);
    data += *offset & 63;
    if (!spi || data + sizeof(*spi) > data_end) return XDP_ABORTED;
    *(__u32*)data = *spi;
    bpf_tail_call(ctx, &target, 0);
    return XDP_ABORTED;
}
