// SPDX-License-Identifier: Apache-2.0
// Checksum helpers against the plain sum of RFC 1071, and what the parsers make of headers.

#include <gtest/gtest.h>

#include <random>

#include "dataplane/base/secret_bytes.h"
#include "dataplane/wire/ecn.h"
#include "dataplane/wire/ip_packet.h"
#include "tests/support/packets.h"

namespace sallyport::wire {
namespace {

using test::Bytes;

TEST(Checksum, EqualsThePlainSum) {
    std::mt19937 random(10);
    for (int round = 0; round < 20000; ++round) {
        Bytes bytes(2 * (random() % 40));
        for (auto& byte : bytes) {
            // Many zeros and ones, where carries and the two zeros of the arithmetic are.
            const auto value = static_cast<uint8_t>(random());
            byte =
                static_cast<std::byte>(random() % 3 == 0 ? (random() % 2 == 0 ? 0xff : 0) : value);
        }
        const uint16_t raw = fold_checksum(sum_words(bytes.data(), bytes.size()));
        ASSERT_EQ(Be16::from_raw(raw).host(), test::internet_checksum(bytes));
    }
}

TEST(Checksum, ShortSumsFoldAlike) {
    std::mt19937_64 random(15);
    for (int round = 0; round < 200000; ++round) {
        const uint64_t sum = random() >> (28 + random() % 36);
        ASSERT_EQ(fold_short_sum(sum), fold_sum(sum)) << sum;
    }
    for (const uint64_t sum :
         {uint64_t{0}, uint64_t{0xffff}, uint64_t{0x1fffe}, (uint64_t{1} << 36) - 1}) {
        EXPECT_EQ(fold_short_sum(sum), fold_sum(sum)) << sum;
    }
}

// Headers of every length, and every bit of them that may be wrong.
TEST(Checksum, OfHeadersWithOptions) {
    std::mt19937 random(14);
    for (size_t options = 0; options <= 40; options += 4) {
        for (int round = 0; round < 200; ++round) {
            Bytes header = test::ipv4({.options = Bytes(options)}, test::raw(17, {}));
            for (size_t at = 1; at < header.size(); ++at) {
                const auto value = random() % 2 == 0 ? random() : 0u - random() % 2;
                test::put8(header, at, static_cast<uint8_t>(value));
            }
            test::repair_ipv4_checksum(header);
            ASSERT_TRUE(is_ipv4_checksum_right(header.data(), header.size()));
            const size_t bit = random() % (8 * header.size());
            header[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
            ASSERT_FALSE(is_ipv4_checksum_right(header.data(), header.size()))
                << test::to_hex(header);
        }
    }
}

TEST(Checksum, UpdateEqualsComputingAgain) {
    std::mt19937 random(11);
    for (int round = 0; round < 200000; ++round) {
        Bytes header = test::ipv4({}, test::raw(17, {}));
        for (const size_t at : {4u, 12u, 14u, 16u, 18u}) {
            test::put16(header, at, static_cast<uint16_t>(random() % 5 == 0 ? 0xffff : random()));
        }
        test::repair_ipv4_checksum(header);
        auto ip = read<Ipv4>(header.data());
        uint16_t before;
        uint16_t after;
        std::memcpy(&before, header.data() + 8, 2);
        test::put16(header, 8, static_cast<uint16_t>(random()));
        std::memcpy(&after, header.data() + 8, 2);
        ip.checksum = update_checksum(ip.checksum, before, after);
        std::memcpy(header.data() + 10, &ip.checksum, 2);
        ASSERT_TRUE(test::ipv4_checksum_right(header)) << test::to_hex(header);
    }
}

// Every pair of a first byte with ttl and its decrement: the hop that each packet takes.
TEST(Checksum, EveryTtlDecrement) {
    for (unsigned ttl = 1; ttl <= 255; ++ttl) {
        for (unsigned protocol = 0; protocol <= 255; protocol += 5) {
            Bytes header = test::ipv4({.ttl = static_cast<uint8_t>(ttl)},
                                      test::raw(static_cast<uint8_t>(protocol), {}));
            uint16_t checksum;
            std::memcpy(&checksum, header.data() + 10, 2);
            const auto before = static_cast<uint16_t>(ttl | protocol << 8);
            const auto after = static_cast<uint16_t>((ttl - 1) | protocol << 8);
            checksum = update_checksum(checksum, before, after);
            test::put8(header, 8, static_cast<uint8_t>(ttl - 1));
            std::memcpy(header.data() + 10, &checksum, 2);
            ASSERT_TRUE(test::ipv4_checksum_right(header));
        }
    }
}

TEST(ParseIpv4, Fields) {
    IpPacket out;
    const Bytes packet = test::ipv4(
        {.ttl = 7, .dscp_ecn = 0xb9, .dont_fragment = true, .options = test::repeated(8, 1)},
        test::tcp(1000, 443));
    ASSERT_TRUE(parse_ipv4(packet.data(), static_cast<uint32_t>(packet.size()), out));
    EXPECT_EQ(out.header_bytes, 28);
    EXPECT_EQ(out.protocol, 6);
    EXPECT_EQ(out.dscp_ecn, 0xb9);
    EXPECT_EQ(out.ttl, 7);
    EXPECT_TRUE(out.dont_fragment);
    EXPECT_FALSE(out.fragment);
    EXPECT_TRUE(out.ports_known);
    EXPECT_EQ(out.source_port, 1000);
    EXPECT_EQ(out.destination_port, 443);
    EXPECT_EQ(out.total_bytes, packet.size());
    EXPECT_EQ(out.transport_offset, 28u);
    const Bytes later = test::ipv4({.fragment_offset = 1}, test::tcp(1000, 443));
    ASSERT_TRUE(parse_ipv4(later.data(), static_cast<uint32_t>(later.size()), out));
    EXPECT_TRUE(out.fragment);
    EXPECT_FALSE(out.ports_known);
    const Bytes icmp = test::ipv4({}, test::icmp_echo());
    ASSERT_TRUE(parse_ipv4(icmp.data(), static_cast<uint32_t>(icmp.size()), out));
    EXPECT_FALSE(out.ports_known);
}

struct ChainCase {
    const char* name;
    std::vector<test::Extension> extensions;
    bool fragment, ports_known;
    uint32_t transport_offset;
};

TEST(ParseIpv6, ExtensionHeaders) {
    const ChainCase cases[] = {
        {"none", {}, false, true, 40},
        {"hop by hop", {test::hop_by_hop()}, false, true, 48},
        {"long hop by hop", {test::hop_by_hop(5)}, false, true, 88},
        {"routing", {test::routing(2)}, false, true, 64},
        {"destination options", {test::destination_options()}, false, true, 48},
        {"the order of RFC 8200 4.1",
         {test::hop_by_hop(), test::destination_options(1), test::routing(),
          test::fragment(0, false), test::destination_options()},
         false,
         true,
         40 + 8 + 16 + 8 + 8 + 8},
        {"first fragment", {test::fragment(0, true)}, true, true, 48},
        {"later fragment", {test::fragment(3, true)}, true, false, 48},
        {"last fragment", {test::fragment(3, false)}, true, false, 48},
        {"atomic fragment", {test::fragment(0, false)}, false, true, 48},
        // Behind a later fragment's header stands data, whatever it looks like.
        {"data of a later fragment is not walked",
         {test::fragment(3, false), test::hop_by_hop(31)},
         true,
         false,
         48},
    };
    for (const ChainCase& c : cases) {
        SCOPED_TRACE(c.name);
        const Bytes packet = test::ipv6({.extensions = c.extensions}, test::udp(5, 6));
        IpPacket out;
        ASSERT_TRUE(parse_ipv6(packet.data(), static_cast<uint32_t>(packet.size()), out));
        EXPECT_EQ(out.fragment, c.fragment);
        EXPECT_EQ(out.ports_known, c.ports_known);
        EXPECT_EQ(out.transport_offset, c.transport_offset);
        if (c.ports_known) {
            EXPECT_EQ(out.protocol, 17);
            EXPECT_EQ(out.source_port, 5);
            EXPECT_EQ(out.destination_port, 6);
        }
        // Cut anywhere: refused, because the header promises more.
        for (uint32_t cut = 0; cut < packet.size(); ++cut) {
            EXPECT_FALSE(parse_ipv6(packet.data(), cut, out)) << cut;
        }
        // Cut anywhere, with a length that agrees: accepted only with all extension headers there.
        for (uint32_t cut = 40; cut < packet.size(); ++cut) {
            Bytes part = test::head(packet, cut);
            test::put16(part, 4, static_cast<uint16_t>(cut - 40));
            const bool accepted = parse_ipv6(part.data(), cut, out);
            EXPECT_EQ(accepted, cut >= c.transport_offset) << cut;
            if (accepted) {
                EXPECT_EQ(out.ports_known, c.ports_known && cut >= c.transport_offset + 4);
            }
        }
    }
}

// The table is the one of RFC 6040 figure 4; all but CE over Not-ECT can be said in one rule.
TEST(Ecn, Table) {
    for (uint8_t inner = 0; inner < 4; ++inner) {
        for (uint8_t outer = 0; outer < 4; ++outer) {
            uint8_t expected = inner;
            if (outer == 3) expected = inner == 0 ? kEcnDrop : 3;
            if (outer == 1 && inner == 2) expected = 1;
            EXPECT_EQ(kEcnDecapsulation[inner][outer], expected);
        }
    }
}

}  // namespace
}  // namespace sallyport::wire

namespace sallyport {
namespace {

test::Bytes some_key() {
    return test::from_hex("000102030405060708090a0b0c0d0e0f10111213");
}

TEST(SecretBytes, HoldsComparesAndDuplicatesOnlyWhenAsked) {
    const test::Bytes key = some_key();
    const SecretBytes secret(key);
    EXPECT_EQ(secret.size(), key.size());
    EXPECT_EQ(test::to_hex(secret.bytes()), test::to_hex(key));
    EXPECT_TRUE(secret == secret.duplicate());
    test::Bytes other = key;
    test::put8(other, other.size() - 1, 0);
    EXPECT_FALSE(secret == SecretBytes(other));
    EXPECT_FALSE(secret == SecretBytes(test::head(key, key.size() - 1)));
    static_assert(!std::is_copy_constructible_v<SecretBytes>);
    static_assert(!std::is_copy_assignable_v<SecretBytes>);
}

TEST(SecretBytes, MovingAndClearingLeaveNothingBehind) {
    SecretBytes secret(some_key());
    const std::byte* old_place = secret.bytes().data();
    SecretBytes moved(std::move(secret));
    EXPECT_EQ(moved.size(), 20u);
    // The object is still there, empty: its bytes must be gone.
    for (size_t i = 0; i < SecretBytes::kCapacity; ++i) ASSERT_EQ(old_place[i], std::byte{0});
    const std::byte* place = moved.bytes().data();
    SecretBytes assigned;
    assigned = std::move(moved);
    for (size_t i = 0; i < SecretBytes::kCapacity; ++i) ASSERT_EQ(place[i], std::byte{0});
    const std::byte* last = assigned.bytes().data();
    assigned.clear();
    EXPECT_TRUE(assigned.empty());
    for (size_t i = 0; i < SecretBytes::kCapacity; ++i) ASSERT_EQ(last[i], std::byte{0});
}

TEST(SecretBytes, DestructionWipes) {
    alignas(SecretBytes) std::array<std::byte, sizeof(SecretBytes)> memory{};
    auto* secret = new (memory.data()) SecretBytes(some_key());
    secret->~SecretBytes();
    __asm__ volatile("" : : "r"(memory.data()) : "memory");
    // The bytes; how many there were is no secret.
    for (size_t i = 0; i < SecretBytes::kCapacity; ++i) ASSERT_EQ(memory[i], std::byte{0});
}

TEST(SecretBytes, TooLongIsEmpty) {
    EXPECT_TRUE(SecretBytes(test::Bytes(SecretBytes::kCapacity + 1)).empty());
}

}  // namespace
}  // namespace sallyport
