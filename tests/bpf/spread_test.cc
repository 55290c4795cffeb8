// SPDX-License-Identifier: Apache-2.0
// BYPASS traffic on other CPUs: the hand-over, and the program that forwards there.

#include <linux/bpf.h>

#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr const char* kHost4 = "10.1.0.10";
constexpr const char* kHost6 = "2001:db8:a::10";

class Spread : public ::testing::Test {
  protected:
    void SetUp() override {
        rig.set_rules(kWan, {});
        rig.set_rules(kLan, {});
        rig.publish({entry(0, SpdAction::protect, "0.0.0.0/0", "10.2.0.0/24"),
                     entry(2, SpdAction::discard, "0.0.0.0/0", "10.2.5.0/24"),
                     entry(1, SpdAction::bypass, "0.0.0.0/0", "0.0.0.0/0"),
                     entry(1, SpdAction::bypass, "::/0", "::/0")},
                    {entry(0, SpdAction::protect, "10.2.0.0/24", "0.0.0.0/0"),
                     entry(1, SpdAction::bypass, "0.0.0.0/0", "0.0.0.0/0"),
                     entry(1, SpdAction::bypass, "::/0", "::/0")},
                    {{WorkerId{1}}, {}, {}});
    }
    static Bytes out4(const char* destination, uint8_t ttl = 64, const Link& link = {}) {
        return eth(ip4({.src = kHost4, .dst = destination, .ttl = ttl}, tcp({.dst = 80})), link);
    }
    static Bytes out6(const char* destination, uint8_t ttl = 64, const Link& link = {}) {
        return eth(ip6({.src = kHost6, .dst = destination, .hop_limit = ttl}, tcp({.dst = 80})),
                   link);
    }
    Rig& rig = Rig::get();
};

TEST_F(Spread, only_BYPASS_is_handed_over) {
    const Instance program = rig.load(Program::steer_protected, kLan, {.bypass_cpus = {0}});
    const auto check = [&](const char* name, const Bytes& frame, const Outcome& outcome) {
        rig.check(program, {name, frame, outcome});
    };
    const Bytes open = out4("10.2.9.9");
    const Bytes open6 = out6("2001:db8:b::9");
    check("BYPASS v4", open, handed_over(kLan, open.size()));
    check("BYPASS v6", open6, handed_over(kLan, open6.size()));
    const Bytes here = out4("10.1.0.1");
    check("for this host", here, handed_over(kLan, here.size()));
    const Bytes tunnel = out4("10.2.0.9");
    check("PROTECT", tunnel, steered(kLan, tunnel.size(), 0, 1));
    const Bytes closed = out4("10.2.5.9");
    check("DISCARD", closed, dropped(kLan, closed.size(), SP_DROP_policy_discard));
    const Bytes broken = eth(ip4({.src = kHost4, .dst = "10.2.9.9", .total_length = 999}, icmp()));
    check("malformed", broken, dropped(kLan, broken.size(), SP_DROP_malformed_ip));
    const Bytes arp_frame = eth(arp());
    check("ARP", arp_frame, passed(kLan, arp_frame.size()));

    const Instance wan = rig.load(Program::steer_unprotected, kWan, {.bypass_cpus = {0}});
    const Bytes in = eth(ip4({.src = "198.51.100.1", .dst = kHost4}, tcp({.dst = 80})));
    rig.check(wan, {"BYPASS in", in, handed_over(kWan, in.size())});
    const Bytes covered = eth(ip4({.src = "10.2.0.9", .dst = kHost4}, tcp({.dst = 80})));
    rig.check(wan, {"cleartext for PROTECT", covered,
                    dropped(kWan, covered.size(), SP_DROP_cleartext_for_protect)});
}

TEST_F(Spread, without_a_queue_it_is_forwarded_at_once) {
    const Instance program =
        rig.load(Program::steer_protected, kLan, {.bypass_cpus = {0}, .with_queues = false});
    const Bytes in = out4("10.2.9.9");
    rig.check(program, {"v4", in,
                        redirected(kLan, in.size(),
                                   out4("10.2.9.9", 63, {.dst = kWanPeerMac, .src = kWanMac}))});
}

TEST_F(Spread, the_program_of_the_other_CPU_forwards) {
    const Link to_peer{.dst = kWanPeerMac, .src = kWanMac};
    const Link to_host{.dst = kLanHostMac, .src = kLanMac};
    const Instance lan = rig.load(Program::bypass_cpu, kLan, {});
    const auto check = [&](const Instance& program, uint32_t port, const char* name,
                           const Bytes& frame, const Outcome& outcome) {
        rig.check(program, {name, frame, taken(outcome, port)});
    };
    const Bytes open = out4("10.2.9.9");
    const Bytes open6 = out6("2001:db8:b::9");
    check(lan, kLan, "v4", open, redirected(kLan, open.size(), out4("10.2.9.9", 63, to_peer)));
    check(lan, kLan, "v6", open6,
          redirected(kLan, open6.size(), out6("2001:db8:b::9", 63, to_peer)));
    // The policy was asked before: what it said is not asked again.
    const Bytes tunnel = out4("10.2.0.9");
    check(lan, kLan, "PROTECT by now", tunnel,
          redirected(kLan, tunnel.size(), out4("10.2.0.9", 63, to_peer)));
    const Bytes here = out4("10.1.0.1");
    check(lan, kLan, "for this host", here, passed(kLan, here.size()));
    const Bytes last = out4("10.2.9.9", 1);
    check(lan, kLan, "TTL 1", last, passed(kLan, last.size()));
    const Bytes unknown = out4("192.0.2.99");
    check(lan, kLan, "no neighbour", unknown, passed(kLan, unknown.size()));
    const Bytes arp_frame = eth(arp());
    check(lan, kLan, "not IP", arp_frame,
          dropped(kLan, arp_frame.size(), SP_DROP_unsupported_packet));
    sp_egress_rule rule{};
    rule.dst_port_hi = 65535;
    rule.protocol = 6;
    rig.set_rules(kWan, {rule});
    check(lan, kLan, "no neighbour, denied", unknown,
          dropped(kLan, unknown.size(), SP_DROP_egress_denied));

    const Instance wan = rig.load(Program::bypass_cpu, kWan, {});
    const Bytes in = eth(ip4({.src = "198.51.100.1", .dst = kHost4}, tcp({.dst = 80})));
    check(wan, kWan, "in", in,
          redirected(kWan, in.size(),
                     eth(ip4({.src = "198.51.100.1", .dst = kHost4, .ttl = 63}, tcp({.dst = 80})),
                         to_host)));
    // Out of the unprotected side again: the outbound SPD holds.
    const Bytes through = eth(ip4({.src = "198.51.100.1", .dst = "10.2.0.9"}, tcp({.dst = 80})));
    check(wan, kWan, "through, into a tunnel", through,
          dropped(kWan, through.size(), SP_DROP_protect_in_clear));
}

TEST_F(Spread, every_truncation_is_dropped) {
    const Instance program = rig.load(Program::bypass_cpu, kLan, {});
    for (const Bytes& frame : {out4("10.2.9.9"), out6("2001:db8:b::9")}) {
        for (size_t bytes = 14; bytes < frame.size(); ++bytes) {
            const Bytes cut(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(bytes));
            EXPECT_EQ(rig.verdict(program, cut), static_cast<uint32_t>(XDP_DROP)) << bytes;
        }
    }
}

}  // namespace
}  // namespace sallyport::packet
