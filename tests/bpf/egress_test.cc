// SPDX-License-Identifier: Apache-2.0
// Every way out of egress_route (frames of workers on sp0) and of egress_port (the devmap program).

#include <linux/bpf.h>

#include <random>

#include "dataplane/egress/filter.h"
#include "dataplane/wire/frame_ip.h"
#include "tests/bpf/martians.h"
#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr Mac kTapMac = {0x02, 0, 0, 0, 9, 9};
constexpr Link kOriginated{.dst = kTapMac, .src = worker_mac(SP_KIND_ORIGINATED)};
constexpr Link kTransit{.dst = kTapMac, .src = worker_mac(SP_KIND_TRANSIT)};
constexpr Link kToPeer{.dst = kWanPeerMac, .src = kWanMac};
constexpr Link kToHost{.dst = kLanHostMac, .src = kLanMac};

class EgressRoute : public ::testing::Test {
  protected:
    void SetUp() override {
        rig.set_rules(kWan, {});
        rig.set_rules(kLan, {});
        program = std::make_unique<Instance>(
            rig.load(Program::egress_route, kInjector, {.with_sockets = false}));
    }
    static Bytes outer4(const char* destination, const Link& link, uint8_t ttl = 64,
                        size_t bytes = 40) {
        return eth(ip4({.src = "192.0.2.1", .dst = destination, .ttl = ttl}, esp(0x1001, bytes)),
                   link);
    }
    static Bytes outer6(const char* destination, const Link& link, uint8_t ttl = 64,
                        size_t bytes = 40) {
        return eth(
            ip6({.src = "2001:db8:1::1", .dst = destination, .hop_limit = ttl}, esp(0x1001, bytes)),
            link);
    }
    static Bytes inner4(const char* destination, const Link& link, uint8_t ttl = 64,
                        const Upper& upper = tcp({.dst = 80})) {
        return eth(ip4({.src = "10.2.0.9", .dst = destination, .ttl = ttl}, upper), link);
    }
    static Bytes inner6(const char* destination, const Link& link, uint8_t ttl = 64,
                        const Upper& upper = tcp({.dst = 80})) {
        return eth(ip6({.src = "2001:db8:b::9", .dst = destination, .hop_limit = ttl}, upper),
                   link);
    }
    void pass(const char* name, const Bytes& frame) {
        rig.check(*program, {name, frame, passed(kInjector, frame.size())});
    }
    void drop(const char* name, const Bytes& frame, sp_drop_reason reason) {
        rig.check(*program, {name, frame, dropped(kInjector, frame.size(), reason)});
    }
    void forward(const char* name, const Bytes& in, const Bytes& out) {
        rig.check(*program, {name, in, redirected(kInjector, in.size(), out)});
    }
    Rig& rig = Rig::get();
    std::unique_ptr<Instance> program;
};

TEST_F(EgressRoute, originated_frames_keep_their_TTL) {
    forward("v4", outer4("192.0.2.2", kOriginated), outer4("192.0.2.2", kToPeer));
    forward("v6", outer6("2001:db8:1::2", kOriginated), outer6("2001:db8:1::2", kToPeer));
    forward("v4, TTL 1", outer4("192.0.2.2", kOriginated, 1), outer4("192.0.2.2", kToPeer, 1));
    forward("v6, hop limit 1", outer6("2001:db8:1::2", kOriginated, 1),
            outer6("2001:db8:1::2", kToPeer, 1));
    forward("v4 in UDP",
            eth(ip4({.src = "192.0.2.1", .dst = "192.0.2.2"},
                    udp({.src = 4500, .dst = 4500}, esp_bytes(0x1001))),
                kOriginated),
            eth(ip4({.src = "192.0.2.1", .dst = "192.0.2.2"},
                    udp({.src = 4500, .dst = 4500}, esp_bytes(0x1001))),
                kToPeer));
}

TEST_F(EgressRoute, frames_in_transit_make_a_hop) {
    forward("v4", inner4("10.1.0.10", kTransit), inner4("10.1.0.10", kToHost, 63));
    forward("v6", inner6("2001:db8:a::10", kTransit), inner6("2001:db8:a::10", kToHost, 63));
    forward("v4, TTL 2", inner4("10.1.0.10", kTransit, 2), inner4("10.1.0.10", kToHost, 1));
    pass("TTL 1", inner4("10.1.0.10", kTransit, 1));
    pass("hop limit 1", inner6("2001:db8:a::10", kTransit, 1));
}

TEST_F(EgressRoute, what_a_tunnel_brought_of_martians_is_not_forwarded) {
    for (const auto& [name, frame] : packets4(kMartians4, "10.2.0.9", "10.1.0.10", kTransit)) {
        drop(name.c_str(), frame, SP_DROP_martian);
    }
    for (const auto& [name, frame] :
         packets6(kMartians6, "2001:db8:b::9", "2001:db8:a::10", kTransit)) {
        drop(name.c_str(), frame, SP_DROP_martian);
    }
    for (const auto& [name, frame] : packets4(kNoMartians4, "10.2.0.9", "10.1.0.10", kTransit)) {
        EXPECT_EQ(rig.verdict(*program, frame), XDP_REDIRECT) << name;
    }
    for (const auto& [name, frame] :
         packets6(kNoMartians6, "2001:db8:b::9", "2001:db8:a::10", kTransit)) {
        EXPECT_EQ(rig.verdict(*program, frame), XDP_REDIRECT) << name;
    }
}

TEST_F(EgressRoute, what_a_tunnel_brought_with_an_address_of_this_host_is_not_forwarded) {
    const auto from4 = [](const char* source, const char* destination) {
        return eth(ip4({.src = source, .dst = destination}, tcp({.dst = 80})), kTransit);
    };
    drop("v4", from4("10.1.0.1", "10.1.0.10"), SP_DROP_martian);
    drop("v4, of another port", from4("192.0.2.1", "10.1.0.10"), SP_DROP_martian);
    drop("v4, for this host", from4("10.1.0.1", "10.1.0.1"), SP_DROP_martian);
    drop("v6",
         eth(ip6({.src = "2001:db8:a::1", .dst = "2001:db8:a::10"}, tcp({.dst = 80})), kTransit),
         SP_DROP_martian);
    EXPECT_EQ(rig.verdict(*program, from4("10.1.0.2", "10.1.0.10")), XDP_REDIRECT);
    // What this host sends with its own.
    EXPECT_EQ(rig.verdict(*program, outer4("192.0.2.2", kOriginated)), XDP_REDIRECT);
}

TEST_F(EgressRoute, what_the_kernel_finishes) {
    pass("for the appliance itself", inner4("10.1.0.1", kTransit));
    pass("for the appliance itself v6", inner6("2001:db8:a::1", kTransit));
    pass("multicast", inner4("239.1.1.1", kTransit));
    pass("no neighbour, outer", outer4("192.0.2.99", kOriginated));
    pass("no neighbour, outer v6", outer6("2001:db8:1::99", kOriginated));
    pass("no neighbour, inner", inner4("10.1.0.99", kTransit));
    pass("no neighbour, inner v6", inner6("2001:db8:a::99", kTransit));
    pass("our ESP, not out of a port", outer4("198.18.0.2", kOriginated));
    pass("our ESP, not out of a port v6", outer6("2001:db8:c::2", kOriginated));
}

// The kernel would forward what was decrypted past all that is asked here, if it did.
TEST_F(EgressRoute, where_sp0_does_not_forward_the_kernel_has_esp_and_what_is_for_this_host) {
    const ForwardingOff off("sp0");
    drop("v4", inner4("10.1.0.10", kTransit), SP_DROP_forwarding_off);
    drop("v6", inner6("2001:db8:a::10", kTransit), SP_DROP_forwarding_off);
    drop("towards another tunnel", inner4("10.2.0.77", kTransit), SP_DROP_forwarding_off);
    pass("for us v4", inner4("10.1.0.1", kTransit));
    pass("for us v6", inner6("2001:db8:a::1", kTransit));
    pass("multicast", inner4("239.1.1.1", kTransit));
    pass("TTL 1", inner4("10.1.0.10", kTransit, 1));
    pass("our ESP", outer4("192.0.2.2", kOriginated));
    pass("our ESP v6", outer6("2001:db8:1::2", kOriginated));
}

TEST_F(EgressRoute, decrypted_packets_reach_only_devices_that_are_named) {
    const auto all = [&](const auto& judge) {
        judge("v4", inner4("198.18.0.2", kTransit));
        judge("v6", inner6("2001:db8:c::2", kTransit));
        judge("no neighbour v4", inner4("198.18.0.99", kTransit));
        judge("no neighbour v6", inner6("2001:db8:c::99", kTransit));
    };
    const auto refused = [&](const char* name, const Bytes& frame) {
        drop(name, frame, SP_DROP_not_a_port);
    };
    all(refused);
    rig.set_forward_to("other0", true);
    all([&](const char* name, const Bytes& frame) { pass(name, frame); });
    rig.set_forward_to("other0", false);
    all(refused);
    // Another tunnel's traffic, led into sp0.
    refused("sp0", inner4("198.19.0.2", kTransit));
    rig.set_forward_to("sp0", true);
    pass("sp0", inner4("198.19.0.2", kTransit));
    rig.set_forward_to("sp0", false);
}

// A forged ICMP message makes such a route for ten minutes, and the kernel would drop what it is
// given.
TEST_F(EgressRoute, esp_meets_the_mtu_of_the_port_and_not_of_a_route) {
    forward("v4", outer4("10.3.0.9", kOriginated, 64, 700), outer4("10.3.0.9", kToPeer, 64, 700));
    forward("v6", outer6("2001:db8:b:3::9", kOriginated, 64, 1300),
            outer6("2001:db8:b:3::9", kToPeer, 64, 1300));
    drop("v4", outer4("192.0.2.2", kOriginated, 64, 1500), SP_DROP_too_big);
    drop("v6", outer6("2001:db8:1::2", kOriginated, 64, 1500), SP_DROP_too_big);
    drop("without a neighbour", outer4("192.0.2.99", kOriginated, 64, 1500), SP_DROP_too_big);
}

TEST_F(EgressRoute, what_no_route_leads_to) {
    drop("blackhole", outer4("10.66.0.1", kOriginated), SP_DROP_no_route);
    drop("unreachable", outer4("10.67.0.1", kOriginated), SP_DROP_no_route);
    drop("prohibited", outer4("10.68.0.1", kOriginated), SP_DROP_no_route);
    drop("unreachable, inner", inner4("10.67.0.1", kTransit), SP_DROP_no_route);
    drop("unreachable v6", outer6("2001:db8:b:67::1", kOriginated), SP_DROP_no_route);
    drop("prohibited, inner v6", inner6("2001:db8:b:68::1", kTransit), SP_DROP_no_route);
}

// RFC 4301 5.1: what one tunnel brought must not continue in clear where another one belongs.
TEST_F(EgressRoute, what_leaves_an_unprotected_port_in_clear_meets_the_outbound_spd) {
    const auto entry = [](uint32_t policy, SpdAction action, const char* to) {
        return SpdEntry{.policy = PolicyId{policy},
                        .action = action,
                        .source = prefix("0.0.0.0/0"),
                        .destination = prefix(to)};
    };
    run("ip neigh replace 192.0.2.3 lladdr 02:00:00:00:01:02 dev wan0 nud permanent");
    rig.publish({entry(0, SpdAction::protect, "192.0.2.2/32"),
                 entry(1, SpdAction::discard, "192.0.2.99/32"),
                 entry(2, SpdAction::bypass, "192.0.2.0/25")},
                {}, {{WorkerId{0}}, {}, {}});
    drop("PROTECT", inner4("192.0.2.2", kTransit), SP_DROP_protect_in_clear);
    drop("DISCARD, also without a neighbour", inner4("192.0.2.99", kTransit),
         SP_DROP_policy_discard);
    pass("BYPASS without a neighbour", inner4("192.0.2.98", kTransit));
    drop("no policy", inner4("192.0.2.200", kTransit), SP_DROP_no_policy);
    drop("no policy v6", inner6("2001:db8:1::2", kTransit), SP_DROP_no_policy);
    forward("BYPASS", inner4("192.0.2.3", kTransit), inner4("192.0.2.3", kToPeer, 63));
    rig.set_bypass_until(1);
    pass("BYPASS that is not believed", inner4("192.0.2.3", kTransit));
    drop("PROTECT all the same", inner4("192.0.2.2", kTransit), SP_DROP_protect_in_clear);
    rig.set_bypass_until(SP_BYPASS_FOREVER);
    forward("our own ESP", outer4("192.0.2.2", kOriginated), outer4("192.0.2.2", kToPeer));
    forward("towards a protected port", inner4("10.1.0.10", kTransit),
            inner4("10.1.0.10", kToHost, 63));
    rig.disable_spd();
    drop("no SPD yet", inner4("192.0.2.3", kTransit), SP_DROP_no_policy);
}

TEST_F(EgressRoute, egress_filter_holds_on_the_kernels_way) {
    sp_egress_rule rule{};
    rule.protocol = 6;
    rule.dst_port_lo = 25;
    rule.dst_port_hi = 25;
    rig.set_rules(kLan, {rule});
    const Upper smtp = tcp({.dst = 25});
    drop("v4", inner4("10.1.0.99", kTransit, 64, smtp), SP_DROP_egress_denied);
    drop("v6", inner6("2001:db8:a::99", kTransit, 64, smtp), SP_DROP_egress_denied);
    pass("another port", inner4("10.1.0.99", kTransit));
}

TEST_F(EgressRoute, what_no_worker_wrote) {
    drop("another MAC", outer4("192.0.2.2", {}), SP_DROP_unsupported_packet);
    drop("another kind", outer4("192.0.2.2", {.src = {0x02, 0x53, 0x50, 0, 0, 3}}),
         SP_DROP_unsupported_packet);
    drop("kind 0", outer6("2001:db8:1::2", {.src = {0x02, 0x53, 0x50, 0, 0, 0}}),
         SP_DROP_unsupported_packet);
    drop("one octet off", outer4("192.0.2.2", {.src = {0x02, 0x53, 0x50, 0, 1, 1}}),
         SP_DROP_unsupported_packet);
    drop("ARP", eth(arp(), kTransit), SP_DROP_unsupported_packet);
    drop("malformed",
         eth(ip4({.src = "1.2.3.4", .dst = "192.0.2.2", .total_length = 999}, icmp()), kTransit),
         SP_DROP_malformed_ip);
    drop("truncated", eth({0x86dd, Bytes(20, 0x60)}, kTransit), SP_DROP_truncated);
    drop("truncated upper header", inner4("10.1.0.10", kTransit, 64, raw(6, Bytes(3))),
         SP_DROP_truncated);
}

TEST_F(EgressRoute, every_truncation_is_dropped) {
    for (const Bytes& frame :
         {outer4("192.0.2.2", kOriginated), outer6("2001:db8:1::2", kOriginated),
          inner4("10.1.0.10", kTransit),
          inner6("2001:db8:a::10", kTransit, 64, hop_by_hop(udp({.dst = 1})))}) {
        for (size_t bytes = 14; bytes < frame.size(); ++bytes) {
            const Bytes cut(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(bytes));
            EXPECT_EQ(rig.verdict(*program, cut), static_cast<uint32_t>(XDP_DROP)) << bytes;
        }
    }
}

class EgressPort : public ::testing::Test {
  protected:
    void SetUp() override {
        rig.set_rules(kWan, {});
        program = std::make_unique<Instance>(
            rig.load(Program::egress_port, kWan, {.with_sockets = false}));
    }
    void sent(const std::string& name, const Bytes& frame) {
        rig.check(*program, {name, frame, egress_sent(kWan, frame.size())});
    }
    void drop(const std::string& name, const Bytes& frame, sp_drop_reason reason) {
        rig.check(*program, {name, frame, egress_dropped(kWan, frame.size(), reason)});
    }
    static Bytes v4(const char* source, const char* destination, const Upper& upper) {
        return eth(ip4({.src = source, .dst = destination}, upper), kToPeer);
    }
    static Bytes v6(const char* source, const char* destination, const Upper& upper) {
        return eth(ip6({.src = source, .dst = destination}, upper), kToPeer);
    }
    static sp_egress_rule rule(const char* source, const char* destination) {
        sp_egress_rule row{};
        row.dst_port_hi = 65535;
        if (source != nullptr) {
            const IpPrefix from = prefix(source);
            row.family = from.address.family == Family::v4 ? AF_INET : AF_INET6;
            row.src_bits = from.bits;
            std::copy(from.address.bytes.begin(), from.address.bytes.end(), row.src);
        }
        if (destination != nullptr) {
            const IpPrefix to = prefix(destination);
            row.family = to.address.family == Family::v4 ? AF_INET : AF_INET6;
            row.dst_bits = to.bits;
            std::copy(to.address.bytes.begin(), to.address.bytes.end(), row.dst);
        }
        return row;
    }
    Rig& rig = Rig::get();
    std::unique_ptr<Instance> program;
};

TEST_F(EgressPort, sends_what_nothing_denies) {
    sent("v4", v4("10.1.0.1", "192.0.2.2", tcp({.dst = 80})));
    sent("v6", v6("2001:db8::1", "2001:db8::2", udp({.dst = 80})));
    sent("ESP", v4("192.0.2.1", "192.0.2.2", esp(0x1001)));
}

TEST_F(EgressPort, MTU) {
    const size_t headers = 20 + 8;
    sent("1500", v4("10.1.0.1", "192.0.2.2", udp({}, Bytes(1500 - headers))));
    drop("1501", v4("10.1.0.1", "192.0.2.2", udp({}, Bytes(1501 - headers))), SP_DROP_too_big);
    sent("v6 1500", v6("2001:db8::1", "2001:db8::2", udp({}, Bytes(1500 - headers - 20))));
    drop("v6 1501", v6("2001:db8::1", "2001:db8::2", udp({}, Bytes(1501 - headers - 20))),
         SP_DROP_too_big);
}

TEST_F(EgressPort, what_no_program_sends) {
    drop("ARP", eth(arp()), SP_DROP_unsupported_packet);
    drop("truncated", eth({0x0800, Bytes(10)}), SP_DROP_truncated);
    drop("malformed", eth(ip4({.src = "1.2.3.4", .dst = "1.2.3.5", .total_length = 999}, icmp())),
         SP_DROP_malformed_ip);
}

TEST_F(EgressPort, filter_by_prefix_of_every_length) {
    const Upper any = icmp();
    // Flip each bit in turn: a rule of n bits denies exactly when the flipped bit is not among the
    // first n.
    for (uint8_t bits = 0; bits <= 32; ++bits) {
        sp_egress_rule row = rule(nullptr, "203.0.113.85/32");
        row.dst_bits = bits;
        rig.set_rules(kWan, {row});
        for (uint32_t bit = 0; bit < 32; ++bit) {
            Bytes frame = v4("10.1.0.1", "203.0.113.85", any);
            frame[14 + 16 + bit / 8] ^= static_cast<uint8_t>(0x80 >> bit % 8);
            ASSERT_EQ(rig.verdict(*program, frame),
                      static_cast<uint32_t>(bit < bits ? XDP_PASS : XDP_DROP))
                << bits << " " << bit;
        }
    }
    for (uint8_t bits = 0; bits <= 128; ++bits) {
        sp_egress_rule row = rule("2001:db8:5555:aaaa:1234:5678:9abc:def0/128", nullptr);
        row.src_bits = bits;
        rig.set_rules(kWan, {row});
        for (uint32_t bit = 0; bit < 128; ++bit) {
            Bytes frame = v6("2001:db8:5555:aaaa:1234:5678:9abc:def0", "2001:db8::2", icmp6());
            frame[14 + 8 + bit / 8] ^= static_cast<uint8_t>(0x80 >> bit % 8);
            ASSERT_EQ(rig.verdict(*program, frame),
                      static_cast<uint32_t>(bit < bits ? XDP_PASS : XDP_DROP))
                << int{bits} << " " << bit;
        }
    }
}

TEST_F(EgressPort, filter_by_protocol_and_port) {
    sp_egress_rule smtp = rule("10.0.0.0/8", "203.0.113.0/24");
    smtp.protocol = 6;
    smtp.dst_port_lo = 25;
    smtp.dst_port_hi = 27;
    sp_egress_rule no_icmp{};
    no_icmp.protocol = 58;
    no_icmp.dst_port_hi = 65535;
    rig.set_rules(kWan, {smtp, no_icmp});
    const auto to = [](uint16_t port) { return tcp({.dst = port}); };
    const Bytes denied = v4("10.1.0.1", "203.0.113.9", to(25));
    drop("first port", denied, SP_DROP_egress_denied);
    drop("last port", v4("10.1.0.1", "203.0.113.9", to(27)), SP_DROP_egress_denied);
    sent("port below", v4("10.1.0.1", "203.0.113.9", to(24)));
    sent("port above", v4("10.1.0.1", "203.0.113.9", to(28)));
    sent("another protocol", v4("10.1.0.1", "203.0.113.9", udp({.dst = 25})));
    sent("another source", v4("11.1.0.1", "203.0.113.9", to(25)));
    sent("another destination", v4("10.1.0.1", "203.0.114.9", to(25)));
    drop("second rule", v6("2001:db8::1", "2001:db8::2", icmp6()), SP_DROP_egress_denied);
    drop("second rule, behind headers",
         v6("2001:db8::1", "2001:db8::2", hop_by_hop(destination_options(icmp6()))),
         SP_DROP_egress_denied);
    sent("v6, another protocol", v6("2001:db8::1", "2001:db8::2", to(25)));
    drop("first fragment",
         eth(ip4({.src = "10.1.0.1", .dst = "203.0.113.9", .more = true}, to(25)), kToPeer),
         SP_DROP_egress_denied);
    sent("later fragment",
         eth(ip4({.src = "10.1.0.1", .dst = "203.0.113.9", .offset = 3}, raw(6, Bytes(16))),
             kToPeer));
    drop("later fragment of a protocol that is denied whole",
         v6("2001:db8::1", "2001:db8::2", fragment({.offset = 3}, raw(58, Bytes(16)))),
         SP_DROP_egress_denied);
    drop("later fragment that hides its protocol",
         v6("2001:db8::1", "2001:db8::2", fragment({.offset = 3}, raw(60, Bytes(16)))),
         SP_DROP_egress_denied);
}

TEST_F(EgressPort, everything_of_one_family) {
    rig.set_rules(kWan, {rule("0.0.0.0/0", nullptr)});
    drop("v4", v4("10.1.0.1", "203.0.113.9", icmp()), SP_DROP_egress_denied);
    sent("v6", v6("2001:db8::1", "2001:db8::2", icmp6()));
    rig.set_rules(kWan, {rule(nullptr, "::/0")});
    sent("v4", v4("10.1.0.1", "203.0.113.9", icmp()));
    drop("v6", v6("2001:db8::1", "2001:db8::2", icmp6()), SP_DROP_egress_denied);
}

TEST_F(EgressPort, the_last_of_all_rules_counts) {
    std::vector<sp_egress_rule> rules(SP_EGRESS_RULES_MAX, rule("198.51.100.0/24", nullptr));
    rules.back() = rule(nullptr, "203.0.113.0/24");
    rig.set_rules(kWan, rules);
    drop("last rule", v4("10.1.0.1", "203.0.113.9", icmp()), SP_DROP_egress_denied);
    sent("no rule", v4("10.1.0.1", "203.0.114.9", icmp()));
    drop("first rule", v4("198.51.100.1", "203.0.114.9", icmp()), SP_DROP_egress_denied);
}

// One rule, two compilers: the devmap program and direct egress deny the same packets.
class RandomFilter {
  public:
    // Few values each, so that rules and packets meet.
    Bytes packet() {
        const bool v4 = pick(2) == 0;
        const Upper upper = [&] {
            switch (pick(4)) {
                case 0:
                    return tcp({.dst = port()});
                case 1:
                    return udp({.dst = port()});
                case 2:
                    return v4 ? icmp() : icmp6();
                default:
                    return esp(0x1001);
            }
        }();
        Bytes frame;
        if (v4) {
            const bool later = pick(4) == 0;
            frame = eth(ip4({.src = "10.1.0.1",
                             .dst = "10.1.0.1",
                             .offset = static_cast<uint16_t>(later ? 3 : 0),
                             .more = !later && pick(4) == 0},
                            upper),
                        kToPeer);
        } else {
            const bool whole = pick(3) != 0;
            const bool later = pick(2) == 0;
            const bool hidden = later && pick(4) == 0;  // its protocol
            const Upper cut = fragment({.offset = static_cast<uint16_t>(later ? 3 : 0)},
                                       hidden ? raw(60, Bytes(16)) : upper);
            frame = eth(ip6({.src = "2001:db8::1", .dst = "2001:db8::1"}, whole ? upper : cut),
                        kToPeer);
        }
        // Sources and destinations that leave a prefix at any bit.
        const size_t bits = v4 ? 32 : 128;
        for (const size_t at : v4 ? std::array<size_t, 2>{26, 30} : std::array<size_t, 2>{22, 38}) {
            if (pick(3) == 0) continue;
            const size_t bit = pick(bits);
            frame[at + bit / 8] ^= static_cast<uint8_t>(0x80 >> bit % 8);
        }
        return frame;
    }
    sp_egress_rule rule() {
        sp_egress_rule row{};
        const uint32_t family = pick(3);
        row.dst_port_hi = 65535;
        if (pick(2) == 0) {
            const uint16_t a = port();
            const uint16_t b = port();
            row.dst_port_lo = std::min(a, b);
            row.dst_port_hi = std::max(a, b);
        }
        row.protocol = std::array<uint8_t, 6>{0, 0, 6, 17, 1, 58}[pick(6)];
        if (family == 0) return row;  // any: then it has no prefixes
        const IpPrefix whole = prefix(family == 1 ? "10.1.0.1/32" : "2001:db8::1/128");
        row.family = family == 1 ? AF_INET : AF_INET6;
        std::ranges::copy(whole.address.bytes, row.src);
        std::ranges::copy(whole.address.bytes, row.dst);
        row.src_bits = static_cast<uint8_t>(pick(4) == 0 ? pick(whole.bits + 1u) : pick(9));
        row.dst_bits = static_cast<uint8_t>(pick(4) == 0 ? pick(whole.bits + 1u) : pick(9));
        return row;
    }
    uint32_t pick(size_t below) { return static_cast<uint32_t>(random_() % below); }

  private:
    uint16_t port() { return std::array<uint16_t, 5>{0, 25, 80, 443, 65535}[pick(5)]; }
    std::mt19937 random_{20};
};

TEST_F(EgressPort, denies_what_direct_egress_denies) {
    RandomFilter random;
    int denied = 0;
    for (int round = 0; round < 400; ++round) {
        std::vector<sp_egress_rule> rules(1 + random.pick(3));
        for (sp_egress_rule& each : rules) each = random.rule();
        rig.set_rules(kWan, rules);
        for (int i = 0; i < 25; ++i) {
            Bytes frame = random.packet();
            auto* data = reinterpret_cast<std::byte*>(frame.data());
            wire::IpPacket packet;
            ASSERT_EQ(wire::parse_frame(
                          {.data = data, .bytes = static_cast<uint32_t>(frame.size())}, packet),
                      DropReason::none);
            const bool expected = egress::denies(rules, packet, data + wire::kEthernetBytes);
            ASSERT_EQ(rig.verdict(*program, frame),
                      static_cast<uint32_t>(expected ? XDP_DROP : XDP_PASS))
                << "round " << round << ", packet " << i;
            denied += expected ? 1 : 0;
        }
    }
    EXPECT_GT(denied, 1000);
    EXPECT_LT(denied, 9000);
}

}  // namespace
}  // namespace sallyport::packet
