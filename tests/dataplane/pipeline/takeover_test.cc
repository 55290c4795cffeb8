// SPDX-License-Identifier: Apache-2.0
// SAs that take another's place while traffic runs, and several SAs of one policy: no packet is
// accepted twice, no IV is used twice, counters go on. What a worker does for ReplaceInbound is
// done here by hand; tests/dataplane/worker/worker_test.cc sends the command.

#include <random>
#include <set>

#include "tests/dataplane/pipeline/rows.h"

namespace sallyport::test {
namespace {

constexpr uint64_t kMask = 0x0123456789abcdef;

Bytes inner() {
    return ip(Family::v4, udp(1000, 2000));
}

struct Sent {
    uint64_t sequence_low = 0;
    uint64_t iv = 0;
    Bytes iv_bytes;
    uint32_t spi = 0;
};

// One packet through the outbound pipeline; nothing when it was dropped. The oracle opens it.
std::optional<Sent> send(TunnelWorld& world, const TestSa& sa, uint32_t sequence_high = 0) {
    const auto outcomes = world.run_outbound({ethernet(inner())});
    if (!outcomes[0].delivered) return {};
    const std::span<const std::byte> outer = std::span(*outcomes[0].delivered).subspan(14);
    const auto esp = outer.subspan(20);
    EXPECT_TRUE(esp_open(sa.key_material(), sa.esn, sequence_high, esp)) << "the ICV is wrong";
    return Sent{.sequence_low = get32(esp, 4),
                .iv = uint64_t{get32(esp, 8)} << 32 | get32(esp, 12),
                .iv_bytes = Bytes(esp.begin() + 8, esp.begin() + 16),
                .spi = get32(esp, 0)};
}

InboundSa& replace(TunnelWorld& world, InboundSa& before, const TestSa& sa) {
    InboundSa& next = world.make_inbound(sa);
    EXPECT_TRUE(world.sad.replace(&before, &next));
    next.take_over(before);
    return next;
}

// The sequence numbers accepted of those that arrive one after another.
std::vector<uint64_t> accepted(TunnelWorld& world, const TestSa& sa,
                               const std::vector<uint64_t>& sequences) {
    std::vector<uint64_t> out;
    for (const uint64_t sequence : sequences) {
        if (world.run_inbound({esp_frame(sa, sequence, inner())})[0].delivered) {
            out.push_back(sequence);
        }
    }
    return out;
}
using Numbers = std::vector<uint64_t>;

class TakeOver : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Esn, TakeOver, ::testing::Bool());

TEST_P(TakeOver, ReplayStateIsKeptExactlyWithTheSameWindow) {
    TestSa sa;
    sa.esn = GetParam();
    sa.replay_top = sa.esn ? 0x2'ffff'fff0 : 0;
    const uint64_t base = sa.replay_top;
    TunnelWorld world;
    InboundSa& before = world.add_inbound(sa);
    EXPECT_EQ(accepted(world, sa, {base + 1, base + 3, base + 40}).size(), 3u);
    TestSa moved_sa = sa;
    moved_sa.replay_top = 0;
    moved_sa.selectors = {any_selector(Family::v4)};
    InboundSa& after = replace(world, before, moved_sa);
    // What came before is refused, what is missing is still welcome, once.
    EXPECT_EQ(accepted(world, sa, {base + 1, base + 3, base + 40}), Numbers{});
    EXPECT_EQ(world.counters().at("drops.replayed"), 3u);
    EXPECT_EQ(accepted(world, sa, {base + 2, base + 2, base + 39, base + 41, base + 41}),
              (Numbers{base + 2, base + 39, base + 41}));
    EXPECT_EQ(after.replay.top(), base + 41);
    EXPECT_EQ(after.packets.read(), 6u);
    EXPECT_EQ(after.bytes.read(), 6 * inner().size());
    EXPECT_EQ(after.drops[static_cast<size_t>(DropReason::replayed)].read(), 5u);
    EXPECT_EQ(before.packets.read(), 3u);
}

TEST_P(TakeOver, AnotherWindowSizeAcceptsNothingAtOrBelowTheTop) {
    for (const uint32_t size : {32u, 128u, 4096u}) {
        TestSa sa;
        sa.esn = GetParam();
        sa.replay_top = sa.esn ? 0x2'ffff'fff0 : 0;
        const uint64_t base = sa.replay_top;
        TunnelWorld world;
        InboundSa& before = world.add_inbound(sa);
        accepted(world, sa, {base + 1, base + 3, base + 40});
        TestSa other = sa;
        other.replay_top = 0;
        other.replay_window = size;
        InboundSa& after = replace(world, before, other);
        EXPECT_EQ(accepted(world, sa, {base + 1, base + 2, base + 3, base + 39, base + 40}),
                  Numbers{});
        EXPECT_EQ(accepted(world, sa, {base + 42, base + 41, base + 41}),
                  (Numbers{base + 42, base + 41}));
        EXPECT_EQ(after.replay.window(), size);
    }
}

// MOBIKE: the SAD key changes with the destination, the replay window does not.
TEST(TakeOverAddress, InboundMovesToItsNewDestination) {
    TestSa sa;
    TunnelWorld world;
    InboundSa& before = world.add_inbound(sa);
    EXPECT_EQ(accepted(world, sa, {1, 2}).size(), 2u);
    TestSa moved_sa = sa;
    moved_sa.destination = "198.51.100.7";
    InboundSa& after = replace(world, before, moved_sa);
    EXPECT_EQ(accepted(world, sa, {3}), Numbers{});
    EXPECT_EQ(world.counters().at("drops.unknown_spi"), 1u);
    EXPECT_EQ(accepted(world, moved_sa, {1, 2}), Numbers{});
    EXPECT_EQ(world.counters().at("drops.replayed"), 2u);
    EXPECT_EQ(accepted(world, moved_sa, {3}), Numbers{3});
    EXPECT_EQ(after.packets.read(), 3u);

    // Where another SA has the place, all stays as it was.
    TestSa rival = sa;
    rival.id = 2;
    world.add_inbound(rival);
    InboundSa& homeless = world.make_inbound(sa);
    EXPECT_FALSE(world.sad.replace(&after, &homeless));
    EXPECT_EQ(accepted(world, moved_sa, {4}), Numbers{4});
    EXPECT_EQ(accepted(world, sa, {9}), Numbers{9});
    EXPECT_EQ(homeless.packets.read(), 0u);
}

// What another sender has used is spent, and what is not reserved is never sent.
TEST(OutboundNumbers, OnlyMoveUp) {
    TestSa sa;
    sa.sequence_next = 10;
    sa.sequence_reserved = 12;
    TunnelWorld world;
    world.set_policies({protect_entry(Family::v4, 1)});
    OutboundSa& now = world.add_outbound(sa);
    EXPECT_EQ(send(world, sa)->sequence_low, 10u);
    EXPECT_EQ(send(world, sa)->sequence_low, 11u);
    EXPECT_FALSE(send(world, sa));  // reserved up to 12 and no further
    EXPECT_EQ(world.counters().at("drops.sequence_unreserved"), 1u);
    // The kernel has sent up to 499; control has reserved up to 502.
    now.reserve(502, 501);
    now.raise_sequence(500);
    now.raise_sequence(7);
    now.raise_sequence(0);
    EXPECT_EQ(send(world, sa)->sequence_low, 500u);
    EXPECT_EQ(send(world, sa)->sequence_low, 501u);
    // Raised beyond what is reserved: stops.
    now.raise_sequence(1000);
    EXPECT_FALSE(send(world, sa));
}

TEST(ConformanceD1, NoIvTwiceThroughReservations) {
    std::mt19937 random(12);
    for (const bool esn : {false, true}) {
        TestSa sa;
        sa.esn = esn;
        sa.iv_mask = kMask;
        sa.sequence_next = 1000;
        sa.sequence_reserved = 1000;
        TunnelWorld world;
        world.set_policies({protect_entry(Family::v4, 1)});
        OutboundSa& now = world.add_outbound(sa);
        std::set<uint64_t> used;
        for (int round = 0; round < 3000; ++round) {
            switch (random() % 8) {
                case 0: {
                    const uint64_t reserved = now.sequence_reserved + random() % 40;
                    now.reserve(reserved, reserved - random() % 20);
                    break;
                }
                case 1:  // stale, exact or ahead
                    now.raise_sequence(now.sequence_next.read() + random() % 30 - 20);
                    break;
                default:
                    if (const auto sent = send(world, sa)) {
                        ASSERT_TRUE(used.insert(sent->iv).second) << "IV used twice";
                        ASSERT_EQ(sent->iv, sent->sequence_low ^ kMask);
                    }
            }
        }
        EXPECT_GT(used.size(), 500u);
    }
}

// Rekeying: the new SA sends as soon as it is there, packets of both are taken, and when the new
// one goes the old one is there again.
TEST(Rekey, OldAndNewCoexist) {
    TestSa old;
    TestSa rekeyed;
    rekeyed.spi = 0x2002;
    rekeyed.id = 2;
    rekeyed.rank = 1;
    TunnelWorld world;
    world.set_policies({protect_entry(Family::v4, 1)});
    world.add_inbound(old);
    world.add_outbound(old);
    EXPECT_EQ(send(world, old)->spi, old.spi);
    world.add_inbound(rekeyed);
    OutboundSa& second = world.add_outbound(rekeyed);
    EXPECT_EQ(send(world, rekeyed)->spi, rekeyed.spi);
    EXPECT_EQ(accepted(world, old, {1, 2}).size(), 2u);
    EXPECT_EQ(accepted(world, rekeyed, {1, 2}).size(), 2u);
    EXPECT_EQ(accepted(world, old, {3, 2}), Numbers{3});
    world.table.remove(&second);
    const auto again = send(world, old);
    ASSERT_TRUE(again);
    EXPECT_EQ(again->spi, old.spi);
    EXPECT_EQ(again->sequence_low, 2u);
}

// An SA without numbers does not hand over to another by itself: which one sends is control's say.
TEST(Rekey, AnExhaustedSaKeepsItsPlace) {
    TestSa old;
    TestSa spent;
    spent.spi = 0x2002;
    spent.rank = 1;
    spent.sequence_next = 0xffffffff;
    TunnelWorld world;
    world.set_policies({protect_entry(Family::v4, 1)});
    world.add_outbound(old);
    OutboundSa& head = world.add_outbound(spent);
    EXPECT_EQ(send(world, spent)->spi, spent.spi);
    EXPECT_FALSE(send(world, spent));
    EXPECT_EQ(world.counters().at("drops.sequence_exhausted"), 1u);
    world.table.remove(&head);
    EXPECT_EQ(send(world, old)->spi, old.spi);
}

// The IV field is the whole number and the mask, in network order; the rest of the packet does not
// know of the mask.
TEST(IvMask, OnTheWire) {
    struct Case {
        bool esn;
        uint64_t sequence, mask;
        const char* iv;
    };
    for (const Case& c : {Case{false, 1, 0, "0000000000000001"},
                          {false, 1, kMask, "0123456789abcdee"},
                          {false, 0x10203, kMask, "0123456789aacfec"},
                          {true, 0x1'0000'0002, kMask, "0123456689abcded"},
                          {true, 0x1'0000'0002, ~uint64_t{0}, "fffffffefffffffd"}}) {
        TestSa sa;
        sa.esn = c.esn;
        sa.sequence_next = c.sequence;
        sa.iv_mask = c.mask;
        TunnelWorld world;
        world.set_policies({protect_entry(Family::v4, 1)});
        world.add_outbound(sa);
        const auto sent = send(world, sa, static_cast<uint32_t>(c.sequence >> 32));
        ASSERT_TRUE(sent);
        EXPECT_EQ(to_hex(sent->iv_bytes), c.iv);
        EXPECT_EQ(sent->sequence_low, static_cast<uint32_t>(c.sequence));
    }
}

}  // namespace
}  // namespace sallyport::test
