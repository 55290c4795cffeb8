// SPDX-License-Identifier: Apache-2.0
// What becomes of own ESP that egress_route has passed for want of a MAC.

#include <bpf/bpf.h>
#include <linux/pkt_cls.h>
#include <netinet/in.h>

#include <algorithm>

#include "bpf/next_hop.h"
#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr Mac kTapMac = {0x02, 0, 0, 0, 9, 9};
constexpr Link kOriginated{.dst = kTapMac, .src = worker_mac(SP_KIND_ORIGINATED)};
constexpr Link kTransit{.dst = kTapMac, .src = worker_mac(SP_KIND_TRANSIT)};

class ToNeighbour : public ::testing::Test {
  protected:
    void SetUp() override { program.is_forwarded = true; }

    static Bytes outer4(const char* destination, const Link& link = kOriginated) {
        return eth(ip4({.src = "192.0.2.1", .dst = destination}, esp(0x1001, 1000)), link);
    }
    static Bytes outer6(const char* destination, const Link& link = kOriginated) {
        return eth(ip6({.src = "2001:db8:1::1", .dst = destination}, esp(0x1001, 1000)), link);
    }
    void to_stack(const char* name, const Bytes& frame) {
        rig.check(program, {name, frame, {static_cast<uint32_t>(TC_ACT_UNSPEC), {}, {}}});
    }
    // `lost`: of those before it.
    void to_neighbour(const char* name, const Bytes& frame, uint64_t lost = 0) {
        std::map<std::string, uint64_t> counters;
        if (lost != 0) counters[kCounter] = lost;
        rig.check(program, {name, frame, {TC_ACT_REDIRECT, counters, {}}});
    }
    void drop(const char* name, const Bytes& frame) {
        rig.check(program, {name, frame, {TC_ACT_SHOT, {{kCounter, 1}}, {}}});
    }

    static sp_next_hop hop(const char* device, const char* text) {
        const IpAddress address = parse_ip_address(text).value();
        sp_next_hop key{};
        key.ifindex = ifindex(device);
        key.family = address.family == Family::v4 ? AF_INET : AF_INET6;
        std::ranges::copy(address.bytes, key.address);
        return key;
    }
    [[nodiscard]] std::optional<sp_unresolved> known(const sp_next_hop& key) const {
        sp_unresolved value{};
        if (bpf_map_lookup_elem(map, &key, &value) != 0) return std::nullopt;
        return value;
    }

    const std::string kCounter = "port " + std::to_string(kInjector) + " drop no_neighbour";
    Rig& rig = Rig::get();
    Instance program = rig.load(Program::to_neighbour, kInjector, {.with_sockets = false});
    int map = rig.maps().fd("unresolved_hops");
};

TEST_F(ToNeighbour, what_is_no_esp_of_workers_is_the_stacks) {
    to_stack("decrypted", outer4("192.0.2.99", kTransit));
    to_stack("of nobody", outer4("192.0.2.99", Link{.dst = kTapMac, .src = kLanHostMac}));
    to_stack("v6, decrypted", outer6("2001:db8:1::99", kTransit));
    to_stack("no IP", Bytes(60, 0));
    to_stack("out of no port", outer4("198.18.0.99"));
    to_stack("for this host", outer4("10.1.0.1"));
    EXPECT_FALSE(known(hop("wan0", "192.0.2.99")));
}

TEST_F(ToNeighbour, one_that_is_resolved_by_now_gets_it) {
    to_neighbour("v4", outer4("192.0.2.2"));
    to_neighbour("v6", outer6("2001:db8:1::2"));
    EXPECT_FALSE(known(hop("wan0", "192.0.2.2")));
}

TEST_F(ToNeighbour, some_wait_and_more_are_dropped_by_name) {
    for (const auto& [address, frame] : {std::pair{"192.0.2.98", outer4("192.0.2.98")},
                                         std::pair{"2001:db8:1::98", outer6("2001:db8:1::98")}}) {
        SCOPED_TRACE(address);
        const sp_next_hop key = hop("wan0", address);
        const size_t room = SP_WAITING_BYTES_MAX / (frame.size() + SP_WAITING_BYTES_EACH);
        ASSERT_GT(room, 50u);
        for (size_t i = 0; i < room; ++i) to_neighbour("waits", frame);
        drop("one more", frame);
        drop("and another", frame);
        ASSERT_TRUE(known(key));
        EXPECT_EQ(known(key)->waiting, room);

        // It never came: those that waited are lost.
        sp_unresolved old = *known(key);
        old.since_ns -= SP_WAITING_NS + 1'000'000'000;
        ASSERT_EQ(bpf_map_update_elem(map, &key, &old, BPF_ANY), 0);
        to_neighbour("asks again", frame, room);
        to_neighbour("waits again", frame);
        EXPECT_EQ(known(key)->waiting, 2u);

        // It came: those that waited were sent.
        ASSERT_EQ(bpf_map_delete_elem(map, &key), 0);
        to_neighbour("unknown once more", frame);
        EXPECT_EQ(known(key)->waiting, 1u);
    }
}

TEST_F(ToNeighbour, the_gateway_is_waited_for_and_not_what_is_behind_it) {
    run("ip route add 203.0.113.0/24 via 192.0.2.97");
    run("ip route add 2001:db8:77::/48 via 2001:db8:1::97");
    to_neighbour("v4", outer4("203.0.113.5"));
    to_neighbour("v4, another", outer4("203.0.113.6"));
    to_neighbour("v6", outer6("2001:db8:77::5"));
    run("ip route del 203.0.113.0/24");
    run("ip route del 2001:db8:77::/48");
    ASSERT_TRUE(known(hop("wan0", "192.0.2.97")));
    EXPECT_EQ(known(hop("wan0", "192.0.2.97"))->waiting, 2u);
    ASSERT_TRUE(known(hop("wan0", "2001:db8:1::97")));
    EXPECT_FALSE(known(hop("wan0", "203.0.113.5")));
}

// In transit the stack may have to see them, so egress_route only says that somebody must ask.
TEST_F(ToNeighbour, egress_route_notes_next_hops_of_decrypted_packets) {
    const Instance route = rig.load(Program::egress_route, kInjector, {.with_sockets = false});
    const auto inner = [](const char* destination, const Link& link) {
        return eth(ip4({.src = "10.2.0.9", .dst = destination}, tcp({.dst = 80})), link);
    };
    EXPECT_EQ(rig.verdict(route, inner("10.1.0.95", kTransit)), XDP_PASS);
    const auto noted = known(hop("lan0", "10.1.0.95"));
    ASSERT_TRUE(noted);
    EXPECT_EQ(noted->waiting, 0u);
    EXPECT_EQ(rig.verdict(route, eth(ip6({.src = "2001:db8:b::9", .dst = "2001:db8:a::95"},
                                         tcp({.dst = 80})),
                                     kTransit)),
              XDP_PASS);
    EXPECT_TRUE(known(hop("lan0", "2001:db8:a::95")));
    // Own ESP meets to_neighbour.
    EXPECT_EQ(rig.verdict(route, outer4("192.0.2.95")), XDP_PASS);
    EXPECT_FALSE(known(hop("wan0", "192.0.2.95")));
}

}  // namespace
}  // namespace sallyport::packet
