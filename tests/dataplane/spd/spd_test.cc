// SPDX-License-Identifier: Apache-2.0
// The compiled SPD against the ordered list it stands for, and the prefix table against a scan.

#include "dataplane/spd/spd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "bpf/abi.h"

namespace sallyport {
namespace {

IpPrefix prefix(const char* text) {
    return parse_ip_prefix(text).value();
}
IpAddress address(const char* text) {
    return parse_ip_address(text).value();
}
const std::byte* bytes(const IpAddress& value) {
    return reinterpret_cast<const std::byte*>(value.bytes.data());
}

uint32_t scan(const std::vector<PrefixEntry>& entries, const IpAddress& key) {
    uint32_t value = kPrefixMiss;
    int best = -1;
    for (const auto& entry : entries) {
        if (entry.prefix.contains(key) && entry.prefix.bits > best) {
            best = entry.prefix.bits;
            value = entry.value;
        }
    }
    return value;
}

// Random prefixes from a small space, so that they nest, touch and repeat.
IpPrefix random_prefix(std::mt19937& random, Family family) {
    IpPrefix result;
    result.address.family = family;
    const unsigned width = result.address.bit_count();
    const unsigned spread = 12;
    result.bits =
        static_cast<uint8_t>(random() % 4 == 0 ? random() % (width + 1) : random() % (spread + 1));
    for (unsigned i = 0; i < width / 8; ++i) {
        result.address.bytes[i] = static_cast<uint8_t>(i < 2 ? random() & 0xf1 : random() & 1);
    }
    for (unsigned bit = result.bits; bit < width; ++bit) {
        result.address.bytes[bit / 8] &= static_cast<uint8_t>(~(0x80u >> (bit % 8)));
    }
    return result;
}

IpAddress random_address(std::mt19937& random, Family family) {
    IpAddress result{.family = family};
    for (unsigned i = 0; i < result.bit_count() / 8; ++i) {
        result.bytes[i] = static_cast<uint8_t>(i < 2 ? random() & 0xf1 : random() & 1);
        if (random() % 8 == 0) result.bytes[i] = random() % 2 == 0 ? 0xff : 0;
    }
    return result;
}

TEST(PrefixTable, EqualsAScanOfRandomPrefixes) {
    std::mt19937 random(1);
    for (int round = 0; round < 60; ++round) {
        std::vector<PrefixEntry> entries;
        const size_t count = random() % (round % 2 == 0 ? 12 : 400);
        for (uint32_t i = 0; i < count; ++i) {
            const PrefixEntry entry{
                .prefix = random_prefix(random, random() % 2 == 0 ? Family::v4 : Family::v6),
                .value = i};
            entries.push_back(entry);
        }
        const PrefixTable table(entries);
        for (int probe = 0; probe < 2000; ++probe) {
            const Family family = probe % 2 == 0 ? Family::v4 : Family::v6;
            const IpAddress key = random_address(random, family);
            ASSERT_EQ(table.lookup(family, bytes(key)), scan(entries, key))
                << to_string(key) << " among " << count;
        }
        for (const auto& entry : entries) {  // edges of every prefix
            const Family family = entry.prefix.address.family;
            ASSERT_EQ(table.lookup(family, bytes(entry.prefix.address)),
                      scan(entries, entry.prefix.address));
            IpAddress last = entry.prefix.address;
            for (unsigned bit = entry.prefix.bits; bit < last.bit_count(); ++bit) {
                last.bytes[bit / 8] |= static_cast<uint8_t>(0x80u >> (bit % 8));
            }
            ASSERT_EQ(table.lookup(family, bytes(last)), scan(entries, last));
        }
    }
}

TEST(PrefixTable, CoversTheEndsOfTheAddressSpace) {
    const std::vector<PrefixEntry> entries = {{prefix("0.0.0.0/0"), 1},
                                              {prefix("255.255.255.255/32"), 2},
                                              {prefix("::/0"), 3},
                                              {prefix("ffff::/16"), 4}};
    const PrefixTable table(entries);
    EXPECT_EQ(table.lookup_v4(bytes(address("0.0.0.0"))), 1u);
    EXPECT_EQ(table.lookup_v4(bytes(address("255.255.255.254"))), 1u);
    EXPECT_EQ(table.lookup_v4(bytes(address("255.255.255.255"))), 2u);
    EXPECT_EQ(table.lookup_v6(bytes(address("::"))), 3u);
    EXPECT_EQ(table.lookup_v6(bytes(address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))), 4u);
}

// What RFC 4301 says: the first entry of the ordered list whose selectors match.
SpdVerdict walk(const std::vector<SpdEntry>& ordered, const IpAddress& source,
                const IpAddress& destination, const SpdKey& key) {
    for (const SpdEntry& entry : ordered) {
        if (!entry.source.contains(source) || !entry.destination.contains(destination)) continue;
        if (entry.protocol != 0) {
            if (!key.protocol_known) return {.kind = SpdVerdict::Kind::ports_unknown};
            if (entry.protocol != key.protocol) continue;
        }
        if (entry.has_ports) {
            if (!key.ports_known) return {.kind = SpdVerdict::Kind::ports_unknown};
            if (key.source_port < entry.source_port_lo || key.source_port > entry.source_port_hi ||
                key.destination_port < entry.destination_port_lo ||
                key.destination_port > entry.destination_port_hi) {
                continue;
            }
        }
        return {.kind = SpdVerdict::Kind::matched, .action = entry.action, .policy = entry.policy};
    }
    return {};
}

size_t classes_with_others_above(const CompiledSpd& compiled) {
    return static_cast<size_t>(std::ranges::count_if(
        compiled.destinations,
        [](const CompiledSpd::DestinationRow& row) { return row.above != CompiledSpd::kNone; }));
}

TEST(ConformanceA6, CompiledSpdEqualsTheOrderedList) {
    std::mt19937 random(2);
    int matched = 0;
    int unknown_ports = 0;
    size_t chained = 0;
    for (int round = 0; round < 400; ++round) {
        std::vector<SpdEntry> ordered;
        const size_t count = 1 + random() % 80;
        for (uint32_t i = 0; i < count; ++i) {
            const Family family = random() % 2 == 0 ? Family::v4 : Family::v6;
            SpdEntry entry{.policy = PolicyId{i},
                           .action = static_cast<SpdAction>(random() % 3),
                           .source = random_prefix(random, family),
                           .destination = random_prefix(random, family)};
            if (random() % 3 == 0) {
                entry.protocol = random() % 2 == 0 ? 6 : 17;
                if (random() % 2 == 0) {
                    entry.has_ports = true;
                    entry.destination_port_lo = static_cast<uint16_t>(random() % 8);
                    entry.destination_port_hi = static_cast<uint16_t>(4 + random() % 8);
                }
            }
            ordered.push_back(entry);
        }
        const auto compiled = compile_spd(ordered);
        if (!compiled) continue;  // too many candidates for one pair: refused, by its own test
        chained += classes_with_others_above(*compiled);
        const Spd spd(*compiled, CompiledSpd{});
        for (int probe = 0; probe < 400; ++probe) {
            const Family family = random() % 2 == 0 ? Family::v4 : Family::v6;
            const IpAddress source = random_address(random, family);
            const IpAddress destination = random_address(random, family);
            const SpdKey key{.family = family,
                             .source = bytes(source),
                             .destination = bytes(destination),
                             .protocol = static_cast<uint8_t>(random() % 2 == 0 ? 6 : 1),
                             .protocol_known = random() % 8 != 0,
                             .ports_known = random() % 4 != 0,
                             .source_port = static_cast<uint16_t>(random() % 12),
                             .destination_port = static_cast<uint16_t>(random() % 12)};
            const SpdVerdict got = spd.lookup(SpdDirection::outbound, key);
            const SpdVerdict want = walk(ordered, source, destination, key);
            ASSERT_EQ(got.kind, want.kind) << "round " << round;
            ASSERT_EQ(got.policy, want.policy) << "round " << round;
            ASSERT_EQ(got.action, want.action) << "round " << round;
            matched += got.kind == SpdVerdict::Kind::matched ? 1 : 0;
            unknown_ports += got.kind == SpdVerdict::Kind::ports_unknown ? 1 : 0;
        }
    }
    EXPECT_GT(matched, 1000);
    EXPECT_GT(unknown_ports, 50);
    EXPECT_GT(chained, 200u);
}

TEST(Spd, TooManyCandidatesForOnePairAreRefusedByName) {
    std::vector<SpdEntry> ordered;
    for (uint32_t i = 0; i <= SP_CELL_ENTRIES_MAX; ++i) {
        ordered.push_back({.policy = PolicyId{i},
                           .action = SpdAction::bypass,
                           .source = prefix("10.0.0.0/8"),
                           .destination = prefix("10.2.0.0/16"),
                           .protocol = 6,
                           .has_ports = true,
                           .destination_port_lo = static_cast<uint16_t>(i),
                           .destination_port_hi = static_cast<uint16_t>(i)});
    }
    const auto compiled = compile_spd(ordered);
    ASSERT_FALSE(compiled);
    EXPECT_NE(compiled.error().find("10.2.0.0/16"), std::string::npos) << compiled.error();
    ordered.pop_back();
    EXPECT_TRUE(compile_spd(ordered));
}

TEST(Spd, AnEmptyListMatchesNothing) {
    const Spd spd{CompiledSpd{}, CompiledSpd{}};
    const IpAddress any = address("192.0.2.1");
    const SpdKey key{.family = Family::v4, .source = bytes(any), .destination = bytes(any)};
    EXPECT_EQ(spd.lookup(SpdDirection::inbound, key).kind, SpdVerdict::Kind::no_match);
}

// Sites with a network each on both sides, and clients that send everything through the gateway:
// inbound every site is inside the destination of every client. 300 and 300 were 90 600 rows.
TEST(Spd, SitesAndClientsAreNoProduct) {
    for (const uint32_t count : {100u, 300u, 3000u}) {
        std::vector<SpdEntry> ordered;
        for (uint32_t i = 0; i < count; ++i) {
            IpPrefix ours{.bits = 24};
            ours.address.bytes = {10, static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i), 0};
            IpPrefix site = ours;
            site.address.bytes[0] = 11;
            IpPrefix client = ours;
            client.bits = 32;
            client.address.bytes[0] = 12;
            ordered.push_back({.policy = PolicyId{2 * i}, .source = site, .destination = ours});
            ordered.push_back({.policy = PolicyId{2 * i + 1},
                               .source = client,
                               .destination = prefix("0.0.0.0/0")});
        }
        const auto compiled = compile_spd(ordered);
        ASSERT_TRUE(compiled) << compiled.error();
        EXPECT_LE(compiled->sources.size(), ordered.size());
        EXPECT_LE(compiled->entries.size(), ordered.size());
        EXPECT_EQ(classes_with_others_above(*compiled), count);
        const Spd spd(*compiled, CompiledSpd{});
        const IpAddress ours = address("10.0.99.1");
        for (const auto& [from, policy] :
             {std::pair{address("11.0.99.7"), 198u}, std::pair{address("12.0.7.0"), 15u}}) {
            const SpdKey key{
                .family = Family::v4, .source = bytes(from), .destination = bytes(ours)};
            EXPECT_EQ(to_index(spd.lookup(SpdDirection::outbound, key).policy), policy);
        }
    }
}

TEST(Spd, DestinationsMayNestDeeperThanALookupVisits) {
    std::vector<SpdEntry> ordered;
    for (uint32_t bits = 0; bits <= 128; ++bits) {
        const IpPrefix nested =
            shortened(prefix("2001:db8::1/128"), static_cast<uint8_t>(128 - bits));
        ordered.push_back(
            {.policy = PolicyId{bits}, .source = prefix("2001:db8::/32"), .destination = nested});
    }
    std::ranges::shuffle(ordered, std::mt19937(3));  // the order of the list, not of the lengths
    const auto compiled = compile_spd(ordered);
    ASSERT_TRUE(compiled) << compiled.error();
    std::vector<uint32_t> above(compiled->class_count, CompiledSpd::kNone);
    for (const auto& row : compiled->destinations) above[row.destination_class] = row.above;
    for (uint32_t row : above) {
        size_t visited = 2;
        for (; row != CompiledSpd::kNone; row = above[row]) ++visited;
        EXPECT_LE(visited - 1, size_t{SP_SPD_CLASSES_MAX});
    }
    const Spd spd(*compiled, CompiledSpd{});
    const IpAddress source = address("2001:db8::5");
    for (const char* text : {"2001:db8::1", "2001:db8::", "2001:db8::8000:0:0:1", "::", "8000::"}) {
        const IpAddress destination = address(text);
        const SpdKey key{
            .family = Family::v6, .source = bytes(source), .destination = bytes(destination)};
        EXPECT_EQ(spd.lookup(SpdDirection::outbound, key).policy,
                  walk(ordered, source, destination, key).policy)
            << text;
    }
}

TEST(Spd, TenThousandDisjointTunnelsStaySmall) {
    std::vector<SpdEntry> ordered;
    for (uint32_t i = 0; i < 10000; ++i) {
        IpPrefix remote{.bits = 24};
        remote.address.bytes = {10, static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i), 0};
        ordered.push_back({.policy = PolicyId{i},
                           .action = SpdAction::protect,
                           .source = prefix("172.16.0.0/12"),
                           .destination = remote});
    }
    ordered.push_back({.policy = PolicyId{10000},
                       .action = SpdAction::bypass,
                       .source = prefix("0.0.0.0/0"),
                       .destination = prefix("0.0.0.0/0")});
    const auto compiled = compile_spd(ordered);
    ASSERT_TRUE(compiled) << compiled.error();
    EXPECT_LE(compiled->sources.size(), 20001u);
    const Spd spd(*compiled, CompiledSpd{});
    const IpAddress source = address("172.16.5.5");
    const IpAddress destination = address("10.39.15.7");  // 39 * 256 + 15 = 9999
    const SpdKey key{
        .family = Family::v4, .source = bytes(source), .destination = bytes(destination)};
    EXPECT_EQ(to_index(spd.lookup(SpdDirection::outbound, key).policy), 9999u);
}

}  // namespace
}  // namespace sallyport
