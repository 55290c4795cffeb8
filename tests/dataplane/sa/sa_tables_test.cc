// SPDX-License-Identifier: Apache-2.0
// The SAD and the outbound table against std::map over random operations, with SPIs and
// destinations chosen so that they collide: same slot, same SPI, same last word, other family.

#include "dataplane/sa/sa_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
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

// Replacing keeps every other SA findable, whatever slots they have moved to.
TEST(Sad, ReplacesUnderRandomOperations) {
    std::mt19937 random(6);
    Sad sad(12);
    std::map<Key, InboundSa*> reference;
    std::vector<std::unique_ptr<InboundSa>> all;
    for (const IpAddress& destination : destinations()) {
        for (uint32_t spi = 256; spi < 264; ++spi) {
            all.push_back(plain_sa(spi, destination));
            all.push_back(plain_sa(spi, destination));  // same key, another object
        }
    }
    uint32_t in_place = 0;
    uint32_t moved = 0;
    uint32_t refused = 0;
    for (int step = 0; step < 40000; ++step) {
        InboundSa* sa = all[random() % all.size()].get();
        const auto there = reference.find(key_of(*sa));
        if (reference.size() < 12 && random() % 3 == 0) {
            ASSERT_EQ(sad.insert(sa), there == reference.end());
            reference.try_emplace(key_of(*sa), sa);
        } else if (!reference.empty()) {
            const auto old =
                std::next(reference.begin(), static_cast<ptrdiff_t>(random() % reference.size()));
            InboundSa* const before = old->second;
            const bool free_place = there == reference.end() || there == old;
            if (before == sa) continue;
            if (random() % 4 == 0) {
                sad.remove(before);
                reference.erase(old);
            } else {
                ASSERT_EQ(sad.replace(before, sa), free_place);
                ++(!free_place ? refused : there == old ? in_place : moved);
                if (free_place) {
                    reference.erase(old);
                    reference[key_of(*sa)] = sa;
                }
            }
        }
        ASSERT_EQ(sad.count(), reference.size());
        for (const auto& one : all) {
            const auto found = reference.find(key_of(*one));
            InboundSa* const expected = found == reference.end() ? nullptr : found->second;
            ASSERT_EQ(find(sad, one->spi.host(), one->outer_destination), expected);
            const InboundSa& likely = *all[random() % all.size()];
            ASSERT_EQ(sad.contains(one.get(), likely), expected == one.get());
        }
    }
    EXPECT_GT(in_place, 50u);
    EXPECT_GT(moved, 500u);
    EXPECT_GT(refused, 500u);
}

// A full table has no room for one more, and none is needed.
TEST(Sad, ReplacesInAFullTable) {
    Sad sad(8);
    std::vector<std::unique_ptr<InboundSa>> sas;
    do {
        sas.push_back(
            plain_sa(256 + static_cast<uint32_t>(sas.size()), test::address("192.0.2.1")));
    } while (sad.insert(sas.back().get()));
    const uint32_t count = sad.count();
    const auto other_place = plain_sa(256, test::address("2001:db8::1"));
    EXPECT_FALSE(sad.insert(other_place.get()));
    EXPECT_TRUE(sad.replace(sas[0].get(), other_place.get()));
    EXPECT_EQ(sad.count(), count);
    EXPECT_EQ(find(sad, 256, test::address("192.0.2.1")), nullptr);
    EXPECT_EQ(find(sad, 256, test::address("2001:db8::1")), other_place.get());
}

std::unique_ptr<OutboundSa> plain_sa(PolicyId policy, uint64_t rank) {
    auto sa = std::make_unique<OutboundSa>();
    sa->policy = policy;
    sa->rank = rank;
    return sa;
}

TEST(OutboundTable, TheGreatestRankSendsAndTheNextWhenItGoes) {
    OutboundTable table(4);
    const auto old = plain_sa(PolicyId{3}, 5);
    const auto rekeyed = plain_sa(PolicyId{3}, 6);
    const auto fallback = plain_sa(PolicyId{3}, 0);
    EXPECT_TRUE(table.insert(old.get()));
    EXPECT_TRUE(table.insert(rekeyed.get()));
    EXPECT_TRUE(table.insert(fallback.get()));
    EXPECT_FALSE(table.insert(rekeyed.get()));  // there already
    EXPECT_EQ(table.find(PolicyId{3}), rekeyed.get());
    EXPECT_EQ(table.find(PolicyId{2}), nullptr);
    table.remove(rekeyed.get());
    EXPECT_EQ(table.find(PolicyId{3}), old.get());
    table.remove(rekeyed.get());  // not there: nothing happens
    table.remove(old.get());
    EXPECT_EQ(table.find(PolicyId{3}), fallback.get());
    table.remove(fallback.get());
    EXPECT_EQ(table.find(PolicyId{3}), nullptr);
    const auto beyond = plain_sa(PolicyId{4}, 1);
    EXPECT_FALSE(table.insert(beyond.get()));
    EXPECT_EQ(table.find(PolicyId{4}), nullptr);
    table.remove(beyond.get());
}

// Against one vector of all SAs, of which the right one is searched each time.
class NaiveTable {
  public:
    bool insert(OutboundSa* sa, uint32_t policies) {
        if (to_index(sa->policy) >= policies || contains(sa)) return false;
        in_order_.push_back(sa);
        return true;
    }
    void remove(const OutboundSa* sa) { std::erase(in_order_, sa); }
    [[nodiscard]] OutboundSa* find(PolicyId policy) const {
        OutboundSa* best = nullptr;
        for (OutboundSa* sa : in_order_) {
            if (sa->policy == policy && (best == nullptr || sa->rank >= best->rank)) best = sa;
        }
        return best;
    }
    [[nodiscard]] bool contains(const OutboundSa* sa) const {
        return std::ranges::find(in_order_, sa) != in_order_.end();
    }
    [[nodiscard]] const std::vector<OutboundSa*>& all() const { return in_order_; }

  private:
    std::vector<OutboundSa*> in_order_;
};

TEST(OutboundTable, EqualsASearchUnderRandomOperations) {
    constexpr uint32_t kPolicies = 3;
    std::mt19937 random(7);
    OutboundTable table(kPolicies);
    NaiveTable naive;
    std::vector<std::unique_ptr<OutboundSa>> sas;
    for (uint32_t i = 0; i < 24; ++i) {  // one policy more than there is room for
        sas.push_back(plain_sa(PolicyId{i % (kPolicies + 1)}, random() % 3));
    }
    for (int step = 0; step < 100'000; ++step) {
        OutboundSa* sa = sas[random() % sas.size()].get();
        if (random() % 3 != 0) {
            ASSERT_EQ(table.insert(sa), naive.insert(sa, kPolicies));
        } else {
            table.remove(sa);
            naive.remove(sa);
        }
        for (uint32_t policy = 0; policy <= kPolicies; ++policy) {
            ASSERT_EQ(table.find(PolicyId{policy}), naive.find(PolicyId{policy})) << step;
        }
        size_t visited = 0;
        table.for_each([&](const OutboundSa* one) {
            ASSERT_TRUE(naive.contains(one));
            ++visited;
        });
        ASSERT_EQ(visited, naive.all().size());
        if (random() % 8 == 0 && !naive.contains(sa)) sa->rank = random() % 3;
    }
}

// Its memory stays the process's, so what stands there can be seen.
TEST(SaMaking, AFreedSaLeavesNothingOfItsKey) {
    const auto aead = crypto::Aead::create().value();
    const test::Bytes key = test::repeated(20, 0xcd);
    auto sa = make_outbound_sa(aead, {.spi = Spi{256},
                                      .source = test::address("192.0.2.1"),
                                      .destination = test::address("192.0.2.2"),
                                      .suite = crypto::find_suite("aes-gcm-16-128"),
                                      .key = key})
                  .value();
    const std::span block(sa->key(), crypto::kGcmKeyBlockBytes);
    const auto is_zero = [](std::byte byte) { return byte == std::byte{}; };
    EXPECT_FALSE(std::ranges::all_of(block, is_zero));
    EXPECT_EQ(sa->key_block_bytes, block.size());
    EXPECT_GE(memory_bytes(*sa), sizeof(OutboundSa) + block.size());
    sa.reset();
    EXPECT_TRUE(std::ranges::all_of(block, is_zero));
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
                                   .suite = crypto::find_suite("aes-gcm-16-128"),
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
    refused([](auto& p) { p.suite = crypto::find_suite("aes-gcm-16-256"); });
    refused([](auto& p) { p.suite = nullptr; });
    refused([](auto& p) { p.source = test::address("2001:db8::1"); });
    refused([](auto& p) { p.selectors = {}; });
    OutboundSaParameters outbound{.spi = Spi{256},
                                  .source = test::address("192.0.2.1"),
                                  .destination = test::address("192.0.2.2"),
                                  .suite = good.suite,
                                  .key = key};
    EXPECT_TRUE(make_outbound_sa(aead, outbound));
    outbound.sequence_next = 0;
    EXPECT_FALSE(make_outbound_sa(aead, outbound));
}

}  // namespace
}  // namespace sallyport
