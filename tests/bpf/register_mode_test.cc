// SPDX-License-Identifier: Apache-2.0
// Register mode: SAs and policies are the kernel's, workers have taken over some of them. Every
// exit that differs from the tables beside this one, with the daemon's sockets and without them
// (which is what a killed daemon leaves behind).

#include <linux/bpf.h>

#include <atomic>
#include <thread>

#include <ctime>

#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr const char* kUs4 = "192.0.2.1";
constexpr const char* kPeer4 = "192.0.2.2";
constexpr const char* kUs6 = "2001:db8:1::1";
constexpr const char* kPeer6 = "2001:db8:1::2";
constexpr const char* kHost4 = "10.1.0.10";
constexpr const char* kHost6 = "2001:db8:a::10";
constexpr const char* kElsewhere4 = "10.1.0.10";  // forwarded, not ours

// SPIs to our addresses, the IPv6 ones 0x1000 higher.
constexpr uint32_t kAdopted = 0x7a01c301;  // in xfrm for CPU 1 (worker 0); taken over by worker 1
constexpr uint32_t kOnlyListed = 0x33e9f002;  // not (any more) in xfrm; listed for worker 0
constexpr uint32_t kKept = 0x1bd07703;        // in xfrm for CPU 0, nobody took it over
constexpr uint32_t kMarked = 0x6c44a804;      // listed: the kernel keeps it
constexpr uint32_t kUnknown = 0xdeadb005;
// To an address behind us: what our own outbound SAs look like to the kernel's lookup.
constexpr uint32_t kTransitState = 0x29c5d606;
constexpr uint32_t kTransitMarked = 0x29c5d607;
constexpr uint32_t kTransitListed = 0x29c5d608;

std::vector<SpdEntry> inbound_entries() {
    return {
        entry(0, SpdAction::protect, "10.2.0.0/24", "10.1.0.0/24"),
        entry(0, SpdAction::protect, "2001:db8:b::/64", "2001:db8:a::/64"),
        entry(1, SpdAction::discard, "10.5.0.0/24", "10.1.0.0/24"),
        entry(2, SpdAction::bypass, "10.4.0.0/24", "0.0.0.0/0"),
        entry(2, SpdAction::bypass, "2001:db8:b:4::/64", "::/0"),
    };
}

// Policies 0: worker 1. 1 and 2: nobody's. 5: a worker that does not exist.
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
        entry(2, SpdAction::protect, "10.1.0.0/24", "10.2.4.0/24"),
        entry(2, SpdAction::protect, "2001:db8:a::/64", "2001:db8:b:4::/64"),
        entry(5, SpdAction::protect, "10.1.0.0/24", "10.2.5.0/24"),
        entry(3, SpdAction::discard, "10.1.0.0/24", "10.2.6.0/24"),
        entry(4, SpdAction::bypass, "10.1.0.0/24", "0.0.0.0/0"),
        entry(4, SpdAction::bypass, "2001:db8:a::/64", "::/0"),
        entry(6, SpdAction::protect, "10.4.0.0/24", "10.2.0.0/16"),
        entry(4, SpdAction::bypass, "10.4.0.0/24", "0.0.0.0/0"),
    };
}
const std::vector<std::vector<WorkerId>> kOwners = {{WorkerId{1}}, {}, {}, {}, {}, {WorkerId{5}}};

sp_egress_rule deny_udp(uint8_t family, uint16_t port) {
    sp_egress_rule rule{};
    rule.family = family;
    rule.protocol = 17;
    rule.dst_port_lo = port;
    rule.dst_port_hi = port;
    return rule;
}

uint64_t monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

class RegisterMode : public ::testing::Test {
  protected:
    void SetUp() override {
        rig.set_rules(kWan, {});
        rig.set_rules(kLan, {});
        rig.publish(outbound_entries(), inbound_entries(), kOwners);
    }
    void pass(const Instance& program, const char* name, const Bytes& frame) {
        rig.check(program, {name, frame, passed(port, frame.size())});
    }
    void drop(const Instance& program, const char* name, const Bytes& frame,
              sp_drop_reason reason) {
        rig.check(program, {name, frame, dropped(port, frame.size(), reason)});
    }
    Rig& rig = Rig::get();
    uint32_t port = kLan;
};

// ---- inbound ------------------------------------------------------------------------------------

class RegisterModeInbound : public RegisterMode, public ::testing::WithParamInterface<bool> {
  protected:
    static void SetUpTestSuite() {
        static bool registered = false;
        if (registered) return;
        registered = true;
        for (const auto& [us, peer, add] :
             {std::tuple{kUs4, kPeer4, 0u}, std::tuple{kUs6, kPeer6, 0x1000u}}) {
            register_sa(kAdopted + add, peer, us, 1);
            register_sa(kKept + add, peer, us, 0);
        }
        register_sa(kTransitState, kUs4, kElsewhere4, {});
    }
    void SetUp() override {
        RegisterMode::SetUp();
        port = kWan;
        for (const auto& [us, add] : {std::pair{kUs4, 0u}, std::pair{kUs6, 0x1000u}}) {
            rig.set_owner(kAdopted + add, us, 1);
            rig.set_owner(kOnlyListed + add, us, 0);
            rig.set_owner(kMarked + add, us, SP_OWNER_KERNEL);
        }
        rig.set_owner(kTransitMarked, kElsewhere4, SP_OWNER_KERNEL);
        rig.set_owner(kTransitListed, kElsewhere4, 1);
        rig.set_cpu_worker(0, 1);
        rig.set_cpu_worker(1, 0);
    }
    Instance load(Settings settings = {}) {
        settings.use_kfunc = GetParam();
        settings.register_mode = true;
        return rig.load(Program::steer_unprotected, kWan, settings);
    }
    static std::vector<std::pair<std::string, Bytes>> shapes(uint32_t spi, const Link& link = {}) {
        const Ip4 v4{.src = kPeer4, .dst = kUs4};
        const Ip6 v6{.src = kPeer6, .dst = kUs6};
        const uint32_t spi6 = spi + 0x1000;
        return {
            {"v4", eth(ip4(v4, esp(spi)), link)},
            {"v4 with options",
             eth(ip4({.src = kPeer4, .dst = kUs4, .option_words = 10}, esp(spi)), link)},
            {"v4 in UDP", eth(ip4(v4, udp({.dst = 4500}, esp_bytes(spi))), link)},
            {"v6", eth(ip6(v6, esp(spi6)), link)},
            {"v6 behind hop-by-hop", eth(ip6(v6, hop_by_hop(esp(spi6))), link)},
            {"v6 in UDP", eth(ip6(v6, udp({.dst = 4500}, esp_bytes(spi6))), link)},
        };
    }
};

INSTANTIATE_TEST_SUITE_P(Lookup, RegisterModeInbound, ::testing::Bool(),
                         [](const auto& lookup) { return lookup.param ? "kfunc" : "no_kfunc"; });

TEST_P(RegisterModeInbound, the_list_of_workers_comes_first) {
    const Instance program = load();
    for (const auto& [name, frame] : shapes(kAdopted)) {
        for (const uint32_t queue : {0u, 1u}) {
            rig.check(program,
                      {name + ", taken over", frame, steered(kWan, frame.size(), queue, 1), queue});
        }
    }
    for (const auto& [name, frame] : shapes(kOnlyListed)) {
        rig.check(program, {name + ", listed", frame, steered(kWan, frame.size(), 0, 0)});
    }
}

// A pcpu_num names no worker here: the SA has not been taken over.
TEST_P(RegisterModeInbound, the_kernel_keeps_the_rest) {
    const Instance program = load();
    for (const auto& [name, frame] : shapes(kKept)) {
        rig.check(program, {name + ", kept", frame, passed_esp(kWan, frame.size())});
    }
    for (const auto& [name, frame] : shapes(kMarked)) {
        rig.check(program, {name + ", marked", frame, passed_esp(kWan, frame.size())});
    }
}

// Without the kfunc only the kernel can tell.
TEST_P(RegisterModeInbound, unknown_SAs) {
    const Instance drops = load();
    const Instance punts = load({.punt_unknown_spi = true});
    for (const auto& [name, frame] : shapes(kUnknown)) {
        rig.check(drops, {name, frame,
                          GetParam() ? dropped(kWan, frame.size(), SP_DROP_unknown_spi)
                                     : passed_esp(kWan, frame.size())});
        rig.check(punts, {name + ", punted", frame, passed_esp(kWan, frame.size())});
    }
}

// The kernel, which has the same SA, does not know what the worker has received.
TEST_P(RegisterModeInbound, ESP_of_a_worker_is_refused_at_a_protected_port) {
    const Instance program =
        rig.load(Program::steer_protected, kLan, {.use_kfunc = GetParam(), .register_mode = true});
    port = kLan;
    for (const uint32_t spi : {kAdopted, kOnlyListed}) {
        for (const auto& [name, frame] : shapes(spi)) {
            drop(program, name.c_str(), frame, SP_DROP_steer_failed);
        }
    }
    // What no worker has is the kernel's, by whatever port it comes.
    for (const uint32_t spi : {kKept, kMarked, kUnknown}) {
        for (const auto& [name, frame] : shapes(spi)) pass(program, name.c_str(), frame);
    }
    for (const uint32_t spi : {kKept, kAdopted}) {
        const Bytes fragment = eth(ip4({.src = kPeer4, .dst = kUs4, .more = true}, esp(spi)));
        drop(program, "fragment", fragment, SP_DROP_outer_fragment);
    }
    // ESP of others is one protocol of many.
    drop(program, "transit",
         eth(ip4({.src = "198.51.100.9", .dst = kElsewhere4}, esp(kTransitListed))),
         SP_DROP_no_policy);
}

// To the kernel ESP that it forwards is one protocol of many.
TEST_P(RegisterModeInbound, transit_ESP_is_cleartext_to_the_SPD) {
    const Instance program = load({.punt_unknown_spi = true});
    const Instance dead = load({.with_sockets = false});
    const auto through = [](const char* source, uint32_t spi, bool in_udp, uint8_t ttl = 64,
                            const Link& link = {}) {
        return eth(ip4({.src = source, .dst = kElsewhere4, .ttl = ttl},
                       in_udp ? udp({.dst = 4500}, esp_bytes(spi)) : esp(spi)),
                   link);
    };
    for (const bool in_udp : {false, true}) {
        for (const uint32_t spi : {kTransitState, kTransitMarked, kUnknown}) {
            drop(program, "PROTECT", through("10.2.0.9", spi, in_udp),
                 SP_DROP_cleartext_for_protect);
            drop(program, "DISCARD", through("10.5.0.9", spi, in_udp), SP_DROP_policy_discard);
            drop(program, "no policy", through("198.51.100.9", spi, in_udp), SP_DROP_no_policy);
            const Bytes frame = through("10.4.0.9", spi, in_udp);
            rig.check(program, {"BYPASS", frame,
                                redirected(kWan, frame.size(),
                                           through("10.4.0.9", spi, in_udp, 63,
                                                   {.dst = kLanHostMac, .src = kLanMac}))});
        }
        // An address that has left this host since its SA was listed.
        drop(dead, "no socket", through("198.51.100.9", kTransitListed, in_udp), SP_DROP_no_policy);
    }
}

TEST_P(RegisterModeInbound, without_the_daemon_the_kernel_has_all_SAs) {
    const Instance dead = load({.with_sockets = false});
    for (const uint32_t spi : {kAdopted, kOnlyListed, kKept, kMarked}) {
        for (const auto& [name, frame] : shapes(spi)) {
            rig.check(dead, {name, frame, passed_esp(kWan, frame.size())});
        }
    }
    const Bytes ike = eth(ip4({.src = kPeer4, .dst = kUs4}, udp({.dst = 500})));
    rig.check(dead, {"IKE", ike, passed(kWan, ike.size())});
}

// The worker of an SA must not be used beside the kernel.
TEST_P(RegisterModeInbound, a_worker_that_is_none_is_no_reason_to_pass) {
    const Instance program = load();
    rig.set_owner(kOnlyListed, kUs4, kWorkers);
    drop(program, "worker out of range", eth(ip4({.src = kPeer4, .dst = kUs4}, esp(kOnlyListed))),
         SP_DROP_steer_failed);
}

// The kernel would reassemble, and its replay window knows little of a worker's.
TEST_P(RegisterModeInbound, fragments_and_stumps_reach_nobody) {
    for (const bool alive : {true, false}) {
        const Instance program = load({.punt_unknown_spi = true, .with_sockets = alive});
        for (const Link& link : {Link{}, Link{.dst = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
                                 Link{.dst = {0x33, 0x33}}}) {
            for (const uint32_t spi : {kAdopted, kKept}) {
                const Ip4 first{.src = kPeer4, .dst = kUs4, .more = true};
                drop(program, "v4 first", eth(ip4(first, esp(spi)), link), SP_DROP_outer_fragment);
                drop(program, "v4 last",
                     eth(ip4({.src = kPeer4, .dst = kUs4, .offset = 5}, esp(spi)), link),
                     SP_DROP_outer_fragment);
                drop(program, "v4 first in UDP",
                     eth(ip4(first, udp({.dst = 4500}, esp_bytes(spi))), link),
                     SP_DROP_outer_fragment);
                drop(program, "v6 first",
                     eth(ip6({.src = kPeer6, .dst = kUs6},
                             fragment({.more = true}, esp(spi + 0x1000))),
                         link),
                     SP_DROP_outer_fragment);
                Upper stump = esp(spi, 0);
                stump.bytes.resize(7);
                drop(program, "stump", eth(ip4({.src = kPeer4, .dst = kUs4}, stump), link),
                     SP_DROP_malformed_esp);
            }
        }
    }
}

// The kernel decrypts unicast ESP in a broadcast frame.
TEST_P(RegisterModeInbound, a_broadcast_frame_is_no_way_around_the_worker) {
    const Instance program = load();
    const Link broadcast{.dst = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};
    for (const uint32_t spi : {kAdopted, kKept}) {
        for (const auto& [name, frame] : shapes(spi, broadcast)) {
            drop(program, name.c_str(), frame, SP_DROP_other_station);
        }
    }
    drop(program, "transit ESP, BYPASS",
         eth(ip4({.src = "10.4.0.9", .dst = kElsewhere4}, esp(kTransitState)), broadcast),
         SP_DROP_other_station);
    // All else in such a frame is the kernel's as before, which never forwards it.
    const auto frame = [&](const char* destination, const Upper& upper) {
        return eth(ip4({.src = "10.4.0.9", .dst = destination}, upper), broadcast);
    };
    pass(program, "TCP", frame(kElsewhere4, tcp({.dst = 80})));
    pass(program, "DHCP", frame("255.255.255.255", udp({.dst = 67})));
    pass(program, "multicast ESP", frame("224.0.0.5", esp(kAdopted)));
}

TEST_P(RegisterModeInbound, the_check_of_cleartext_outlives_the_daemon) {
    rig.set_rules(kLan, {deny_udp(AF_INET, 25)});
    const Instance alive = load();
    const Instance dead = load({.with_sockets = false});
    const auto v4 = [](const char* source, const char* destination, const Upper& upper,
                       uint8_t ttl = 64, const Link& link = {}) {
        return eth(ip4({.src = source, .dst = destination, .ttl = ttl}, upper), link);
    };
    for (const Instance* program : {&alive, &dead}) {
        drop(*program, "PROTECT", v4("10.2.0.9", kHost4, icmp()), SP_DROP_cleartext_for_protect);
        drop(*program, "PROTECT v6", eth(ip6({.src = "2001:db8:b::9", .dst = kHost6}, icmp6())),
             SP_DROP_cleartext_for_protect);
        drop(*program, "DISCARD", v4("10.5.0.9", kHost4, icmp()), SP_DROP_policy_discard);
        drop(*program, "no policy", v4("198.51.100.9", kHost4, icmp()), SP_DROP_no_policy);
        drop(*program, "BYPASS in, PROTECT out", v4("10.4.0.9", "10.2.0.9", icmp()),
             SP_DROP_protect_in_clear);
        pass(*program, "for us", v4("198.51.100.9", kUs4, tcp({.dst = 179})));
        pass(*program, "BYPASS for us", v4("10.4.0.9", kUs4, icmp()));
    }
    const Bytes frame = v4("10.4.0.9", kHost4, tcp({.dst = 80}));
    rig.check(alive, {"BYPASS", frame,
                      redirected(kWan, frame.size(),
                                 v4("10.4.0.9", kHost4, tcp({.dst = 80}), 63,
                                    {.dst = kLanHostMac, .src = kLanMac}))});
    pass(dead, "BYPASS", frame);
    pass(dead, "BYPASS v6", eth(ip6({.src = "2001:db8:b:4::9", .dst = kHost6}, udp({.dst = 80}))));
    drop(dead, "BYPASS, egress filter", v4("10.4.0.9", kHost4, udp({.dst = 25})),
         SP_DROP_egress_denied);
}

TEST_P(RegisterModeInbound, BYPASS_is_the_kernels_without_a_lease) {
    const Instance alive = load();
    const auto in = [](uint8_t ttl = 64, const Link& link = {}) {
        return eth(ip4({.src = "10.4.0.9", .dst = kHost4, .ttl = ttl}, tcp({.dst = 80})), link);
    };
    rig.set_bypass_until(1);
    pass(alive, "over", in());
    drop(alive, "PROTECT", eth(ip4({.src = "10.2.0.9", .dst = kHost4}, icmp())),
         SP_DROP_cleartext_for_protect);
    rig.set_bypass_until(SP_BYPASS_FOREVER);
    const Bytes frame = in();
    rig.check(alive,
              {"believed", frame,
               redirected(kWan, frame.size(), in(63, {.dst = kLanHostMac, .src = kLanMac}))});
}

// ---- outbound -----------------------------------------------------------------------------------

class RegisterModeOutbound : public RegisterMode {
  protected:
    Instance load(Settings settings = {}) {
        settings.register_mode = true;
        return rig.load(Program::steer_protected, kLan, settings);
    }
    static Bytes v4(const char* destination, const Upper& upper, uint8_t ttl = 64,
                    const Link& link = {}) {
        return eth(ip4({.src = kHost4, .dst = destination, .ttl = ttl}, upper), link);
    }
    static Bytes v6(const char* destination, const Upper& upper, uint8_t ttl = 64) {
        return eth(ip6({.src = kHost6, .dst = destination, .hop_limit = ttl}, upper));
    }
    void leave(const Instance& program, const char* name, const Bytes& frame) {
        rig.check(program, {name, frame, passed_protect(kLan, frame.size())});
    }
};

TEST_F(RegisterModeOutbound, PROTECT_without_a_worker_is_the_kernels) {
    const Instance alive = load();
    const Instance dead = load({.with_sockets = false});
    const Bytes to_worker = v4("10.2.0.9", icmp());
    const Bytes to_worker6 = v6("2001:db8:b::9", icmp6());
    rig.check(alive, {"v4", to_worker, steered(kLan, to_worker.size(), 0, 1)});
    rig.check(alive, {"v6", to_worker6, steered(kLan, to_worker6.size(), 0, 1)});
    leave(dead, "no socket v4", to_worker);
    leave(dead, "no socket v6", to_worker6);
    for (const Instance* program : {&alive, &dead}) {
        leave(*program, "no owner v4", v4("10.2.4.9", udp({.dst = 53})));
        leave(*program, "no owner v6", v6("2001:db8:b:4::9", udp({.dst = 53})));
        leave(*program, "no owner, ports v4", v4("10.2.4.9", tcp({.dst = 443})));
        leave(*program, "no owner, ports v6", v6("2001:db8:b:4::9", tcp({.dst = 443})));
        pass(*program, "TTL 1", v4("10.2.4.9", icmp(), 1));
        pass(*program, "hop limit 1", v6("2001:db8:b::9", icmp6(), 1));
        drop(*program, "a worker that is none", v4("10.2.5.9", icmp()), SP_DROP_steer_failed);
        drop(*program, "DISCARD", v4("10.2.6.9", icmp()), SP_DROP_policy_discard);
        drop(*program, "no policy", eth(ip4({.src = "10.9.0.1", .dst = "10.2.0.9"}, icmp())),
             SP_DROP_no_policy);
    }
    rig.disable_spd();
    drop(alive, "no SPD yet", to_worker, SP_DROP_no_policy);
}

// An interface decides what the kernel does with it, not whether it gets it.
TEST_F(RegisterModeOutbound, PROTECT_with_an_if_id_is_the_kernels_wherever_it_is_routed) {
    const Instance alive = load();
    const Bytes to_worker = v4("10.2.0.9", icmp());
    rig.publish(outbound_entries(), inbound_entries(), kOwners, {6, 7, 8});
    for (const char* interface : {"", "other0"}) {
        rig.set_interface(interface);
        leave(alive, "v4", v4("10.2.4.9", udp({.dst = 53})));
        leave(alive, "v6", v6("2001:db8:b:4::9", udp({.dst = 53})));
        leave(alive, "ports", v4("10.2.4.9", tcp({.dst = 443})));
        rig.check(alive, {"workers come first", to_worker, steered(kLan, to_worker.size(), 0, 1)});
    }
    rig.set_interface("");
}

// The kernel takes the ports of every fragment for 0. Passed is only what it must judge as we did.
TEST_F(RegisterModeOutbound, fragments_that_the_kernel_would_judge_by_other_ports_stay_here) {
    for (const bool alive : {true, false}) {
        const Instance program = load({.with_sockets = alive});
        const auto first4 = [](const char* destination, const Upper& upper) {
            return eth(ip4({.src = kHost4, .dst = destination, .more = true}, upper));
        };
        const auto first6 = [](const char* destination, const Upper& upper) {
            return v6(destination, fragment({.more = true}, upper));
        };
        drop(program, "first, the ports of an entry", first4("10.2.4.9", tcp({.dst = 443})),
             SP_DROP_fragment_without_ports);
        drop(program, "first, other ports, entry behind one with ports",
             first4("10.2.4.9", tcp({.dst = 80})), SP_DROP_fragment_without_ports);
        drop(program, "first v6", first6("2001:db8:b:4::9", tcp({.dst = 443})),
             SP_DROP_fragment_without_ports);
        drop(program, "first v6, other ports", first6("2001:db8:b:4::9", tcp({.dst = 80})),
             SP_DROP_fragment_without_ports);
        drop(program, "later",
             eth(ip4({.src = kHost4, .dst = "10.2.4.9", .offset = 3}, raw(6, Bytes(16)))),
             SP_DROP_fragment_without_ports);
        leave(program, "first, no entry of its protocol has ports",
              first4("10.2.4.9", udp({.dst = 443})));
        leave(program, "first v6, no entry of its protocol has ports",
              first6("2001:db8:b:4::9", udp({.dst = 443})));
        leave(program, "later, no entry of its protocol has ports",
              eth(ip4({.src = kHost4, .dst = "10.2.4.9", .offset = 3}, raw(17, Bytes(16)))));
    }
    // A worker knows the ports of a first fragment.
    rig.publish(outbound_entries(), {}, {{WorkerId{1}}, {WorkerId{1}}});
    const Instance program = load();
    const Bytes frame =
        eth(ip4({.src = kHost4, .dst = "10.2.4.9", .more = true}, tcp({.dst = 443})));
    rig.check(program, {"first, to a worker", frame, steered(kLan, frame.size(), 0, 1)});
}

// The kernel's policies may have changed since, and only it knows.
TEST_F(RegisterModeOutbound, BYPASS_is_the_kernels_without_the_daemon) {
    rig.set_rules(kWan, {deny_udp(AF_INET, 25), deny_udp(AF_INET6, 25)});
    const Instance alive = load();
    const Instance dead = load({.with_sockets = false});
    const Bytes frame = v4("192.0.2.2", icmp());
    rig.check(alive,
              {"alive", frame,
               redirected(kLan, frame.size(),
                          v4("192.0.2.2", icmp(), 63, {.dst = kWanPeerMac, .src = kWanMac}))});
    pass(dead, "v4", frame);
    pass(dead, "v6", v6("2001:db8:1::2", icmp6()));
    pass(dead, "TTL 1", v4("192.0.2.2", icmp(), 1));
    pass(dead, "no neighbour", v4("192.0.2.99", icmp()));
    pass(dead, "too big", v4("10.3.0.9", udp({.dst = 80}, Bytes(700))));
    drop(dead, "not out of a port", v4("198.18.0.2", udp({.dst = 25})), SP_DROP_not_a_port);
    rig.set_forward_to("other0", true);
    pass(dead, "to a device that is named", v4("198.18.0.2", udp({.dst = 25})));
    rig.set_forward_to("other0", false);
    pass(dead, "unreachable", v4("10.67.0.9", icmp()));
    pass(dead, "no route", v4("203.0.113.1", icmp()));
    pass(dead, "for us", v4("10.1.0.1", tcp({.dst = 22})));
    drop(dead, "egress filter v4", v4("192.0.2.2", udp({.dst = 25})), SP_DROP_egress_denied);
    drop(dead, "egress filter v6", v6("2001:db8:1::2", udp({.dst = 25})), SP_DROP_egress_denied);
    drop(dead, "egress filter, no neighbour", v4("192.0.2.99", udp({.dst = 25})),
         SP_DROP_egress_denied);
}

// ---- owners in place ----------------------------------------------------------------------------

// A daemon that lives and does not say that BYPASS still holds.
TEST_F(RegisterModeOutbound, BYPASS_is_the_kernels_without_a_lease) {
    rig.set_rules(kWan, {deny_udp(AF_INET, 25), deny_udp(AF_INET6, 25)});
    const Instance alive = load();
    const Instance not_of_xfrm = rig.load(Program::steer_protected, kLan, {});
    const Bytes frame = v4("192.0.2.2", icmp());
    const Row believed{
        "believed", frame,
        redirected(kLan, frame.size(),
                   v4("192.0.2.2", icmp(), 63, {.dst = kWanPeerMac, .src = kWanMac}))};
    const Bytes to_worker = v4("10.2.0.9", icmp());
    for (const uint64_t over : {uint64_t{0}, uint64_t{1}, monotonic_ns()}) {
        rig.set_bypass_until(over);
        pass(alive, "v4", frame);
        pass(alive, "v6", v6("2001:db8:1::2", icmp6()));
        drop(alive, "egress filter", v4("192.0.2.2", udp({.dst = 25})), SP_DROP_egress_denied);
        drop(alive, "DISCARD", v4("10.2.6.9", icmp()), SP_DROP_policy_discard);
        rig.check(alive, {"PROTECT", to_worker, steered(kLan, to_worker.size(), 0, 1)});
        rig.check(not_of_xfrm, believed);
    }
    for (const uint64_t long_time :
         {monotonic_ns() + 3'600'000'000'000u, uint64_t{SP_BYPASS_FOREVER}}) {
        rig.set_bypass_until(long_time);
        rig.check(alive, believed);
        // The next SPD has the lease of this one.
        rig.publish(outbound_entries(), inbound_entries(), kOwners);
        rig.check(alive, believed);
    }
    rig.set_bypass_until(0);
    rig.publish(outbound_entries(), inbound_entries(), kOwners);
    pass(alive, "v4", frame);
    rig.set_bypass_until(SP_BYPASS_FOREVER);
}

TEST_F(RegisterModeOutbound, owners_change_in_place) {
    const Instance program = load();
    const Bytes net0 = v4("10.2.0.9", icmp());
    const Bytes net4 = v4("10.2.4.9", udp({.dst = 53}));
    for (int round = 0; round < 3; ++round) {  // both halves of the map, and again
        rig.publish(outbound_entries(), inbound_entries(), kOwners);
        EXPECT_EQ(rig.update_owners(kOwners), 0u) << "nothing changed";
        rig.check(program, {"before", net0, steered(kLan, net0.size(), 0, 1)});

        EXPECT_EQ(rig.update_owners({{}, {}, {}, {}, {}, {WorkerId{5}}}), 2u) << "v4 and v6";
        leave(program, "the last SA has gone", net0);
        EXPECT_EQ(rig.update_owners({{WorkerId{0}}, {}, {WorkerId{1}}, {}, {}, {WorkerId{5}}}), 4u);
        rig.check(program, {"another worker's", net0, steered(kLan, net0.size(), 0, 0)});
        rig.check(program, {"the first SA", net4, steered(kLan, net4.size(), 0, 1)});
        // Nothing but owners changed.
        drop(program, "DISCARD", v4("10.2.6.9", icmp()), SP_DROP_policy_discard);
        leave(program, "ports", v4("10.2.4.9", tcp({.dst = 443})));
        EXPECT_EQ(rig.update_owners({}), 5u) << "policies 0, 2 and 5";
        leave(program, "none at all", net0);
        leave(program, "none at all", net4);
    }
}

// A program that reads an entry while it is written must find an owner of before or of after.
TEST_F(RegisterModeOutbound, readers_of_owners_being_written_find_an_owner) {
    const Instance program = load();
    std::vector<std::vector<WorkerId>> one = kOwners;
    std::vector<std::vector<WorkerId>> many = kOwners;
    one[0] = {WorkerId{1}};
    many[0] = std::vector<WorkerId>(SP_OWNERS_MAX, WorkerId{1});
    std::atomic<bool> stop = false;
    std::atomic<size_t> writes = 0;
    std::thread writer([&] {
        while (!stop) {
            for (const auto* owners : {&many, &one}) writes += rig.update_owners(*owners);
        }
    });
    const Counters before = rig.read_counters();
    for (uint16_t source = 1; source < 20000; ++source) {
        rig.verdict(program, v4("10.2.0.9", tcp({.src = source, .dst = 80})));
    }
    stop = true;
    writer.join();
    const Counters after = rig.read_counters();
    const auto moved = [&](const char* name) {
        const auto value = [&](const Counters& counters) {
            const auto found = counters.values.find(name);
            return found == counters.values.end() ? 0 : found->second;
        };
        return value(after) - value(before);
    };
    EXPECT_GT(writes.load(), 1000u);
    EXPECT_EQ(moved("port 1 steered to 0,1"), 19999u);
    EXPECT_EQ(moved("port 1 steered to 0,0"), 0u);
}

}  // namespace
}  // namespace sallyport::packet
