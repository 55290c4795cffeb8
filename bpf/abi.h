/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the XDP programs and the daemon share: drop reasons, map layouts, limits and hashes.
 *
 * The only header that both BPF C and C++ include. Every struct has fixed-width members, explicit
 * padding and a size assertion that holds in both languages; tests compare BTF with offsetof.
 * Multi-byte fields are host order unless the name or comment says network order.
 */
#ifndef SP_ABI_H
#define SP_ABI_H

#include <linux/types.h>

#ifdef __cplusplus
#define SP_STATIC_ASSERT(cond, text) static_assert(cond, text)
#else
#define SP_STATIC_ASSERT(cond, text) _Static_assert(cond, text)
#endif

/* ---- limits ------------------------------------------------------------------------------- */

#define SP_PORTS_MAX 16        /* port ids: ports of the configuration, and two of our own */
#define SP_QUEUES_MAX 64       /* receive queues of one port */
#define SP_WORKERS_MAX 64      /* workers of one appliance */
#define SP_CPUS_MAX 1024       /* possible CPUs that pcpu_num can name */
#define SP_OWNERS_MAX 16       /* workers that share one policy's outbound SAs */
#define SP_CELL_ENTRIES_MAX 16 /* SPD entries of one cell */
#define SP_SPD_CLASSES_MAX 16  /* destination classes that one lookup visits */
#define SP_EGRESS_RULES_MAX 32 /* deny rules of one port */
#define SP_BYPASS_CPUS_MAX 64  /* CPUs that share the BYPASS traffic of one port */

/* Families as the kernel numbers them: headers for BPF programs do not have AF_INET. */
#define SP_AF_INET 2
#define SP_AF_INET6 10

#define SP_INLINE static inline __attribute__((always_inline))
#ifdef __cplusplus
#define SP_CONSTEXPR constexpr
#else
#define SP_CONSTEXPR
#endif

/* ---- drop reasons ------------------------------------------------------------------------- */

/*
 * X(name, help). Append only: the position is the number in maps and metrics.
 * A reason is a fact about the packet, not about the code that noticed it.
 */
#define SP_DROP_REASONS(X)                                                                         \
    X(none, "not dropped")                                                                         \
    X(truncated, "the frame ends before its headers do")                                           \
    X(malformed_ip, "an IP header contradicts itself or the frame")                                \
    X(malformed_esp, "the ESP packet is too short or not aligned for its algorithm")               \
    X(unknown_spi, "no inbound SA has this SPI and destination")                                   \
    X(outer_fragment, "an ESP packet arrived as an IP fragment (RFC 4303 3.4.1)")                  \
    X(unexpected_encapsulation, "ESP came in UDP for an SA without, or without for an SA with it") \
    X(replayed, "the sequence number was received before (RFC 4303 3.4.3)")                        \
    X(before_window, "the sequence number lies before the replay window")                          \
    X(icv_mismatch, "the integrity check failed: damaged, forged, or a wrong key")                 \
    X(bad_padding, "pad bytes or pad length are wrong after decryption (RFC 4303 2.4)")            \
    X(dummy_packet, "next header 59: traffic flow confidentiality filler (RFC 4303 2.6)")          \
    X(bad_next_header, "the decrypted next header is not what the SA's mode carries")              \
    X(malformed_inner, "the decrypted packet is not a valid IP packet")                            \
    X(selector_mismatch, "the decrypted packet is outside its SA's selectors (RFC 4301 5.2)")      \
    X(ecn_not_capable, "outer ECN says congestion, inner flow cannot carry it (RFC 6040 4.2)")     \
    X(cleartext_for_protect, "cleartext arrived that an inbound PROTECT policy covers")            \
    X(policy_discard, "a DISCARD policy covers the packet")                                        \
    X(no_policy, "no policy covers the packet: the SPD ends with DISCARD")                         \
    X(no_sa, "a PROTECT policy covers the packet and has no usable outbound SA")                   \
    X(bypass_in_tunnel, "a BYPASS policy covers a packet that a route led into the tunnel device") \
    X(sequence_exhausted, "the outbound SA has used its last sequence number: rekey it")           \
    X(sequence_unreserved, "no sequence numbers are reserved on disk for the outbound SA")         \
    X(ttl_exceeded, "TTL or hop limit ended here")                                                 \
    X(too_big, "larger than the path towards the destination carries")                             \
    X(fragment_without_ports, "a fragment met a policy with port selectors (RFC 4301 7)")          \
    X(egress_denied, "the egress filter of the port denies it")                                    \
    X(no_route, "no route leads to the destination through a port")                                \
    X(injector_full, "the way from worker to port had no room")                                    \
    X(no_frame, "packet memory had no free frame")                                                 \
    X(steer_failed, "the frame could not be handed to its worker's socket")                        \
    X(unsupported_packet, "not IPv4 or IPv6, where only these can be handled")                     \
    X(rx_ring_full, "the receive ring of the owning worker was full: the worker is overloaded")    \
    X(protect_in_clear, "a PROTECT policy covers a packet that was about to leave in clear")       \
    X(kernel_multicast, "the kernel's own multicast on the tunnel device: nobody is behind it")    \
    X(not_established, "the kernel tracks no established connection that the packet belongs to")   \
    X(no_connection, "routed into the xfrm interface, and its policy names no IPsec connection")   \
    X(wrong_connection, "decrypted by another IPsec connection than the one its policy names")     \
    X(martian, "an address that no router forwards, or this host's as a source (RFC 1812 5.3.7)")  \
    X(other_station, "its MAC is another station's, or it is ESP for all (RFC 1122 3.3.6)")        \
    X(not_a_port, "its route leads to a device that is no port and not in forward_to")             \
    X(forwarding_off, "not for this host, and the kernel forwards nothing from where it came in")  \
    X(error_in_clear, "an ICMP error about what PROTECT covers was about to leave in clear")       \
    X(bad_ip_checksum, "the checksum of the IPv4 header is wrong (RFC 1812 5.2.2)")                \
    X(redirect_failed, "the device of the port that it was to leave by did not take it")           \
    X(fill_ring_empty, "the queue had no frame to receive into, though packet memory has some")    \
    X(no_neighbour, "the next hop towards the destination does not answer: its MAC is not known")  \
    X(lost_in_kernel, "handed to the kernel, which dropped it on its way")                         \
    X(lost_in_device, "sent, and dropped by the device that it was to leave by")

#define SP_DROP_ENUM(name, help) SP_DROP_##name,
enum sp_drop_reason { SP_DROP_REASONS(SP_DROP_ENUM) SP_DROP_COUNT };
#undef SP_DROP_ENUM

/* ---- ports -------------------------------------------------------------------------------- */

enum sp_port_role {
    SP_ROLE_UNPROTECTED = 0, /* ciphertext side */
    SP_ROLE_PROTECTED = 1,   /* cleartext side */
    SP_ROLE_INJECTOR = 2,    /* sp0: what workers and the kernel hand to each other */
    SP_ROLE_INTERFACE = 3,   /* the xfrm interface: what the kernel encrypts and decrypts */
};

/* Port ids that are not of the configuration; those begin at 0. */
#define SP_PORT_INTERFACE (SP_PORTS_MAX - 2)
#define SP_PORT_INJECTOR (SP_PORTS_MAX - 1)

/*
 * PERCPU_ARRAY port_counters, key: port id. Writer: programs of that port. Reader: control.
 * X(name), in the order in the map; append only.
 *
 *   rx_frames       frames its ingress program saw
 *   rx_bytes        with Ethernet header, without FCS
 *   passed          given to the kernel
 *   steered         given to a worker's socket
 *   redirected      sent to another port through the devmap
 *   dropped         rx_frames = passed + steered + redirected + dropped
 *   egress_frames   frames its devmap egress program saw
 *   egress_bytes
 *   egress_sent     of those, let through; the others were dropped there
 *   passed_esp      of passed: ESP for SAs that the kernel keeps, or that no worker has
 *   passed_protect  of passed: for the kernel's own policies to encrypt or to block
 */
/* clang-format off */
#define SP_PORT_COUNTERS(X) \
    X(rx_frames) \
    X(rx_bytes) \
    X(passed) \
    X(steered) \
    X(redirected) \
    X(dropped) \
    X(egress_frames) \
    X(egress_bytes) \
    X(egress_sent) \
    X(passed_esp) \
    X(passed_protect)
/* clang-format on */

struct sp_port_counters {
#define SP_COUNTER_MEMBER(name) __u64 name;
    SP_PORT_COUNTERS(SP_COUNTER_MEMBER)
#undef SP_COUNTER_MEMBER
};
SP_STATIC_ASSERT(sizeof(struct sp_port_counters) == 88, "abi");

/* PERCPU_ARRAY spread_counters, key: port id. What a port with bypass_cpus hands to other CPUs. The
   verdict (passed, redirected, dropped) is counted there, so that for such a port
   rx_frames = passed + steered + redirected + dropped + handed_over - taken.
   Writer: to handed_over the steering program, to the others the cpumap program. Reader: control.
 */
struct sp_spread_counters {
    __u64 handed_over; /* frames given to the cpumap */
    __u64 taken;       /* frames its program saw; what is missing when all is quiet did not fit */
};
SP_STATIC_ASSERT(sizeof(struct sp_spread_counters) == 16, "abi");

/* PERCPU_ARRAY conntrack_counters, key: port id where the frame came in. Writer: every program that
   forwards. Reader: control. Frames for which a port requires a tracked connection: */
struct sp_conntrack_counters {
    __u64 established; /* went past the kernel */
    __u64 to_kernel;   /* passed: the kernel has to see them */
    __u64 refused;     /* dropped as not_established */
};
SP_STATIC_ASSERT(sizeof(struct sp_conntrack_counters) == 24, "abi");

/* PERCPU_ARRAY drop_counters, key: port id * SP_DROP_COUNT + reason. Value: __u64 frames. Their sum
   for a port is dropped + egress_frames - egress_sent, what kernel_out drops, which is about what
   the kernel sends and no other counter has, and what redirect_watch saw lost after a verdict. */
/* PERCPU_ARRAY steer_counters, key: (port id * SP_QUEUES_MAX + queue) * SP_WORKERS_MAX + worker. */

/* ---- SA ownership ------------------------------------------------------------------------- */

/* HASH owner_map. Writer: control, when an inbound SA comes or goes. Reader: steer_unprotected.
   In register mode it is the list of SAs that workers have taken over from the kernel. */
struct sp_owner_key {
    __u32 spi;     /* network order */
    __u16 family;  /* AF_INET or AF_INET6 */
    __u8 protocol; /* IPPROTO_ESP */
    __u8 pad;
    __u8 daddr[16]; /* outer destination; IPv4 in the first 4 bytes, rest zero */
};
SP_STATIC_ASSERT(sizeof(struct sp_owner_key) == 24, "abi");

#define SP_OWNER_KERNEL 0xffffffffu /* the kernel keeps this SA: pass */

struct sp_owner {
    __u32 worker; /* index, or SP_OWNER_KERNEL */
    __u32 pad;
};
SP_STATIC_ASSERT(sizeof(struct sp_owner) == 8, "abi");

/* ARRAY cpu_worker, key: CPU number (x->pcpu_num). Value: __u32 worker, or SP_OWNER_NONE. */
#define SP_OWNER_NONE 0xfffffffeu /* that CPU runs no worker */

/* ---- SPD ---------------------------------------------------------------------------------- */

/*
 * The ordered SPD compiled for lookup by longest prefix, exactly equal to the ordered list:
 *
 *   spd_dst  LPM_TRIE  (table, destination)     -> destination class
 *   spd_src  LPM_TRIE  (destination class, source) -> cell: a run of spd_entries
 *   spd_entries ARRAY: the entries of the class for this source, in SPD order;
 *                      the first whose protocol and ports match is the class's answer.
 *
 * The class of the next wider destination answers too, where an entry of it or above it may come
 * earlier in the SPD (order_above): the same lookup with a shorter prefix finds it. The earliest
 * answer decides; none: no match (dataplane/spd/spd.h).
 *
 * `table` names generation, direction and family, so a new SPD is built beside the old one and
 * taken into use by one write to spd_active. Writer: control. Reader: steer programs.
 */
#define SP_SPD_OUTBOUND 0u
#define SP_SPD_INBOUND 1u
#define SP_SPD_TABLE(generation, direction, is_v6) \
    ((generation) << 2 | (direction) << 1 | (is_v6)) /* all unsigned */

struct sp_lpm_key {
    __u32 prefix_bits; /* 32 + bits of the address */
    __u32 table;       /* spd_dst: SP_SPD_TABLE; spd_src: destination class. Big-endian in memory
                          does not matter: it is always matched whole. */
    __u8 address[16];  /* IPv4 in the first 4 bytes, rest zero */
};
SP_STATIC_ASSERT(sizeof(struct sp_lpm_key) == 24, "abi");

#define SP_SPD_NO_ORDER 0xffffffffu

struct sp_spd_class {
    __u32 id;          /* unique over generations and tables */
    __u32 prefix_bits; /* of its row's key */
    __u32 order_above; /* of the earliest entry in wider classes; SP_SPD_NO_ORDER: none is asked */
};
SP_STATIC_ASSERT(sizeof(struct sp_spd_class) == 12, "abi");

struct sp_spd_cell {
    __u32 first; /* index into spd_entries */
    __u32 count; /* 1 .. SP_CELL_ENTRIES_MAX */
};
SP_STATIC_ASSERT(sizeof(struct sp_spd_cell) == 8, "abi");

enum sp_spd_action { SP_SPD_PROTECT = 0, SP_SPD_BYPASS = 1, SP_SPD_DISCARD = 2 };

struct sp_spd_entry {
    __u32 policy;      /* policy id, for reports */
    __u8 action;       /* enum sp_spd_action */
    __u8 protocol;     /* IP protocol, 0 = any */
    __u8 has_ports;    /* 1: the port ranges below are selectors */
    __u8 owner_count;  /* workers in owners[]; 0: no usable outbound SA in a worker */
    __u16 src_port_lo; /* inclusive ranges, host order */
    __u16 src_port_hi;
    __u16 dst_port_lo;
    __u16 dst_port_hi;
    __u8 owners[SP_OWNERS_MAX]; /* flow_hash % owner_count picks one */
    __u32 ct_mark;              /* the mark of the packet's connection, where the mask has bits */
    __u32 ct_mark_mask;         /* 0: no selector */
    __u32 if_id;                /* PROTECT without owners: of the kernel's SAs; 0: none */
    __u32 order;                /* position in the SPD */
};
SP_STATIC_ASSERT(sizeof(struct sp_spd_entry) == 48, "abi");

/* ARRAY spd_active, one element. */
struct sp_spd_active {
    __u32 generation;
    __u32 enabled; /* 0: no SPD yet, everything that needs one is dropped (no_policy) */
    /* CLOCK_MONOTONIC. From then on BYPASS is not believed and the kernel forwards its packets, by
       its policies of today; PROTECT and DISCARD hold as they are. The lease is extended only while
       somebody makes sure that the SPD is what the kernel has. Written in one piece. */
    __u64 bypass_until_ns;
};
SP_STATIC_ASSERT(sizeof(struct sp_spd_active) == 16, "abi");
#define SP_BYPASS_FOREVER 0xffffffffffffffffull /* the SPD is the configuration's own */

/* ---- the xfrm interface --------------------------------------------------------------------- */

/* PERCPU_HASH if_id_counters, key: __u32 if_id. Key: an if_id that a policy names, or that one did.
   Writer: interface_in and interface_out; control adds and removes keys. Reader: control. */
struct sp_if_id_counters {
    __u64 in_packets; /* decrypted by SAs with the if_id, and what their policy lets them carry */
    __u64 in_bytes;   /* of the inner packets */
    __u64 in_dropped; /* decrypted by them and dropped, for whatever reason */
    __u64 out_packets;
    __u64 out_bytes;
};
SP_STATIC_ASSERT(sizeof(struct sp_if_id_counters) == 40, "abi");

/* ---- egress filter ------------------------------------------------------------------------ */

/* ARRAY egress_rules, key: port id * SP_EGRESS_RULES_MAX + n. First match denies. */
struct sp_egress_rule {
    __u8 family;   /* AF_INET, AF_INET6; 0: any */
    __u8 protocol; /* 0: any */
    __u8 src_bits; /* prefix lengths; 0: any */
    __u8 dst_bits;
    __u16 dst_port_lo; /* inclusive, host order; 0 and 65535: any */
    __u16 dst_port_hi;
    __u8 src[16];
    __u8 dst[16];
};
SP_STATIC_ASSERT(sizeof(struct sp_egress_rule) == 40, "abi");

/* What a rule looks at of a packet. */
struct sp_egress_subject {
    __u32 src[4]; /* network order; IPv4 in the first word, rest zero */
    __u32 dst[4];
    __u16 dst_port; /* host order */
    __u8 family;
    __u8 protocol;
    __u8 protocol_known; /* 0: a later fragment that begins inside extension headers */
    __u8 ports_known;
    __u8 later_fragment;
};

/* Of the address word that begins at bit `from`, as it stands in memory: the bits of the prefix.
   Little-endian, as BPF and all our machines: the first byte is the lowest. */
SP_INLINE __u32 sp_word_mask(__u32 prefix_bits, __u32 from) {
    if (prefix_bits <= from) return 0;
    if (prefix_bits >= from + 32) return 0xffffffff;
    return __builtin_bswap32(0xffffffffu << ((from + 32 - prefix_bits) & 31));
}

SP_INLINE __u32 sp_word_at(const __u8* bytes) {
    __u32 word;

    __builtin_memcpy(&word, bytes, sizeof(word));
    return word;
}

SP_INLINE int sp_in_prefix(const __u32* address, const __u8* prefix, __u32 prefix_bits) {
    return !(((address[0] ^ sp_word_at(prefix)) & sp_word_mask(prefix_bits, 0)) |
             ((address[1] ^ sp_word_at(prefix + 4)) & sp_word_mask(prefix_bits, 32)) |
             ((address[2] ^ sp_word_at(prefix + 8)) & sp_word_mask(prefix_bits, 64)) |
             ((address[3] ^ sp_word_at(prefix + 12)) & sp_word_mask(prefix_bits, 96)));
}

/*
 * 1: the rule denies the packet; for the devmap programs and for direct egress. A later fragment
 * passes rules with ports: without the first one, which carries the ports and is denied, nobody can
 * reassemble it.
 */
SP_INLINE int sp_egress_rule_matches(const struct sp_egress_rule* rule,
                                     const struct sp_egress_subject* packet) {
    if (rule->family && rule->family != packet->family) return 0;
    if (rule->protocol && packet->protocol_known && rule->protocol != packet->protocol) return 0;
    if (rule->dst_port_lo != 0 || rule->dst_port_hi != 65535) {
        if (packet->later_fragment) return 0;
        if (packet->ports_known &&
            (packet->dst_port < rule->dst_port_lo || packet->dst_port > rule->dst_port_hi))
            return 0;
    }
    return sp_in_prefix(packet->src, rule->src, rule->src_bits) &&
           sp_in_prefix(packet->dst, rule->dst, rule->dst_bits);
}

/*
 * 1: the packet names an address that is never forwarded (RFC 1812 5.3.7, RFC 4291 2.5, RFC 6890).
 * Addresses in network order, IPv4 in the first 4 bytes. Multicast destinations are not asked
 * about: they are the host's own affair.
 */
SP_INLINE int sp_is_martian(__u8 family, const __u8* src, const __u8* dst) {
    int zeros;

    if (family == SP_AF_INET)
        return src[0] == 0 || src[0] == 127 || src[0] >= 224 || dst[0] == 0 || dst[0] == 127 ||
               dst[0] >= 240;
    if (src[0] == 0xff || (src[0] == 0xfe && (src[1] & 0xc0) == 0x80)) return 1;
    for (int side = 0; side < 2; ++side) {
        const __u8* address = side == 0 ? src : dst;

        for (zeros = 0; zeros < 15 && address[zeros] == 0; ++zeros) {
        }
        if (zeros == 15 && address[15] <= 1) return 1;                           /* ::, ::1 */
        if (zeros == 10 && address[10] == 0xff && address[11] == 0xff) return 1; /* ::ffff:0:0/96 */
    }
    return 0;
}

/* ARRAY port_info, key: port id. Writer: control. Reader: all programs. */
struct sp_port_info {
    __u32 ifindex; /* 0: unused */
    __u32 mtu;     /* IP bytes */
    __u32 role;    /* enum sp_port_role */
    __u32 rule_count;
    __u8 conntrack_in;  /* enum sp_conntrack: of cleartext that enters here */
    __u8 conntrack_out; /* of cleartext that leaves here */
    __u8 mac[6];        /* of the device; steering programs take unicast frames to it alone */
};
SP_STATIC_ASSERT(sizeof(struct sp_port_info) == 24, "abi");

/* HASH own_addresses -> __u8 (1). Key: an address of this host, or the broadcast address of one of
   its IPv4 networks. Writer: control. Reader: programs that forward. */
struct sp_own_address {
    __u32 family;     /* AF_INET or AF_INET6 */
    __u8 address[16]; /* network order; IPv4 in the first 4 bytes, rest zero */
};
SP_STATIC_ASSERT(sizeof(struct sp_own_address) == 20, "abi");
#define SP_OWN_ADDRESSES_MAX 8192

/* What a port asks of cleartext that is in transit: to belong to an established connection of the
   kernel's. Where it does not: */
enum sp_conntrack {
    SP_CONNTRACK_OFF = 0,  /* nothing is asked */
    SP_CONNTRACK_PUNT = 1, /* the kernel has it: it tracks, and its firewall judges */
    SP_CONNTRACK_DROP = 2, /* not_established */
};

/* HASH port_by_ifindex: __u32 ifindex -> __u32 port id, or SP_PORT_NONE: of a device that is no
   port, and packets may be routed to it. To all others they may not. */
#define SP_PORT_NONE 0xffffffffu
#define SP_FORWARD_TO_MAX 32 /* devices of the configuration that are such */
/* DEVMAP tx_ports, key: port id, value: bpf_devmap_val with the port's egress program. */

/* ---- frames that workers write to sp0 ----------------------------------------------------- */

/*
 * Source MAC of a frame from a worker: 02:53:50:00:00:KIND. It tells egress_route whether the
 * packet is our own (outer ESP: TTL stays) or in transit (decrypted: TTL is decremented, once,
 * by whoever forwards it: egress_route, or the kernel when it is passed on).
 */
#define SP_KIND_ORIGINATED 1
#define SP_KIND_TRANSIT 2

SP_INLINE SP_CONSTEXPR void sp_write_worker_mac(__u8* mac, __u8 kind) {
    mac[0] = 0x02;
    mac[1] = 0x53;
    mac[2] = 0x50;
    mac[3] = 0;
    mac[4] = 0;
    mac[5] = kind;
}

/* SP_KIND_*, or 0 when no worker wrote the frame. */
SP_INLINE __u8 sp_kind_of_mac(const __u8* mac) {
    if (mac[0] != 0x02 || mac[1] != 0x53 || mac[2] != 0x50 || mac[3] != 0 || mac[4] != 0) return 0;
    return mac[5];
}

/* ---- tunables of one loaded program -------------------------------------------------------- */

/*
 * Set by the loader before a program is loaded, constant afterwards (so the verifier removes what
 * they switch off). They stand alone in the section SP_TUNABLES_SECTION, which is also the kernel's
 * name of the map behind it: together with the program's name it tells our own programs apart.
 */
#define SP_TUNABLES_SECTION ".rodata.sp_tune"

struct sp_tunables {
    __u32 port;             /* port id: key into counters, port_info, egress_rules */
    __u32 queues;           /* receive queues that have sockets */
    __u32 workers;          /* at least 1; xsks has queues * workers slots */
    __u32 use_kfunc;        /* 0: never ask the kernel's xfrm, the owner map alone decides;
                               interface programs: 0: this kernel cannot name if_ids */
    __u32 punt_unknown_spi; /* 1: ESP of unknown SAs is passed, 0: dropped */
    __u32 register_mode;    /* 1: SAs and policies are the kernel's, and what no worker has taken
                               over stays with it; 0: SAs and policies of the configuration */
    __u32 conntrack;        /* 1: some port or policy asks for connections */
    __u32 ct_marks;         /* 1: some policy selects by connection mark */
    __u32 ct_refresh;       /* jiffies of life below which the kernel sees a connection again */
    __u32 bypass_cpu_count; /* 0: BYPASS traffic stays on the CPU it came in on */
    __u16 bypass_cpus[SP_BYPASS_CPUS_MAX]; /* flow_hash % bypass_cpu_count picks one */
};
SP_STATIC_ASSERT(sizeof(struct sp_tunables) == 168, "abi");

/* XSKMAP xsks, one for each port: queue * workers + worker -> socket bound to that queue. */

/* CPUMAP bypass_queues, one for each port with bypass_cpus: CPU -> its queue and the program
   bypass_cpu, which forwards there. */

/* ---- hashes that programs and workers must agree on ---------------------------------------- */

static inline __u32 sp_mix32(__u32 x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

/* Owner of an SA that nobody assigned. spi_be: network order, daddr_word: last 32 bits of the
   outer destination as they stand in memory. */
static inline __u32 sp_sa_hash(__u32 spi_be, __u32 daddr_word) {
    return sp_mix32(spi_be ^ sp_mix32(daddr_word));
}

/* Same flow, same worker: last words of the addresses as they stand in memory, ports in host order,
   0 where there are none and for every fragment (later ones carry none). */
static inline __u32 sp_flow_hash(__u32 src_word, __u32 dst_word, __u32 protocol, __u32 src_port,
                                 __u32 dst_port) {
    return sp_mix32(src_word ^
                    sp_mix32(dst_word ^ sp_mix32((src_port << 16 | dst_port) ^ protocol)));
}

#endif /* SP_ABI_H */
