// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Counts what was redirected and did not arrive. A redirect succeeds before the frame is delivered,
 * so programs have counted the frame as redirected or steered by then. The kernel tells of the rest
 * in tracepoints:
 *
 *   xdp_devmap_xmit   once for each bulk that leaves a devmap
 *                     -> redirect_failed at the port out
 *   xdp_redirect_err  a frame that a devmap refused
 *                     -> redirect_failed at the port out
 *                     or that a socket of another device refused
 *                     -> steer_failed at the port in
 *   xdp_exception     the same as the first, for generic XDP
 *                     -> redirect_failed at the port out
 *
 * What a socket refused because a ring was full or empty, it counts itself. Another's program
 * behind a dispatcher on the same port is not told apart.
 */
#include "lost.h"
#include "maps.h"
#include "net_device.h"

/* lost.h */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct sp_lost_setup);
} lost_setup SEC(".maps");

static __always_inline const struct sp_lost_setup* sp_lost_setup(void) {
    __u32 zero = 0;

    return bpf_map_lookup_elem(&lost_setup, &zero);
}

static __always_inline void sp_count_lost(__u32 port, enum sp_drop_reason reason, __u32 frames) {
    if (port < SP_PORTS_MAX) sp_count_drops(port, reason, frames);
}

/* The port of a device; SP_PORT_NONE: it has none, or is in another network namespace. */
static __always_inline __u32 sp_port_of(const struct net_device* device) {
    const struct sp_lost_setup* setup = sp_lost_setup();
    __u32 ifindex = sp_ifindex_of(device);
    __u32* port = bpf_map_lookup_elem(&port_by_ifindex, &ifindex);

    if (!port || !setup || sp_netns_of(device) != setup->netns) return SP_PORT_NONE;
    return *port;
}

/* Of the last `frames` frames that the port's devmap program saw on this CPU, those it dropped
   itself. They are the bulk: the kernel gives all of it to the program, then to the driver. */
static __always_inline __u32 sp_dropped_by_program(__u32 port, __u32 frames) {
    const __u64* verdicts = bpf_map_lookup_elem(&egress_verdicts, &port);

    if (!verdicts) return 0;
    if (frames > 63) frames = 63;
    return (__u32)__builtin_popcountll(*verdicts & ((1ull << frames) - 1));
}

/* from_dev, to_dev, sent, drops, err: `drops` has those that the devmap program dropped too. */
SEC("raw_tracepoint/xdp_devmap_xmit")
int redirect_watch(struct bpf_raw_tracepoint_args* ctx) {
    __u32 sent = (__u32)ctx->args[2];
    __u32 drops = (__u32)ctx->args[3];
    __u32 by_program;
    __u32 port;

    if (drops == 0) return 0;
    /* Nothing comes from there but the frame of send_probe. */
    if (sp_ifindex_of((const void*)ctx->args[0]) == SP_LOOPBACK_IFINDEX) return 0;
    port = sp_port_of((const void*)ctx->args[1]);
    if (port >= SP_PORTS_MAX) return 0;
    by_program = sp_dropped_by_program(port, sent + drops);
    if (drops > by_program) sp_count_lost(port, SP_DROP_redirect_failed, drops - by_program);
    return 0;
}

#define SP_EINVAL 22
#define SP_ENXIO 6

/* dev, xdp, tgt, err, map_type, map_id, index. */
SEC("raw_tracepoint/xdp_redirect_err")
int redirect_refused(struct bpf_raw_tracepoint_args* ctx) {
    const struct sp_lost_setup* setup = sp_lost_setup();
    __s32 error = (__s32)ctx->args[3];
    __u32 type = (__u32)ctx->args[4];

    if (!setup) return 0;
    if (type == BPF_MAP_TYPE_DEVMAP && (__u32)ctx->args[5] == setup->tx_ports)
        sp_count_lost((__u32)ctx->args[6], SP_DROP_redirect_failed, 1);
    /* Not bound (any more), or to another queue. */
    if (type == BPF_MAP_TYPE_XSKMAP && (error == -SP_EINVAL || error == -SP_ENXIO))
        sp_count_lost(sp_port_of((const void*)ctx->args[0]), SP_DROP_steer_failed, 1);
    return 0;
}

/* dev, xdp, act: of a generic redirect the device that it went to, with XDP_TX. None of our
   programs returns that itself. */
SEC("raw_tracepoint/xdp_exception")
int generic_refused(struct bpf_raw_tracepoint_args* ctx) {
    if ((__u32)ctx->args[2] == XDP_TX)
        sp_count_lost(sp_port_of((const void*)ctx->args[0]), SP_DROP_redirect_failed, 1);
    return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
