// SPDX-License-Identifier: Apache-2.0
// The SAD and the outbound table against std::map over random operations, with SPIs and
// destinations chosen so that they collide: same slot, same SPI, same last word, other family.

#include "dataplane/sa/sa_tables.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#include "tests/support/packets.h"

namespace sallyport {
namespace {

// A table looks at SPI, destination and family only, so these SAs have no keys.
std::unique_ptr<InboundSa> plain_sa(uint32_t spi, const IpAddress& destination) {
    auto sa = std::make_unique<InboundSa>();
    sa->spi = Be32(spi);
    sa->outer_family = destination.family;
    sa->outer_destination = destination;
    return sa;
}

InboundSa* find(const Sad& sad, uint32_t spi, const IpAddress& destination) {
    const Be32 wire_spi(spi);
    const uint32_t word = destination.last_word();
    return sad.find(sad.hint(wire_spi, word), wire_spi, destination.family,
                    reinterpret_cast<const std::byte*>(destination.bytes.data()), word);
}

std::vector<IpAddress> destinations() {
    // The second and third share their last word; so do the first and the fourth, in two families.
    return {test::address("192.0.2.1"), test::address("2001:db8::1"),
            test::address("2001:db8:1::1"), test::address("2001:db8::c000:201"),
            test::address("192.0.2.2")};
}

using Key = std::tuple<uint32_t, std::array<uint8_t, 16>, Family>;
Key key_of(const InboundSa& sa) {
    return {sa.spi.host(), sa.outer_destination.bytes, sa.outer_family};
}

TEST(ConformanceA3, SadEqualsAMapUnderRandomOperations) {
    std::mt19937 random(4);
    for (const uint32_t capacity : {8u, 20u, 300u}) {
        Sad sad(capacity);
        std::map<Key, InboundSa*> reference;
        std::vector<std::unique_ptr<InboundSa>> all;
        // Crowded slots: of many SPIs, those whose hint is one of a few.
        for (const IpAddress& destination : destinations()) {
            uint32_t found = 0;
            for (uint32_t spi = 256; found < capacity; ++spi) {
                const uint32_t hint = sad.hint(Be32(spi), destination.last_word());
                if (hint > 3 && spi % 7 != 0) continue;
                all.push_back(plain_sa(spi, destination));
                ++found;
            }
        }
        for (int step = 0; step < 20000; ++step) {
            InboundSa* sa = all[random() % all.size()].get();
            const Key key = key_of(*sa);
            if (random() % 5 < 3) {
                const bool fits = reference.size() < capacity;
                const bool inserted = sad.insert(sa);
                if (reference.contains(key)) {
                    ASSERT_FALSE(inserted);
                } else if (fits) {
                    ASSERT_TRUE(inserted) << reference.size() << " of " << capacity;
                }
                if (inserted) reference[key] = sa;
            } else if (random() % 40 == 0 && !reference.empty()) {
                // One not in the table: nothing happens.
                sad.remove(sa);
                const auto there = reference.find(key);
                if (there != reference.end() && there->second == sa) reference.erase(there);
            } else {
                const auto there = reference.find(key);
                if (there != reference.end()) {
                    sad.remove(there->second);
                    reference.erase(there);
                }
            }
            ASSERT_EQ(sad.count(), reference.size());
            for (int probe = 0; probe < 4; ++probe) {
                const InboundSa& wanted = *all[random() % all.size()];
                const auto there = reference.find(key_of(wanted));
                ASSERT_EQ(find(sad, wanted.spi.host(), wanted.outer_destination),
                          there == reference.end() ? nullptr : there->second);
            }
        }
        size_t visited = 0;
        sad.for_each([&](const InboundSa*) { ++visited; });
        EXPECT_EQ(visited, reference.size());
    }
}

TEST(ConformanceA3, SameSpiWithOtherDestinationsAndFamilies) {
    Sad sad(16);
    std::vector<std::unique_ptr<InboundSa>> sas;
    for (const IpAddress& destination : destinations()) {
        sas.push_back(plain_sa(0x1001, destination));
        ASSERT_TRUE(sad.insert(sas.back().get()));
        const auto twin = plain_sa(0x1001, destination);
        EXPECT_FALSE(sad.insert(twin.get()));
    }
    for (const auto& sa : sas) EXPECT_EQ(find(sad, 0x1001, sa->outer_destination), sa.get());
    EXPECT_EQ(find(sad, 0x1001, test::address("2001:db8:2::1")), nullptr);
    EXPECT_EQ(find(sad, 0x1002, test::address("192.0.2.1")), nullptr);
    sad.remove(sas[1].get());
    EXPECT_EQ(find(sad, 0x1001, sas[1]->outer_destination), nullptr);
    EXPECT_EQ(find(sad, 0x1001, sas[2]->outer_destination), sas[2].get());
}

TEST(Sad, TakesWhatItHasRoomForAndNoMoreThanHalfItsSlots) {
    Sad sad(1000);
    std::vector<std::unique_ptr<InboundSa>> sas;
    uint32_t inserted = 0;
    for (uint32_t spi = 256; spi < 256 + 4000; ++spi) {
        sas.push_back(plain_sa(spi, test::address("192.0.2.1")));
        inserted += sad.insert(sas.back().get()) ? 1u : 0u;
    }
    EXPECT_GE(inserted, 1000u);
    EXPECT_EQ(find(sad, 1, test::address("192.0.2.1")), nullptr);  // a full table still ends
}

TEST(OutboundTable, OneSaForAPolicyTheLatest) {
    OutboundTable table(4);
    OutboundSa first;
    OutboundSa second;
    first.policy = second.policy = PolicyId{3};
    EXPECT_TRUE(table.insert(&first));
    EXPECT_TRUE(table.insert(&second));
    EXPECT_EQ(table.find(PolicyId{3}), &second);
    table.remove(&first);  // replaced already
    EXPECT_EQ(table.find(PolicyId{3}), &second);
    table.remove(&second);
    EXPECT_EQ(table.find(PolicyId{3}), nullptr);
    OutboundSa beyond;
    beyond.policy = PolicyId{4};
    EXPECT_FALSE(table.insert(&beyond));
    EXPECT_EQ(table.find(PolicyId{4}), nullptr);
    table.remove(&beyond);
}

// What make_inbound_sa and make_outbound_sa refuse, without a word about the key.
TEST(SaMaking, RefusesWhatTheRfcsRefuse) {
    const auto aead = crypto::Aead::create().value();
    const test::Bytes key = test::repeated(20, 0xcd);
    const Selector any{.source = test::prefix("0.0.0.0/0"),
                       .destination = test::prefix("0.0.0.0/0")};
    const InboundSaParameters good{.spi = Spi{256},
                                   .source = test::address("192.0.2.1"),
                                   .destination = test::address("192.0.2.2"),
                                   .key = key,
                                   .selectors = {&any, 1}};
    EXPECT_TRUE(make_inbound_sa(aead, good));
    const auto refused = [&](auto change) {
        InboundSaParameters parameters = good;
        change(parameters);
        const auto made = make_inbound_sa(aead, parameters);
        ASSERT_FALSE(made);
        EXPECT_EQ(made.error().find("cd"), std::string::npos);
        EXPECT_GT(made.error().size(), 20u);
    };
    refused([](auto& p) { p.spi = Spi{255}; });
    refused([](auto& p) { p.spi = Spi{0}; });
    refused([](auto& p) { p.replay_window = 31; });
    refused([](auto& p) { p.replay_window = 4097; });
    refused([](auto& p) { p.key = p.key.first(19); });
    refused([](auto& p) { p.suite = crypto::Suite::aes_gcm_16_256; });
    refused([](auto& p) { p.source = test::address("2001:db8::1"); });
    refused([](auto& p) { p.selectors = {}; });
    OutboundSaParameters outbound{.spi = Spi{256},
                                  .source = test::address("192.0.2.1"),
                                  .destination = test::address("192.0.2.2"),
                                  .key = key};
    EXPECT_TRUE(make_outbound_sa(aead, outbound));
    outbound.sequence_next = 0;
    EXPECT_FALSE(make_outbound_sa(aead, outbound));
}

}  // namespace
}  // namespace sallyport
