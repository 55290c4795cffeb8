// SPDX-License-Identifier: Apache-2.0
// What ports ask of connections (conntrack_in, conntrack_out), in every program that forwards.

#include <linux/bpf.h>

#include "control/bpf_objects/bpf_objects.h"
#include "tests/bpf/connections.h"
#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr Mac kTapMac = {0x02, 0, 0, 0, 9, 9};
constexpr Link kOriginated{.dst = kTapMac, .src = worker_mac(SP_KIND_ORIGINATED)};
constexpr Link kTransit{.dst = kTapMac, .src = worker_mac(SP_KIND_TRANSIT)};
constexpr Link kToPeer{.dst = kWanPeerMac, .src = kWanMac};
constexpr Link kToHost{.dst = kLanHostMac, .src = kLanMac};

constexpr const char* kHost4 = "10.1.0.10";
constexpr const char* kHost6 = "2001:db8:a::10";
constexpr const char* kOutside4 = "10.2.0.9";
constexpr const char* kOutside6 = "2001:db8:b::9";
constexpr uint16_t kFrom = 40000;
constexpr uint16_t kTo = 443;
constexpr uint8_t kAck = 0x10;
constexpr uint32_t kRefreshSeconds = 20;

// A host inside and one outside, in both families; `out` is the direction of a frame.
enum class Way { out, in };

struct Flow {
    Family family;
    uint8_t protocol;
    [[nodiscard]] const char* host() const { return family == Family::v4 ? kHost4 : kHost6; }
    [[nodiscard]] const char* outside() const {
        return family == Family::v4 ? kOutside4 : kOutside6;
    }
    [[nodiscard]] Upper upper(Way way, uint8_t flags = kAck) const {
        Ports ports;
        ports.src = way == Way::out ? kFrom : kTo;
        ports.dst = way == Way::out ? kTo : kFrom;
        return protocol == 6 ? tcp(ports, Bytes(12), flags) : udp(ports);
    }
    [[nodiscard]] Bytes frame(Way way, const Upper& upper, uint8_t ttl = 64,
                              const Link& link = {}) const {
        const char* from = way == Way::out ? host() : outside();
        const char* to = way == Way::out ? outside() : host();
        return family == Family::v4
                   ? eth(ip4({.src = from, .dst = to, .ttl = ttl}, upper), link)
                   : eth(ip6({.src = from, .dst = to, .hop_limit = ttl}, upper), link);
    }
    // Begun inside, or outside.
    [[nodiscard]] Connection connection(Way begun = Way::out) const {
        const bool inside = begun == Way::out;
        return {.source = inside ? host() : outside(),
                .destination = inside ? outside() : host(),
                .protocol = protocol,
                .source_port = inside ? kFrom : kTo,
                .destination_port = inside ? kTo : kFrom};
    }
};

constexpr Flow kFlows[] = {{Family::v4, 6}, {Family::v4, 17}, {Family::v6, 6}, {Family::v6, 17}};

class Conntrack : public ::testing::Test {
  protected:
    void SetUp() override {
        const auto probe = bpf_objects::probe_connection_lookup();
        if (!probe.possible) GTEST_SKIP() << "SKIP: " << probe.reason;
        rig.set_rules(kWan, {});
        rig.set_rules(kLan, {});
        ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
        rig.publish({entry(0, SpdAction::bypass, "0.0.0.0/0", "0.0.0.0/0"),
                     entry(0, SpdAction::bypass, "::/0", "::/0")},
                    {entry(0, SpdAction::bypass, "0.0.0.0/0", "0.0.0.0/0"),
                     entry(0, SpdAction::bypass, "::/0", "::/0")},
                    {{}});
        forget_connections();
    }
    void TearDown() override {
        ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
    }
    void ask(sp_conntrack wan_in, sp_conntrack wan_out, sp_conntrack lan_in, sp_conntrack lan_out) {
        rig.set_conntrack(kWan, wan_in, wan_out);
        rig.set_conntrack(kLan, lan_in, lan_out);
    }
    Instance load(Program program, uint32_t port) {
        // HZ is at most 1000: the refresh lies between 20 s and 200 s whatever it is.
        return rig.load(program, port, {.conntrack = true, .ct_refresh = kRefreshSeconds * kHz});
    }
    void go(const Instance& program, uint32_t port, const std::string& name, const Bytes& frame,
            const Bytes& out) {
        rig.check(program,
                  {name, frame,
                   with_connection(redirected(port, frame.size(), out), port, "established")});
    }
    void to_kernel(const Instance& program, uint32_t port, const std::string& name,
                   const Bytes& frame) {
        rig.check(program,
                  {name, frame, with_connection(passed(port, frame.size()), port, "to_kernel")});
    }
    void refuse(const Instance& program, uint32_t port, const std::string& name,
                const Bytes& frame) {
        rig.check(program, {name, frame,
                            with_connection(dropped(port, frame.size(), SP_DROP_not_established),
                                            port, "refused")});
    }
    static uint32_t tick_hz() {
        timespec tick{};
        clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
        return static_cast<uint32_t>(1'000'000'000 / tick.tv_nsec);
    }
    const uint32_t kHz = tick_hz();
    Rig& rig = Rig::get();
};

// Every state of a connection, out of lan0 into wan0 and back, under both rules.
TEST_F(Conntrack, every_state_of_a_connection) {
    struct Side {
        Program program;
        uint32_t port;
        Way way;
        Link out;
    };
    const Side sides[] = {{Program::steer_protected, kLan, Way::out, kToPeer},
                          {Program::steer_unprotected, kWan, Way::in, kToHost}};
    for (const Side& side : sides) {
        const Instance program = load(side.program, side.port);
        for (const Flow& flow : kFlows) {
            SCOPED_TRACE(std::string(flow.host()) + " protocol " + std::to_string(flow.protocol));
            const Bytes frame = flow.frame(side.way, flow.upper(side.way));
            const Bytes out = flow.frame(side.way, flow.upper(side.way), 63, side.out);
            const Way other = side.way == Way::out ? Way::in : Way::out;
            for (const sp_conntrack rule : {SP_CONNTRACK_PUNT, SP_CONNTRACK_DROP}) {
                SCOPED_TRACE(rule == SP_CONNTRACK_PUNT ? "punt" : "drop");
                ask(rule, rule, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
                const auto not_established = [&](const std::string& name, const Bytes& what) {
                    if (rule == SP_CONNTRACK_PUNT) {
                        to_kernel(program, side.port, name, what);
                    } else {
                        refuse(program, side.port, name, what);
                    }
                };
                forget_connections();
                not_established("no connection", frame);
                // Begun by this side and not answered: what nftables calls new.
                Connection connection = flow.connection(side.way);
                connection.status = 0;
                set_connection(connection);
                not_established("not answered", frame);
                forget_connections();
                // Begun by the other side: this is the answer.
                connection = flow.connection(other);
                connection.status = 0;
                set_connection(connection);
                to_kernel(program, side.port, "the first answer", frame);
                forget_connections();
                for (const Way begun : {side.way, other}) {
                    connection = flow.connection(begun);
                    set_connection(connection);
                    go(program, side.port, "established", frame, out);
                    connection.life_seconds = kRefreshSeconds - 1;
                    set_connection(connection);
                    to_kernel(program, side.port, "little life left", frame);
                    connection.life_seconds = kRefreshSeconds + 2;
                    set_connection(connection);
                    go(program, side.port, "some life left", frame, out);
                    forget_connections();
                }
                connection = flow.connection(side.way);
                connection.status = IPS_SEEN_REPLY;
                set_connection(connection);
                if (flow.protocol == 6) {
                    to_kernel(program, side.port, "TCP in its handshake", frame);
                } else {
                    go(program, side.port, "UDP answered once", frame, out);
                }
            }
        }
    }
}

TEST_F(Conntrack, the_kernel_sees_what_moves_a_TCP_connection) {
    const Instance program = load(Program::steer_protected, kLan);
    ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
    for (const Flow& flow : {kFlows[0], kFlows[2]}) {
        set_connection(flow.connection());
        for (uint32_t flags = 0; flags < 256; ++flags) {
            const Upper upper = flow.upper(Way::out, static_cast<uint8_t>(flags));
            const bool moves = (flags & 0x07) != 0;  // FIN, SYN, RST
            EXPECT_EQ(rig.verdict(program, flow.frame(Way::out, upper)),
                      static_cast<uint32_t>(moves ? XDP_PASS : XDP_REDIRECT))
                << flags;
        }
        Upper cut = flow.upper(Way::out);
        cut.bytes.resize(13);  // ports, and no flags
        to_kernel(program, kLan, "no flags to read", flow.frame(Way::out, cut));
    }
}

TEST_F(Conntrack, NAT_is_the_kernels_work) {
    const Instance program = load(Program::steer_protected, kLan);
    ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
    const Flow flow = kFlows[0];
    Connection connection = flow.connection();
    connection.translated_source = "192.0.2.1";
    set_connection(connection);
    to_kernel(program, kLan, "source NAT", flow.frame(Way::out, flow.upper(Way::out)));
}

TEST_F(Conntrack, what_cannot_be_looked_up_is_not_established) {
    const Instance program = load(Program::steer_protected, kLan);
    for (const Flow& flow : kFlows) set_connection(flow.connection());
    const Upper udp_upper = kFlows[1].upper(Way::out);
    const std::pair<const char*, Bytes> frames[] = {
        {"ICMP", kFlows[0].frame(Way::out, icmp())},
        {"ICMPv6", kFlows[2].frame(Way::out, icmp6())},
        {"SCTP", kFlows[0].frame(Way::out, raw(132, Bytes(20, 1)))},
        {"another protocol", kFlows[0].frame(Way::out, raw(47, Bytes(20)))},
        {"ESP of somebody else", kFlows[0].frame(Way::out, esp(0x1001))},
        {"first fragment", eth(ip4({.src = kHost4, .dst = kOutside4, .more = true}, udp_upper))},
        {"later fragment",
         eth(ip4({.src = kHost4, .dst = kOutside4, .offset = 3}, raw(17, Bytes(24))))},
        {"first fragment v6", kFlows[3].frame(Way::out, fragment({.more = true}, udp_upper))},
        {"later fragment v6",
         kFlows[3].frame(Way::out, fragment({.offset = 3}, raw(17, Bytes(24))))},
        {"later fragment v6 that hides its protocol",
         kFlows[3].frame(Way::out, fragment({.offset = 3}, raw(60, Bytes(24))))},
    };
    for (const auto& [name, frame] : frames) {
        ask(SP_CONNTRACK_PUNT, SP_CONNTRACK_PUNT, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
        to_kernel(program, kLan, name, frame);
        ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
        refuse(program, kLan, name, frame);
    }
    // Extension headers hide nothing.
    const Bytes frame = kFlows[3].frame(Way::out, hop_by_hop(udp_upper));
    go(program, kLan, "behind extension headers", frame,
       kFlows[3].frame(Way::out, hop_by_hop(udp_upper), 63, kToPeer));
}

TEST_F(Conntrack, the_stricter_of_both_ports_holds) {
    const Instance program = load(Program::steer_protected, kLan);
    const Flow flow = kFlows[1];
    const Bytes frame = flow.frame(Way::out, flow.upper(Way::out));
    const Bytes out = flow.frame(Way::out, flow.upper(Way::out), 63, kToPeer);
    constexpr sp_conntrack kRules[] = {SP_CONNTRACK_OFF, SP_CONNTRACK_PUNT, SP_CONNTRACK_DROP};
    for (const sp_conntrack lan_in : kRules) {
        for (const sp_conntrack wan_out : kRules) {
            // The other two are of the other direction: as strict as can be, they change nothing.
            ask(SP_CONNTRACK_DROP, wan_out, lan_in, SP_CONNTRACK_DROP);
            const sp_conntrack stricter = std::max(lan_in, wan_out);
            const std::string name = std::to_string(lan_in) + " " + std::to_string(wan_out);
            if (stricter == SP_CONNTRACK_OFF) {
                rig.check(program, {name, frame, redirected(kLan, frame.size(), out)});
            } else if (stricter == SP_CONNTRACK_PUNT) {
                to_kernel(program, kLan, name, frame);
            } else {
                refuse(program, kLan, name, frame);
            }
        }
    }
    // Out of a device that is no port, the rule of the port it came in on holds.
    rig.set_forward_to("other0", true);
    const Bytes aside = eth(ip4({.src = kHost4, .dst = "198.18.0.2"}, flow.upper(Way::out)));
    ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_DROP, SP_CONNTRACK_DROP);
    refuse(program, kLan, "not out of a port", aside);
    ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
    rig.check(program, {"not out of a port, nothing asked", aside, passed(kLan, aside.size())});
    rig.set_forward_to("other0", false);
}

TEST_F(Conntrack, other_rules_hold_before_it) {
    const Instance program = load(Program::steer_protected, kLan);
    ask(SP_CONNTRACK_PUNT, SP_CONNTRACK_PUNT, SP_CONNTRACK_PUNT, SP_CONNTRACK_PUNT);
    const Flow flow = kFlows[1];
    // What is for this host has its own firewall.
    const Bytes local = eth(ip4({.src = kHost4, .dst = "10.1.0.1"}, flow.upper(Way::out)));
    rig.check(program, {"for this host", local, passed(kLan, local.size())});
    // The kernel's way meets no devmap program, so the egress filter is asked before.
    sp_egress_rule rule{};
    rule.dst_port_lo = kTo;
    rule.dst_port_hi = kTo;
    rule.protocol = 17;
    rig.set_rules(kWan, {rule});
    const Bytes frame = flow.frame(Way::out, flow.upper(Way::out));
    rig.check(program, {"denied on the kernel's way", frame,
                        with_connection(dropped(kLan, frame.size(), SP_DROP_egress_denied), kLan,
                                        "to_kernel")});
    rig.set_rules(kWan, {});
    to_kernel(program, kLan, "allowed on the kernel's way", frame);
    // DISCARD is DISCARD.
    rig.publish({entry(0, SpdAction::discard, "0.0.0.0/0", "0.0.0.0/0")}, {}, {{}});
    rig.check(program, {"DISCARD", frame, dropped(kLan, frame.size(), SP_DROP_policy_discard)});
}

TEST_F(Conntrack, PROTECT_goes_to_the_kernel_only_where_it_leads_back_to_a_worker) {
    rig.publish({entry(0, SpdAction::protect, "0.0.0.0/0", "0.0.0.0/0"),
                 entry(0, SpdAction::protect, "::/0", "::/0")},
                {}, {{WorkerId{1}}});
    rig.set_injector(ifindex("sp0"));
    const Instance program = load(Program::steer_protected, kLan);
    for (const Flow& flow : kFlows) {
        SCOPED_TRACE(std::string(flow.host()) + " protocol " + std::to_string(flow.protocol));
        const std::string family = flow.family == Family::v4 ? "ip " : "ip -6 ";
        const Bytes frame = flow.frame(Way::out, flow.upper(Way::out));
        const auto steers = [&](const char* name) {
            rig.check(program,
                      {name, frame,
                       with_connection(steered(kLan, frame.size(), 0, 1), kLan, "established")});
        };
        forget_connections();
        // What wan0 asks of cleartext that leaves there is not asked of what a worker encrypts.
        ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF);
        rig.check(program, {"nothing asked", frame, steered(kLan, frame.size(), 0, 1)});
        ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_DROP, SP_CONNTRACK_PUNT);
        refuse(program, kLan, "drop", frame);
        ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_PUNT, SP_CONNTRACK_PUNT);
        refuse(program, kLan, "punt, the route leads into wan0", frame);
        set_connection(flow.connection());
        steers("established");
        forget_connections();
        run(family + "route add " + flow.outside() + " dev sp0");
        to_kernel(program, kLan, "punt, the route leads into sp0", frame);
        ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_DROP, SP_CONNTRACK_PUNT);
        refuse(program, kLan, "drop, the route leads into sp0", frame);
        Connection connection = flow.connection();
        connection.life_seconds = 5;
        set_connection(connection);
        to_kernel(program, kLan, "little life left", frame);
        rig.set_injector(0);
        refuse(program, kLan, "little life left, no sp0", frame);
        rig.set_injector(ifindex("sp0"));
        run(family + "route del " + flow.outside() + " dev sp0");
    }
    rig.set_injector(0);
}

TEST_F(Conntrack, decrypted_packets_meet_the_rule_of_the_port_they_leave_by) {
    const Instance program = load(Program::egress_route, kInjector);
    for (const Flow& flow : kFlows) {
        SCOPED_TRACE(std::string(flow.host()) + " protocol " + std::to_string(flow.protocol));
        forget_connections();
        const Bytes frame = flow.frame(Way::in, flow.upper(Way::in), 64, kTransit);
        const Bytes out = flow.frame(Way::in, flow.upper(Way::in), 63, kToHost);
        ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_OFF);
        rig.check(program, {"nothing asked", frame, redirected(kInjector, frame.size(), out)});
        ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_PUNT, SP_CONNTRACK_DROP);
        refuse(program, kInjector, "drop", frame);
        ask(SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, SP_CONNTRACK_PUNT, SP_CONNTRACK_PUNT);
        to_kernel(program, kInjector, "punt", frame);
        set_connection(flow.connection());
        go(program, kInjector, "established", frame, out);
    }
    // What this gateway makes itself is no cleartext in transit.
    ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_DROP);
    const auto outer = [](const Link& link) {
        return eth(ip4({.src = "192.0.2.1", .dst = "192.0.2.2"},
                       udp({.src = 4500, .dst = 4500}, esp_bytes(0x1001))),
                   link);
    };
    rig.check(program, {"our own ESP in UDP", outer(kOriginated),
                        redirected(kInjector, outer(kOriginated).size(), outer(kToPeer))});
}

TEST_F(Conntrack, every_truncation_is_dropped_or_for_the_kernel) {
    ask(SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_DROP, SP_CONNTRACK_DROP);
    const Instance program = load(Program::steer_unprotected, kWan);
    for (const Flow& flow : kFlows) {
        set_connection(flow.connection());
        const Bytes frame = flow.frame(Way::in, flow.upper(Way::in));
        for (size_t bytes = 14; bytes < frame.size(); ++bytes) {
            const Bytes cut(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(bytes));
            EXPECT_EQ(rig.verdict(program, cut), static_cast<uint32_t>(XDP_DROP)) << bytes;
        }
    }
}

}  // namespace
}  // namespace sallyport::packet
