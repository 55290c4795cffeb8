// SPDX-License-Identifier: Apache-2.0
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "control/netlink/socket.h"
#include "control/route/mirror.h"
#include "control/route/neighbours.h"
#include "control/route/socket.h"
#include "tests/dataplane/io/support.h"
#include "tests/support/own_address.h"

namespace sallyport::route {
namespace {

using test::run;

// ---- parsing ----------------------------------------------------------------------------------

// Builds messages as the kernel does.
class Writer {
  public:
    template <typename Header>
    Writer(uint16_t type, const Header& header, uint16_t flags = 0) {
        nlmsghdr netlink{};
        netlink.nlmsg_type = type;
        netlink.nlmsg_flags = flags;
        append(&netlink, sizeof netlink);
        append(&header, sizeof header);
    }
    Writer& add(uint16_t type, const void* value, size_t size) {
        const rtattr attribute{.rta_len = static_cast<uint16_t>(RTA_LENGTH(size)),
                               .rta_type = type};
        append(&attribute, sizeof attribute);
        append(value, size);
        return *this;
    }
    Writer& add(uint16_t type, uint32_t value) { return add(type, &value, sizeof value); }
    Writer& add(uint16_t type, const char* address) {
        const IpAddress parsed = parse_ip_address(address).value();
        return add(type, parsed.bytes.data(), parsed.bit_count() / 8);
    }
    [[nodiscard]] std::vector<std::byte> bytes() const {
        std::vector<std::byte> result = bytes_;
        const auto size = static_cast<uint32_t>(result.size());
        std::memcpy(result.data(), &size, sizeof size);
        return result;
    }

  private:
    void append(const void* data, size_t size) {
        const auto* begin = static_cast<const std::byte*>(data);
        bytes_.insert(bytes_.end(), begin, begin + size);
        bytes_.resize((bytes_.size() + 3) & ~size_t{3});
    }
    std::vector<std::byte> bytes_;
};

rtmsg route_header(uint8_t family, uint8_t bits) {
    rtmsg header{};
    header.rtm_family = family;
    header.rtm_dst_len = bits;
    header.rtm_table = RT_TABLE_MAIN;
    header.rtm_type = RTN_UNICAST;
    return header;
}

// All messages of a datagram; an error when one is malformed.
std::expected<std::vector<Message>, std::string> parse_all(std::span<const std::byte> rest) {
    std::vector<Message> messages;
    while (true) {
        const auto message = netlink::next_message(rest);
        if (!message) return std::unexpected(message.error());
        if (!*message) return messages;
        auto parsed = parse_message(**message);
        if (!parsed) return std::unexpected(parsed.error());
        messages.push_back(std::move(*parsed));
    }
}

template <typename T>
T only(const std::vector<std::byte>& bytes) {
    const auto messages = parse_all(bytes);
    EXPECT_TRUE(messages) << messages.error();
    if (!messages || messages->size() != 1 || !std::holds_alternative<T>(messages->front())) {
        ADD_FAILURE() << "not one message of the expected kind";
        return {};
    }
    return std::get<T>(messages->front());
}

TEST(RouteMessages, GatewayRoute) {
    const auto change = only<RouteChange>(Writer(RTM_NEWROUTE, route_header(AF_INET, 16))
                                              .add(RTA_DST, "10.2.0.0")
                                              .add(RTA_PRIORITY, 50)
                                              .add(RTA_GATEWAY, "192.0.2.1")
                                              .add(RTA_OIF, 7)
                                              .bytes());
    EXPECT_FALSE(change.removed);
    EXPECT_EQ(to_string(change.route.destination), "10.2.0.0/16");
    EXPECT_EQ(change.route.table, uint32_t{RT_TABLE_MAIN});
    EXPECT_EQ(change.route.metric, 50u);
    EXPECT_EQ(change.route.ifindex, 7u);
    EXPECT_TRUE(change.route.plain);
    EXPECT_EQ(to_string(change.route.gateway.value()), "192.0.2.1");
}

TEST(RouteMessages, TableNumbersAbove255) {
    EXPECT_EQ(only<RouteChange>(
                  Writer(RTM_NEWROUTE, route_header(AF_INET, 0)).add(RTA_TABLE, 1000).bytes())
                  .route.table,
              1000u);
}

TEST(RouteMessages, ViaOfTheOtherFamily) {
    std::array<uint8_t, 18> via{AF_INET6};
    via[2] = 0xfe;
    via[3] = 0x80;
    via[17] = 1;
    const auto change = only<RouteChange>(Writer(RTM_NEWROUTE, route_header(AF_INET, 0))
                                              .add(RTA_VIA, via.data(), via.size())
                                              .add(RTA_OIF, 3)
                                              .bytes());
    EXPECT_EQ(to_string(change.route.gateway.value()), "fe80::1");
}

TEST(RouteMessages, MultipathTakesTheFirstHop) {
    const std::array<uint8_t, 32> hops = {
        16, 0, 0, 0, 5, 0, 0, 0, 8, 0, RTA_GATEWAY, 0, 192, 0, 2, 1,
        16, 0, 0, 0, 6, 0, 0, 0, 8, 0, RTA_GATEWAY, 0, 192, 0, 2, 2,
    };
    const auto change = only<RouteChange>(Writer(RTM_NEWROUTE, route_header(AF_INET, 0))
                                              .add(RTA_MULTIPATH, hops.data(), hops.size())
                                              .bytes());
    EXPECT_EQ(change.route.ifindex, 5u);
    EXPECT_EQ(change.route.hop_count, 2u);
    EXPECT_EQ(to_string(change.route.gateway.value()), "192.0.2.1");
    EXPECT_TRUE(change.route.plain);
}

TEST(RouteMessages, WhatOnlyTheKernelCanFollowIsNotPlain) {
    const auto plain = [](const Writer& writer) {
        return only<RouteChange>(writer.bytes()).route.plain;
    };
    rtmsg header = route_header(AF_INET, 0);
    EXPECT_TRUE(plain(Writer(RTM_NEWROUTE, header)));
    EXPECT_FALSE(plain(Writer(RTM_NEWROUTE, header).add(RTA_NH_ID, 1)));
    EXPECT_FALSE(plain(Writer(RTM_NEWROUTE, header).add(RTA_ENCAP, nullptr, 0)));
    header.rtm_flags = RTNH_F_DEAD;
    EXPECT_FALSE(plain(Writer(RTM_NEWROUTE, header)));
    header.rtm_flags = 0;
    header.rtm_type = RTN_BLACKHOLE;
    EXPECT_FALSE(plain(Writer(RTM_NEWROUTE, header)));
}

TEST(RouteMessages, NeighbourStates) {
    const std::array<uint8_t, 6> mac = {2, 0, 0, 0, 0, 9};
    for (unsigned state = 0; state < 256; ++state) {
        ndmsg header{};
        header.ndm_family = AF_INET;
        header.ndm_ifindex = 4;
        header.ndm_state = static_cast<uint16_t>(state);
        Writer writer(RTM_NEWNEIGH, header);
        writer.add(NDA_DST, "10.0.0.9").add(NDA_LLADDR, mac.data(), mac.size());
        const auto change = only<NeighbourChange>(writer.bytes());
        const bool usable = (state & ~unsigned{NUD_INCOMPLETE | NUD_FAILED}) != 0;
        EXPECT_EQ(change.neighbour.usable, usable) << state;
        EXPECT_EQ(change.neighbour.stale, (state & NUD_STALE) != 0) << state;
        EXPECT_EQ(change.neighbour.fixed, (state & (NUD_PERMANENT | NUD_NOARP)) != 0) << state;
        EXPECT_EQ(change.neighbour.ifindex, 4u);
        EXPECT_EQ(change.neighbour.mac == mac, usable);
    }
}

// Each of the marks by which another control plane says that an entry is its own, and no other.
TEST(RouteMessages, NeighboursOfOtherControlPlanes) {
    const auto neighbour = [](unsigned flags, std::optional<uint32_t> extended,
                              std::optional<uint8_t> protocol) {
        ndmsg header{};
        header.ndm_family = AF_INET6;
        header.ndm_state = NUD_REACHABLE;
        header.ndm_flags = static_cast<uint8_t>(flags);
        Writer writer(RTM_NEWNEIGH, header);
        writer.add(NDA_DST, "2001:db8::9");
        if (extended) writer.add(NDA_FLAGS_EXT, *extended);
        if (protocol) writer.add(NDA_PROTOCOL, &*protocol, sizeof *protocol);
        return only<NeighbourChange>(writer.bytes()).neighbour;
    };
    for (unsigned flags = 0; flags < 256; ++flags) {
        if ((flags & NTF_PROXY) != 0) continue;  // no entry of the table
        const Neighbour parsed = neighbour(flags, {}, {});
        EXPECT_EQ(parsed.foreign, (flags & NTF_EXT_LEARNED) != 0) << flags;
        EXPECT_EQ(parsed.may_be_refreshed(), !parsed.foreign) << flags;
    }
    for (unsigned bit = 0; bit < 32; ++bit) {
        EXPECT_TRUE(neighbour(0, 1u << bit, {}).foreign) << "extended flag " << bit;
    }
    EXPECT_FALSE(neighbour(0, 0, {}).foreign);
    for (unsigned protocol = 0; protocol < 256; ++protocol) {
        EXPECT_EQ(neighbour(0, {}, static_cast<uint8_t>(protocol)).foreign,
                  protocol != RTPROT_UNSPEC && protocol != RTPROT_KERNEL)
            << protocol;
    }
}

TEST(RouteMessages, NeighbourMarksOfAnotherSizeAreRefused) {
    constexpr std::array<uint8_t, 8> kZeros{};
    ndmsg header{};
    header.ndm_family = AF_INET;
    for (size_t size = 0; size <= kZeros.size(); ++size) {
        const auto accepted = [&](uint16_t type) {
            return parse_all(Writer(RTM_NEWNEIGH, header)
                                 .add(NDA_DST, "10.0.0.9")
                                 .add(type, kZeros.data(), size)
                                 .bytes())
                .has_value();
        };
        EXPECT_EQ(accepted(NDA_FLAGS_EXT), size == 4) << size;
        EXPECT_EQ(accepted(NDA_PROTOCOL), size == 1) << size;
    }
}

// Every prefix of a datagram is an error, except where it ends between two messages.
TEST(RouteMessages, EveryTruncationIsRefused) {
    const std::array<uint8_t, 16> hop = {16, 0, 0, 0, 5, 0, 0, 0, 8, 0, RTA_GATEWAY, 0, 1, 2, 3, 4};
    ndmsg neighbour{};
    neighbour.ndm_family = AF_INET6;
    ifinfomsg link{};
    link.ifi_index = 4;
    std::vector<std::byte> bytes;
    std::vector<size_t> ends = {0};
    for (const Writer& writer : {Writer(RTM_NEWROUTE, route_header(AF_INET, 24))
                                     .add(RTA_DST, "10.2.0.0")
                                     .add(RTA_PRIORITY, 50)
                                     .add(RTA_MULTIPATH, hop.data(), hop.size()),
                                 Writer(RTM_NEWNEIGH, neighbour).add(NDA_DST, "2001:db8::1"),
                                 Writer(RTM_NEWLINK, link).add(IFLA_MTU, 1500)}) {
        const auto message = writer.bytes();
        bytes.insert(bytes.end(), message.begin(), message.end());
        ends.push_back(bytes.size());
    }
    for (size_t size = 0; size <= bytes.size(); ++size) {
        const bool whole = std::ranges::find(ends, size) != ends.end();
        // A copy of exactly this size, so that a sanitizer sees any read behind it.
        const std::vector<std::byte> cut(bytes.begin(),
                                         bytes.begin() + static_cast<std::ptrdiff_t>(size));
        EXPECT_EQ(parse_all(cut).has_value(), whole) << size;
    }
    // Each length field of each attribute, too small and too large.
    EXPECT_FALSE(parse_all(
        Writer(RTM_NEWROUTE, route_header(AF_INET, 24)).add(RTA_DST, "2001:db8::").bytes()));
    EXPECT_FALSE(parse_all(Writer(RTM_NEWROUTE, route_header(AF_INET, 33)).bytes()));
    EXPECT_FALSE(parse_all(
        Writer(RTM_NEWROUTE, route_header(AF_INET, 0)).add(RTA_OIF, &neighbour, 3).bytes()));
    // (8: two next hops without attributes, which is well formed.)
    for (uint8_t length = 0; length < 40; ++length) {
        std::array<uint8_t, 16> broken = hop;
        broken[0] = length;
        EXPECT_EQ(parse_all(Writer(RTM_NEWROUTE, route_header(AF_INET, 0))
                                .add(RTA_MULTIPATH, broken.data(), broken.size())
                                .bytes())
                      .has_value(),
                  length == 16 || length == 8)
            << int{length};
    }
}

// ---- what the mirror decides --------------------------------------------------------------------

// A gateway's entry in any condition: asked for when it is the kernel's own or not there, used when
// the kernel says it is valid, whoever owns it.
TEST(RouteMirror, WhoIsAskedForAndWhoIsUsed) {
    const IpAddress gateway = parse_ip_address("10.1.0.9").value();
    for (unsigned bits = 0; bits < 32; ++bits) {
        Neighbour neighbour{.ifindex = 7, .address = gateway, .mac = {2, 0, 0, 0, 0, 9}};
        neighbour.usable = (bits & 1) != 0;
        neighbour.stale = (bits & 2) != 0 && neighbour.usable;
        neighbour.fixed = (bits & 4) != 0;
        neighbour.foreign = (bits & 8) != 0;
        const bool removed = (bits & 16) != 0;
        SCOPED_TRACE(bits);

        RouteMirror mirror({7});
        const auto load = [&mirror](const Message& message) { mirror.load(message); };
        const auto apply = [&mirror](const Message& message) { return mirror.apply(message); };
        for (const uint32_t table : {uint32_t{RT_TABLE_LOCAL}, uint32_t{RT_TABLE_MAIN}}) {
            load(RuleChange{.rule = {.ordinary = true, .table = table}});
        }
        load(LinkChange{.link = {.ifindex = 7, .running = true, .mtu = 1500}});
        for (const auto& [destination, via] : {std::pair{"10.1.0.0/24", std::optional<IpAddress>()},
                                               std::pair{"10.2.0.0/16", std::optional(gateway)}}) {
            load(RouteChange{.route = {.table = RT_TABLE_MAIN,
                                       .destination = parse_ip_prefix(destination).value(),
                                       .plain = true,
                                       .ifindex = 7,
                                       .gateway = via}});
        }
        const auto resolved = [&mirror](const char* text) {
            const IpAddress address = parse_ip_address(text).value();
            const auto snapshot = mirror.build({});
            const NextHop* hop = snapshot->lookup(
                address.family, reinterpret_cast<const std::byte*>(address.bytes.data()));
            return hop != nullptr && hop->resolved;
        };

        EXPECT_EQ(apply(NeighbourChange{.neighbour = neighbour}),
                  neighbour.usable ? Effect::changed : Effect::none);
        EXPECT_EQ(apply(NeighbourChange{.neighbour = neighbour}), Effect::none);
        if (removed) {
            EXPECT_EQ(apply(NeighbourChange{.removed = true, .neighbour = neighbour}),
                      neighbour.usable ? Effect::changed : Effect::none);
        }
        const std::vector<Neighbour> known(removed ? 0 : 1, neighbour);
        std::optional<NeighbourName> asked_last;
        const bool own = !neighbour.fixed && !neighbour.foreign;
        EXPECT_EQ(to_ask(known, {}, 9, asked_last).size(),
                  !removed && neighbour.stale && own ? 1u : 0u);
        EXPECT_EQ(to_ask(known, {{7, gateway}}, 9, asked_last).size(),
                  removed || (own && (neighbour.stale || !neighbour.usable)) ? 1u : 0u);
        EXPECT_EQ(to_ask(known, {{8, gateway}}, 9, asked_last).size(),
                  !removed && neighbour.stale && own ? 2u : 1u);
        EXPECT_EQ(resolved("10.2.3.4"), neighbour.usable && !removed);
        EXPECT_EQ(resolved("10.1.0.9"), neighbour.usable && !removed);

        // From usable to not, and back.
        if (removed) continue;
        Neighbour other = neighbour;
        other.usable = !neighbour.usable;
        other.stale = false;
        EXPECT_EQ(apply(NeighbourChange{.neighbour = other}), Effect::changed);
        EXPECT_EQ(resolved("10.2.3.4"), other.usable);
    }
}

// ---- the mirror against a real kernel -----------------------------------------------------------

class RouteMirrorTest : public test::NamespaceTest {
  protected:
    RouteMirrorTest() { no_ipv6_ = false; }

    void SetUp() override {
        NamespaceTest::SetUp();
        if (IsSkipped()) return;
        // Link-local addresses that appear a second later would only blur what we look at.
        test::write_file("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1");
        test::write_file("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
        test::make_veth(1);
        run("ip link add vc type veth peer name vd");  // no port of ours
        run("ip link set vc up; ip link set vd up");
        run("ip addr add 10.1.0.1/24 dev va");
        run("ip addr add 2001:db8:1::1/64 dev va nodad");
        run(test::until_own_address6("2001:db8:1::1"));
        run("ip addr add 10.3.0.1/24 dev vc");
        mirror_.emplace(std::vector<uint32_t>{0xffff, if_nametoindex("va")});
        auto socket = RouteSocket::open();
        ASSERT_TRUE(socket) << socket.error();
        socket_.emplace(std::move(*socket));
        auto neighbours = NeighbourSocket::open();
        ASSERT_TRUE(neighbours) << neighbours.error();
        neighbours_.emplace(std::move(*neighbours));
        dump();
    }
    void dump() {
        const auto dumped = socket_->dump(*mirror_);
        ASSERT_TRUE(dumped) << dumped.error();
    }
    // What the keeper of neighbours does in one look, with these far ends of tunnels.
    std::vector<NeighbourName> to_ask_for(const std::vector<std::string>& far_ends) {
        const uint32_t va = if_nametoindex("va");
        std::set<NeighbourName> needed;
        for (const std::string& text : far_ends) {
            const auto hop = neighbours_->next_hop(parse_ip_address(text).value());
            EXPECT_TRUE(hop) << hop.error();
            if (hop && *hop && (*hop)->ifindex == va) needed.insert(**hop);
        }
        const auto known = neighbours_->dump(std::array{va});
        EXPECT_TRUE(known) << known.error();
        std::optional<NeighbourName> asked_last;
        return to_ask(known.value_or(std::vector<Neighbour>{}), needed, 1000, asked_last);
    }
    // Notifications are queued before the command that causes them returns.
    Effect update() {
        const auto effect = socket_->receive(*mirror_);
        EXPECT_TRUE(effect) << effect.error();
        if (effect.value_or(Effect::none) == Effect::resync) dump();
        return effect.value_or(Effect::none);
    }
    // "kernel", "unresolved" or the MAC's last byte.
    std::string way(const char* destination) {
        const auto snapshot = mirror_->build({});
        const IpAddress address = parse_ip_address(destination).value();
        const NextHop* hop = snapshot->lookup(
            address.family, reinterpret_cast<const std::byte*>(address.bytes.data()));
        if (hop == nullptr) return "kernel";
        EXPECT_EQ(hop->port, PortId{1});
        EXPECT_EQ(hop->source_mac, (std::array<uint8_t, 6>{2, 0, 0, 0, 0, 0x0a}));
        if (!hop->resolved) return "unresolved";
        return std::to_string(hop->destination_mac[5]) + " mtu " + std::to_string(hop->mtu);
    }
    std::optional<RouteMirror> mirror_;
    std::optional<RouteSocket> socket_;
    std::optional<NeighbourSocket> neighbours_;
};

// Next hops that never answer leave the others their turn, and have one each.
TEST(RouteNeighbours, WhatDoesNotAnswerHasHalf) {
    std::set<NeighbourName> dead;
    std::vector<Neighbour> known;
    const auto address = [](const std::string& net, unsigned host) {
        return parse_ip_address(net + std::to_string(host)).value();
    };
    for (unsigned i = 1; i <= 50; ++i) {
        dead.insert({7, address("10.9.0.", i)});
        known.push_back(
            {.ifindex = 7, .address = address("10.1.0.", i), .usable = true, .stale = true});
    }
    std::optional<NeighbourName> asked_last;
    std::set<NeighbourName> asked_for;
    for (int look = 0; look < 10; ++look) {
        const auto names = to_ask(known, dead, 10, asked_last);
        ASSERT_EQ(names.size(), 10u);
        EXPECT_EQ(std::ranges::count_if(names, [&](const auto& n) { return dead.contains(n); }), 5);
        asked_for.insert(names.begin(), names.begin() + 5);
    }
    EXPECT_EQ(asked_for, dead);
    // Where there are few stale ones, the rest is theirs.
    known.resize(2);
    const auto names = to_ask(known, dead, 10, asked_last);
    EXPECT_EQ(std::ranges::count_if(names, [&](const auto& n) { return dead.contains(n); }), 8);
    EXPECT_EQ(to_ask({}, {}, 10, asked_last).size(), 0u);
}

TEST_F(RouteMirrorTest, LocalAddressesAreTheKernels) {
    EXPECT_EQ(way("10.1.0.1"), "kernel");
    EXPECT_EQ(way("10.1.0.255"), "kernel");
    EXPECT_EQ(way("127.0.0.1"), "kernel");
    EXPECT_EQ(way("224.0.0.5"), "kernel");
    EXPECT_EQ(way("255.255.255.255"), "kernel");
    EXPECT_EQ(way("2001:db8:1::1"), "kernel");
    EXPECT_EQ(way("ff02::1"), "kernel");
    EXPECT_EQ(way("fe80::1"), "kernel");
    EXPECT_EQ(way("192.0.2.1"), "kernel") << "no route";
    EXPECT_EQ(way("10.3.0.9"), "kernel") << "not through a port";
    EXPECT_EQ(way("10.1.0.9"), "unresolved");
    EXPECT_EQ(way("2001:db8:1::9"), "unresolved");
}

TEST_F(RouteMirrorTest, NeighboursComeAndGo) {
    run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev va");
    run("ip neigh add 2001:db8:1::9 lladdr 02:00:00:00:00:19 dev va");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.1.0.9"), "9 mtu 1500");
    EXPECT_EQ(way("10.1.0.8"), "unresolved");
    EXPECT_EQ(way("2001:db8:1::9"), "25 mtu 1500");
    EXPECT_EQ(update(), Effect::none);

    run("ip neigh change 10.1.0.9 lladdr 02:00:00:00:00:0c nud stale dev va");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.1.0.9"), "12 mtu 1500");
    // Back and forth between usable states changes no snapshot.
    run("ip neigh change 10.1.0.9 lladdr 02:00:00:00:00:0c nud permanent dev va");
    EXPECT_EQ(update(), Effect::none);
    run("ip neigh change 10.1.0.9 nud failed dev va");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.1.0.9"), "unresolved");
}

TEST_F(RouteMirrorTest, GatewayRoutesFollowTheKernel) {
    run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev va");
    run("ip neigh add 10.1.0.10 lladdr 02:00:00:00:00:0a dev va");
    run("ip route add 10.2.0.0/16 via 10.1.0.9 metric 10");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.2.3.4"), "9 mtu 1500");
    run("ip route add 10.2.0.0/16 via 10.1.0.10 metric 5");  // lower metric wins
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.2.3.4"), "10 mtu 1500");
    run("ip route replace 10.2.0.0/16 via 10.1.0.9 metric 5 mtu 1400");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.2.3.4"), "9 mtu 1400");
    run("ip route del 10.2.0.0/16 metric 5");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.2.3.4"), "9 mtu 1500");
    run("ip route add 10.2.3.0/24 via 10.1.0.77");  // longer prefix, neighbour unknown
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.2.3.4"), "unresolved");
    EXPECT_EQ(way("10.2.4.4"), "9 mtu 1500");
    run("ip route add blackhole 10.2.3.4/32");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.2.3.4"), "kernel");

    run("ip neigh add 2001:db8:1::9 lladdr 02:00:00:00:00:19 dev va");
    run("ip -6 route add default via 2001:db8:1::9 dev va");
    run("ip -6 route add 2001:db8:5::/48 dev vc");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("2001:db8:2::1"), "25 mtu 1500");
    EXPECT_EQ(way("2001:db8:5::1"), "kernel");
    run("ip -4 route add default via inet6 2001:db8:1::9 dev va");  // IPv4 through an IPv6 gateway
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("198.51.100.1"), "25 mtu 1500");
}

// After any sequence of changes the mirror says what one that was just read says.
TEST_F(RouteMirrorTest, SeveralRoutesAndHopsOfOnePrefix) {
    run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev va");
    run("ip neigh add 10.1.0.10 lladdr 02:00:00:00:00:0a dev va");
    run("ip neigh add 2001:db8:1::9 lladdr 02:00:00:00:00:19 dev va");
    run("ip neigh add 2001:db8:1::a lladdr 02:00:00:00:00:1a dev va");
    const std::array commands = {
        "ip route add 10.2.0.0/16 via 10.1.0.9",
        "ip route append 10.2.0.0/16 via 10.1.0.10",
        "ip route prepend 10.2.0.0/16 dev vc",
        "ip route del 10.2.0.0/16 dev vc",
        "ip route del 10.2.0.0/16 via 10.1.0.9",
        "ip route replace 10.2.0.0/16 nexthop via 10.1.0.9 nexthop via 10.1.0.10",
        "ip route del 10.2.0.0/16",
        "ip -6 route add 2001:db8:2::/48 via 2001:db8:1::9",
        "ip -6 route append 2001:db8:2::/48 via 2001:db8:1::a",
        "ip -6 route del 2001:db8:2::/48 via 2001:db8:1::9",
        "ip -6 route replace 2001:db8:2::/48 via 2001:db8:1::9 metric 1024",
        "ip route add 10.2.0.0/16 tos 0x10 via 10.1.0.9",
        "ip route add 10.2.0.0/16 via 10.1.0.10",
        "ip route del 10.2.0.0/16 tos 0x10",
    };
    for (const char* command : commands) {
        SCOPED_TRACE(command);
        run(command);
        EXPECT_NE(update(), Effect::none);
        const std::string followed = way("10.2.3.4") + ", " + way("2001:db8:2::1");
        dump();
        EXPECT_EQ(followed, way("10.2.3.4") + ", " + way("2001:db8:2::1"));
    }
    EXPECT_EQ(way("10.2.3.4"), "10 mtu 1500");
    EXPECT_EQ(way("2001:db8:2::1"), "25 mtu 1500");
}

TEST_F(RouteMirrorTest, UnsupportedRoutesAreTheKernels) {
    run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev va");
    run("ip route add default via 10.1.0.9");
    run("ip route add 10.2.0.0/16 tos 0x10 via 10.1.0.9");
    run("ip route add 10.2.0.0/16 via 10.1.0.9");
    run("ip nexthop add id 1 via 10.1.0.9 dev va");
    run("ip route add 10.4.0.0/16 nhid 1");
    run("ip route add local 10.5.0.0/16 dev lo");
    run("ip route add 10.5.1.0/24 via 10.1.0.9");
    update();
    EXPECT_EQ(way("198.51.100.1"), "9 mtu 1500");
    EXPECT_EQ(way("10.2.0.1"), "kernel") << "depends on TOS";
    EXPECT_EQ(way("10.4.0.1"), "kernel") << "a nexthop object";
    EXPECT_EQ(way("10.5.2.1"), "kernel") << "local prefix";
    EXPECT_EQ(way("10.5.1.1"), "kernel") << "longer in main, but local is asked first";
}

TEST_F(RouteMirrorTest, PolicyRoutingIsTheKernels) {
    run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev va");
    run("ip route add default via 10.1.0.9");
    update();
    EXPECT_EQ(way("198.51.100.1"), "9 mtu 1500");
    run("ip rule add fwmark 1 table 100");
    EXPECT_EQ(update(), Effect::resync);
    EXPECT_EQ(way("198.51.100.1"), "kernel");
    EXPECT_EQ(way("2001:db8:1::9"), "unresolved") << "the other family is as it was";
    run("ip rule del fwmark 1");
    EXPECT_EQ(update(), Effect::resync);
    EXPECT_EQ(way("198.51.100.1"), "9 mtu 1500");
    run("ip rule add iif lo table 100");  // what this host sends itself: nothing of a worker's
    EXPECT_EQ(update(), Effect::none);
    EXPECT_EQ(way("198.51.100.1"), "9 mtu 1500");
    run("ip rule add not iif lo table 100");
    EXPECT_EQ(update(), Effect::resync);
    EXPECT_EQ(way("198.51.100.1"), "kernel");
}

// IPv4 routes vanish with their link without a word each.
TEST_F(RouteMirrorTest, LinkAndAddressChanges) {
    run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev va");
    run("ip route add 10.2.0.0/16 via 10.1.0.9");
    update();
    EXPECT_EQ(way("10.2.3.4"), "9 mtu 1500");
    run("ip link set va mtu 1400");
    EXPECT_EQ(update(), Effect::changed);
    EXPECT_EQ(way("10.2.3.4"), "9 mtu 1400");
    run("ip link set va down");
    EXPECT_EQ(update(), Effect::resync);
    EXPECT_EQ(way("10.2.3.4"), "kernel");
    run("ip link set va up");
    run("ip neigh replace 10.1.0.9 lladdr 02:00:00:00:00:09 dev va");
    run("ip route add 10.2.0.0/16 via 10.1.0.9");
    update();
    EXPECT_EQ(way("10.2.3.4"), "9 mtu 1400");
    run("ip addr del 10.1.0.1/24 dev va");
    EXPECT_EQ(update(), Effect::resync);
    EXPECT_EQ(way("10.2.3.4"), "kernel");
}

TEST_F(RouteMirrorTest, LostNotificationsAskForAResync) {
    // Far more than the socket holds.
    const int small = 4096;
    setsockopt(socket_->fd(), SOL_SOCKET, SO_RCVBUFFORCE, &small, sizeof small);
    run("for i in $(seq 1 60); do echo route add 10.77.$i.0/24 dev va; done | ip -batch -");
    EXPECT_EQ(update(), Effect::resync);
    EXPECT_EQ(way("10.77.60.1"), "unresolved");
    EXPECT_EQ(update(), Effect::none);
}

// The way to an address as the kernel knows it: by a gateway of either family, on the link, or
// none.
TEST_F(RouteMirrorTest, NextHopsOfFarEnds) {
    const auto hop = [&](const char* text) -> std::string {
        const auto found = neighbours_->next_hop(parse_ip_address(text).value());
        if (!found) return found.error();
        return *found ? to_string((*found)->address) + " " + std::to_string((*found)->ifindex)
                      : "none";
    };
    const std::string va = " " + std::to_string(if_nametoindex("va"));
    const std::string vc = " " + std::to_string(if_nametoindex("vc"));
    run("ip route add 10.2.0.0/16 via 10.1.0.20");
    run("ip route add 10.4.0.0/16 via inet6 fe80::9 dev va");
    run("ip route add 10.5.0.0/16 dev va");
    run("ip route add blackhole 10.6.0.0/16");
    run("ip route add unreachable 10.7.0.0/16");
    run("ip nexthop add id 5 via 10.1.0.21 dev va; ip route add 10.8.0.0/16 nhid 5");
    run("ip route add 2001:db8:2::/48 via 2001:db8:1::20");
    run("ip route add 2001:db8:3::/48 via fe80::7 dev va");
    EXPECT_EQ(hop("10.1.0.9"), "10.1.0.9" + va);
    EXPECT_EQ(hop("10.2.3.4"), "10.1.0.20" + va);
    EXPECT_EQ(hop("10.3.0.9"), "10.3.0.9" + vc);
    EXPECT_EQ(hop("10.4.0.9"), "fe80::9" + va);
    EXPECT_EQ(hop("10.5.0.9"), "10.5.0.9" + va);
    EXPECT_EQ(hop("10.6.0.9"), "none");
    EXPECT_EQ(hop("10.7.0.9"), "none");
    EXPECT_EQ(hop("10.8.0.9"), "10.1.0.21" + va);
    EXPECT_EQ(hop("10.1.0.1"), "none") << "this host";
    EXPECT_EQ(hop("198.51.100.1"), "none") << "no route";
    EXPECT_EQ(hop("2001:db8:1::9"), "2001:db8:1::9" + va);
    EXPECT_EQ(hop("2001:db8:2::9"), "2001:db8:1::20" + va);
    EXPECT_EQ(hop("2001:db8:3::9"), "fe80::7" + va);
    EXPECT_EQ(hop("2001:db8:9::9"), "none");

    run("ip route replace 10.2.0.0/16 via 10.1.0.22");
    EXPECT_EQ(hop("10.2.3.4"), "10.1.0.22" + va);
}

// The kernel asks a stale neighbour, and a next hop that it does not know or has given up.
TEST_F(RouteMirrorTest, WhatIsAskedForTheKernelAsks) {
    run("ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 nud stale dev va");
    run("ip neigh add 10.1.0.10 lladdr 02:00:00:00:00:0a nud stale dev vc");
    run("ip neigh add 10.1.0.11 lladdr 02:00:00:00:00:0b nud stale dev va");
    run("ip neigh change 10.1.0.11 nud failed dev va");
    run("ip route add 10.2.0.0/16 via 10.1.0.20");
    run("ip route add 2001:db8:2::/48 via 2001:db8:1::20");
    const auto names = to_ask_for({"10.2.0.1", "10.2.0.2", "10.1.0.11", "2001:db8:2::1"});
    ASSERT_EQ(names.size(), 4u);
    const auto asked = neighbours_->ask(names);
    ASSERT_TRUE(asked) << asked.error();
    // What nobody answers has failed by the time that a busy machine looks.
    run("ip neigh show 10.1.0.9 dev va | grep -Eq 'DELAY|PROBE|FAILED'");
    run("ip neigh show 10.1.0.11 dev va | grep -q INCOMPLETE");
    run("ip neigh show 10.1.0.20 dev va | grep -Eq 'INCOMPLETE|FAILED'");
    run("ip neigh show 2001:db8:1::20 dev va | grep -Eq 'INCOMPLETE|FAILED'");
    run("ip neigh show 10.1.0.10 dev vc | grep -q STALE");  // no port of ours
}

// NTF_USE would make a permanent entry one that ages: static entries are the operator's.
TEST_F(RouteMirrorTest, RefreshLeavesStaticNeighboursAlone) {
    struct Row {
        const char* gateway;
        const char* state;
        const char* destination;
    };
    constexpr std::array kFixed = {Row{"10.1.0.9", "permanent", "10.2.0.0/16"},
                                   Row{"10.1.0.10", "noarp", "10.3.0.0/16"},
                                   Row{"2001:db8:1::9", "permanent", "2001:db8:2::/48"},
                                   Row{"2001:db8:1::a", "noarp", "2001:db8:3::/48"}};
    constexpr std::array kAsked = {Row{"10.1.0.11", "stale", "10.4.0.0/16"},
                                   Row{"10.1.0.12", "reachable", "10.5.0.0/16"},
                                   Row{"2001:db8:1::b", "stale", "2001:db8:4::/48"},
                                   Row{"2001:db8:1::c", "reachable", "2001:db8:5::/48"}};
    const auto add = [](const Row& row) {
        run(std::string("ip neigh add ") + row.gateway + " lladdr 02:00:00:00:00:09 dev va nud " +
            row.state);
        run(std::string("ip route add ") + row.destination + " via " + row.gateway + " dev va");
    };
    std::ranges::for_each(kFixed, add);
    std::ranges::for_each(kAsked, add);
    update();

    const std::vector<std::string> far_ends = {"10.2.0.1",      "10.3.9.1",      "10.4.0.1",
                                               "10.5.0.1",      "2001:db8:2::1", "2001:db8:3::1",
                                               "2001:db8:4::1", "2001:db8:5::1"};
    std::vector<std::string> names;
    for (const NeighbourName& name : to_ask_for(far_ends)) names.push_back(to_string(name.address));
    std::ranges::sort(names);
    EXPECT_EQ(names, (std::vector<std::string>{"10.1.0.11", "2001:db8:1::b"}));
    ASSERT_TRUE(neighbours_->ask(to_ask_for(far_ends)));
    const auto show = [](const char* address, const char* states) {
        run(std::string("ip neigh show ") + address + " dev va nud all | grep -Eq '" + states +
            "'");
    };
    for (const char* address : {"10.1.0.9", "2001:db8:1::9"}) show(address, "PERMANENT");
    for (const char* address : {"10.1.0.10", "2001:db8:1::a"}) show(address, "NOARP");
    for (const char* address : {"10.1.0.11", "2001:db8:1::b"}) show(address, "DELAY|PROBE");

    // One that the operator makes static later is left alone from then on.
    run("ip neigh change 10.1.0.12 lladdr 02:00:00:00:00:09 nud permanent dev va");
    ASSERT_TRUE(neighbours_->ask(to_ask_for(far_ends)));
    show("10.1.0.12", "PERMANENT");
    // So is one that he makes static between the look and the request.
    run("ip neigh change 10.1.0.12 lladdr 02:00:00:00:00:09 nud stale dev va");
    const auto seen_stale = to_ask_for(far_ends);
    ASSERT_TRUE(std::ranges::any_of(seen_stale, [](const NeighbourName& name) {
        return to_string(name.address) == "10.1.0.12";
    }));
    run("ip neigh change 10.1.0.12 lladdr 02:00:00:00:00:09 nud permanent dev va");
    ASSERT_TRUE(neighbours_->ask(seen_stale));
    show("10.1.0.12", "PERMANENT");
}

// What another control plane wrote is as it wrote it, however often neighbours are refreshed, and
// is used meanwhile. What is the kernel's own keeps all but its state.
TEST_F(RouteMirrorTest, RefreshLeavesForeignNeighboursAlone) {
    // Nothing changes by its age, however slow this machine is.
    for (const std::string family : {"ipv4", "ipv6"}) {
        const std::string va = "/proc/sys/net/" + family + "/neigh/va/";
        test::write_file(va + "base_reachable_time_ms", "3600000");
        test::write_file(va + "delay_first_probe_time", "3600");
    }
    struct Row {
        std::string gateway;
        std::string text;  // behind the address: state, flags, protocol
        std::string then;  // what a second command says
    };
    const std::vector<Row> foreign = {
        {"10.1.0.20", "lladdr 02:00:00:00:00:09 nud reachable extern_learn"},
        {"10.1.0.21", "lladdr 02:00:00:00:00:09 nud stale extern_learn"},
        {"10.1.0.22", "nud none extern_learn"},
        {"10.1.0.23", "lladdr 02:00:00:00:00:09 nud stale extern_learn protocol zebra"},
        {"10.1.0.24", "lladdr 02:00:00:00:00:09 nud stale protocol zebra"},
        {"10.1.0.25", "lladdr 02:00:00:00:00:09 nud reachable protocol 42"},
        {"10.1.0.26", "lladdr 02:00:00:00:00:09 nud permanent extern_learn"},
        {"2001:db8:1::20", "lladdr 02:00:00:00:00:09 nud reachable extern_learn"},
        {"2001:db8:1::21", "lladdr 02:00:00:00:00:09 nud stale extern_learn"},
        {"2001:db8:1::22", "lladdr 02:00:00:00:00:09 nud reachable router extern_learn"},
        {"2001:db8:1::23", "lladdr 02:00:00:00:00:09 nud stale router extern_learn"},
        {"2001:db8:1::24", "lladdr 02:00:00:00:00:09 nud stale router protocol bird"},
    };
    // The kernel asks for these on its own account, so only their state may change.
    const std::vector<Row> managed = {
        {"10.1.0.30", "managed"},
        {"10.1.0.31", "managed extern_learn"},
        {"10.1.0.32", "lladdr 02:00:00:00:00:09 nud reachable", "managed"},
        {"10.1.0.33", "lladdr 02:00:00:00:00:09 nud stale", "managed extern_learn"},
        {"2001:db8:1::30", "managed"},
        {"2001:db8:1::31", "lladdr 02:00:00:00:00:09 nud reachable", "managed"},
        {"2001:db8:1::32", "lladdr 02:00:00:00:00:09 nud stale router", "managed extern_learn"},
    };
    const std::vector<Row> own = {
        {"10.1.0.40", "lladdr 02:00:00:00:00:09 nud stale"},
        {"10.1.0.41", "lladdr 02:00:00:00:00:09 nud stale router"},
        {"10.1.0.42", "lladdr 02:00:00:00:00:09 nud stale protocol kernel"},
        {"2001:db8:1::40", "lladdr 02:00:00:00:00:09 nud stale"},
        {"2001:db8:1::41", "lladdr 02:00:00:00:00:09 nud stale router"},
    };
    int next = 0;
    std::map<std::string, std::string> destinations;
    const auto add_route = [&](const std::string& gateway) {
        const std::string number = std::to_string(++next);
        destinations[gateway] = (gateway.contains(':') ? "2001:db8:f::" : "10.9.0.") + number;
        run("ip route add " + destinations[gateway] + " via " + gateway + " dev va");
    };
    const auto add = [&](const Row& row) {
        run("ip neigh replace " + row.gateway + " dev va " + row.text);
        if (!row.then.empty()) run("ip neigh replace " + row.gateway + " dev va " + row.then);
    };
    // Everything the kernel holds of an entry except ages; without its state where that may change.
    const auto raw = [](const std::string& gateway, bool with_state) {
        auto requests = netlink::Socket::open(netlink::Protocol::route).value();
        netlink::Writer writer(RTM_GETNEIGH, NLM_F_ACK, requests.next_sequence());
        const IpAddress address = parse_ip_address(gateway).value();
        ndmsg body{};
        body.ndm_family = address.family == Family::v4 ? AF_INET : AF_INET6;
        body.ndm_ifindex = static_cast<int>(if_nametoindex("va"));
        writer.put(body);
        writer.bytes(NDA_DST,
                     std::as_bytes(std::span(address.bytes)).first(address.bit_count() / 8));
        std::string text;
        const auto asked = requests.exchange(writer.take(), [&](const netlink::Message& each) {
            ndmsg header{};
            netlink::Attributes attributes;
            uint32_t extended = 0;
            uint8_t protocol = 0;
            ASSERT_TRUE(netlink::read(each.payload, header));
            ASSERT_TRUE(attributes.parse(netlink::behind<ndmsg>(each.payload)));
            ASSERT_TRUE(attributes.exact(NDA_FLAGS_EXT, extended));
            ASSERT_TRUE(attributes.exact(NDA_PROTOCOL, protocol));
            text = "flags " + std::to_string(header.ndm_flags) + " extended " +
                   std::to_string(extended) + " protocol " + std::to_string(protocol);
            if (!with_state) return;
            text += " state " + std::to_string(header.ndm_state) + " MAC";
            for (const std::byte byte : attributes.value(NDA_LLADDR)) {
                text += " " + std::to_string(std::to_integer<int>(byte));
            }
        });
        return asked ? text : asked.error().text;
    };
    for (const auto* rows : {&foreign, &managed, &own}) {
        for (const Row& row : *rows) add_route(row.gateway);
    }
    add_route("10.1.0.50");
    add_route("2001:db8:1::50");
    for (const auto* rows : {&foreign, &managed, &own}) std::ranges::for_each(*rows, add);
    update();

    std::map<std::string, std::string> before;
    for (const Row& row : foreign) before[row.gateway] = raw(row.gateway, true);
    for (const Row& row : managed) before[row.gateway] = raw(row.gateway, false);
    for (const Row& row : own) before[row.gateway] = raw(row.gateway, false);
    EXPECT_EQ(before["10.1.0.21"], "flags 16 extended 0 protocol 0 state 4 MAC 2 0 0 0 0 9");
    EXPECT_EQ(before["10.1.0.24"], "flags 0 extended 0 protocol 11 state 4 MAC 2 0 0 0 0 9");
    EXPECT_EQ(before["2001:db8:1::23"], "flags 144 extended 0 protocol 0 state 4 MAC 2 0 0 0 0 9");
    EXPECT_EQ(before["2001:db8:1::32"], "flags 144 extended 1 protocol 0");

    std::vector<std::string> far_ends;
    for (const auto& [gateway, destination] : destinations) far_ends.push_back(destination);
    // What was decided may be out of date when it is done: these get their owner in between.
    std::vector<NeighbourName> names = to_ask_for(far_ends);
    const std::vector<std::string> late = {"10.1.0.50", "2001:db8:1::50"};
    const auto asks = [&](const std::string& gateway) {
        return std::ranges::any_of(
            names, [&](const NeighbourName& name) { return to_string(name.address) == gateway; });
    };
    for (const std::string& gateway : late) {
        EXPECT_TRUE(asks(gateway)) << gateway;
        add({gateway, "lladdr 02:00:00:00:00:09 nud stale extern_learn"});
        before[gateway] = raw(gateway, true);
    }
    EXPECT_EQ(names.size(), own.size() + late.size());
    const auto compare = [&] {
        for (const auto& [gateway, text] : before) {
            EXPECT_EQ(raw(gateway, text.contains("state")), text) << gateway;
        }
    };
    for (int round = 0; round < 3; ++round) {
        const auto asked = neighbours_->ask(names);
        ASSERT_TRUE(asked) << asked.error();
        compare();
        names = to_ask_for(far_ends);
        EXPECT_TRUE(names.empty()) << names.size();
    }
    update();
    for (const Row& row : own) {
        run("ip neigh show " + row.gateway + " dev va nud all | grep -Eq 'DELAY|PROBE'");
    }
    const auto use = [&](const Row& row) {
        EXPECT_EQ(way(destinations[row.gateway].c_str()),
                  row.text.contains("lladdr") ? "9 mtu 1500" : "unresolved")
            << row.gateway;
    };
    std::ranges::for_each(foreign, use);

    // The same from a dump instead of notifications, which misses none.
    dump();
    std::ranges::for_each(foreign, use);
}

}  // namespace
}  // namespace sallyport::route
