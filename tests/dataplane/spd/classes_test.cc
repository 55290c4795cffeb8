// SPDX-License-Identifier: Apache-2.0
// A list that is changed entry by entry, against the ordered list: for the maps after and during
// each change, for workers, and after changes that failed.

#include "dataplane/spd/classes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>

#include "tests/support/spd_maps.h"

namespace sallyport {
namespace {

using test::SpdMaps;
using List = std::map<SpdPlace, SpdEntry>;

class Dice {
  public:
    explicit Dice(uint32_t seed) : random_(seed) {}
    uint32_t below(uint32_t end) { return static_cast<uint32_t>(random_() % end); }
    bool one_in(uint32_t many) { return below(many) == 0; }

    IpAddress address(Family family) {
        IpAddress out{.family = family};
        for (unsigned i = 0; i < out.bit_count() / 8; ++i) {
            out.bytes[i] = static_cast<uint8_t>(i < 3 ? below(2) * 0x80 + below(2) : below(3));
        }
        return out;
    }
    // Inside the prefix.
    IpAddress address(const IpPrefix& prefix) {
        IpAddress out = address(prefix.address.family);
        for (unsigned bit = 0; bit < prefix.bits; ++bit) {
            const auto mask = static_cast<uint8_t>(0x80u >> (bit % 8));
            out.bytes[bit / 8] &= static_cast<uint8_t>(~mask);
            out.bytes[bit / 8] |= static_cast<uint8_t>(prefix.address.bytes[bit / 8] & mask);
        }
        return out;
    }
    IpPrefix prefix(Family family) {
        constexpr uint8_t kBits[] = {0, 1, 6, 8, 8, 12, 16, 16, 20, 24, 24, 24, 32};
        const uint8_t bits = kBits[below(std::size(kBits))];
        return shortened({.address = address(family),
                          .bits = static_cast<uint8_t>(family == Family::v4 ? 32 : 128)},
                         bits == 32 && family == Family::v6 ? 128 : bits);
    }
    SpdEntry entry(uint32_t policy) {
        const Family family = one_in(4) ? Family::v6 : Family::v4;
        SpdEntry out{.policy = PolicyId{policy},
                     .action = static_cast<SpdAction>(below(3)),
                     .source = prefix(family),
                     .destination = prefix(family)};
        if (one_in(3)) out.protocol = one_in(2) ? 6 : 17;
        if (out.protocol != 0 && one_in(2)) {
            out.has_ports = true;
            out.destination_port_lo = static_cast<uint16_t>(below(3));
            out.destination_port_hi = static_cast<uint16_t>(out.destination_port_lo + below(2));
        }
        if (one_in(12)) {
            out.ct_mark_mask = 1;
            out.ct_mark = below(2);
        }
        return out;
    }
    SpdPlace place(uint32_t arrival) {
        return {.tier = static_cast<uint8_t>(one_in(8) ? 3 : 1),
                .priority = below(4) * 10,
                .rank = one_in(4) ? below(arrival + 1) : arrival,
                .index = arrival};
    }

  private:
    std::mt19937 random_;
};

struct Packet {
    IpAddress source;
    IpAddress destination;
    uint8_t protocol = 0;
    uint16_t port = 0;
    bool is_fragment = false;
    std::optional<uint32_t> mark;

    [[nodiscard]] SpdKey key() const {
        return {.family = source.family,
                .source = reinterpret_cast<const std::byte*>(source.bytes.data()),
                .destination = reinterpret_cast<const std::byte*>(destination.bytes.data()),
                .protocol = protocol,
                .protocol_known = true,
                .ports_known = !is_fragment && protocol != 1,
                .destination_port = port};
    }
};

Packet any_packet(Dice& dice) {
    constexpr uint8_t kProtocols[] = {1, 6, 17};
    const Family family = dice.one_in(4) ? Family::v6 : Family::v4;
    Packet out{.source = dice.address(family),
               .destination = dice.address(family),
               .protocol = kProtocols[dice.below(3)],
               .port = static_cast<uint16_t>(dice.below(4)),
               .is_fragment = dice.one_in(8),
               .mark = std::nullopt};
    if (dice.one_in(2)) out.mark = dice.below(2);
    return out;
}

// Of an entry that changes, so that it may be one of several.
Packet packet_of(Dice& dice, const std::vector<SpdEntry>& entries) {
    Packet out = any_packet(dice);
    const SpdEntry& entry = entries[dice.below(static_cast<uint32_t>(entries.size()))];
    out.source = dice.address(entry.source);
    out.destination = dice.address(entry.destination);
    return out;
}

// The ordered list. `marks`: as a program sees it; else as a worker does.
SpdVerdict walk(const List& list, const Packet& packet, bool marks) {
    const SpdKey key = packet.key();
    for (const auto& [place, entry] : list) {
        if (!entry.source.contains(packet.source)) continue;
        if (!entry.destination.contains(packet.destination)) continue;
        if (entry.ct_mark_mask != 0 && !marks) continue;
        if (entry.protocol != 0 && entry.protocol != key.protocol) continue;
        if (entry.has_ports) {
            if (!key.ports_known) return {.kind = SpdVerdict::Kind::ports_unknown};
            if (packet.port < entry.destination_port_lo ||
                packet.port > entry.destination_port_hi) {
                continue;
            }
        }
        if (entry.ct_mark_mask != 0 &&
            (!packet.mark || (*packet.mark & entry.ct_mark_mask) != entry.ct_mark)) {
            continue;
        }
        return {.kind = SpdVerdict::Kind::matched, .action = entry.action, .policy = entry.policy};
    }
    return {};
}

bool same(const SpdVerdict& a, const SpdVerdict& b) {
    if (a.kind != b.kind) return false;
    return a.kind != SpdVerdict::Kind::matched || (a.action == b.action && a.policy == b.policy);
}

std::vector<SpdEdit> edits_between(const List& from, const List& to) {
    std::vector<SpdEdit> edits;
    for (const auto& [place, entry] : from) {
        if (!to.contains(place)) edits.push_back({.place = place, .entry = std::nullopt});
    }
    for (const auto& [place, entry] : to) {
        const auto old = from.find(place);
        if (old == from.end() || old->second != entry) edits.push_back({place, entry});
    }
    std::ranges::sort(edits, {}, &SpdEdit::place);
    return edits;
}

std::vector<std::pair<SpdPlace, SpdEntry>> items_of(const List& list) {
    return {list.begin(), list.end()};
}

// A list with all that is made of it.
class World {
  public:
    World(uint32_t seed, uint32_t room) : dice_(seed), room_(room) {
        for (int i = 0; i < 12; ++i) add(list_);
    }

    // False: this list does not compile.
    bool make_anew() {
        runs_ = std::make_unique<SpdRuns>(1 << 20);
        classes_ = std::make_unique<SpdClasses>(*runs_);
        if (!classes_->build(items_of(list_))) return false;
        runs_->set_room(runs_->end() + room_);
        const CompiledSpd compiled = classes_->compiled();
        maps_ = SpdMaps(compiled);
        later_.clear();
        spd_ = std::make_unique<Spd>(compiled, CompiledSpd{});
        return true;
    }

    void change(int round) {
        List next = list_;
        for (uint32_t i = 1 + dice_.below(4); i > 0; --i) edit(next);
        const auto edits = edits_between(list_, next);
        const auto changes = classes_->apply(edits);
        if (!changes) {
            ++whole;
            const List before = std::exchange(list_, next);
            if (!make_anew()) {
                list_ = before;
                ASSERT_TRUE(make_anew()) << "round " << round;
            }
            return;
        }
        ++by_rows;
        if (dice_.one_in(4)) {
            fail(*changes, round);
            return;
        }
        ASSERT_NO_FATAL_FAILURE(put(*changes, next, round));
        later_.insert(later_.end(), changes->later.begin(), changes->later.end());

        auto next_spd = std::make_unique<Spd>(*spd_);
        next_spd->change(SpdDirection::outbound, *classes_);
        const bool rested = dice_.one_in(4);
        if (rested) {
            ASSERT_TRUE(maps_.erase(std::exchange(later_, {})));
        }
        classes_->commit(rested);
        for (int probe = 0; probe < 60; ++probe) {
            const Packet packet = any_packet(dice_);
            ASSERT_TRUE(same(look_up(*spd_, packet), walk(list_, packet, false)))
                << "round " << round << ": the version of before has changed";
            ASSERT_TRUE(same(look_up(*next_spd, packet), walk(next, packet, false)))
                << "round " << round << ": " << to_string(packet.source) << " -> "
                << to_string(packet.destination);
        }
        spd_ = std::move(next_spd);
        list_ = std::move(next);
        if (later_.empty()) {
            ASSERT_EQ(maps_.row_count(), classes_->classes().size() + classes_->source_count());
        }
        size_t entries = 0;
        for (const auto& [destination, one] : classes_->classes()) {
            for (const auto& [source, cell] : one.cells) entries += cell.run.count;
        }
        ASSERT_EQ(entries, classes_->entry_count());
    }

    int by_rows = 0;
    int whole = 0;
    int raced = 0;  // lookups of which some steps were seen and some not

  private:
    void add(List& list) {
        ++arrivals_;
        list.emplace(dice_.place(arrivals_), dice_.entry(arrivals_));
    }
    void edit(List& list) {
        const uint32_t kind = list.empty() ? 0 : dice_.below(10);
        if (list.size() < 6 || (kind < 5 && list.size() < 60)) {
            add(list);
            return;
        }
        auto chosen = std::next(list.begin(), dice_.below(static_cast<uint32_t>(list.size())));
        if (kind == 8) {
            chosen->second.policy = PolicyId{++arrivals_};
            chosen->second.action = static_cast<SpdAction>(dice_.below(3));
        } else if (kind == 9) {  // behind others of its priority
            SpdPlace place = chosen->first;
            const SpdEntry entry = chosen->second;
            list.erase(chosen);
            place.rank = ++arrivals_;
            list.emplace(place, entry);
        } else {
            list.erase(chosen);
        }
    }
    static SpdVerdict look_up(const Spd& spd, const Packet& packet) {
        return spd.lookup(SpdDirection::outbound, packet.key());
    }

    // Readers that run while steps are made see what was, or what will be.
    void put(const SpdChanges& changes, const List& next, int round) {
        std::vector<SpdEntry> changing;
        for (const SpdEdit& edit : edits_between(list_, next)) {
            changing.push_back(edit.entry ? *edit.entry : list_.at(edit.place));
        }
        for (int reader = 0; reader < 12; ++reader) {
            SpdMaps maps = maps_;
            size_t at = 0;
            while (at < changes.steps.size()) {
                const Packet packet = packet_of(dice_, changing);
                const size_t begin = at;
                const uint32_t pace = 1 + dice_.below(30);
                const auto is_wait = [&] {
                    return std::holds_alternative<SpdChanges::Wait>(changes.steps[at]);
                };
                bool known = true;
                const SpdVerdict seen =
                    maps.lookup(packet.source, packet.destination, packet.key(), packet.mark, [&] {
                        while (at < changes.steps.size() && dice_.one_in(pace) && !is_wait()) {
                            known = maps.take(changes.steps[at++]) && known;
                        }
                    });
                ASSERT_TRUE(known) << "round " << round;
                if (at > begin) ++raced;
                ASSERT_TRUE(same(seen, walk(list_, packet, true)) ||
                            same(seen, walk(next, packet, true)))
                    << "round " << round << ", steps " << begin << " to " << at << " of "
                    << changes.steps.size() << ": " << to_string(packet.source) << " -> "
                    << to_string(packet.destination);
                // A wait is over only when no reader is left.
                if (at < changes.steps.size() && (is_wait() || dice_.one_in(4))) {
                    ASSERT_TRUE(maps.take(changes.steps[at++])) << "round " << round;
                }
            }
        }
        for (const auto& step : changes.steps) ASSERT_TRUE(maps_.take(step)) << "round " << round;
        for (int probe = 0; probe < 60; ++probe) {
            const Packet packet = any_packet(dice_);
            ASSERT_TRUE(
                same(maps_.lookup(packet.source, packet.destination, packet.key(), packet.mark),
                     walk(next, packet, true)))
                << "round " << round;
        }
    }

    void fail(const SpdChanges& changes, int round) {
        size_t at = dice_.below(static_cast<uint32_t>(changes.steps.size()) + 1);
        for (size_t i = 0; i < at; ++i) ASSERT_TRUE(maps_.take(changes.steps[i]));
        while (at-- > 0) ASSERT_TRUE(maps_.take_back(changes.steps[at]));
        classes_->roll_back();
        for (int probe = 0; probe < 60; ++probe) {
            const Packet packet = any_packet(dice_);
            ASSERT_TRUE(
                same(maps_.lookup(packet.source, packet.destination, packet.key(), packet.mark),
                     walk(list_, packet, true)))
                << "round " << round << ": taken back";
        }
    }

    Dice dice_;
    uint32_t room_;
    uint32_t arrivals_ = 0;
    List list_;
    std::unique_ptr<SpdRuns> runs_;
    std::unique_ptr<SpdClasses> classes_;
    SpdMaps maps_;
    std::vector<SpdChanges::Source> later_;
    std::unique_ptr<Spd> spd_;
};

// As at a start before there is any policy. A lookup takes what is below kNone.
TEST(SpdClasses, EntriesThatComeToAnEmptyListHaveAnOrder) {
    SpdRuns runs(1 << 10);
    SpdClasses classes(runs);
    ASSERT_TRUE(classes.build({}));
    for (uint32_t i = 0; i < 40; ++i) {
        // Behind all others and in front of them.
        const SpdPlace place{.tier = 1, .rank = i % 2 == 0 ? 100 + i : 100 - i, .index = i};
        SpdEntry entry{.policy = PolicyId{i}};
        entry.source = parse_ip_prefix("10.1.0.0/24").value();
        entry.destination = parse_ip_prefix("10.2." + std::to_string(i) + ".0/24").value();
        const SpdEdit edit{.place = place, .entry = entry};
        ASSERT_TRUE(classes.apply({&edit, 1})) << i;
        classes.commit(false);
        uint32_t after = 0;
        for (const auto& [unused, listed] : classes.list()) {
            EXPECT_LT(listed.order, CompiledSpd::kNone);
            EXPECT_GE(listed.order, after);
            after = listed.order + 1;
        }
    }
}

// Of two that share packets and not addresses one comes and then the other goes: a program that has
// begun before the first must not read the rows of after the second.
TEST(SpdClasses, ItIsWaitedBetweenChangesToo) {
    const auto waits = [](const std::optional<SpdChanges>& changes) {
        return changes && std::ranges::any_of(changes->steps, [](const auto& step) {
                   return std::holds_alternative<SpdChanges::Wait>(step);
               });
    };
    SpdEntry wide{.policy = PolicyId{1}, .action = SpdAction::protect};
    wide.source = parse_ip_prefix("10.1.0.0/24").value();
    wide.destination = parse_ip_prefix("10.2.0.0/16").value();
    SpdEntry narrow = wide;
    narrow.destination = parse_ip_prefix("10.2.1.0/24").value();
    SpdEntry elsewhere = wide;
    elsewhere.destination = parse_ip_prefix("10.3.0.0/16").value();
    const SpdPlace first{.tier = 1, .priority = 1};
    const SpdPlace second{.tier = 1, .priority = 2};
    const SpdEdit comes{.place = first, .entry = narrow};
    const SpdEdit goes{.place = second, .entry = std::nullopt};
    for (const bool rested : {false, true}) {
        SpdRuns runs(1 << 10);
        SpdClasses classes(runs);
        ASSERT_TRUE(classes.build({{second, wide}, {{.tier = 2}, elsewhere}}));
        EXPECT_FALSE(waits(classes.apply({&comes, 1})));
        classes.commit(rested);
        EXPECT_EQ(waits(classes.apply({&goes, 1})), !rested);
        classes.commit(false);
    }
    SpdRuns runs(1 << 10);
    SpdClasses classes(runs);
    ASSERT_TRUE(classes.build({{second, wide}, {{.tier = 2}, elsewhere}}));
    ASSERT_TRUE(classes.apply({&comes, 1}));
    classes.roll_back();
    EXPECT_TRUE(waits(classes.apply({&goes, 1}))) << "it has been tried";
}

TEST(SpdClasses, WhatMatchesOtherPacketsIsNoReplacement) {
    SpdRuns runs(1 << 10);
    SpdClasses classes(runs);
    const SpdPlace place{.tier = 1};
    SpdEntry entry{.policy = PolicyId{1}, .protocol = 6};
    ASSERT_TRUE(classes.build({{place, entry}}));
    entry.action = SpdAction::protect;
    const SpdEdit same{.place = place, .entry = entry};
    ASSERT_TRUE(classes.apply({&same, 1}));
    classes.commit(false);
    entry.protocol = 17;
    const SpdEdit other{.place = place, .entry = entry};
    EXPECT_FALSE(classes.apply({&other, 1}));
}

TEST(SpdClasses, ChangedByRowsEqualsTheOrderedListAtEachStep) {
    int by_rows = 0;
    int raced = 0;
    for (uint32_t seed = 1; seed <= 8; ++seed) {
        // With little room runs are soon used up by what rests.
        World world(seed, seed % 4 == 0 ? 30 : 1 << 16);
        if (!world.make_anew()) continue;
        for (int round = 0; round < 150; ++round) {
            world.change(round);
            if (HasFatalFailure()) FAIL() << "seed " << seed;
        }
        by_rows += world.by_rows;
        raced += world.raced;
    }
    EXPECT_GT(by_rows, 900);
    EXPECT_GT(raced, 900);
}

}  // namespace
}  // namespace sallyport
