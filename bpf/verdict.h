/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ways out of a program. Each counts; a program returns only what one of these returned.
 *
 *   sp_begin()            counts the frame in
 *   sp_pass()             to the kernel's stack
 *   sp_pass_esp()         the same for ESP that the kernel is to decrypt
 *   sp_pass_protect()     the same for what its out policies are to encrypt
 *   sp_drop(reason)       ends here
 *   sp_steer(worker)      to a worker's socket            (steer.h)
 *   sp_redirect(port)     out through another port        (forward.h)
 *   sp_egress_*()         the same for devmap programs, which see frames on their way out
 */
#ifndef SP_VERDICT_H
#define SP_VERDICT_H

#include "maps.h"

const volatile struct sp_tunables tune SEC(SP_TUNABLES_SECTION) = {};

static __always_inline struct sp_port_counters* sp_counters(void) {
    __u32 port = tune.port;

    return bpf_map_lookup_elem(&port_counters, &port);
}

static __always_inline void sp_count_drop(enum sp_drop_reason reason) {
    sp_count_drops(tune.port, reason, 1);
}

static __always_inline void sp_begin(const struct xdp_md* ctx) {
    struct sp_port_counters* counters = sp_counters();

    if (counters) {
        ++counters->rx_frames;
        counters->rx_bytes += ctx->data_end - ctx->data;
    }
}

static __always_inline int sp_pass(void) {
    struct sp_port_counters* counters = sp_counters();

    if (counters) ++counters->passed;
    return XDP_PASS;
}

static __always_inline int sp_pass_esp(void) {
    struct sp_port_counters* counters = sp_counters();

    if (counters) ++counters->passed_esp;
    return sp_pass();
}

static __always_inline int sp_pass_protect(void) {
    struct sp_port_counters* counters = sp_counters();

    if (counters) ++counters->passed_protect;
    return sp_pass();
}

static __always_inline int sp_drop(enum sp_drop_reason reason) {
    struct sp_port_counters* counters = sp_counters();

    if (counters) ++counters->dropped;
    sp_count_drop(reason);
    return XDP_DROP;
}

static __always_inline void sp_egress_begin(const struct xdp_md* ctx) {
    struct sp_port_counters* counters = sp_counters();

    if (counters) {
        ++counters->egress_frames;
        counters->egress_bytes += ctx->data_end - ctx->data;
    }
}

/* For redirect_watch, which is told only how many of a bulk were not sent. */
static __always_inline void sp_egress_note(__u64 dropped) {
    __u32 port = tune.port;
    __u64* verdicts = bpf_map_lookup_elem(&egress_verdicts, &port);

    if (verdicts) *verdicts = *verdicts << 1 | dropped;
}

/* In a devmap program XDP_PASS lets the frame out. */
static __always_inline int sp_egress_send(void) {
    struct sp_port_counters* counters = sp_counters();

    if (counters) ++counters->egress_sent;
    sp_egress_note(0);
    return XDP_PASS;
}

/* What was not sent was dropped: port_counters.dropped belongs to the receiving side. */
static __always_inline int sp_egress_drop(enum sp_drop_reason reason) {
    sp_count_drop(reason);
    sp_egress_note(1);
    return XDP_DROP;
}

#endif /* SP_VERDICT_H */
