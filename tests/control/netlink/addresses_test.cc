// SPDX-License-Identifier: Apache-2.0
//
// Which addresses are this host's, of the devices of a network namespace.

#include "control/netlink/addresses.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "dataplane/base/ip.h"
#include "tests/support/new_namespace.h"

namespace sallyport::netlink {
namespace {

std::vector<std::string> names(const std::vector<IpAddress>& addresses) {
    std::vector<std::string> out;
    for (const IpAddress& address : addresses) out.push_back(to_string(address));
    return out;
}

TEST(Addresses, OfAllDevicesWithTheBroadcastAddressesOfNetworksThatHaveOne) {
    if (geteuid() != 0) GTEST_SKIP() << "needs root: devices of a network namespace";
    test::in_new_namespace([] {
        ASSERT_TRUE(test::succeeds(
            "ip link add d0 type veth peer name d1 && ip link set lo up && ip link set d0 up && "
            "ip link set d1 addrgenmode none && ip link set d0 addrgenmode none && "
            "ip addr add 192.0.2.1/24 dev d0 && ip addr add 192.0.2.2/24 dev d0 && "
            "ip addr add 198.51.100.1/25 broadcast 198.51.100.120 dev d0 && "
            "ip addr add 203.0.113.0/31 dev d0 && ip addr add 203.0.113.9/32 dev d0 && "
            "ip addr add 203.0.113.21/30 dev d0 && "
            "ip addr add 10.0.0.1 peer 10.0.0.2 dev d0 && "
            "ip addr add 10.0.1.1 peer 10.0.2.2/24 dev d0 && "
            "ip addr add 2001:db8::1/64 dev d1 && "
            "ip addr add 2001:db8:1::1 peer 2001:db8:1::2 dev d1"));
        const auto all = local_and_broadcast_addresses();
        ASSERT_TRUE(all) << all.error();
        const std::vector<std::string> expected = {
            "10.0.0.1",        "10.0.1.1",       "10.0.2.255",     "127.0.0.1",
            "127.255.255.255", "192.0.2.1",      "192.0.2.2",      "192.0.2.255",
            "198.51.100.1",    "198.51.100.120", "198.51.100.127", "203.0.113.0",
            "203.0.113.9",     "203.0.113.21",   "203.0.113.23",   "::1",
            "2001:db8::1",     "2001:db8:1::1"};
        EXPECT_EQ(names(*all), expected);
        // What the kernel itself keeps of IPv4; 127.0.0.0/8 is a prefix.
        const std::string kept = test::output_of(
            "ip -4 route show table local | sed 's/^\\(local\\|broadcast\\) //; s/ .*//' | "
            "grep -v / | sort | tr '\\n' ' '");
        std::vector<std::string> v4;
        for (const IpAddress& each : *all) {
            if (each.family == Family::v4) v4.push_back(to_string(each));
        }
        std::ranges::sort(v4);
        std::string ours;
        for (const std::string& each : v4) ours += each + " ";
        EXPECT_EQ(ours, kept);
    });
}

TEST(Addresses, OfAMessage) {
    const auto bytes = [](std::initializer_list<uint8_t> values) {
        std::vector<uint8_t> out(values);
        return out;
    };
    // ifaddrmsg: family, prefix length, flags, scope, index; attributes 1 (address), 2 (local).
    const std::vector<uint8_t> whole =
        bytes({AF_INET, 24, 0, 0, 1, 0, 0, 0, 8, 0, 1, 0, 10, 0, 2, 2, 8, 0, 2, 0, 10, 0, 1, 1});
    const auto decode = [](const std::vector<uint8_t>& payload) {
        return decode_addresses(std::as_bytes(std::span(payload)));
    };
    ASSERT_TRUE(decode(whole));
    EXPECT_EQ(names(*decode(whole)), (std::vector<std::string>{"10.0.1.1", "10.0.2.255"}));
    for (size_t size = 0; size < whole.size(); ++size) {
        const std::vector<uint8_t> cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
        // Where an attribute ends the message is whole again: the address of the far end alone.
        if (size == 16) continue;
        EXPECT_FALSE(decode(cut)) << size;
    }
    std::vector<uint8_t> other = whole;
    other[0] = AF_PACKET;
    ASSERT_TRUE(decode(other));
    EXPECT_TRUE(decode(other)->empty());
    other[0] = AF_INET6;
    EXPECT_FALSE(decode(other)) << "four bytes are no address of IPv6";
}

}  // namespace
}  // namespace sallyport::netlink
