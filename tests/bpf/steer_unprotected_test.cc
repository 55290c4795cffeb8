// SPDX-License-Identifier: Apache-2.0
// Every way out of steer_unprotected, for both ways to find an SA's owner.

#include <linux/bpf.h>

#include "tests/bpf/martians.h"
#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr const char* kUs4 = "192.0.2.1";
constexpr const char* kPeer4 = "192.0.2.2";
constexpr const char* kUs6 = "2001:db8:1::1";
constexpr const char* kPeer6 = "2001:db8:1::2";

// SPIs of the tables; all to our address, the IPv6 ones 0x1000 higher.
constexpr uint32_t kOnCpu0 = 0xa1b2c301;        // in xfrm with pcpu_num 0, which runs worker 1
constexpr uint32_t kOnCpu1 = 0x5ee1d802;        // in xfrm with pcpu_num 1, which runs worker 0
constexpr uint32_t kInOwnerMap = 0x77a01103;    // in xfrm, not for a CPU; owner map says worker 1
constexpr uint32_t kByHash = 0x31337a04;        // in xfrm, nobody says anything
constexpr uint32_t kOfKernel = 0x90210d05;      // in xfrm; owner map: the kernel keeps it
constexpr uint32_t kOnlyOwnerMap = 0x4242f006;  // not in xfrm; owner map says worker 0
constexpr uint32_t kUnknown = 0xdeadb007;
constexpr uint32_t kIdleCpu = 0x66601208;  // in xfrm with pcpu_num 1 while that runs no worker

constexpr uint32_t kConnection = 0x2b617509;       // in xfrm with an if_id, for CPU 0
constexpr uint32_t kTakenConnection = 0x1d00e20a;  // in xfrm with one; owner map says worker 1

uint32_t hash_owner(uint32_t spi, const char* destination, int family) {
    uint32_t words[4] = {};
    inet_pton(family, destination, words);
    return sp_sa_hash(htonl(spi), words[family == AF_INET ? 0 : 3]) % kWorkers;
}

std::vector<SpdEntry> inbound_entries() {
    const SpdEntry ports4 =
        to_port(entry(1, SpdAction::protect, "10.4.0.0/24", "10.1.0.0/24", 6), 443);
    SpdEntry ports6 = entry(1, SpdAction::protect, "2001:db8:b:4::/64", "2001:db8:a::/64", 6);
    ports6.has_ports = true;
    ports6.source_port_lo = 443;
    ports6.source_port_hi = 444;
    return {
        entry(0, SpdAction::protect, "10.2.0.0/24", "10.1.0.0/24"),
        entry(0, SpdAction::protect, "2001:db8:b::/64", "2001:db8:a::/64"),
        ports4,
        ports6,
        entry(2, SpdAction::discard, "10.5.0.0/24", "10.1.0.0/24"),
        entry(2, SpdAction::discard, "2001:db8:b:5::/64", "2001:db8:a::/64"),
        entry(3, SpdAction::bypass, "10.4.0.0/24", "10.1.0.0/24"),
        entry(3, SpdAction::bypass, "2001:db8:b:4::/64", "2001:db8:a::/64"),
        entry(3, SpdAction::bypass, "10.6.0.0/24", "10.1.0.0/24"),
        entry(3, SpdAction::bypass, "2001:db8:b:6::/64", "2001:db8:a::/64"),
        entry(4, SpdAction::bypass, "192.0.2.0/24", "0.0.0.0/0"),
        entry(4, SpdAction::protect, "10.2.0.0/24", "192.0.2.0/24"),
    };
}

class SteerUnprotected : public ::testing::TestWithParam<bool> {
  protected:
    static void SetUpTestSuite() {
        static bool registered = false;
        if (registered) return;
        registered = true;
        for (const auto& [us, peer, add] :
             {std::tuple{kUs4, kPeer4, 0u}, std::tuple{kUs6, kPeer6, 0x1000u}}) {
            register_sa(kOnCpu0 + add, peer, us, 0);
            register_sa(kOnCpu1 + add, peer, us, 1);
            register_sa(kInOwnerMap + add, peer, us, {});
            register_sa(kByHash + add, peer, us, {});
            register_sa(kOfKernel + add, peer, us, {});
            register_sa(kIdleCpu + add, peer, us, 1);
            register_sa(kConnection + add, peer, us, 0, 7);
            register_sa(kTakenConnection + add, peer, us, {}, 7);
        }
    }
    void SetUp() override {
        for (const auto& [us, add] : {std::pair{kUs4, 0u}, std::pair{kUs6, 0x1000u}}) {
            rig.set_owner(kInOwnerMap + add, us, 1);
            rig.set_owner(kOfKernel + add, us, SP_OWNER_KERNEL);
            rig.set_owner(kOnlyOwnerMap + add, us, 0);
            // What the kernel says of these goes before what the owner map says.
            rig.set_owner(kOnCpu0 + add, us, GetParam() ? 0 : 1);
            rig.set_owner(kOnCpu1 + add, us, GetParam() ? 1 : 0);
            rig.set_owner(kIdleCpu + add, us, 1);
            rig.set_owner(kTakenConnection + add, us, 1);
        }
        rig.set_cpu_worker(0, 1);
        rig.set_cpu_worker(1, 0);
        rig.set_rules(kLan, {});
        rig.publish({}, inbound_entries(), {});
    }
    Instance load(Settings settings = {}) {
        settings.use_kfunc = GetParam();
        return rig.load(Program::steer_unprotected, kWan, settings);
    }
    // The same ESP packet in every shape that carries it.
    static std::vector<std::pair<std::string, Bytes>> shapes(uint32_t spi) {
        const Ip4 v4{.src = kPeer4, .dst = kUs4};
        const Ip4 v4_options{.src = kPeer4, .dst = kUs4, .option_words = 10};
        const Ip6 v6{.src = kPeer6, .dst = kUs6};
        const Upper in_udp = udp({.dst = 4500}, esp_bytes(spi));
        const uint32_t spi6 = spi + 0x1000;
        const Upper in_udp6 = udp({.dst = 4500}, esp_bytes(spi6));
        return {
            {"v4", eth(ip4(v4, esp(spi)))},
            {"v4 with options", eth(ip4(v4_options, esp(spi)))},
            {"v4 in UDP", eth(ip4(v4, in_udp))},
            {"v4 with options in UDP", eth(ip4(v4_options, in_udp))},
            {"v4, SPI and sequence number only", eth(ip4(v4, esp(spi, 0)))},
            {"v6", eth(ip6(v6, esp(spi6)))},
            {"v6 in UDP", eth(ip6(v6, in_udp6))},
            {"v6 behind hop-by-hop", eth(ip6(v6, hop_by_hop(esp(spi6), 3)))},
            {"v6 behind hop-by-hop in UDP", eth(ip6(v6, hop_by_hop(in_udp6)))},
            {"v6 behind routing", eth(ip6(v6, routing(esp(spi6))))},
            {"v6 behind four headers",
             eth(ip6(v6,
                     hop_by_hop(destination_options(routing(destination_options(esp(spi6), 2))))))},
            // RFC 6946: a whole packet.
            {"v6 atomic fragment", eth(ip6(v6, fragment({}, esp(spi6))))},
        };
    }
    Rig& rig = Rig::get();
};

INSTANTIATE_TEST_SUITE_P(Lookup, SteerUnprotected, ::testing::Bool(),
                         [](const auto& lookup) { return lookup.param ? "kfunc" : "owner_map"; });

TEST_P(SteerUnprotected, ESP_goes_to_its_owner) {
    const Instance program = load();
    const bool kfunc = GetParam();
    for (const uint32_t queue : {0u, 1u}) {
        for (const auto& [name, frame] : shapes(kOnCpu0)) {
            rig.check(program, {name + ", SA of CPU 0", frame,
                                steered(kWan, frame.size(), queue, 1), queue});
        }
        for (const auto& [name, frame] : shapes(kOnCpu1)) {
            rig.check(program, {name + ", SA of CPU 1", frame,
                                steered(kWan, frame.size(), queue, 0), queue});
        }
        for (const auto& [name, frame] : shapes(kInOwnerMap)) {
            rig.check(program, {name + ", in owner map", frame,
                                steered(kWan, frame.size(), queue, 1), queue});
        }
        for (const auto& [name, frame] : shapes(kOnlyOwnerMap)) {
            rig.check(program, {name + ", only in owner map", frame,
                                steered(kWan, frame.size(), queue, 0), queue});
        }
    }
    for (const auto& [name, frame] : shapes(kByHash)) {
        const bool v4 = name.starts_with("v4");
        const uint32_t owner =
            v4 ? hash_owner(kByHash, kUs4, AF_INET) : hash_owner(kByHash + 0x1000, kUs6, AF_INET6);
        rig.check(program, {name + ", nobody's", frame,
                            kfunc ? steered(kWan, frame.size(), 0, owner)
                                  : dropped(kWan, frame.size(), SP_DROP_unknown_spi)});
    }
    for (const auto& [name, frame] : shapes(kOfKernel)) {
        rig.check(program, {name + ", the kernel's", frame, passed_esp(kWan, frame.size())});
    }
}

TEST_P(SteerUnprotected, SA_with_an_if_id_stays_with_the_kernel_unless_the_owner_map_has_it) {
    const Instance program = load();
    for (const auto& [name, frame] : shapes(kConnection)) {
        rig.check(program, {name, frame,
                            GetParam() ? passed_esp(kWan, frame.size())
                                       : dropped(kWan, frame.size(), SP_DROP_unknown_spi)});
    }
    for (const auto& [name, frame] : shapes(kTakenConnection)) {
        rig.check(program, {name, frame, steered(kWan, frame.size(), 0, 1)});
    }
}

TEST_P(SteerUnprotected, SA_of_a_CPU_without_worker_is_looked_up_in_the_owner_map) {
    rig.set_cpu_worker(1, SP_OWNER_NONE);
    const Instance program = load();
    for (const auto& [name, frame] : shapes(kIdleCpu)) {
        rig.check(program, {name, frame, steered(kWan, frame.size(), 0, 1)});
    }
}

TEST_P(SteerUnprotected, ESP_of_unknown_SA) {
    const Instance drops = load();
    const Instance punts = load({.punt_unknown_spi = true});
    for (const auto& [name, frame] : shapes(kUnknown)) {
        rig.check(drops, {name, frame, dropped(kWan, frame.size(), SP_DROP_unknown_spi)});
        rig.check(punts, {name + ", punted", frame, passed_esp(kWan, frame.size())});
    }
}

// RFC 4301 5.2: what does not end here is no SA's, whatever it looks like, and the SPD says what
// becomes of it.
TEST_P(SteerUnprotected, ESP_of_others_meets_the_inbound_SPD) {
    const Link out{.dst = kLanHostMac, .src = kLanMac};
    const auto whole = [](const Upper& upper) { return upper; };
    const auto first = [](const Upper& upper) { return fragment({.more = true}, upper); };
    Upper stump = esp(kUnknown);
    stump.bytes.resize(7);
    for (const bool punt : {false, true}) {
        const Instance program = load({.punt_unknown_spi = punt});
        const auto check = [&](const std::string& name, const Bytes& frame, auto&& forwarded,
                               sp_drop_reason reason) {
            rig.check(program, {name, frame,
                                reason == SP_DROP_none ? redirected(kWan, frame.size(), forwarded)
                                                       : dropped(kWan, frame.size(), reason)});
        };
        const auto through = [&](const std::string& name, const char* source4, const char* source6,
                                 sp_drop_reason reason) {
            for (const Upper& upper : {esp(kUnknown), esp(kOnCpu0), esp(kUnknown, 0), stump,
                                       udp({.dst = 4500}, esp_bytes(kUnknown))}) {
                const auto v4 = [&](Ip4 ip, uint8_t ttl, const Link& link) {
                    ip.src = source4;
                    ip.dst = "10.1.0.10";
                    ip.ttl = ttl;
                    return eth(ip4(ip, upper), link);
                };
                const auto v6 = [&](auto&& in, uint8_t ttl, const Link& link) {
                    return eth(
                        ip6({.src = source6, .dst = "2001:db8:a::10", .hop_limit = ttl}, in(upper)),
                        link);
                };
                check(name, v4({}, 64, {}), v4({}, 63, out), reason);
                check(name + ", fragment", v4({.more = true}, 64, {}), v4({.more = true}, 63, out),
                      reason);
                check(name + ", v6", v6(whole, 64, {}), v6(whole, 63, out), reason);
                check(name + ", fragment, v6", v6(first, 64, {}), v6(first, 63, out), reason);
            }
            const auto later = [&](uint8_t ttl, const Link& link) {
                return eth(ip4({.src = source4, .dst = "10.1.0.10", .ttl = ttl, .offset = 9},
                               raw(50, Bytes(40))),
                           link);
            };
            check(name + ", later fragment", later(64, {}), later(63, out), reason);
        };
        through("BYPASS", "10.6.0.9", "2001:db8:b:6::9", SP_DROP_none);
        through("PROTECT", "10.2.0.9", "2001:db8:b::9", SP_DROP_cleartext_for_protect);
        through("DISCARD", "10.5.0.9", "2001:db8:b:5::9", SP_DROP_policy_discard);
        through("no policy", "198.51.100.9", "2001:db8:ffff::9", SP_DROP_no_policy);
        const Bytes to_all = eth(ip4({.src = "10.6.0.9", .dst = "10.1.0.10"}, esp(kUnknown)),
                                 {.dst = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}});
        check("to all", to_all, Bytes{}, SP_DROP_other_station);
        Bytes piece =
            eth(ip4({.src = "10.6.0.9", .dst = "10.1.0.10", .offset = 9}, raw(50, Bytes(40))),
                {.dst = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}});
        check("piece to all", piece, Bytes{}, SP_DROP_other_station);
        // The SA of one address is not that of another.
        const Bytes elsewhere =
            eth(ip4({.src = "198.51.100.9", .dst = "192.0.2.77"}, esp(kOnCpu0)));
        check("other destination", elsewhere, Bytes{}, SP_DROP_no_policy);
    }
}

TEST_P(SteerUnprotected, ESP_without_a_socket) {
    const Instance program = load({.with_sockets = false});
    const Instance ready = load();
    for (const auto& [name, frame] : shapes(kOnCpu0)) {
        rig.check(program, {name + ", empty slot", frame, passed_esp(kWan, frame.size())});
    }
    // More workers than the map has slots for.
    rig.set_owner(kOnlyOwnerMap, kUs4, kWorkers);
    const Bytes frame = eth(ip4({.src = kPeer4, .dst = kUs4}, esp(kOnlyOwnerMap)));
    rig.check(ready,
              {"worker out of range", frame, dropped(kWan, frame.size(), SP_DROP_steer_failed)});
}

TEST_P(SteerUnprotected, ESP_fragments_are_dropped) {
    const Instance program = load();
    const auto drop = [&](const char* name, const Bytes& frame) {
        rig.check(program, {name, frame, dropped(kWan, frame.size(), SP_DROP_outer_fragment)});
    };
    const Upper packet = esp(kOnCpu0);
    const Upper packet6 = esp(kOnCpu0 + 0x1000);
    const Ip6 v6{.src = kPeer6, .dst = kUs6};
    drop("v4 first", eth(ip4({.src = kPeer4, .dst = kUs4, .more = true}, packet)));
    drop("v4 middle", eth(ip4({.src = kPeer4, .dst = kUs4, .offset = 10, .more = true}, packet)));
    drop("v4 last", eth(ip4({.src = kPeer4, .dst = kUs4, .offset = 10}, packet)));
    drop("v4 last, 4 bytes",
         eth(ip4({.src = kPeer4, .dst = kUs4, .offset = 10}, raw(50, Bytes(4)))));
    drop("v4 first in UDP", eth(ip4({.src = kPeer4, .dst = kUs4, .more = true},
                                    udp({.dst = 4500}, esp_bytes(kOnCpu0)))));
    drop("v6 first", eth(ip6(v6, fragment({.more = true}, packet6))));
    drop("v6 last", eth(ip6(v6, fragment({.offset = 10}, packet6))));
    drop("v6 first, behind hop-by-hop",
         eth(ip6(v6, hop_by_hop(fragment({.more = true}, packet6)))));
    drop("v6 first in UDP",
         eth(ip6(v6, fragment({.more = true}, udp({.dst = 4500}, esp_bytes(0x1001))))));
}

TEST_P(SteerUnprotected, ESP_too_short) {
    const Instance program = load();
    for (size_t bytes = 0; bytes < 8; ++bytes) {
        Upper cut = esp(kOnCpu0, 0);
        cut.bytes.resize(bytes);
        const Bytes v4 = eth(ip4({.src = kPeer4, .dst = kUs4}, cut));
        const Bytes v6 = eth(ip6({.src = kPeer6, .dst = kUs6}, cut));
        rig.check(program, {"v4", v4, dropped(kWan, v4.size(), SP_DROP_malformed_esp)});
        rig.check(program, {"v6", v6, dropped(kWan, v6.size(), SP_DROP_malformed_esp)});
        // In UDP it belongs to the socket on the port.
        const Bytes in_udp = eth(ip4({.src = kPeer4, .dst = kUs4}, udp({.dst = 4500}, cut.bytes)));
        rig.check(program, {"v4 in UDP", in_udp, passed(kWan, in_udp.size())});
    }
}

TEST_P(SteerUnprotected, where_the_port_does_not_forward_the_kernel_has_what_is_for_this_host) {
    const Instance program = load({.punt_unknown_spi = true});
    const auto from4 = [](const char* source, const char* destination, const Upper& upper) {
        return eth(ip4({.src = source, .dst = destination}, upper));
    };
    const auto from6 = [](const char* destination, const Upper& upper) {
        return eth(ip6({.src = kPeer6, .dst = destination}, upper));
    };
    const auto drop = [&](const char* name, const Bytes& frame, sp_drop_reason reason) {
        rig.check(program, {name, frame, dropped(kWan, frame.size(), reason)});
    };
    const auto pass = [&](const char* name, const Bytes& frame) {
        rig.check(program, {name, frame, passed(kWan, frame.size())});
    };
    const Upper ike = udp({.src = 500, .dst = 500});
    const ForwardingOff off("wan0");
    drop("no policy v4", from4("198.51.100.7", "10.1.0.10", icmp()), SP_DROP_no_policy);
    drop("no policy v6", from6("2001:db8:a::10", icmp6()), SP_DROP_no_policy);
    drop("BYPASS", from4("10.4.0.9", "10.1.0.10", icmp()), SP_DROP_forwarding_off);
    drop("PROTECT", from4("10.2.0.9", "10.1.0.10", icmp()), SP_DROP_cleartext_for_protect);
    drop("IKE of others", from4("198.51.100.7", "10.1.0.10", ike), SP_DROP_no_policy);
    drop("IKE of others v6", from6("2001:db8:a::10", ike), SP_DROP_no_policy);
    drop("ESP of others", from4("198.51.100.7", "10.1.0.10", esp(kUnknown)), SP_DROP_no_policy);
    drop("link-local v4 of somebody", from4("198.51.100.7", "169.254.1.1", icmp()),
         SP_DROP_no_policy);
    pass("IKE", from4("198.51.100.7", kUs4, ike));
    pass("IKE v6", from6(kUs6, ike));
    pass("no policy, for us", from4("198.51.100.7", "10.1.0.1", tcp({.dst = 22})));
    pass("no policy, for us v6", from6(kUs6, tcp({.dst = 22})));
    pass("broadcast of our network", from4("198.51.100.7", "192.0.2.255", icmp()));
    const Bytes punted = from4(kPeer4, kUs4, esp(kUnknown));
    rig.check(program, {"ESP for us", punted, passed_esp(kWan, punted.size())});
    const Bytes tunnel = from4(kPeer4, kUs4, esp(kOnCpu0));
    rig.check(program, {"ESP of a worker's SA", tunnel, steered(kWan, tunnel.size(), 0, 1)});
}

TEST_P(SteerUnprotected, the_hosts_own_packets_go_to_the_kernel) {
    const Instance program = load();
    const Bytes marker(4, 0);
    const Ip4 v4{.src = kPeer4, .dst = kUs4};
    const Ip6 v6{.src = kPeer6, .dst = kUs6};
    const std::vector<std::pair<std::string, Bytes>> frames = {
        {"ARP", eth(arp())},
        {"LLDP", eth({0x88cc, Bytes(40)})},
        {"VLAN", eth({0x8100, Bytes(60)})},
        {"IKE v4", eth(ip4(v4, udp({.src = 500, .dst = 500})))},
        {"IKE v6", eth(ip6(v6, udp({.src = 500, .dst = 500})))},
        {"IKE over 4500 v4", eth(ip4(v4, udp({.src = 4500, .dst = 4500}, Bytes(28))))},
        {"IKE over 4500 v6", eth(ip6(v6, udp({.src = 4500, .dst = 4500}, Bytes(28))))},
        {"IKE over 4500, first fragment",
         eth(ip4({.src = kPeer4, .dst = kUs4, .more = true}, udp({.dst = 4500}, Bytes(64))))},
        {"NAT keepalive", eth(ip4(v4, udp({.src = 4500, .dst = 4500}, {0xff})))},
        {"NAT keepalive v6", eth(ip6(v6, udp({.src = 4500, .dst = 4500}, {0xff})))},
        {"marker alone", eth(ip4(v4, udp({.dst = 4500}, marker)))},
        {"empty UDP 4500", eth(ip4(v4, udp({.dst = 4500}, {})))},
        {"neighbour solicitation, multicast",
         eth(ip6({.src = kPeer6, .dst = "ff02::1:ff00:1", .hop_limit = 255}, icmp6(135)))},
        {"neighbour solicitation, probe",
         eth(ip6({.src = kPeer6, .dst = kUs6, .hop_limit = 255}, icmp6(135)))},
        {"link-local v6", eth(ip6({.src = "fe80::2", .dst = "fe80::1"}, tcp({.dst = 179})))},
        {"link-local v4", eth(ip4({.src = kPeer4, .dst = "169.254.1.1"}, udp({.dst = 9})))},
        {"OSPF", eth(ip4({.src = kPeer4, .dst = "224.0.0.5", .ttl = 1}, raw(89, Bytes(24))))},
        {"limited broadcast",
         eth(ip4({.src = "0.0.0.0", .dst = "255.255.255.255"}, udp({.dst = 67})))},
        {"subnet broadcast", eth(ip4({.src = "198.51.100.1", .dst = "192.0.2.255"}, icmp()))},
        {"unicast in a broadcast frame",
         eth(ip4({.src = kPeer4, .dst = "10.1.0.10"}, tcp({.dst = 80})),
             {.dst = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}})},
        {"MLD behind hop-by-hop",
         eth(ip6({.src = "fe80::2", .dst = "ff02::16", .hop_limit = 1}, hop_by_hop(icmp6(143))))},
        {"BGP without a policy", eth(ip4({.src = "198.51.100.7", .dst = kUs4}, tcp({.dst = 179})))},
        {"BGP without a policy v6", eth(ip6(v6, tcp({.dst = 179})))},
        {"ICMP error to us", eth(ip4({.src = "198.51.100.7", .dst = kUs4}, icmp(3)))},
        {"ICMPv6 error to us", eth(ip6({.src = "2001:db8:ffff::1", .dst = kUs6}, icmp6(2)))},
        {"BYPASS that ends here", eth(ip4(v4, icmp()))},
        {"NAT-T port, UDP header cut short", eth(ip4(v4, raw(17, {0x11, 0x94, 0x11, 0x94, 0, 8})))},
        {"fragment for us", eth(ip4({.src = kPeer4, .dst = kUs4, .offset = 4}, raw(17, Bytes(8))))},
    };
    for (const auto& [name, frame] : frames) {
        rig.check(program, {name, frame, passed(kWan, frame.size())});
    }
}

TEST_P(SteerUnprotected, what_is_for_another_station_is_not_taken) {
    const Instance program = load();
    const Link all{.dst = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};
    const auto drop = [&](const std::string& name, const Bytes& frame) {
        rig.check(program, {name, frame, dropped(kWan, frame.size(), SP_DROP_other_station)});
    };
    const std::vector<Link> others = to_other_stations();
    for (const Link& other : others) {
        for (auto [name, frame] : shapes(kOnCpu0)) {
            std::ranges::copy(other.dst, frame.begin());
            drop(name, frame);
        }
        drop("BYPASS", eth(ip4({.src = "10.4.0.9", .dst = "10.1.0.10"}, icmp()), other));
        drop("BYPASS v6",
             eth(ip6({.src = "2001:db8:b:4::9", .dst = "2001:db8:a::10"}, icmp6()), other));
    }
    drop("PROTECT", eth(ip4({.src = "10.2.0.9", .dst = "10.1.0.10"}, icmp()), others.back()));
    drop("IKE", eth(ip4({.src = kPeer4, .dst = kUs4}, udp({.dst = 500})), others.back()));
    for (const uint32_t spi : {kOnCpu0, kInOwnerMap, kOfKernel, kUnknown}) {
        for (auto [name, frame] : shapes(spi)) {
            std::ranges::copy(all.dst, frame.begin());
            drop(name + ", to all", frame);
        }
    }
}

TEST_P(SteerUnprotected, cleartext_meets_the_inbound_SPD) {
    const Instance program = load();
    const auto drop = [&](const char* name, const Bytes& frame, sp_drop_reason reason) {
        rig.check(program, {name, frame, dropped(kWan, frame.size(), reason)});
    };
    const auto v4 = [](const char* source, const char* destination, const Upper& upper) {
        return eth(ip4({.src = source, .dst = destination}, upper));
    };
    const auto v6 = [](const char* source, const char* destination, const Upper& upper) {
        return eth(ip6({.src = source, .dst = destination}, upper));
    };
    drop("PROTECT v4", v4("10.2.0.9", "10.1.0.10", icmp()), SP_DROP_cleartext_for_protect);
    drop("PROTECT v6", v6("2001:db8:b::9", "2001:db8:a::10", icmp6()),
         SP_DROP_cleartext_for_protect);
    drop("PROTECT, to us", v4("10.2.0.9", kUs4, tcp({.dst = 22})), SP_DROP_cleartext_for_protect);
    drop("PROTECT with ports", v4("10.4.0.9", "10.1.0.10", tcp({.dst = 443})),
         SP_DROP_cleartext_for_protect);
    drop("PROTECT with ports v6", v6("2001:db8:b:4::9", "2001:db8:a::10", tcp({.src = 444})),
         SP_DROP_cleartext_for_protect);
    drop("IKE is not for us", v4("10.2.0.9", "10.1.0.10", udp({.dst = 500})),
         SP_DROP_cleartext_for_protect);
    drop("marker, not for us", v4("10.2.0.9", "10.1.0.10", udp({.dst = 4500}, Bytes(20))),
         SP_DROP_cleartext_for_protect);
    drop("neighbour solicitation, not for us",
         eth(ip6({.src = "2001:db8:b::9", .dst = "2001:db8:a::10", .hop_limit = 255}, icmp6(135))),
         SP_DROP_cleartext_for_protect);
    drop("DISCARD v4", v4("10.5.0.9", "10.1.0.10", udp({.dst = 53})), SP_DROP_policy_discard);
    drop("DISCARD v6", v6("2001:db8:b:5::9", "2001:db8:a::10", udp({.dst = 53})),
         SP_DROP_policy_discard);
    drop("no policy v4", v4("198.51.100.9", "10.1.0.10", icmp()), SP_DROP_no_policy);
    drop("no policy v6", v6("2001:db8:ffff::9", "2001:db8:a::10", icmp6()), SP_DROP_no_policy);
    drop("later fragment v4",
         eth(ip4({.src = "10.4.0.9", .dst = "10.1.0.10", .offset = 5}, raw(6, Bytes(16)))),
         SP_DROP_fragment_without_ports);
    drop("later fragment v6",
         v6("2001:db8:b:4::9", "2001:db8:a::10", fragment({.offset = 5}, raw(6, Bytes(16)))),
         SP_DROP_fragment_without_ports);
    drop("later fragment v6 that hides its protocol",
         v6("2001:db8:b:4::9", "2001:db8:a::10", fragment({.offset = 5}, raw(60, Bytes(16)))),
         SP_DROP_fragment_without_ports);
}

// A12: every wrong bit of an IPv4 header, whatever the packet is.
TEST_P(SteerUnprotected, wrong_header_checksums_are_dropped) {
    const Instance program = load();
    std::vector<std::pair<std::string, Bytes>> frames = {
        {"BYPASS", eth(ip4({.src = "10.4.0.9", .dst = "10.1.0.10"}, tcp({.dst = 80})))},
        {"IKE", eth(ip4({.src = kPeer4, .dst = kUs4}, udp({.dst = 500})))},
        {"later fragment",
         eth(ip4({.src = "10.4.0.9", .dst = "10.1.0.10", .offset = 5}, raw(17, Bytes(16))))},
    };
    for (const auto& shape : shapes(kOnCpu0)) {
        if (shape.first.starts_with("v4")) frames.push_back(shape);
    }
    for (auto& [name, frame] : frames) {
        const size_t header = (frame[14] & 15u) * 4u;
        // Checksum, addresses and options: so nothing else is wrong.
        for (size_t bit = 80; bit < 8 * header; ++bit) {
            Bytes wrong = frame;
            wrong[14 + bit / 8] = static_cast<uint8_t>(wrong[14 + bit / 8] ^ 1 << bit % 8);
            rig.check(program, {name + ", bit " + std::to_string(bit), wrong,
                                dropped(kWan, wrong.size(), SP_DROP_bad_ip_checksum)});
        }
    }
    const Bytes multicast = eth(ip4({.src = kPeer4, .dst = "224.0.0.5", .ttl = 1}, raw(89, {})));
    Bytes wrong = multicast;
    wrong[24] ^= 1;
    rig.check(program, {"multicast", multicast, passed(kWan, multicast.size())});
    rig.check(program, {"multicast", wrong, dropped(kWan, wrong.size(), SP_DROP_bad_ip_checksum)});
}

TEST_P(SteerUnprotected, martians_in_clear_are_not_forwarded) {
    const Instance program = load();
    rig.publish({},
                {entry(0, SpdAction::bypass, "0.0.0.0/0", "0.0.0.0/0"),
                 entry(0, SpdAction::bypass, "::/0", "::/0")},
                {});
    for (const auto& [name, frame] : packets4(kMartians4, "10.4.0.9", "10.1.0.10")) {
        rig.check(program, {name, frame, dropped(kWan, frame.size(), SP_DROP_martian)});
    }
    for (const auto& [name, frame] : packets6(kMartians6, "2001:db8:b:4::9", "2001:db8:a::10")) {
        rig.check(program, {name, frame, dropped(kWan, frame.size(), SP_DROP_martian)});
    }
}

TEST_P(SteerUnprotected, BYPASS_is_forwarded) {
    const Instance program = load();
    const Link out{.dst = kLanHostMac, .src = kLanMac};
    const auto v4 = [](uint8_t ttl, const Link& link) {
        return eth(ip4({.src = "10.4.0.9", .dst = "10.1.0.10", .ttl = ttl}, tcp({.dst = 80})),
                   link);
    };
    const auto v6 = [](uint8_t ttl, const Link& link) {
        return eth(ip6({.src = "2001:db8:b:4::9", .dst = "2001:db8:a::10", .hop_limit = ttl},
                       udp({.dst = 80})),
                   link);
    };
    rig.check(program, {"v4", v4(64, {}), redirected(kWan, v4(64, {}).size(), v4(63, out))});
    rig.check(program, {"v6", v6(64, {}), redirected(kWan, v6(64, {}).size(), v6(63, out))});
    const Bytes fragment_of_udp =
        eth(ip4({.src = "10.4.0.9", .dst = "10.1.0.10", .offset = 5}, raw(17, Bytes(16))));
    const Bytes fragment_out = eth(
        ip4({.src = "10.4.0.9", .dst = "10.1.0.10", .ttl = 63, .offset = 5}, raw(17, Bytes(16))),
        out);
    rig.check(program, {"a later fragment whose protocol says enough", fragment_of_udp,
                        redirected(kWan, fragment_of_udp.size(), fragment_out)});
}

// PROTECT takes source ports 443 and 444, BYPASS the rest.
TEST_P(SteerUnprotected, port_ranges_end_where_they_say) {
    const Instance program = load();
    for (uint16_t port = 442; port <= 445; ++port) {
        const Bytes frame = eth(ip6({.src = "2001:db8:b:4::9", .dst = "2001:db8:a::10"},
                                    tcp({.src = port, .dst = 80})));
        const bool covered = port == 443 || port == 444;
        EXPECT_EQ(rig.verdict(program, frame),
                  static_cast<uint32_t>(covered ? XDP_DROP : XDP_REDIRECT))
            << port;
    }
}

TEST_P(SteerUnprotected, malformed_packets_are_dropped) {
    const Instance program = load();
    const auto drop = [&](const char* name, const Bytes& frame, sp_drop_reason reason) {
        rig.check(program, {name, frame, dropped(kWan, frame.size(), reason)});
    };
    const Upper ok = esp(kOnCpu0);
    const Ip6 v6{.src = kPeer6, .dst = kUs6};
    drop("version 5", eth(ip4({.src = kPeer4, .dst = kUs4, .version_ihl = 0x55}, ok)),
         SP_DROP_malformed_ip);
    drop("header of 16 bytes", eth(ip4({.src = kPeer4, .dst = kUs4, .version_ihl = 0x44}, ok)),
         SP_DROP_malformed_ip);
    drop("shorter than its header", eth(ip4({.src = kPeer4, .dst = kUs4, .total_length = 19}, ok)),
         SP_DROP_malformed_ip);
    drop("longer than the frame", eth(ip4({.src = kPeer4, .dst = kUs4, .total_length = 1000}, ok)),
         SP_DROP_malformed_ip);
    drop("v6 version 7", eth(ip6({.src = kPeer6, .dst = kUs6, .version = 7}, ok)),
         SP_DROP_malformed_ip);
    drop("v6 longer than the frame",
         eth(ip6({.src = kPeer6, .dst = kUs6, .payload_length = 1000}, ok)), SP_DROP_malformed_ip);
    Upper chain = esp(kOnCpu0 + 0x1000);
    for (int i = 0; i < 6; ++i) chain = destination_options(chain);
    drop("v6 with six extension headers", eth(ip6(v6, chain)), SP_DROP_malformed_ip);
    Upper beyond = hop_by_hop(ok);
    beyond.bytes[1] = 200;
    drop("v6 extension header beyond the packet", eth(ip6(v6, beyond)), SP_DROP_malformed_ip);
    drop("v6 ends in an extension header", eth(ip6(v6, raw(0, Bytes(4)))), SP_DROP_truncated);
    drop("v4 TCP of 3 bytes", eth(ip4({.src = kPeer4, .dst = kUs4}, raw(6, Bytes(3)))),
         SP_DROP_truncated);
    drop("v6 UDP of 3 bytes", eth(ip6(v6, raw(17, Bytes(3)))), SP_DROP_truncated);
    drop("Ethernet alone", eth({0x0800, {}}), SP_DROP_truncated);
    drop("Ethernet alone, v6", eth({0x86dd, {}}), SP_DROP_truncated);
    drop("v4 options beyond the frame",
         eth(ip4({.src = kPeer4, .dst = kUs4, .total_length = 60, .version_ihl = 0x4f},
                 raw(50, Bytes(8)))),
         SP_DROP_truncated);
}

TEST_P(SteerUnprotected, every_truncation_is_dropped) {
    const Instance program = load();
    for (const auto& [name, frame] : shapes(kOnCpu0)) {
        SCOPED_TRACE(name);
        for (size_t bytes = 14; bytes < frame.size(); ++bytes) {
            const Bytes cut(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(bytes));
            EXPECT_EQ(rig.verdict(program, cut), static_cast<uint32_t>(XDP_DROP)) << bytes;
        }
        EXPECT_EQ(rig.verdict(program, frame), static_cast<uint32_t>(XDP_REDIRECT));
    }
}

// Trailing bytes beyond the IP packet (Ethernet padding) change nothing.
TEST_P(SteerUnprotected, ethernet_padding_is_no_payload) {
    const Instance program = load();
    Bytes padded = eth(ip4({.src = kPeer4, .dst = kUs4}, raw(50, Bytes(7))));
    padded.resize(60, 0xee);
    rig.check(program,
              {"ESP of 7 bytes", padded, dropped(kWan, padded.size(), SP_DROP_malformed_esp)});
    padded = eth(ip4({.src = kPeer4, .dst = kUs4}, raw(6, Bytes(3))));
    padded.resize(60, 0xee);
    rig.check(program, {"TCP of 3 bytes", padded, dropped(kWan, padded.size(), SP_DROP_truncated)});
    padded = eth(ip4({.src = kPeer4, .dst = kUs4}, udp({.dst = 4500}, {0xff})));
    padded.resize(60, 0xee);
    rig.check(program, {"keepalive", padded, passed(kWan, padded.size())});
}

TEST_P(SteerUnprotected, without_an_SPD_only_the_host_is_reached) {
    rig.disable_spd();
    const Instance program = load();
    const Bytes through = eth(ip4({.src = "10.4.0.9", .dst = "10.1.0.10"}, tcp({.dst = 80})));
    const Bytes to_us = eth(ip4({.src = "10.4.0.9", .dst = kUs4}, tcp({.dst = 80})));
    const Bytes encrypted = eth(ip4({.src = kPeer4, .dst = kUs4}, esp(kOnCpu0)));
    rig.check(program, {"through", through, dropped(kWan, through.size(), SP_DROP_no_policy)});
    rig.check(program, {"to us", to_us, passed(kWan, to_us.size())});
    rig.check(program, {"ESP", encrypted, steered(kWan, encrypted.size(), 0, 1)});
}

}  // namespace
}  // namespace sallyport::packet
