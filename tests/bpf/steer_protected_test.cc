// SPDX-License-Identifier: Apache-2.0
// Every way out of steer_protected, and of the forwarding that BYPASS uses.

#include <linux/bpf.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "dataplane/spd/classes.h"
#include "dataplane/spd/spd.h"
#include "tests/bpf/martians.h"
#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr const char* kHost4 = "10.1.0.10";
constexpr const char* kHost6 = "2001:db8:a::10";

std::vector<SpdEntry> outbound_entries() {
    const SpdEntry https4 =
        to_port(entry(1, SpdAction::protect, "10.1.0.0/24", "10.2.4.0/24", 6), 443);
    const SpdEntry https6 =
        to_port(entry(1, SpdAction::protect, "2001:db8:a::/64", "2001:db8:b:4::/64", 6), 443);
    return {
        entry(0, SpdAction::protect, "10.1.0.0/24", "10.2.0.0/24"),
        entry(0, SpdAction::protect, "2001:db8:a::/64", "2001:db8:b::/64"),
        https4,
        https6,
        entry(2, SpdAction::discard, "10.1.0.0/24", "10.2.5.0/24"),
        entry(2, SpdAction::discard, "2001:db8:a::/64", "2001:db8:b:5::/64"),
        entry(3, SpdAction::protect, "10.1.0.0/24", "10.2.6.0/24"),
        entry(3, SpdAction::protect, "2001:db8:a::/64", "2001:db8:b:6::/64"),
        entry(4, SpdAction::bypass, "10.1.0.0/24", "0.0.0.0/0"),
        entry(4, SpdAction::bypass, "2001:db8:a::/64", "::/0"),
    };
}

// Policy 0: both workers. Policy 1: worker 1. Policies 2 and 3: nobody.
const std::vector<std::vector<WorkerId>> kOwners = {{WorkerId{1}, WorkerId{0}}, {WorkerId{1}}, {}};

uint32_t flow_owner(const char* source, const char* destination, int family, uint32_t protocol,
                    uint32_t src_port, uint32_t dst_port) {
    uint32_t from[4] = {};
    uint32_t to[4] = {};
    inet_pton(family, source, from);
    inet_pton(family, destination, to);
    const size_t word = family == AF_INET ? 0 : 3;
    return to_index(
        kOwners[0][sp_flow_hash(from[word], to[word], protocol, src_port, dst_port) % 2]);
}

class SteerProtected : public ::testing::Test {
  protected:
    void SetUp() override {
        rig.set_rules(kWan, {});
        rig.publish(outbound_entries(), {}, kOwners);
    }
    Instance load(Settings settings = {}) {
        return rig.load(Program::steer_protected, kLan, settings);
    }
    static Bytes v4(const char* destination, const Upper& upper, uint8_t ttl = 64,
                    const Link& link = {}) {
        return eth(ip4({.src = kHost4, .dst = destination, .ttl = ttl}, upper), link);
    }
    static Bytes v6(const char* destination, const Upper& upper, uint8_t ttl = 64,
                    const Link& link = {}) {
        return eth(ip6({.src = kHost6, .dst = destination, .hop_limit = ttl}, upper), link);
    }
    void pass(const Instance& program, const char* name, const Bytes& frame) {
        rig.check(program, {name, frame, passed(kLan, frame.size())});
    }
    void drop(const Instance& program, const char* name, const Bytes& frame,
              sp_drop_reason reason) {
        rig.check(program, {name, frame, dropped(kLan, frame.size(), reason)});
    }
    Rig& rig = Rig::get();
};

TEST_F(SteerProtected, PROTECT_goes_to_an_owner_by_flow) {
    const Instance program = load();
    std::set<uint32_t> seen;
    for (uint16_t port = 1000; port < 1016; ++port) {
        const uint32_t queue = port & 1;
        const Bytes frame = v4("10.2.0.9", tcp({.src = port, .dst = 80}));
        const uint32_t owner = flow_owner(kHost4, "10.2.0.9", AF_INET, 6, port, 80);
        seen.insert(owner);
        rig.check(program, {"v4 TCP", frame, steered(kLan, frame.size(), queue, owner), queue});
        const Bytes frame6 = v6("2001:db8:b::9", udp({.src = port, .dst = 80}));
        const uint32_t owner6 = flow_owner(kHost6, "2001:db8:b::9", AF_INET6, 17, port, 80);
        rig.check(program, {"v6 UDP", frame6, steered(kLan, frame6.size(), queue, owner6), queue});
    }
    EXPECT_EQ(seen.size(), 2u) << "sixteen flows went to one worker";

    const Bytes ping = v4("10.2.0.9", icmp());
    rig.check(program,
              {"v4 ICMP", ping,
               steered(kLan, ping.size(), 0, flow_owner(kHost4, "10.2.0.9", AF_INET, 1, 0, 0))});
    // All fragments of a packet take one way, so the first does not count its ports.
    const uint32_t fragments = flow_owner(kHost4, "10.2.0.9", AF_INET, 17, 0, 0);
    const Bytes first =
        eth(ip4({.src = kHost4, .dst = "10.2.0.9", .more = true}, udp({.src = 7, .dst = 9})));
    const Bytes later =
        eth(ip4({.src = kHost4, .dst = "10.2.0.9", .offset = 3}, raw(17, Bytes(24))));
    rig.check(program, {"first fragment", first, steered(kLan, first.size(), 0, fragments)});
    rig.check(program, {"later fragment", later, steered(kLan, later.size(), 0, fragments)});
    const uint32_t fragments6 = flow_owner(kHost6, "2001:db8:b::9", AF_INET6, 17, 0, 0);
    const Bytes first6 =
        v6("2001:db8:b::9", hop_by_hop(fragment({.more = true}, udp({.src = 7, .dst = 9}))));
    const Bytes later6 = v6("2001:db8:b::9", hop_by_hop(fragment({.offset = 3}, udp({}))));
    rig.check(program, {"first fragment v6", first6, steered(kLan, first6.size(), 0, fragments6)});
    rig.check(program, {"later fragment v6", later6, steered(kLan, later6.size(), 0, fragments6)});

    const Bytes https = v4("10.2.4.9", tcp({.dst = 443}));
    const Bytes https6 = v6("2001:db8:b:4::9", destination_options(tcp({.dst = 443})));
    rig.check(program, {"with ports", https, steered(kLan, https.size(), 0, 1)});
    rig.check(program, {"with ports v6", https6, steered(kLan, https6.size(), 0, 1)});
}

// Policies 0 and 3 name a connection of the kernel's; policy 0 has owners as well. The route to
// 198.18.0.0/24 leads to other0, which stands for the xfrm interface.
TEST_F(SteerProtected, a_connection_of_the_kernel_gets_what_is_routed_into_its_interface) {
    const Instance program = load();
    const char* kInterface4 = "198.18.0.9";
    const char* kInterface6 = "2001:db8:c::9";
    const std::vector<SpdEntry> entries = {
        entry(0, SpdAction::protect, "10.1.0.0/24", "10.2.0.0/24"),
        entry(3, SpdAction::protect, "10.1.0.0/24", "198.18.0.0/24"),
        entry(3, SpdAction::protect, "2001:db8:a::/64", "2001:db8:c::/64"),
        entry(3, SpdAction::protect, "10.1.0.0/24", "192.0.2.0/24"),
        entry(3, SpdAction::protect, "10.1.0.0/24", "203.0.113.0/24"),
        entry(1, SpdAction::discard, "2001:db8:a::/64", "2001:db8:b::/64"),
    };
    rig.publish(entries, {}, kOwners, {6, 7, 0, 7});
    rig.set_interface("other0");
    for (const Bytes& frame : {v4(kInterface4, tcp({})), v6(kInterface6, udp({}))}) {
        rig.check(program, {"into the interface", frame, passed_protect(kLan, frame.size())});
    }
    drop(program, "routed to a port", v4("192.0.2.2", icmp()), SP_DROP_protect_in_clear);
    drop(program, "unreachable", v4("203.0.113.9", icmp()), SP_DROP_no_route);
    drop(program, "no connection of a DISCARD", v6("2001:db8:b::9", udp({})),
         SP_DROP_policy_discard);
    const Bytes owned = v4("10.2.0.9", icmp());
    rig.check(program,
              {"workers come first", owned,
               steered(kLan, owned.size(), 0, flow_owner(kHost4, "10.2.0.9", AF_INET, 1, 0, 0))});
    rig.set_interface("");
    drop(program, "no interface", v4(kInterface4, tcp({})), SP_DROP_protect_in_clear);
    rig.publish(entries, {}, kOwners);
    rig.set_interface("other0");
    drop(program, "no connection", v4(kInterface4, tcp({})), SP_DROP_no_sa);
    rig.set_interface("");
}

TEST_F(SteerProtected, PROTECT_never_falls_through_to_the_kernel) {
    const Instance program = load({.with_sockets = false});
    const Bytes frame = v4("10.2.0.9", icmp());
    const Bytes frame6 = v6("2001:db8:b::9", icmp6());
    drop(program, "no socket v4", frame, SP_DROP_steer_failed);
    drop(program, "no socket v6", frame6, SP_DROP_steer_failed);
    drop(program, "no SA v4", v4("10.2.6.9", icmp()), SP_DROP_no_sa);
    drop(program, "no SA v6", v6("2001:db8:b:6::9", icmp6()), SP_DROP_no_sa);
    // Except to be answered: a packet that may make no further hop is never forwarded.
    pass(program, "TTL 1", v4("10.2.0.9", icmp(), 1));
    pass(program, "TTL 0", v4("10.2.0.9", icmp(), 0));
    pass(program, "hop limit 1", v6("2001:db8:b::9", icmp6(), 1));
}

TEST_F(SteerProtected, DISCARD_and_no_policy) {
    const Instance program = load();
    drop(program, "DISCARD v4", v4("10.2.5.9", icmp()), SP_DROP_policy_discard);
    drop(program, "DISCARD v6", v6("2001:db8:b:5::9", icmp6()), SP_DROP_policy_discard);
    const Bytes stranger = eth(ip4({.src = "10.9.0.1", .dst = "10.2.0.9"}, icmp()));
    const Bytes stranger6 = eth(ip6({.src = "2001:db8:9::1", .dst = "2001:db8:b::9"}, icmp6()));
    drop(program, "no policy v4", stranger, SP_DROP_no_policy);
    drop(program, "no policy v6", stranger6, SP_DROP_no_policy);
    pass(program, "no policy, for us", eth(ip4({.src = "10.9.0.1", .dst = "10.1.0.1"}, icmp())));
    pass(program, "no policy, for us v6",
         eth(ip6({.src = "2001:db8:9::1", .dst = "2001:db8:a::1"}, icmp6())));
    drop(program, "later fragment v4",
         eth(ip4({.src = kHost4, .dst = "10.2.4.9", .offset = 1}, raw(6, Bytes(8)))),
         SP_DROP_fragment_without_ports);
    drop(program, "later fragment v6",
         v6("2001:db8:b:4::9", fragment({.offset = 1}, raw(6, Bytes(8)))),
         SP_DROP_fragment_without_ports);
}

TEST_F(SteerProtected, the_hosts_own_packets_go_to_the_kernel) {
    const Instance program = load();
    pass(program, "ARP", eth(arp()));
    pass(program, "STP", eth({0x0026, Bytes(46)}));
    pass(program, "multicast v4", v4("239.1.2.3", udp({.dst = 5000})));
    pass(program, "multicast v6", v6("ff05::2", udp({.dst = 547})));
    pass(program, "link-local v6", v6("fe80::1", icmp6(136), 255));
    pass(program, "link-local v4", v4("169.254.169.254", tcp({.dst = 80})));
    pass(program, "neighbour advertisement to us", v6("2001:db8:a::1", icmp6(136), 255));
    pass(program, "BYPASS that ends here", v4("10.1.0.1", tcp({.dst = 22})));
    pass(program, "BYPASS that ends here v6", v6("2001:db8:a::1", tcp({.dst = 22})));
    // What looks like neighbour discovery and is not for us is traffic like any other.
    const Bytes fake = v6("2001:db8:b::9", icmp6(135), 255);
    rig.check(program, {"solicitation into a tunnel", fake,
                        steered(kLan, fake.size(), 0,
                                flow_owner(kHost6, "2001:db8:b::9", AF_INET6, 58, 0, 0))});
}

// Linux forwards IPv4 link-local destinations by any route that covers them, so only those that end
// here are the host's own.
TEST_F(SteerProtected, link_local_v4_on_its_way_through_meets_the_SPD) {
    run("ip route replace 169.254.169.254/32 via 192.0.2.2");
    run("ip addr replace 169.254.7.7/32 dev lan0");
    const Instance program = load();
    const Bytes stranger =
        eth(ip4({.src = "10.9.0.1", .dst = "169.254.169.254"}, tcp({.dst = 80})));
    drop(program, "no policy", stranger, SP_DROP_no_policy);
    pass(program, "ours", v4("169.254.7.7", tcp({.dst = 179})));
    rig.publish({entry(0, SpdAction::protect, "0.0.0.0/0", "0.0.0.0/0")}, {}, kOwners);
    EXPECT_EQ(rig.verdict(program, v4("169.254.169.254", tcp({.dst = 80}))),
              static_cast<uint32_t>(XDP_REDIRECT));
    pass(program, "ours, whatever the SPD says", v4("169.254.7.7", tcp({.dst = 179})));
    run("ip addr del 169.254.7.7/32 dev lan0");
    run("ip route del 169.254.169.254/32");
}

// The kernel takes a tag of VLAN 0 off and routes the packet like an untagged one.
TEST_F(SteerProtected, a_priority_tag_hides_no_packet) {
    const Instance program = load();
    const auto tagged = [](uint16_t type, uint16_t tci, const Network& network) {
        Bytes bytes;
        put16(bytes, tci);
        put16(bytes, network.ethertype);
        append(bytes, network.bytes);
        return eth({type, bytes});
    };
    const Network v4_packet = ip4({.src = kHost4, .dst = "203.0.113.9"}, tcp({.dst = 80}));
    const Network v6_packet = ip6({.src = kHost6, .dst = "2001:db8:9::9"}, tcp({.dst = 80}));
    Bytes inner_tag;
    put16(inner_tag, 0);
    put16(inner_tag, v4_packet.ethertype);
    append(inner_tag, v4_packet.bytes);
    for (const uint16_t type : {uint16_t{0x8100}, uint16_t{0x88a8}}) {
        drop(program, "v4", tagged(type, 0, v4_packet), SP_DROP_unsupported_packet);
        drop(program, "v6, with a priority", tagged(type, 0xe000, v6_packet),
             SP_DROP_unsupported_packet);
        drop(program, "two tags", tagged(type, 0, {0x8100, inner_tag}), SP_DROP_unsupported_packet);
        drop(program, "cut short", eth({type, Bytes(3)}), SP_DROP_truncated);
        pass(program, "ARP", tagged(type, 0, arp()));
        pass(program, "another VLAN", tagged(type, 5, v4_packet));
        pass(program, "the last VLAN", tagged(type, 0x0fff, v4_packet));
    }
}

// Whatever the policies say.
TEST_F(SteerProtected, host_scope_comes_before_the_SPD) {
    rig.publish({entry(0, SpdAction::protect, "0.0.0.0/0", "0.0.0.0/0"),
                 entry(0, SpdAction::protect, "::/0", "::/0")},
                {}, kOwners);
    const Instance program = load();
    pass(program, "link-local v4, no route", v4("169.254.169.254", tcp({.dst = 80})));
    pass(program, "multicast v4", v4("224.0.0.251", udp({.dst = 5353})));
    pass(program, "broadcast v4", v4("255.255.255.255", udp({.dst = 67})));
    pass(program, "link-local v6", v6("fe80::1", tcp({.dst = 80})));
    pass(program, "multicast v6", v6("ff02::fb", udp({.dst = 5353})));
    const auto protect = [&](const char* name, const Bytes& frame) {
        EXPECT_EQ(rig.verdict(program, frame), static_cast<uint32_t>(XDP_REDIRECT)) << name;
    };
    protect("beside link-local v4", v4("169.253.255.255", icmp()));
    drop(program, "above multicast v4", v4("240.0.0.1", icmp()), SP_DROP_martian);
    protect("below multicast v4", v4("223.255.255.255", icmp()));
    protect("beside link-local v6", v6("fec0::1", icmp6()));
}

TEST_F(SteerProtected, what_is_for_another_station_is_not_taken) {
    const Instance program = load();
    for (const Link& other : to_other_stations()) {
        drop(program, "PROTECT", v4("10.2.0.9", icmp(), 64, other), SP_DROP_other_station);
        drop(program, "PROTECT v6", v6("2001:db8:b::9", icmp6(), 64, other), SP_DROP_other_station);
        drop(program, "BYPASS", v4("192.0.2.2", icmp(), 64, other), SP_DROP_other_station);
    }
    const Link other = to_other_stations().back();
    drop(program, "DISCARD", v4("10.2.5.9", icmp(), 64, other), SP_DROP_other_station);
    drop(program, "this host", v4("10.1.0.1", icmp(), 64, other), SP_DROP_other_station);
    drop(program, "last hop", v4("10.2.0.9", icmp(), 1, other), SP_DROP_other_station);
    drop(program, "multicast", v4("224.0.0.251", udp({.dst = 5353}), 64, other),
         SP_DROP_other_station);
    pass(program, "ARP", eth(arp(), other));
    // RFC 1812 5.3.4: the kernel forwards nothing of these.
    for (const Link& all : {Link{.dst = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
                            Link{.dst = {0x01, 0, 0x5e, 0, 0, 1}}}) {
        pass(program, "to all", v4("10.2.0.9", icmp(), 64, all));
    }
}

TEST_F(SteerProtected, a_port_has_the_MAC_that_it_has_now) {
    const Instance program = load();
    const Link before{};
    const Link now{.dst = {0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee}};
    drop(program, "new MAC, not heard of", v4("10.2.0.9", icmp(), 64, now), SP_DROP_other_station);
    rig.set_mac(kLan, now.dst);
    drop(program, "old MAC", v4("10.2.0.9", icmp(), 64, before), SP_DROP_other_station);
    EXPECT_EQ(rig.verdict(program, v4("10.2.0.9", icmp(), 64, now)),
              static_cast<uint32_t>(XDP_REDIRECT));
    rig.set_mac(kLan, before.dst);
}

TEST_F(SteerProtected, BYPASS_is_forwarded) {
    const Instance program = load();
    const Link out{.dst = kWanPeerMac, .src = kWanMac};
    const auto forward = [&](const char* name, const Bytes& in, const Bytes& result) {
        rig.check(program, {name, in, redirected(kLan, in.size(), result)});
    };
    forward("v4", v4("192.0.2.2", icmp()), v4("192.0.2.2", icmp(), 63, out));
    forward("v4, TTL 2", v4("192.0.2.2", icmp(), 2), v4("192.0.2.2", icmp(), 1, out));
    forward("v4, behind the peer", v4("10.2.7.9", tcp({.dst = 80})),
            v4("10.2.7.9", tcp({.dst = 80}), 63, out));
    forward("v4, where PROTECT takes another port", v4("10.2.4.9", tcp({.dst = 80})),
            v4("10.2.4.9", tcp({.dst = 80}), 63, out));
    forward("v4, the port below", v4("10.2.4.9", tcp({.dst = 442})),
            v4("10.2.4.9", tcp({.dst = 442}), 63, out));
    forward("v4, the port above", v4("10.2.4.9", tcp({.dst = 444})),
            v4("10.2.4.9", tcp({.dst = 444}), 63, out));
    forward("v6", v6("2001:db8:1::2", icmp6()), v6("2001:db8:1::2", icmp6(), 63, out));
    forward("v6, behind the peer", v6("2001:db8:b:7::9", hop_by_hop(tcp({.dst = 80}))),
            v6("2001:db8:b:7::9", hop_by_hop(tcp({.dst = 80})), 63, out));
    const Bytes options =
        eth(ip4({.src = kHost4, .dst = "192.0.2.2", .tos = 0x88, .option_words = 3}, icmp()));
    const Bytes options_out = eth(
        ip4({.src = kHost4, .dst = "192.0.2.2", .ttl = 63, .tos = 0x88, .option_words = 3}, icmp()),
        out);
    forward("v4 with options", options, options_out);
    forward("back out of the same port", v4(kHost4, icmp()),
            v4(kHost4, icmp(), 63, {.dst = kLanHostMac, .src = kLanMac}));
}

// However wide the policy is.
TEST_F(SteerProtected, martians_enter_no_tunnel_and_are_not_forwarded) {
    for (const bool register_mode : {false, true}) {
        const Instance program = load({.register_mode = register_mode});
        for (const SpdAction action : {SpdAction::protect, SpdAction::bypass}) {
            rig.publish(
                {entry(0, action, "0.0.0.0/0", "0.0.0.0/0"), entry(0, action, "::/0", "::/0")}, {},
                kOwners);
            for (const auto& [name, frame] : packets4(kMartians4, kHost4, "10.2.0.9")) {
                drop(program, name.c_str(), frame, SP_DROP_martian);
            }
            for (const auto& [name, frame] : packets6(kMartians6, kHost6, "2001:db8:b::9")) {
                drop(program, name.c_str(), frame, SP_DROP_martian);
            }
            for (const auto& [name, frame] : packets4(kNoMartians4, kHost4, "10.2.0.9")) {
                EXPECT_EQ(rig.verdict(program, frame), XDP_REDIRECT) << name;
            }
            for (const auto& [name, frame] : packets6(kNoMartians6, kHost6, "2001:db8:b::9")) {
                EXPECT_EQ(rig.verdict(program, frame), XDP_REDIRECT) << name;
            }
        }
    }
}

TEST_F(SteerProtected, what_says_that_this_host_sent_it_is_not_forwarded) {
    const Instance program = load();
    const Instance by_kernel = load({.with_sockets = false, .register_mode = true});
    const auto from4 = [](const char* source, const char* destination) {
        return eth(ip4({.src = source, .dst = destination}, tcp({.dst = 80})));
    };
    const auto from6 = [](const char* source, const char* destination) {
        return eth(ip6({.src = source, .dst = destination}, tcp({.dst = 80})));
    };
    for (const Instance* each : {&program, &by_kernel}) {
        drop(*each, "v4", from4("10.1.0.1", "192.0.2.2"), SP_DROP_martian);
        drop(*each, "v6", from6("2001:db8:a::1", "2001:db8:1::2"), SP_DROP_martian);
        drop(*each, "to this host", from4("10.1.0.1", "10.1.0.1"), SP_DROP_martian);
        drop(*each, "broadcast address of a network", from4("10.1.0.255", "192.0.2.2"),
             SP_DROP_martian);
    }
    EXPECT_EQ(rig.verdict(program, from4("10.1.0.2", "192.0.2.2")), XDP_REDIRECT);
    rig.set_own_address("10.1.0.1", false);
    EXPECT_EQ(rig.verdict(program, from4("10.1.0.1", "192.0.2.2")), XDP_REDIRECT);
    rig.set_own_address("10.1.0.1", true);
}

// What a host hands out that leaves the checksum to its device (CHECKSUM_PARTIAL).
Bytes with_partial_checksum(Bytes frame, size_t upper) {
    const bool is_v4 = frame[12] == 8;
    Bytes pseudo(frame.begin() + (is_v4 ? 26 : 22), frame.begin() + (is_v4 ? 34 : 54));
    const uint8_t protocol = frame[is_v4 ? 23 : upper == 54 ? 20 : 54];
    put32(pseudo, static_cast<uint32_t>(frame.size() - upper));
    put32(pseudo, protocol);
    const auto sum = static_cast<uint16_t>(~checksum(pseudo.data(), pseudo.size()));
    const size_t at = upper + (protocol == 6 ? 16 : 6);
    frame[at] = static_cast<uint8_t>(sum >> 8);
    frame[at + 1] = static_cast<uint8_t>(sum);
    return frame;
}

TEST_F(SteerProtected, BYPASS_leaves_checksums_to_the_kernel_that_are_not_complete) {
    const Instance program = load();
    const auto left = [&](const char* name, const Bytes& frame) {
        Outcome outcome = passed(kLan, frame.size());
        outcome.counters["port " + std::to_string(kLan) + " partial_checksum"] = 1;
        rig.check(program, {name, frame, outcome});
    };
    const auto is_forwarded = [&](const char* name, const Bytes& frame) {
        EXPECT_EQ(rig.verdict(program, frame), static_cast<uint32_t>(XDP_REDIRECT)) << name;
    };
    for (size_t bytes = 0; bytes < 9; ++bytes) {
        for (const Upper& upper :
             {tcp({.dst = 80}, Bytes(bytes)), udp({.dst = 53}, Bytes(bytes))}) {
            left("v4", with_partial_checksum(v4("192.0.2.2", upper), 34));
            left("v6", with_partial_checksum(v6("2001:db8:1::2", upper), 54));
            left("v6 behind hop-by-hop",
                 with_partial_checksum(v6("2001:db8:1::2", hop_by_hop(upper)), 62));
        }
    }
    left("v4 with options",
         with_partial_checksum(
             eth(ip4({.src = kHost4, .dst = "192.0.2.2", .option_words = 3}, udp({.dst = 53}))),
             46));
    Bytes padded = with_partial_checksum(v4("192.0.2.2", udp({.dst = 53}, {})), 34);
    padded.resize(60, 0xee);
    left("Ethernet padding", padded);
    const Bytes udp4 = v4("192.0.2.2", udp({.dst = 53}));
    is_forwarded("no checksum", udp4);
    for (size_t bit = 0; bit < 16; ++bit) {
        Bytes other = with_partial_checksum(udp4, 34);
        other[40 + bit / 8] = static_cast<uint8_t>(other[40 + bit / 8] ^ 1 << bit % 8);
        is_forwarded("another checksum", other);
    }
    is_forwarded(
        "a fragment",
        with_partial_checksum(
            eth(ip4({.src = kHost4, .dst = "192.0.2.2", .more = true}, udp({.dst = 53}))), 34));
    const Bytes protect = with_partial_checksum(v4("10.2.0.9", udp({.dst = 53})), 34);
    rig.check(program, {"PROTECT: a worker completes it", protect,
                        steered(kLan, protect.size(), 0,
                                flow_owner(kHost4, "10.2.0.9", AF_INET, 17, 40000, 53))});
    sp_egress_rule rule{};
    rule.family = AF_INET;
    rule.protocol = 17;
    rule.dst_port_lo = rule.dst_port_hi = 53;
    rig.set_rules(kWan, {rule});
    const Bytes denied = with_partial_checksum(udp4, 34);
    Outcome outcome = dropped(kLan, denied.size(), SP_DROP_egress_denied);
    outcome.counters["port " + std::to_string(kLan) + " partial_checksum"] = 1;
    rig.check(program, {"the rules of the port hold", denied, outcome});
}

TEST_F(SteerProtected, BYPASS_that_the_kernel_finishes) {
    const Instance program = load();
    const Upper big = udp({.dst = 80}, Bytes(1300));
    pass(program, "TTL 1", v4("192.0.2.2", icmp(), 1));
    pass(program, "hop limit 1", v6("2001:db8:1::2", icmp6(), 1));
    pass(program, "no neighbour v4", v4("192.0.2.99", icmp()));
    pass(program, "no neighbour v6", v6("2001:db8:1::99", icmp6()));
    pass(program, "too big for the route v4", v4("10.3.0.9", udp({.dst = 80}, Bytes(700))));
    pass(program, "too big for the route v6", v6("2001:db8:b:3::9", big));
    pass(program, "too big and no neighbour", v4("10.3.1.9", udp({.dst = 80}, Bytes(700))));
    drop(program, "not out of a port v4", v4("198.18.0.2", icmp()), SP_DROP_not_a_port);
    drop(program, "not out of a port v6", v6("2001:db8:c::2", icmp6()), SP_DROP_not_a_port);
    rig.set_forward_to("other0", true);
    pass(program, "to a device that is named v4", v4("198.18.0.2", icmp()));
    pass(program, "to a device that is named v6", v6("2001:db8:c::2", icmp6()));
    rig.set_forward_to("other0", false);
    pass(program, "no route v4", v4("203.0.113.1", icmp()));
    pass(program, "no route v6", v6("2001:db9::1", icmp6()));
    pass(program, "blackhole v4", v4("10.66.0.9", icmp()));
    pass(program, "unreachable v4", v4("10.67.0.9", icmp()));
    pass(program, "prohibited v4", v4("10.68.0.9", icmp()));
    pass(program, "unreachable v6", v6("2001:db8:b:67::9", icmp6()));
    pass(program, "prohibited v6", v6("2001:db8:b:68::9", icmp6()));
}

// The FIB lookup says so before it looks anything up. That is no reason to leave to the kernel, and
// so perhaps to its forwarding, what the SPD has not let out.
TEST_F(SteerProtected, where_the_port_does_not_forward_the_kernel_has_what_is_for_this_host) {
    const Instance program = load();
    const Instance by_kernel = load({.with_sockets = false, .register_mode = true});
    const auto stranger4 = [](const char* destination, const Upper& upper = icmp()) {
        return eth(ip4({.src = "10.77.0.1", .dst = destination}, upper));
    };
    const auto stranger6 = [](const char* destination, const Upper& upper = icmp6()) {
        return eth(ip6({.src = "2001:db8:9::1", .dst = destination}, upper));
    };
    const ForwardingOff off("lan0");
    drop(program, "no policy v4", stranger4("192.0.2.2"), SP_DROP_no_policy);
    drop(program, "no policy v6", stranger6("2001:db8:1::2"), SP_DROP_no_policy);
    drop(program, "no policy, beside our address", stranger4("10.1.0.2"), SP_DROP_no_policy);
    drop(program, "no policy, beside our address v6", stranger6("2001:db8:a::3"),
         SP_DROP_no_policy);
    for (const Instance* each : {&program, &by_kernel}) {
        drop(*each, "BYPASS v4", v4("192.0.2.2", icmp()), SP_DROP_forwarding_off);
        drop(*each, "BYPASS v6", v6("2001:db8:1::2", icmp6()), SP_DROP_forwarding_off);
        drop(*each, "BYPASS, no neighbour", v4("192.0.2.99", icmp()), SP_DROP_forwarding_off);
        drop(*each, "BYPASS, no route", v4("203.0.113.1", icmp()), SP_DROP_forwarding_off);
        drop(*each, "link-local v4 of somebody", v4("169.254.7.7", icmp()), SP_DROP_forwarding_off);
        drop(*each, "like neighbour discovery", v6("2001:db8:1::2", icmp6(135), 255),
             SP_DROP_forwarding_off);
        drop(*each, "DISCARD", v4("10.2.5.9", icmp()), SP_DROP_policy_discard);
        // What is for this host needs no policy.
        pass(*each, "for us v4", stranger4("10.1.0.1", tcp({.dst = 22})));
        pass(*each, "for us v6", stranger6("2001:db8:a::1", tcp({.dst = 22})));
        pass(*each, "for us, by another port's address", stranger4("192.0.2.1", udp({.dst = 53})));
        pass(*each, "for us, and BYPASS", v4("10.1.0.1", tcp({.dst = 22})));
        pass(*each, "for us, and BYPASS v6", v6("2001:db8:a::1", tcp({.dst = 22})));
        pass(*each, "broadcast of our network", stranger4("10.1.0.255", udp({.dst = 137})));
        pass(*each, "limited broadcast", stranger4("255.255.255.255", udp({.dst = 67})));
        pass(*each, "multicast v4", stranger4("224.0.0.5"));
        pass(*each, "multicast v6", stranger6("ff02::5"));
        pass(*each, "link-local v6", stranger6("fe80::1"));
        pass(*each, "neighbour advertisement", v6("2001:db8:a::1", icmp6(136), 255));
    }
    pass(program, "last hop", v4("192.0.2.2", icmp(), 1));
    // Workers go on.
    const Bytes tunnel = v4("10.2.0.9", icmp());
    rig.check(program,
              {"PROTECT", tunnel,
               steered(kLan, tunnel.size(), 0, flow_owner(kHost4, "10.2.0.9", AF_INET, 1, 0, 0))});
    // Another family's address with the same first bytes: 0a01:0001::
    drop(program, "bytes of an address of ours", stranger6("a01:1::"), SP_DROP_no_policy);
    rig.set_own_address("10.1.0.1", false);
    drop(program, "ours no more", stranger4("10.1.0.1", tcp({.dst = 22})), SP_DROP_no_policy);
    rig.set_own_address("10.1.0.1", true);
}

// The kernel's way out meets no devmap program.
TEST_F(SteerProtected, egress_filter_holds_on_the_kernels_way) {
    const Instance program = load();
    sp_egress_rule rule4{};
    rule4.family = AF_INET;
    rule4.protocol = 17;
    rule4.dst_port_lo = 25;
    rule4.dst_port_hi = 26;
    sp_egress_rule rule6 = rule4;
    rule6.family = AF_INET6;
    rig.set_rules(kWan, {rule4, rule6});
    const auto to = [](uint16_t port, size_t bytes = 16) {
        return udp({.dst = port}, Bytes(bytes));
    };
    drop(program, "no neighbour v4", v4("192.0.2.99", to(25)), SP_DROP_egress_denied);
    drop(program, "no neighbour v6", v6("2001:db8:1::99", to(26)), SP_DROP_egress_denied);
    drop(program, "too big v4", v4("10.3.0.9", to(25, 700)), SP_DROP_egress_denied);
    drop(program, "too big v6", v6("2001:db8:b:3::9", to(25, 1300)), SP_DROP_egress_denied);
    drop(program, "too big and no neighbour", v4("10.3.1.9", to(25, 700)), SP_DROP_egress_denied);
    pass(program, "another destination port", v4("192.0.2.99", to(27)));
    pass(program, "another protocol", v4("192.0.2.99", tcp({.dst = 25})));
    rig.set_forward_to("other0", true);
    pass(program, "not out of a port", v4("198.18.0.2", to(25)));
    rig.set_forward_to("other0", false);
    // With a neighbour the devmap program denies it.
    const Bytes frame = v4("192.0.2.2", to(25));
    rig.check(program,
              {"through the devmap", frame,
               redirected(kLan, frame.size(),
                          v4("192.0.2.2", to(25), 63, {.dst = kWanPeerMac, .src = kWanMac}))});
}

TEST_F(SteerProtected, a_port_without_devmap_entry) {
    const Instance program = load();
    rig.remove_tx_port(kWan);
    const Bytes frame = v4("192.0.2.2", icmp());
    const Outcome expected = dropped(kLan, frame.size(), SP_DROP_no_route);
    Bytes rewritten = v4("192.0.2.2", icmp(), 63, {.dst = kWanPeerMac, .src = kWanMac});
    rig.check(program, {"empty slot", frame, {expected.action, expected.counters, rewritten}});
    rig.restore_tx_port(kWan);
}

TEST_F(SteerProtected, without_an_SPD_only_the_host_is_reached) {
    rig.disable_spd();
    const Instance program = load();
    drop(program, "v4", v4("192.0.2.2", icmp()), SP_DROP_no_policy);
    drop(program, "v6", v6("2001:db8:1::2", icmp6()), SP_DROP_no_policy);
    pass(program, "for us", v4("10.1.0.1", icmp()));
    pass(program, "for us v6", v6("2001:db8:a::1", icmp6()));
}

TEST_F(SteerProtected, malformed_packets_are_dropped) {
    const Instance program = load();
    drop(program, "truncated v4", eth({0x0800, Bytes(19, 0x45)}), SP_DROP_truncated);
    drop(program, "truncated v6", eth({0x86dd, Bytes(39, 0x60)}), SP_DROP_truncated);
    drop(program, "longer than the frame",
         eth(ip4({.src = kHost4, .dst = "10.2.0.9", .total_length = 2000}, icmp())),
         SP_DROP_malformed_ip);
    drop(program, "v6 longer than the frame",
         eth(ip6({.src = kHost6, .dst = "2001:db8:b::9", .payload_length = 2000}, icmp6())),
         SP_DROP_malformed_ip);
    drop(program, "TCP without ports", v4("10.2.0.9", raw(6, Bytes(2))), SP_DROP_truncated);
    drop(program, "v6 SCTP without ports", v6("2001:db8:b::9", raw(132, Bytes(2))),
         SP_DROP_truncated);
}

TEST_F(SteerProtected, every_truncation_is_dropped) {
    const Instance program = load();
    for (const Bytes& frame :
         {v4("10.2.0.9", tcp({.dst = 80})), v4("192.0.2.2", udp({.dst = 80})),
          v6("2001:db8:b::9", hop_by_hop(destination_options(tcp({.dst = 80})))),
          v6("2001:db8:1::2", routing(udp({.dst = 80}))),
          v6("2001:db8:b::9", fragment({.offset = 1}, udp({.dst = 80})))}) {
        for (size_t bytes = 14; bytes < frame.size(); ++bytes) {
            const Bytes cut(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(bytes));
            EXPECT_EQ(rig.verdict(program, cut), static_cast<uint32_t>(XDP_DROP)) << bytes;
        }
        EXPECT_EQ(rig.verdict(program, frame), static_cast<uint32_t>(XDP_REDIRECT));
    }
}

// A12: every wrong bit of an IPv4 header, whatever the packet is.
TEST_F(SteerProtected, wrong_header_checksums_are_dropped) {
    const Instance program = load();
    for (const auto& [name, frame] : std::initializer_list<std::pair<std::string, Bytes>>{
             {"PROTECT", v4("10.2.0.9", tcp({.dst = 80}))},
             {"PROTECT with options",
              eth(ip4({.src = kHost4, .dst = "10.2.0.9", .option_words = 10}, icmp()))},
             {"BYPASS", v4("192.0.2.2", udp({.dst = 80}))},
             {"BYPASS with options",
              eth(ip4({.src = kHost4, .dst = "192.0.2.2", .option_words = 1}, icmp()))},
             {"to the gateway", v4("10.1.0.1", icmp())},
             {"multicast", v4("224.0.0.5", icmp())}}) {
        const size_t header = (frame[14] & 15u) * 4u;
        EXPECT_NE(rig.verdict(program, frame), static_cast<uint32_t>(XDP_DROP)) << name;
        // Checksum, addresses and options: so nothing else is wrong.
        for (size_t bit = 80; bit < 8 * header; ++bit) {
            Bytes wrong = frame;
            wrong[14 + bit / 8] = static_cast<uint8_t>(wrong[14 + bit / 8] ^ 1 << bit % 8);
            drop(program, (name + ", bit " + std::to_string(bit)).c_str(), wrong,
                 SP_DROP_bad_ip_checksum);
        }
    }
}

// Every value the checksum can have before the TTL is decremented.
TEST_F(SteerProtected, checksum_stays_valid) {
    const Instance program = load();
    for (uint32_t id = 0; id <= 0xffff; ++id) {
        const Bytes frame =
            eth(ip4({.src = kHost4, .dst = "192.0.2.2", .id = static_cast<uint16_t>(id)}, icmp()));
        Bytes out;
        ASSERT_EQ(rig.verdict(program, frame, 0, &out), static_cast<uint32_t>(XDP_REDIRECT));
        ASSERT_EQ(checksum(&out[14], 20), 0) << id;
        if (frame[24] != 0 || frame[25] != 0) continue;
        // 0 has a second form, which some senders use (RFC 1624).
        Bytes other_zero = frame;
        other_zero[24] = other_zero[25] = 0xff;
        ASSERT_EQ(rig.verdict(program, other_zero, 0, &out), static_cast<uint32_t>(XDP_REDIRECT));
        ASSERT_EQ(checksum(&out[14], 20), 0) << id;
    }
}

// Prefixes of a small space with routes, so that many nest.
IpPrefix random_prefix(std::mt19937& random, Family family) {
    static constexpr std::array<const char*, 4> kBases4 = {"10.2.3.4", "10.2.3.132", "10.2.131.4",
                                                           "10.130.3.4"};
    static constexpr std::array<const char*, 4> kBases6 = {
        "2001:db8:b:9::4", "2001:db8:b:89::4", "2001:db8:b:9:8000::4", "2001:db8:b:8009::4"};
    const bool is_v4 = family == Family::v4;
    const IpPrefix whole{
        .address = *parse_ip_address((is_v4 ? kBases4 : kBases6)[random() % kBases4.size()]),
        .bits = static_cast<uint8_t>(is_v4 ? 32 : 128)};
    return shortened(whole, static_cast<uint8_t>(random() % (whole.bits + 1u)));
}

IpAddress random_address(std::mt19937& random, Family family) {
    IpPrefix one = random_prefix(random, family);
    while (one.bits != (family == Family::v4 ? 32 : 128)) one = random_prefix(random, family);
    return one.address;
}

// Of the ordered list: the first entry that matches, or that would have to see ports.
sp_drop_reason reason_by_list(const std::vector<SpdEntry>& ordered, const IpAddress& source,
                              const IpAddress& destination, bool ports_known, uint16_t port) {
    for (const SpdEntry& entry : ordered) {
        if (!entry.source.contains(source) || !entry.destination.contains(destination)) continue;
        if (entry.protocol != 0 && entry.protocol != IPPROTO_TCP) continue;
        if (entry.has_ports) {
            if (!ports_known) return SP_DROP_fragment_without_ports;
            if (port < entry.destination_port_lo || port > entry.destination_port_hi) continue;
        }
        return entry.action == SpdAction::discard ? SP_DROP_policy_discard : SP_DROP_no_sa;
    }
    return SP_DROP_no_policy;
}

// With destinations that nest too deep for one class, and deeper than a lookup visits classes.
TEST_F(SteerProtected, the_first_entry_of_the_list_decides) {
    const Instance program = load();
    std::mt19937 random(5);
    std::set<sp_drop_reason> seen;
    size_t chained = 0;
    for (int round = 0; round < 30; ++round) {
        std::vector<SpdEntry> ordered;
        for (uint32_t i = 0; i < 60; ++i) {
            const Family family = random() % 2 == 0 ? Family::v4 : Family::v6;
            SpdEntry entry{.policy = PolicyId{100 + i},
                           .action = random() % 2 == 0 ? SpdAction::discard : SpdAction::protect,
                           .source = random_prefix(random, family),
                           .destination = random_prefix(random, family)};
            if (random() % 2 == 0) entry.protocol = random() % 3 != 0 ? IPPROTO_TCP : IPPROTO_UDP;
            if (entry.protocol != 0 && random() % 2 == 0) {
                entry = to_port(entry, static_cast<uint16_t>(random() % 3));
            }
            ordered.push_back(entry);
        }
        const auto compiled = compile_spd(ordered);
        if (!compiled) continue;  // too many for one cell
        chained +=
            static_cast<size_t>(std::ranges::count_if(compiled->destinations, [](const auto& row) {
                return row.above != CompiledSpd::kNone;
            }));
        rig.publish(ordered, {}, {});
        for (int probe = 0; probe < 40; ++probe) {
            const Family family = probe % 2 == 0 ? Family::v4 : Family::v6;
            const IpAddress source = random_address(random, family);
            const IpAddress destination = random_address(random, family);
            const auto port = static_cast<uint16_t>(random() % 3);
            const bool later = family == Family::v4 && random() % 4 == 0;
            const std::string from = to_string(source);
            const std::string to = to_string(destination);
            const Upper upper = later ? raw(IPPROTO_TCP, Bytes(24)) : tcp({.src = 9, .dst = port});
            const Bytes frame = family == Family::v4
                                    ? eth(ip4({.src = from.c_str(),
                                               .dst = to.c_str(),
                                               .offset = static_cast<uint16_t>(later ? 3 : 0)},
                                              upper))
                                    : eth(ip6({.src = from.c_str(), .dst = to.c_str()}, upper));
            const sp_drop_reason reason =
                reason_by_list(ordered, source, destination, !later, port);
            seen.insert(reason);
            drop(program, (from + " -> " + to).c_str(), frame, reason);
        }
    }
    EXPECT_EQ(seen.size(), 4u);
    EXPECT_GT(chained, 30u);
}

// A list that is changed by rows.
class ChangingList {
  public:
    using List = std::map<SpdPlace, SpdEntry>;

    explicit ChangingList(uint32_t seed) : random_(seed) {
        while (!as_a_whole()) {
            list_.clear();
            for (uint32_t i = 0; i < 40; ++i) add(list_);
        }
    }

    // Some entries come, others go. False: not by rows.
    bool change() {
        List next = list_;
        for (uint32_t i = 1 + random_() % 4; i > 0; --i) {
            if (next.size() < 30 || (next.size() < 70 && random_() % 2 == 0)) {
                add(next);
            } else {
                next.erase(std::next(next.begin(), below(next.size())));
            }
        }
        std::vector<SpdEdit> edits;
        for (const auto& [place, entry] : list_) {
            if (!next.contains(place)) edits.push_back({.place = place, .entry = std::nullopt});
        }
        for (const auto& [place, entry] : next) {
            if (!list_.contains(place)) edits.push_back({.place = place, .entry = entry});
        }
        std::ranges::sort(edits, {}, &SpdEdit::place);
        auto changes = classes_->apply(edits);
        if (!changes) {
            const List before = std::exchange(list_, next);
            if (as_a_whole()) return false;
            list_ = before;
            EXPECT_TRUE(as_a_whole());
            return false;
        }
        SpdRowChanges rows{
            .outbound = std::move(*changes), .inbound = {}, .rest = random_() % 4 == 0};
        if (random_() % 4 == 0) {  // something in it is refused
            auto& steps = rows.outbound.steps;
            const SpdChanges::Source unknown{.number = 1 << 20,
                                             .source = random_prefix(random_, Family::v4),
                                             .was = {.first = 0, .count = 1},
                                             .now = {},
                                             .entries = {}};
            steps.insert(std::next(steps.begin(), below(steps.size() + 1)), unknown);
            const auto refused = Rig::get().spd().publish_rows(rows, {}, {}, {}, {});
            EXPECT_FALSE(refused);
            if (refused) return false;
            EXPECT_EQ(refused.error().find("taken back"), std::string::npos);
            classes_->roll_back();
            return true;
        }
        const auto done = Rig::get().spd().publish_rows(rows, {}, {}, {}, {});
        EXPECT_TRUE(done) << done.error();
        classes_->commit(rows.rest);
        list_ = std::move(next);
        if (rows.rest) {
            EXPECT_EQ(Rig::get().count_rows("spd_dst"), classes_->classes().size());
            EXPECT_EQ(Rig::get().count_rows("spd_src"), classes_->source_count());
        }
        return true;
    }
    [[nodiscard]] std::vector<SpdEntry> ordered() const {
        std::vector<SpdEntry> out;
        for (const auto& [place, entry] : list_) out.push_back(entry);
        return out;
    }

  private:
    std::ptrdiff_t below(size_t end) { return static_cast<std::ptrdiff_t>(random_() % end); }
    void add(List& list) {
        const Family family = random_() % 2 == 0 ? Family::v4 : Family::v6;
        const auto number = static_cast<uint32_t>(++arrivals_);
        SpdEntry entry{.policy = PolicyId{100 + number},
                       .action = random_() % 2 == 0 ? SpdAction::discard : SpdAction::protect,
                       .source = random_prefix(random_, family),
                       .destination = random_prefix(random_, family)};
        if (random_() % 2 == 0) entry.protocol = random_() % 3 != 0 ? IPPROTO_TCP : IPPROTO_UDP;
        if (entry.protocol != 0 && random_() % 2 == 0) {
            entry = to_port(entry, static_cast<uint16_t>(random_() % 3));
        }
        list.emplace(SpdPlace{.priority = static_cast<uint32_t>(random_() % 4), .index = number},
                     entry);
    }
    bool as_a_whole() {
        runs_ = std::make_unique<SpdRuns>(bpf_objects::Limits{}.spd_entries);
        classes_ = std::make_unique<SpdClasses>(*runs_);
        if (!classes_->build({list_.begin(), list_.end()})) return false;
        const auto done = Rig::get().spd().publish(classes_->compiled(), {}, {});
        EXPECT_TRUE(done) << done.error();
        return !list_.empty();
    }

    std::mt19937 random_;
    uint64_t arrivals_ = 0;
    List list_;
    std::unique_ptr<SpdRuns> runs_;
    std::unique_ptr<SpdClasses> classes_;
};

TEST_F(SteerProtected, rows_that_change_say_what_the_list_says) {
    const Instance program = load();
    std::mt19937 random(6);
    int by_rows = 0;
    ChangingList list(7);
    for (int round = 0; round < 50; ++round) {
        if (list.change()) ++by_rows;
        const auto ordered = list.ordered();
        for (int probe = 0; probe < 20; ++probe) {
            const Family family = probe % 2 == 0 ? Family::v4 : Family::v6;
            const IpAddress source = random_address(random, family);
            const IpAddress destination = random_address(random, family);
            const auto port = static_cast<uint16_t>(random() % 3);
            const std::string from = to_string(source);
            const std::string to = to_string(destination);
            const Upper upper = tcp({.src = 9, .dst = port});
            const Bytes frame = family == Family::v4
                                    ? eth(ip4({.src = from.c_str(), .dst = to.c_str()}, upper))
                                    : eth(ip6({.src = from.c_str(), .dst = to.c_str()}, upper));
            const sp_drop_reason reason = reason_by_list(ordered, source, destination, true, port);
            // Without a policy and without a route a packet is taken for the host's own.
            if (reason == SP_DROP_no_policy && to == "10.130.3.4") continue;
            drop(program, (from + " -> " + to).c_str(), frame, reason);
        }
        if (HasFailure()) FAIL() << "round " << round;
    }
    EXPECT_GT(by_rows, 30);
}

// Programs that run while rows come and go around the entry that decides see nothing of it.
TEST_F(SteerProtected, rows_change_while_programs_run) {
    const Instance program = load();
    SpdRuns runs(bpf_objects::Limits{}.spd_entries);
    SpdClasses classes(runs);
    const auto place = [](uint32_t priority) { return SpdPlace{.priority = priority}; };
    std::vector<std::pair<SpdPlace, SpdEntry>> entries;
    entries.emplace_back(place(5), entry(2, SpdAction::discard, "10.1.0.0/24", "10.2.0.0/24"));
    for (uint32_t i = 0; i < 8; ++i) {
        entries.emplace_back(place(10 + i), entry(2, SpdAction::protect, "10.1.0.0/16",
                                                  "10.0.0.0/8", static_cast<uint8_t>(100 + i)));
    }
    ASSERT_TRUE(classes.build(entries));
    ASSERT_TRUE(rig.spd().publish(classes.compiled(), {}, {}));
    // Narrower and wider destinations and sources, before and behind it, of the same packets.
    const std::vector<SpdEdit> come = {
        {place(3), entry(3, SpdAction::protect, "10.1.0.10/32", "10.2.0.0/16", 77)},
        {place(6), entry(3, SpdAction::protect, "10.1.0.0/25", "10.2.0.0/28")},
        {place(7), entry(3, SpdAction::protect, "10.0.0.0/8", "0.0.0.0/0")},
    };
    std::atomic<bool> stop = false;
    std::atomic<size_t> changes = 0;
    std::thread writer([&] {
        for (bool there = false; !stop; there = !there) {
            std::vector<SpdEdit> edits = come;
            for (SpdEdit& edit : edits) {
                if (there) edit.entry.reset();
            }
            auto made = classes.apply(edits);
            if (!made) break;
            const SpdRowChanges rows{.outbound = std::move(*made), .inbound = {}, .rest = true};
            if (!rig.spd().publish_rows(rows, {}, {}, {}, {})) break;
            classes.commit(true);
            ++changes;
        }
    });
    const Bytes frame = v4("10.2.0.9", icmp());
    const Counters before = rig.read_counters();
    for (uint32_t i = 0; i < 40000 || (changes < 20 && i < 4000000); ++i) {
        rig.verdict(program, frame);
    }
    stop = true;
    writer.join();
    const Counters after = rig.read_counters();
    EXPECT_GE(changes.load(), 20u);
    for (const auto& [name, value] : after.values) {
        const auto found = before.values.find(name);
        const uint64_t moved = value - (found == before.values.end() ? 0 : found->second);
        if (name.find(" drop ") == std::string::npos || moved == 0) continue;
        EXPECT_NE(name.find("policy_discard"), std::string::npos) << name << " " << moved;
    }
}

// A new SPD replaces the old one whole; nothing of the old one is left.
TEST_F(SteerProtected, publishing_again) {
    const Instance program = load();
    const Bytes frame = v4("10.2.0.9", icmp());
    for (int round = 0; round < 5; ++round) {
        rig.publish({entry(0, SpdAction::discard, "10.1.0.0/24", "0.0.0.0/0")}, {}, {});
        drop(program, "discard", frame, SP_DROP_policy_discard);
        rig.publish({entry(0, SpdAction::protect, "10.1.0.0/24", "10.2.0.0/16")}, {},
                    {{WorkerId{1}}});
        rig.check(program, {"protect", frame, steered(kLan, frame.size(), 0, 1)});
        drop(program, "nothing of the old one", v4("192.0.2.2", icmp()), SP_DROP_no_policy);
    }
    EXPECT_EQ(rig.count_rows("spd_dst"), 1u);
    EXPECT_EQ(rig.count_rows("spd_src"), 1u);
}

}  // namespace
}  // namespace sallyport::packet
