// SPDX-License-Identifier: Apache-2.0
// ICMP errors of the kernel on their way out of an unprotected port.

#include <linux/pkt_cls.h>

#include <algorithm>

#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr const char* kGateway4 = "192.0.2.1";
constexpr const char* kGateway6 = "2001:db8:1::1";
// Behind the tunnel, and here.
constexpr const char* kFar4 = "10.2.0.9";
constexpr const char* kNear4 = "10.1.0.9";
constexpr const char* kFar6 = "2001:db8:b::9";
constexpr const char* kNear6 = "2001:db8:a::9";

// What the error says of a packet, of which it has so many bytes.
Upper about(const Network& packet, uint8_t type, size_t bytes = 548) {
    const bool is_v6 = packet.ethertype == 0x86dd;
    Bytes out(8);
    out[0] = type;
    out.insert(
        out.end(), packet.bytes.begin(),
        packet.bytes.begin() + static_cast<std::ptrdiff_t>(std::min(bytes, packet.bytes.size())));
    return {static_cast<uint8_t>(is_v6 ? 58 : 1), out};
}

constexpr uint8_t kTimeExceeded4 = 11;
constexpr uint8_t kTimeExceeded6 = 3;
constexpr uint8_t kRedirect6 = 137;

Network far4(const Upper& upper, const char* from = kFar4) {
    return ip4({.src = from, .dst = kNear4}, upper);
}
Network far6(const Upper& upper, const char* from = kFar6) {
    return ip6({.src = from, .dst = kNear6}, upper);
}
// The gateway tells the sender of a packet.
Bytes error4(const Network& packet, uint8_t type = kTimeExceeded4, size_t bytes = 548) {
    return eth(ip4({.src = kGateway4, .dst = kFar4}, about(packet, type, bytes)));
}
Bytes error6(const Network& packet, uint8_t type = kTimeExceeded6, size_t bytes = 1232) {
    return eth(ip6({.src = kGateway6, .dst = kFar6}, about(packet, type, bytes)));
}

Bytes tagged(const Bytes& frame, std::initializer_list<uint16_t> types, uint16_t vid = 5) {
    Bytes out(frame.begin(), frame.begin() + 12);
    for (const uint16_t type : types) {
        put16(out, type);
        put16(out, 0x6000 | vid);
    }
    out.insert(out.end(), frame.begin() + 12, frame.end());
    return out;
}

struct Option {
    uint8_t type;
    uint8_t words;
};
// RFC 4861 4.5; of the options only type and length are filled in. 4: the packet follows.
Bytes redirect6(const std::vector<Option>& options, const Network& packet) {
    Bytes out(40);
    out[0] = kRedirect6;
    for (const auto& [type, words] : options) {
        const size_t at = out.size();
        out.resize(at + (type == 4 ? 8 : words * 8));
        if (words == 0) out.resize(at + 8);
        out[at] = type;
        out[at + 1] = words;
        if (type == 4) append(out, packet.bytes);
    }
    return eth(ip6({.src = kGateway6, .dst = kFar6}, raw(58, out)));
}

class KernelOut : public ::testing::Test {
  protected:
    void SetUp() override {
        rig.publish(
            {
                entry(0, SpdAction::protect, "10.1.0.0/16", "10.2.0.0/16"),
                entry(0, SpdAction::protect, "2001:db8:a::/48", "2001:db8:b::/48"),
                to_port(entry(1, SpdAction::protect, "10.1.0.0/16", "10.4.0.0/16", 6), 443),
                to_port(entry(1, SpdAction::protect, "2001:db8:a::/48", "2001:db8:4::/48", 6), 443),
                entry(2, SpdAction::bypass, "10.1.0.0/16", "10.3.0.0/16"),
                entry(2, SpdAction::bypass, "10.1.0.0/16", "10.4.0.0/16"),
                entry(2, SpdAction::bypass, "2001:db8:a::/48", "2001:db8:4::/48"),
                entry(3, SpdAction::discard, "10.1.0.0/16", "10.5.0.0/16"),
            },
            {
                entry(4, SpdAction::protect, "10.6.0.0/16", "10.1.0.0/16"),
                entry(2, SpdAction::bypass, "10.3.0.0/16", "10.1.0.0/16"),
            },
            {});
    }
    void stays(const char* name, const Bytes& frame) { stays(program, name, frame); }
    void stays(const Instance& by, const char* name, const Bytes& frame,
               const std::string& reason = "error_in_clear") {
        rig.check(by, {name, frame, {TC_ACT_SHOT, {{"port 0 drop " + reason, 1}}, {}}});
    }
    // Nothing is counted, and filters of others have their turn.
    void leaves(const char* name, const Bytes& frame) { leaves(program, name, frame); }
    void leaves(const Instance& by, const char* name, const Bytes& frame) {
        rig.check(by, {name, frame, {static_cast<uint32_t>(TC_ACT_UNSPEC), {}, {}}});
    }
    bool would_leave(const Bytes& frame) {
        const uint32_t verdict = rig.verdict(program, frame);
        EXPECT_TRUE(verdict == TC_ACT_SHOT || verdict == static_cast<uint32_t>(TC_ACT_UNSPEC));
        return verdict != TC_ACT_SHOT;
    }

    Rig& rig = Rig::get();
    Instance program = rig.load(Program::kernel_out, kWan, {});
};

TEST_F(KernelOut, errors_about_protected_packets_stay) {
    for (const Upper& upper : {udp({.dst = 53}), tcp({.dst = 80}), esp(0x1001), icmp(),
                               raw(47, Bytes(30)), raw(6, Bytes(2))}) {
        stays("v4", error4(far4(upper)));
        stays("v6", error6(far6(upper)));
    }
    // The tunnel's other half, where only what comes in names it.
    stays("inbound alone", error4(far4(udp({.dst = 53}), "10.6.0.9")));
    stays("a large packet", error4(far4(udp({.dst = 53}, Bytes(1400, 0x5a)))));
    stays("a large packet, v6", error6(far6(udp({.dst = 53}, Bytes(1400, 0x5a)))));
}

TEST_F(KernelOut, what_is_no_error_about_protected_packets_leaves) {
    leaves("ESP", eth(ip4({.src = kGateway4, .dst = "192.0.2.2"}, esp(0x1001))));
    leaves("ESP, v6", eth(ip6({.src = kGateway6, .dst = "2001:db8:1::2"}, esp(0x1001))));
    leaves("IKE", eth(ip4({.src = kGateway4, .dst = "192.0.2.2"}, udp({.src = 500, .dst = 500}))));
    leaves("UDP", eth(far4(udp({.dst = 53}))));
    leaves("ARP", eth(arp()));
    leaves("other ethertype", eth({0x88cc, Bytes(40)}));
    leaves("ping", eth(ip4({.src = kGateway4, .dst = kFar4}, icmp(8))));
    leaves("ping, v6", eth(ip6({.src = kGateway6, .dst = kFar6}, icmp6(128))));
    leaves("about ESP", error4(ip4({.src = "192.0.2.2", .dst = kGateway4}, esp(0x1001))));
    leaves("about ESP, v6", error6(ip6({.src = "2001:db8:1::2", .dst = kGateway6}, esp(0x1001))));
    leaves("about IKE",
           error4(ip4({.src = "192.0.2.2", .dst = kGateway4}, udp({.src = 500, .dst = 500}))));
    leaves("about BYPASS", error4(far4(udp({.dst = 53}), "10.3.0.9")));
    leaves("about DISCARD", error4(far4(udp({.dst = 53}), "10.5.0.9")));
    leaves("about what no policy covers", error4(far4(udp({.dst = 53}), "10.9.0.9")));
    // ICMP of the other version is no ICMP.
    leaves("ICMPv6 in IPv4", eth(ip4({.src = kGateway4, .dst = kFar4},
                                     {58, about(far4(udp({})), kTimeExceeded6).bytes})));
    leaves("ICMP in IPv6", eth(ip6({.src = kGateway6, .dst = kFar6},
                                   {1, about(far6(udp({})), kTimeExceeded4).bytes})));
}

TEST_F(KernelOut, of_all_types_the_errors_stay) {
    for (int type = 0; type < 256; ++type) {
        SCOPED_TRACE(type);
        const auto number = static_cast<uint8_t>(type);
        const bool is_error4 = (type >= 3 && type <= 5) || type == 11 || type == 12;
        EXPECT_EQ(would_leave(error4(far4(tcp({})), number)), !is_error4);
        if (number == kRedirect6) continue;
        EXPECT_EQ(would_leave(error6(far6(tcp({})), number)), type >= 128);
    }
}

TEST_F(KernelOut, headers_before_and_in_the_quote_are_walked) {
    const Network quoted4 =
        ip4({.src = kFar4, .dst = kNear4, .option_words = 10}, udp({.dst = 53}));
    stays("options in the quote", error4(quoted4));
    stays("options before it", eth(ip4({.src = kGateway4, .dst = kFar4, .option_words = 10},
                                       about(quoted4, kTimeExceeded4))));
    const Upper far = about(far6(udp({.dst = 53})), kTimeExceeded6);
    stays("extension headers before it",
          eth(ip6({.src = kGateway6, .dst = kFar6},
                  hop_by_hop(destination_options(routing(far, 3), 2)))));
    stays("extension headers in it",
          error6(far6(hop_by_hop(routing(destination_options(udp({.dst = 53})))))));
    Upper chain = tcp({});
    for (int i = 0; i < 6; ++i) chain = destination_options(chain);
    stays("too many of them in it", error6(far6(chain)));
    leaves("the same where any answer may leave", error6(far6(chain, "2001:db8:9::9")));
    for (const auto& types : {std::initializer_list<uint16_t>{0x8100},
                              {0x88a8, 0x8100},
                              {0x8100, 0x8100, 0x8100, 0x8100}}) {
        stays("behind tags", tagged(error4(far4(udp({}))), types));
        stays("behind tags, v6", tagged(error6(far6(udp({}))), types));
        leaves("others behind tags", tagged(eth(far4(udp({}))), types));
    }
}

TEST_F(KernelOut, redirects_of_IPv6_have_the_packet_in_an_option) {
    const Network packet = far6(udp({.dst = 53}));
    stays("first", redirect6({{4, 8}}, packet));
    stays("behind the link address", redirect6({{2, 1}, {4, 8}}, packet));
    stays("behind three", redirect6({{2, 1}, {1, 4}, {14, 2}, {4, 8}}, packet));
    stays("behind more", redirect6({{2, 1}, {2, 1}, {2, 1}, {2, 1}, {4, 8}}, packet));
    stays("behind one without a length", redirect6({{2, 0}, {4, 8}}, packet));
    leaves("without", redirect6({{2, 1}}, packet));
    leaves("about others", redirect6({{2, 1}, {4, 8}}, far6(udp({}), "2001:db8:9::9")));
    stays("of IPv4", error4(far4(udp({})), 5));
}

// What cannot be told of a quote that was cut is not taken for what may leave.
TEST_F(KernelOut, where_ports_decide_they_must_be_there) {
    const auto from = [](uint16_t port) { return tcp({.src = port, .dst = 40000}); };
    stays("server's port", error4(far4(from(443), "10.4.0.9")));
    leaves("other port", error4(far4(from(80), "10.4.0.9")));
    leaves("the port on the other side", error4(far4(tcp({.src = 40000, .dst = 443}), "10.4.0.9")));
    leaves("other protocol", error4(far4(udp({.src = 443}), "10.4.0.9")));
    leaves("no ports", error4(far4(esp(1), "10.4.0.9")));
    stays("server's port, v6", error6(far6(from(443), "2001:db8:4::9")));
    leaves("other port, v6", error6(far6(from(80), "2001:db8:4::9")));
    const Upper hidden = hop_by_hop(from(80));
    leaves("behind an extension header", error6(far6(hidden, "2001:db8:4::9")));
    for (size_t bytes = 0; bytes < 44; ++bytes) {
        SCOPED_TRACE(bytes);
        EXPECT_EQ(would_leave(error4(far4(from(80), "10.4.0.9"), kTimeExceeded4, bytes)),
                  bytes >= 24);
        EXPECT_EQ(would_leave(error4(far4(udp({}), "10.3.0.9"), kTimeExceeded4, bytes)),
                  bytes >= 20);
    }
    for (size_t bytes = 0; bytes < 68; ++bytes) {
        SCOPED_TRACE(bytes);
        EXPECT_EQ(would_leave(error6(far6(hidden, "2001:db8:4::9"), kTimeExceeded6, bytes)),
                  bytes >= 52);
    }
    const Ip4 second{.src = "10.4.0.9", .dst = kNear4, .offset = 3};
    stays("a later fragment", error4(ip4(second, raw(6, Bytes(24)))));
    leaves("a later fragment of another protocol", error4(ip4(second, raw(17, Bytes(24)))));
}

TEST_F(KernelOut, every_cut_of_an_error_about_protected_packets_stays) {
    // From the end of the IP header on: the kernel test-runs nothing shorter.
    const auto sweep = [this](const Bytes& frame, size_t type_at) {
        for (size_t bytes = type_at; bytes < frame.size(); ++bytes) {
            SCOPED_TRACE(bytes);
            const Bytes cut(frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(bytes));
            EXPECT_EQ(would_leave(cut), bytes == type_at);
        }
    };
    sweep(error4(far4(tcp({}))), 34);
    sweep(error6(far6(destination_options(tcp({})))), 54);
}

TEST_F(KernelOut, of_an_error_in_pieces_the_first_one_stays) {
    const Upper whole = about(far4(udp({.dst = 53}, Bytes(400))), kTimeExceeded4);
    const Upper head = raw(1, Bytes(whole.bytes.begin(), whole.bytes.begin() + 64));
    stays("first", eth(ip4({.src = kGateway4, .dst = kFar4, .more = true}, head)));
    leaves("later",
           eth(ip4({.src = kGateway4, .dst = kFar4, .offset = 8}, raw(1, Bytes(64, 0xb)))));
    const Upper six = about(far6(udp({.dst = 53})), kTimeExceeded6);
    stays("first, v6", eth(ip6({.src = kGateway6, .dst = kFar6}, fragment({.more = true}, six))));
    leaves("later, v6",
           eth(ip6({.src = kGateway6, .dst = kFar6}, fragment({.offset = 8}, raw(58, Bytes(64))))));
}

// The mark of the quoted packet's connection is not known here.
TEST_F(KernelOut, what_a_connection_mark_decides_stays) {
    SpdEntry marked = entry(1, SpdAction::bypass, "10.1.0.0/16", "10.3.0.0/16");
    marked.ct_mark = 7;
    marked.ct_mark_mask = 0xff;
    rig.publish({marked, entry(2, SpdAction::bypass, "10.1.0.0/16", "10.0.0.0/8")}, {}, {});
    const Instance asking = rig.load(Program::kernel_out, kWan, {.ct_marks = true});
    stays(asking, "UDP", error4(far4(udp({}), "10.3.0.9")));
    leaves(asking, "no connections", error4(far4(esp(1), "10.3.0.9")));
    leaves(asking, "no mark in its policies", error4(far4(udp({}), "10.7.0.9")));
}

// ---- forwarded ---------------------------------------------------------------------------------

class KernelOutForwards : public KernelOut {
  protected:
    KernelOutForwards() { program.is_forwarded = true; }
    void TearDown() override { rig.set_rules(kWan, {}); }
    static Network to4(const char* to, const Upper& upper) {
        return ip4({.src = kNear4, .dst = to}, upper);
    }
    static Network to6(const char* to, const Upper& upper) {
        return ip6({.src = kNear6, .dst = to}, upper);
    }
};

// Whatever way the kernel chose for it.
TEST_F(KernelOutForwards, only_what_the_spd_lets_out_leaves) {
    for (const Upper& upper : {udp({.dst = 53}), tcp({.dst = 80}), icmp(), raw(47, Bytes(30))}) {
        leaves("BYPASS", eth(to4("10.3.0.9", upper)));
        stays(program, "PROTECT", eth(to4(kFar4, upper)), "protect_in_clear");
        stays(program, "DISCARD", eth(to4("10.5.0.9", upper)), "policy_discard");
        stays(program, "no policy", eth(to4("10.9.0.9", upper)), "no_policy");
        leaves("BYPASS, v6", eth(to6("2001:db8:4::9", upper)));
        stays(program, "PROTECT, v6", eth(to6(kFar6, upper)), "protect_in_clear");
        stays(program, "no policy, v6", eth(to6("2001:db8:9::9", upper)), "no_policy");
    }
    stays(program, "decrypted", eth(far4(udp({.dst = 53}))), "no_policy");
    stays(program, "multicast", eth(to4("239.1.1.1", udp({.dst = 5000}))), "no_policy");
    stays(program, "multicast, v6", eth(to6("ff3e::1", udp({.dst = 5000}))), "no_policy");
    const Network error = to4(kFar4, about(far4(udp({.dst = 53})), kTimeExceeded4));
    stays(program, "an error that another router sends", eth(error), "protect_in_clear");
    for (const auto& types : {std::initializer_list<uint16_t>{0x8100}, {0x88a8, 0x8100}}) {
        leaves("of a device above the port", tagged(eth(to4(kFar4, udp({}))), types));
        leaves("the same, v6", tagged(eth(to6(kFar6, udp({}))), types));
        stays(program, "a priority, no VLAN", tagged(eth(to4(kFar4, udp({}))), types, 0),
              "protect_in_clear");
        leaves("BYPASS with a priority", tagged(eth(to4("10.3.0.9", udp({}))), types, 0));
    }
}

TEST_F(KernelOutForwards, what_is_protected_or_this_hosts_leaves) {
    leaves("ESP", eth(ip4({.src = kGateway4, .dst = "192.0.2.2"}, esp(0x1001))));
    leaves("ESP, v6", eth(ip6({.src = kGateway6, .dst = "2001:db8:1::2"}, esp(0x1001))));
    leaves("ESP in UDP",
           eth(ip4({.src = kGateway4, .dst = "192.0.2.2"}, udp({.src = 4500, .dst = 4500}))));
    leaves("translated", eth(ip4({.src = kGateway4, .dst = kFar4}, tcp({.dst = 80}))));
    leaves("translated, v6", eth(ip6({.src = kGateway6, .dst = kFar6}, tcp({.dst = 80}))));
    leaves("ARP", eth(arp()));
}

// RFC 4301 5.1: whatever the packet looks like.
TEST_F(KernelOutForwards, ESP_of_others_meets_the_spd) {
    leaves("BYPASS", eth(to4("10.3.0.9", esp(0x1001))));
    leaves("BYPASS, v6", eth(to6("2001:db8:4::9", esp(0x1001))));
    stays(program, "PROTECT", eth(to4(kFar4, esp(0x1001))), "protect_in_clear");
    stays(program, "PROTECT, v6", eth(to6(kFar6, esp(0x1001))), "protect_in_clear");
    stays(program, "DISCARD", eth(to4("10.5.0.9", esp(0x1001))), "policy_discard");
    stays(program, "no policy", eth(to4("198.51.100.9", esp(0x1001))), "no_policy");
    stays(program, "no policy, v6", eth(to6("2001:db8:9::9", esp(0x1001))), "no_policy");
}

TEST_F(KernelOutForwards, ports_decide_where_they_are_known) {
    leaves("other port", eth(to4("10.4.0.9", tcp({.dst = 80}))));
    stays(program, "the port", eth(to4("10.4.0.9", tcp({.dst = 443}))), "protect_in_clear");
    stays(program, "the port, v6", eth(to6("2001:db8:4::9", tcp({.dst = 443}))),
          "protect_in_clear");
    const auto second = [](const char* to) {
        return eth(ip4({.src = kNear4, .dst = to, .offset = 3}, raw(6, Bytes(24))));
    };
    leaves("a later fragment", second("10.4.0.9"));
    stays(program, "a later fragment where any stays", second(kFar4), "protect_in_clear");
}

TEST_F(KernelOutForwards, what_cannot_be_read_stays) {
    Upper chain = tcp({});
    for (int i = 0; i < 6; ++i) chain = destination_options(chain);
    stays(program, "too many headers", eth(to6("2001:db8:4::9", chain)), "malformed_ip");
}

TEST_F(KernelOutForwards, the_rules_of_the_port_hold) {
    const Bytes frame = eth(to4("10.3.0.9", tcp({.dst = 25})));
    leaves("no rule", frame);
    sp_egress_rule rule{};
    rule.family = AF_INET;
    rule.protocol = 6;
    rule.dst_port_lo = rule.dst_port_hi = 25;
    rig.set_rules(kWan, {rule});
    stays(program, "denied", frame, "egress_denied");
    leaves("another port", eth(to4("10.3.0.9", tcp({.dst = 26}))));
}

// What no worker has an SA for is PROTECT there because the kernel alone knows.
TEST_F(KernelOutForwards, in_register_mode_the_kernel_judges_what_no_worker_serves) {
    const std::vector<SpdEntry> entries = {
        entry(0, SpdAction::protect, "10.1.0.0/16", "10.2.0.0/16"),
        entry(1, SpdAction::protect, "10.1.0.0/16", "10.6.0.0/16")};
    rig.publish(entries, {}, {{WorkerId{0}}, {}});
    Instance following = rig.load(Program::kernel_out, kWan, {.register_mode = true});
    following.is_forwarded = true;
    stays(following, "a worker's", eth(to4(kFar4, udp({}))), "protect_in_clear");
    leaves(following, "nobody's", eth(to4("10.6.0.9", udp({}))));
    stays(program, "nobody's in static mode", eth(to4("10.6.0.9", udp({}))), "protect_in_clear");
}

// XDP has looked it up; what the mark alone decides is not judged again.
TEST_F(KernelOutForwards, what_a_connection_mark_decides_leaves) {
    SpdEntry marked = entry(1, SpdAction::bypass, "10.1.0.0/16", "10.3.0.0/16");
    marked.ct_mark = 7;
    marked.ct_mark_mask = 0xff;
    rig.publish({marked, entry(3, SpdAction::discard, "10.1.0.0/16", "10.0.0.0/8")}, {}, {});
    Instance asking = rig.load(Program::kernel_out, kWan, {.ct_marks = true});
    asking.is_forwarded = true;
    leaves(asking, "UDP", eth(to4("10.3.0.9", udp({}))));
    stays(asking, "no connections", eth(to4("10.3.0.9", raw(47, Bytes(30)))), "policy_discard");
    stays(asking, "no mark in its policies", eth(to4("10.7.0.9", udp({}))), "policy_discard");
}

}  // namespace
}  // namespace sallyport::packet
