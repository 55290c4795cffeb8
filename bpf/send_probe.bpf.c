// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Tries whether a device sends what native XDP redirects to it. Control runs send_probe on a frame
 * of its own (BPF_PROG_RUN with live frames), once on each CPU that may send; the frame goes the
 * way of those to come, through a devmap with a program, and the kernel's tracepoints tell how it
 * ended. Loopback stands for the device that such a frame came in by: no other frame has it.
 */
#include "lost.h"
#include "net_device.h"

/* Writer: control, once. */
struct {
    __uint(type, BPF_MAP_TYPE_DEVMAP);
    __uint(max_entries, 1);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(struct bpf_devmap_val));
} send_probe_port SEC(".maps");

/* lost.h */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct sp_send_probe);
} send_probe_state SEC(".maps");

static __always_inline struct sp_send_probe* sp_probe(void) {
    __u32 zero = 0;

    return bpf_map_lookup_elem(&send_probe_state, &zero);
}

SEC("xdp")
int send_probe(struct xdp_md* ctx) {
    (void)ctx;
    return (int)bpf_redirect_map(&send_probe_port, 0, 0);
}

SEC("xdp/devmap")
int probe_taken(struct xdp_md* ctx) {
    struct sp_send_probe* probe = sp_probe();

    (void)ctx;
    if (probe) ++probe->taken;
    return XDP_PASS;
}

static __always_inline int sp_is_probe(const struct sp_send_probe* probe,
                                       const struct net_device* from) {
    return sp_ifindex_of(from) == SP_LOOPBACK_IFINDEX && sp_netns_of(from) == probe->netns;
}

/* from_dev, to_dev, sent, drops, err. */
SEC("raw_tracepoint/xdp_devmap_xmit")
int probe_sent(struct bpf_raw_tracepoint_args* ctx) {
    struct sp_send_probe* probe = sp_probe();

    if (!probe || !sp_is_probe(probe, (const void*)ctx->args[0])) return 0;
    if (sp_ifindex_of((const void*)ctx->args[1]) != probe->ifindex) return 0;
    probe->sent += (__u32)ctx->args[2];
    if ((__s32)ctx->args[4] < 0) probe->send_error = (__s32)ctx->args[4];
    return 0;
}

/* dev, xdp, tgt, err, map_type, map_id, index. */
SEC("raw_tracepoint/xdp_redirect_err")
int probe_refused(struct bpf_raw_tracepoint_args* ctx) {
    struct sp_send_probe* probe = sp_probe();

    if (probe && (__u32)ctx->args[5] == probe->map) probe->redirect_error = (__s32)ctx->args[3];
    return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
