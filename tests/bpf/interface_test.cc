// SPDX-License-Identifier: Apache-2.0
// Ways out of the xfrm interface's programs that need no xfrm interface; those that do are in
// tests/vm/cases/connections.py.

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "tests/bpf/packet_rig.h"

namespace sallyport::packet {
namespace {

constexpr const char* kSource4 = "10.0.0.10";
constexpr const char* kSource6 = "fd00::10";

// Policy 1 names a connection, the others do not.
std::vector<SpdEntry> entries() {
    const SpdEntry by_port =
        to_port(entry(1, SpdAction::protect, "10.0.0.0/24", "10.5.0.0/24", 6), 443);
    return {
        entry(1, SpdAction::protect, "10.0.0.0/24", "10.1.0.0/24"),
        entry(1, SpdAction::protect, "fd00::/16", "fd01::/16"),
        entry(2, SpdAction::protect, "10.0.0.0/24", "10.2.0.0/24"),
        entry(3, SpdAction::bypass, "10.0.0.0/24", "10.3.0.0/24"),
        entry(4, SpdAction::discard, "fd00::/16", "fd04::/16"),
        by_port,
    };
}

class InterfacePrograms : public ::testing::Test {
  protected:
    void SetUp() override { rig.publish(entries(), entries(), {}, {0, 7, 0, 0, 0}); }

    static Outcome refused_out(size_t bytes, sp_drop_reason reason) {
        Outcome outcome = egress_dropped(SP_PORT_INTERFACE, bytes, reason);
        outcome.action = TC_ACT_SHOT;
        return outcome;
    }
    void check_out(const Instance& program, const char* name, const Bytes& packet,
                   sp_drop_reason reason) {
        rig.check(program, {name, packet, refused_out(packet.size(), reason)});
    }
    Rig& rig = Rig::get();
};

TEST_F(InterfacePrograms, what_names_no_connection_does_not_leave) {
    const Instance out = rig.load(Program::interface_out, SP_PORT_INTERFACE, {});
    const auto v4 = [](const char* destination, const Upper& upper) {
        return eth(ip4({.src = kSource4, .dst = destination}, upper));
    };
    const auto v6 = [](const char* destination, const Upper& upper) {
        return eth(ip6({.src = kSource6, .dst = destination}, upper));
    };
    // Loaded without use_kfunc, the program cannot name the connection; else these two would pass.
    check_out(out, "connection", v4("10.1.0.9", tcp({})), SP_DROP_no_connection);
    check_out(out, "connection, v6", v6("fd01::9", udp({})), SP_DROP_no_connection);
    check_out(out, "policy without", v4("10.2.0.9", tcp({})), SP_DROP_no_connection);
    check_out(out, "BYPASS", v4("10.3.0.9", tcp({})), SP_DROP_bypass_in_tunnel);
    check_out(out, "DISCARD", v6("fd04::9", tcp({})), SP_DROP_policy_discard);
    check_out(out, "no policy", v4("10.4.0.9", tcp({})), SP_DROP_no_policy);
    check_out(out, "no policy, v6", v6("fd09::9", icmp()), SP_DROP_no_policy);
    check_out(out, "multicast", v4("224.0.0.22", udp({})), SP_DROP_kernel_multicast);
    check_out(out, "multicast, v6", v6("ff02::16", hop_by_hop(udp({}))), SP_DROP_kernel_multicast);
    check_out(out, "port", v4("10.5.0.9", tcp({.dst = 443})), SP_DROP_no_connection);
    check_out(out, "other port", v4("10.5.0.9", tcp({.dst = 80})), SP_DROP_no_policy);
    check_out(out, "later fragment",
              eth(ip4({.src = kSource4, .dst = "10.5.0.9", .offset = 3}, raw(6, Bytes(24)))),
              SP_DROP_fragment_without_ports);
    check_out(out, "port behind extension headers",
              v6("fd01::9", hop_by_hop(destination_options(tcp({.dst = 443})))),
              SP_DROP_no_connection);
}

TEST_F(InterfacePrograms, malformed_packets_have_their_reason) {
    const Instance out = rig.load(Program::interface_out, SP_PORT_INTERFACE, {});
    const Bytes good = eth(ip4({.src = kSource4, .dst = "10.1.0.9"}, tcp({})));
    for (size_t bytes = 14 + 20; bytes < 14 + 24; ++bytes) {
        const Bytes cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(bytes));
        check_out(out, "cut", cut, SP_DROP_truncated);
    }
    Bytes version = good;
    version[14] = 0x65;
    check_out(out, "version", version, SP_DROP_malformed_ip);
    Bytes short_header = good;
    short_header[14] = 0x44;
    check_out(out, "header length", short_header, SP_DROP_malformed_ip);
    Upper chain = tcp({});
    for (int i = 0; i < 6; ++i) chain = destination_options(chain);
    const Bytes long_chain = eth(ip6({.src = kSource6, .dst = "fd01::9"}, chain));
    check_out(out, "six extension headers", long_chain, SP_DROP_malformed_ip);
}

TEST_F(InterfacePrograms, what_no_connection_decrypted_does_not_enter) {
    const Instance in = rig.load(Program::interface_in, SP_PORT_INTERFACE, {});
    for (const Bytes& packet : {eth(ip4({.src = kSource4, .dst = "10.1.0.9"}, tcp({}))),
                                eth(ip6({.src = kSource6, .dst = "fd01::9"}, udp({})))}) {
        Outcome outcome = dropped(SP_PORT_INTERFACE, packet.size(), SP_DROP_wrong_connection);
        outcome.action = TC_ACT_SHOT;
        rig.check(in, {"no connection", packet, outcome});
    }
}

}  // namespace
}  // namespace sallyport::packet
