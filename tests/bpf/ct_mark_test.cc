// SPDX-License-Identifier: Apache-2.0
// Policies that are chosen by the mark of the packet's connection.

#include <linux/bpf.h>

#include "control/bpf_objects/bpf_objects.h"
#include "tests/bpf/connections.h"
#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr Mac kTapMac = {0x02, 0, 0, 0, 9, 9};
constexpr Link kTransit{.dst = kTapMac, .src = worker_mac(SP_KIND_TRANSIT)};
constexpr const char* kHost = "10.1.0.10";
constexpr const char* kOutside = "10.2.0.9";

SpdEntry entry(uint32_t policy, SpdAction action, uint32_t mark = 0, uint32_t mask = 0) {
    SpdEntry entry{.policy = PolicyId{policy},
                   .action = action,
                   .source = prefix("0.0.0.0/0"),
                   .destination = prefix("0.0.0.0/0")};
    entry.ct_mark = mark;
    entry.ct_mark_mask = mask;
    return entry;
}

class CtMark : public ::testing::Test {
  protected:
    void SetUp() override {
        const auto probe = bpf_objects::probe_connection_lookup();
        if (!probe.possible) GTEST_SKIP() << "SKIP: " << probe.reason;
        forget_connections();
    }
    Instance load(Program program, uint32_t port) {
        return rig.load(program, port, {.conntrack = true, .ct_marks = true});
    }
    static Bytes frame(const Upper& upper = udp({.src = 1000, .dst = 53}), const Link& link = {}) {
        return eth(ip4({.src = kHost, .dst = kOutside}, upper), link);
    }
    // Any state of a connection will do, and either direction.
    static void mark(uint32_t mark, uint8_t protocol = 17, uint32_t status = 0) {
        set_connection({.source = kHost,
                        .destination = kOutside,
                        .protocol = protocol,
                        .source_port = 1000,
                        .destination_port = 53,
                        .status = status,
                        .mark = mark});
    }
    Rig& rig = Rig::get();
};

TEST_F(CtMark, chooses_BYPASS_and_DISCARD_before_PROTECT) {
    rig.publish({entry(1, SpdAction::bypass, 7, 0xffffffff),
                 entry(2, SpdAction::discard, 0x100, 0xff00), entry(0, SpdAction::protect)},
                {}, {{WorkerId{1}}});
    const Instance program = load(Program::steer_protected, kLan);
    const auto verdict = [&] { return rig.verdict(program, frame()); };
    const auto protected_by_worker = [&](const char* name, const Bytes& what) {
        rig.check(program, {name, what, steered(kLan, what.size(), 0, 1)});
    };
    protected_by_worker("no connection", frame());
    mark(0);
    protected_by_worker("no mark", frame());
    mark(7);
    rig.check(program, {"BYPASS", frame(),
                        redirected(kLan, frame().size(),
                                   eth(ip4({.src = kHost, .dst = kOutside, .ttl = 63},
                                           udp({.src = 1000, .dst = 53})),
                                       {.dst = kWanPeerMac, .src = kWanMac}))});
    mark(7, 17, IPS_SEEN_REPLY | IPS_ASSURED);
    EXPECT_EQ(verdict(), static_cast<uint32_t>(XDP_REDIRECT));
    mark(0x107);
    rig.check(program, {"DISCARD, under the mask", frame(),
                        dropped(kLan, frame().size(), SP_DROP_policy_discard)});
    for (uint32_t bit = 0; bit < 32; ++bit) {
        // One bit off the mark is another mark; of 0x100 under its mask only eight bits count.
        mark(7u ^ 1u << bit);
        const bool discarded = bit == 8;
        EXPECT_EQ(verdict(), static_cast<uint32_t>(discarded ? XDP_DROP : XDP_REDIRECT)) << bit;
        protected_by_worker("another UDP flow", frame(udp({.src = 1001, .dst = 53})));
    }
    mark(7, 6);
    mark(1, 17);
    protected_by_worker("the mark of another protocol's connection", frame());
    EXPECT_EQ(rig.verdict(program, frame(tcp({.src = 1000, .dst = 53}))),
              static_cast<uint32_t>(XDP_REDIRECT));
}

TEST_F(CtMark, a_frame_that_cannot_be_looked_up) {
    rig.publish({entry(1, SpdAction::discard, 7, 0xffffffff), entry(0, SpdAction::bypass)}, {},
                {{}});
    const Instance program = load(Program::steer_protected, kLan);
    mark(7);
    const Upper upper = udp({.src = 1000, .dst = 53});
    const Bytes first = eth(ip4({.src = kHost, .dst = kOutside, .more = true}, upper));
    rig.check(program, {"first fragment: it has the ports", first,
                        dropped(kLan, first.size(), SP_DROP_policy_discard)});
    const Bytes later = eth(ip4({.src = kHost, .dst = kOutside, .offset = 2}, raw(17, Bytes(8))));
    rig.check(program, {"later fragment", later,
                        dropped(kLan, later.size(), SP_DROP_fragment_without_ports)});
    // Protocols that XDP cannot look up never have the mark.
    EXPECT_EQ(rig.verdict(program, frame(icmp())), static_cast<uint32_t>(XDP_REDIRECT));
    const Bytes icmp_later =
        eth(ip4({.src = kHost, .dst = kOutside, .offset = 2}, raw(1, Bytes(8))));
    EXPECT_EQ(rig.verdict(program, icmp_later), static_cast<uint32_t>(XDP_REDIRECT));
}

TEST_F(CtMark, counts_in_both_directions_and_for_decrypted_packets) {
    const Bytes in = eth(ip4({.src = kOutside, .dst = kHost}, udp({.src = 53, .dst = 1000})));
    rig.publish({entry(1, SpdAction::bypass, 7, 0xffffffff), entry(0, SpdAction::protect)},
                {entry(1, SpdAction::bypass, 7, 0xffffffff), entry(0, SpdAction::protect)},
                {{WorkerId{0}}, {}});
    const Instance program = load(Program::steer_unprotected, kWan);
    rig.check(program, {"no mark", in, dropped(kWan, in.size(), SP_DROP_cleartext_for_protect)});
    mark(7);
    EXPECT_EQ(rig.verdict(program, in), static_cast<uint32_t>(XDP_REDIRECT));

    const Instance route = load(Program::egress_route, kInjector);
    const Bytes decrypted = frame(udp({.src = 1000, .dst = 53}), kTransit);
    EXPECT_EQ(rig.verdict(route, decrypted), static_cast<uint32_t>(XDP_REDIRECT));
    mark(8);
    rig.check(route, {"towards another tunnel", decrypted,
                      dropped(kInjector, decrypted.size(), SP_DROP_protect_in_clear)});
}

// As the program that chooses the queue of sp0, which cannot ask.
TEST_F(CtMark, a_program_that_asks_for_no_connections_takes_no_entry_with_a_mark) {
    rig.publish({entry(1, SpdAction::discard, 0, 0xffffffff), entry(0, SpdAction::protect)}, {},
                {{WorkerId{1}}});
    mark(0);
    const Instance program = rig.load(Program::steer_protected, kLan, {});
    rig.check(program, {"mark 0", frame(), steered(kLan, frame().size(), 0, 1)});
    const Instance asking = load(Program::steer_protected, kLan);
    rig.check(asking, {"mark 0", frame(), dropped(kLan, frame().size(), SP_DROP_policy_discard)});
}

}  // namespace
}  // namespace sallyport::packet
