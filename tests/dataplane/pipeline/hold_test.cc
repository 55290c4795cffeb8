// SPDX-License-Identifier: Apache-2.0
// Frames that find no SA wait for one. Rows for what happens to them: delivered in order when the
// SA comes, dropped for their own reason when it does not, nothing lost and nothing counted twice;
// then both directions under random operations against a reference that keeps whole frames.

#include <cstring>
#include <deque>
#include <random>

#include "tests/dataplane/pipeline/hold_world.h"
#include "tests/dataplane/pipeline/rows.h"

namespace sallyport::test {
namespace {

// An inner packet that can be told from others.
Bytes numbered(uint32_t number, const std::string& destination = "10.2.0.9") {
    Bytes packet = ipv4({.destination = destination}, udp(1000, 2000));
    put32(packet, 28, number);
    return packet;
}
uint32_t number_of(const Bytes& packet) {
    return get32(packet, 28);
}
std::vector<Bytes> arrivals(const TestSa& sa, uint32_t first, uint32_t count) {
    std::vector<Bytes> frames;
    for (uint32_t i = first; i < first + count; ++i)
        frames.push_back(esp_frame(sa, i, numbered(i)));
    return frames;
}
std::vector<Bytes> departures(uint32_t first, uint32_t count) {
    std::vector<Bytes> frames;
    for (uint32_t i = first; i < first + count; ++i) frames.push_back(ethernet(numbered(i)));
    return frames;
}
// What the far end reads in an ESP packet of an IPv4 tunnel.
Bytes opened(const TestSa& sa, const Bytes& packet) {
    const auto text = esp_open(sa.key_material(), sa.esn, 0, std::span(packet).subspan(20));
    if (!text) return {};
    return read_text(*text).value().packet;
}
uint32_t sequence_of(const Bytes& packet) {
    return get32(packet, 24);
}

TEST(Hold, InboundWaitsAndIsDeliveredInOrder) {
    const TestSa sa;
    HoldWorld hold(200);
    TunnelWorld& world = hold.world;
    for (uint32_t burst = 0; burst < 3; ++burst) {
        const auto result = hold.inbound(arrivals(sa, 1 + burst * 50, 50));
        EXPECT_TRUE(result.delivered.empty());
        EXPECT_EQ(result.discarded, 0u);
    }
    const uint64_t bytes = arrivals(sa, 1, 1)[0].size() * 150;
    EXPECT_EQ(world.counters(), (Deltas{{"in.frames", 150},
                                        {"in.bytes", bytes},
                                        {"in.bursts", 3},
                                        {"in.held", 150},
                                        {"in.on_hold", 150}}));
    EXPECT_TRUE(world.events.events.empty());

    world.add_inbound(sa);
    const auto result = hold.all_held(world.in, HoldList::Round::again);
    ASSERT_EQ(result.delivered.size(), 150u);
    for (uint32_t i = 0; i < 150; ++i) {
        EXPECT_EQ(to_hex(result.delivered[i]), to_hex(numbered(i + 1)));
    }
    const uint64_t inner = ip_bytes(numbered(0)) * 150;
    EXPECT_EQ(world.counters(), (Deltas{{"in.frames", 150},
                                        {"in.bytes", bytes},
                                        {"in.bursts", 3},
                                        {"in.held", 150},
                                        {"in.delivered", 150},
                                        {"sa 4097 in.packets", 150},
                                        {"sa 4097 in.bytes", inner}}));
    EXPECT_TRUE(world.events.events.empty());
    // Nothing waits any more, and the SA carries on.
    EXPECT_EQ(hold.inbound(arrivals(sa, 151, 5)).delivered.size(), 5u);
    EXPECT_EQ(hold.inbound(arrivals(sa, 151, 5)).discarded, 5u);  // replayed
}

// Both ways into the outbound pipeline, mixed: each packet's hop is counted as its source asks.
TEST(Hold, OutboundWaitsAndIsSentInOrder) {
    TestSa sa;
    sa.iv_mask = 0x1122334455667788;
    HoldWorld hold(200);
    TunnelWorld& world = hold.world;
    world.set_policies({protect_entry(Family::v4, sa.policy)});
    uint32_t next = 0;
    std::vector<uint8_t> ttls;
    for (const uint32_t count : {40u, 3u, 64u, 1u, 70u - 6u}) {
        const auto source = ttls.size() % 2 == 0 ? OutboundSource::port : OutboundSource::kernel;
        const auto result = hold.outbound(departures(next, count), source);
        EXPECT_EQ(result.discarded + result.delivered.size(), 0u);
        next += count;
        ttls.insert(ttls.end(), count, source == OutboundSource::port ? 63 : 64);
    }
    EXPECT_EQ(world.worker_counters.outbound.held.read(), next);
    world.add_outbound(sa);
    const auto result = hold.all_held(world.out, HoldList::Round::again);
    ASSERT_EQ(result.delivered.size(), next);
    for (uint32_t i = 0; i < next; ++i) {
        EXPECT_EQ(sequence_of(result.delivered[i]), i + 1);
        const Bytes inner = opened(sa, result.delivered[i]);
        ASSERT_FALSE(inner.empty());
        EXPECT_EQ(number_of(inner), i);
        EXPECT_EQ(get8(inner, 8), ttls[i]);
        EXPECT_TRUE(ipv4_checksum_right(inner));
    }
    const Deltas counters = world.counters();
    EXPECT_EQ(counters.at("out.frames"), next);
    EXPECT_EQ(counters.at("out.delivered"), next);
    EXPECT_EQ(counters.at("out.held"), next);
    EXPECT_FALSE(counters.contains("out.on_hold"));
    EXPECT_FALSE(counters.contains("drops.no_sa"));
}

// The SA of some comes; the others stay, in order, and are no younger for it.
TEST(Hold, OthersKeepTheirPlaceAndTheirAge) {
    TestSa first;
    TestSa second;
    second.spi = 0x2002;
    second.id = 2;
    HoldWorld hold(300);
    TunnelWorld& world = hold.world;
    for (uint32_t i = 1; i <= 100; ++i) {
        world.in.on_hold().set_now(i);
        hold.inbound({arrivals(first, i, 1)[0], arrivals(second, i, 1)[0]});
    }
    world.in.on_hold().set_now(kAgeMax);
    world.add_inbound(second);
    EXPECT_EQ(hold.all_held(world.in, HoldList::Round::again).delivered.size(), 100u);
    EXPECT_EQ(world.in.on_hold().count(), 100u);
    EXPECT_EQ(world.worker_counters.inbound.on_hold.read(), 100u);
    EXPECT_EQ(world.worker_counters.inbound.held.read(), 200u);

    EXPECT_EQ(hold.expire(world.in, kAgeMax + 1).discarded, 0u);
    EXPECT_EQ(world.in.on_hold().time_left(), 0u);
    EXPECT_EQ(hold.expire(world.in, kAgeMax + 2).discarded, 1u);
    EXPECT_EQ(world.in.on_hold().time_left(), 0u);
    EXPECT_EQ(hold.expire(world.in, kAgeMax + 41).discarded, 39u);
    world.add_inbound(first);
    const auto rest = hold.all_held(world.in, HoldList::Round::again);
    ASSERT_EQ(rest.delivered.size(), 60u);
    for (uint32_t i = 0; i < 60; ++i) EXPECT_EQ(number_of(rest.delivered[i]), 41 + i);
}

TEST(Hold, ExpiredInboundIsDroppedForItsReasonOnce) {
    const TestSa sa;
    HoldWorld hold(200);
    TunnelWorld& world = hold.world;
    world.in.on_hold().set_now(5000);
    hold.inbound(arrivals(sa, 1, 64));
    hold.inbound(arrivals(sa, 65, 36));
    EXPECT_EQ(world.in.on_hold().time_left(), kAgeMax);
    EXPECT_EQ(hold.expire(world.in, 5000 + kAgeMax).discarded, 0u);
    EXPECT_EQ(hold.expire(world.in, 5000 + kAgeMax + 1).discarded, 100u);
    EXPECT_TRUE(world.in.on_hold().empty());
    const Deltas counters = world.counters();
    EXPECT_EQ(counters.at("drops.unknown_spi"), 100u);
    EXPECT_EQ(counters.at("in.frames"), 100u);
    EXPECT_EQ(counters.at("in.bursts"), 2u);
    // On record as any packet without an SA, with its SPI and number (RFC 4303 4).
    ASSERT_EQ(world.events.events.size(), 100u);
    for (uint32_t i = 0; i < 100; ++i) {
        const auto& record = std::get<event::Audit>(world.events.events[i]);
        EXPECT_EQ(record.reason, DropReason::unknown_spi);
        EXPECT_EQ(to_index(record.spi), sa.spi);
        EXPECT_EQ(record.sequence, i + 1);
    }
    EXPECT_EQ(hold.expire(world.in, 1'000'000).discarded, 0u);
}

TEST(Hold, ExpiredOutboundIsDroppedForItsReasonOnce) {
    HoldWorld hold(200);
    TunnelWorld& world = hold.world;
    world.set_policies({protect_entry(Family::v4, 1)});
    hold.outbound(departures(0, 64));
    hold.outbound(departures(64, 64), OutboundSource::kernel);
    EXPECT_EQ(hold.expire(world.out, kAgeMax + 1).discarded, 128u);
    EXPECT_EQ(world.counters().at("drops.no_sa"), 128u);
    EXPECT_EQ(world.counters().at("out.frames"), 128u);
}

TEST(Hold, WhatAFullListCannotTakeIsDroppedAtOnce) {
    TestSa sa;
    for (const uint32_t room : {0u, 1u, 10u, 63u}) {
        HoldWorld hold(room);
        TunnelWorld& world = hold.world;
        world.set_policies({protect_entry(Family::v4, sa.policy)});
        EXPECT_EQ(hold.inbound(arrivals(sa, 1, 64)).discarded, 64 - room);
        EXPECT_EQ(hold.outbound(departures(1, 64)).discarded, 64 - room);
        EXPECT_EQ(world.counters().at("drops.unknown_spi"), 64 - room);
        EXPECT_EQ(world.counters().at("drops.no_sa"), 64 - room);
        EXPECT_EQ(world.worker_counters.inbound.held.read(), room);
        EXPECT_EQ(world.events.events.size(), 64 - room);  // inbound ones are on record
        // Those that had room are the first ones, and the list takes as many again.
        world.add_inbound(sa);
        world.add_outbound(sa);
        for (int turn = 0; turn < 3; ++turn) {
            const auto result = hold.all_held(world.in, HoldList::Round::again);
            ASSERT_EQ(result.delivered.size(), turn == 0 ? room : 0);
            for (uint32_t i = 0; i < result.delivered.size(); ++i) {
                EXPECT_EQ(number_of(result.delivered[i]), i + 1);
            }
        }
        EXPECT_EQ(hold.all_held(world.out, HoldList::Round::again).delivered.size(), room);
    }
}

TEST(Hold, AtTheEndNothingStays) {
    const TestSa sa;
    HoldWorld hold(200);
    TunnelWorld& world = hold.world;
    world.set_policies({protect_entry(Family::v4, sa.policy)});
    hold.inbound(arrivals(sa, 1, 64));
    hold.inbound(arrivals(sa, 65, 10));
    hold.outbound(departures(1, 33));
    EXPECT_EQ(hold.all_held(world.in, HoldList::Round::last).discarded, 74u);
    EXPECT_EQ(hold.all_held(world.out, HoldList::Round::last).discarded, 33u);
    EXPECT_EQ(world.counters().at("drops.unknown_spi"), 74u);
    EXPECT_EQ(world.counters().at("drops.no_sa"), 33u);
    EXPECT_FALSE(world.counters().contains("in.on_hold"));
    EXPECT_FALSE(world.counters().contains("out.on_hold"));
}

// Only the want of an SA makes a frame wait.
TEST(Hold, NothingElseWaits) {
    const TestSa sa;
    HoldWorld hold(200);
    TunnelWorld& world = hold.world;
    world.add_inbound(sa);
    Bytes forged = esp_frame(sa, 5, numbered(5));
    put8(forged, forged.size() - 1, static_cast<uint8_t>(get8(forged, forged.size() - 1) ^ 1));
    hold.inbound({esp_frame(sa, 1, numbered(1)), esp_frame(sa, 1, numbered(1)), forged,
                  head(forged, 30), head(forged, 60), ethernet(0x0806, repeated(46, 0)),
                  esp_frame(sa, 9, ipv4({.destination = "10.9.0.1"}, udp(1, 2)))});
    SpdEntry discard = protect_entry(Family::v4, 2);
    discard.action = SpdAction::discard;
    discard.protocol = 6;
    hold.outbound({ethernet(numbered(1))});  // no SPD
    world.set_policies({discard, protect_entry(Family::v4, sa.policy)});
    hold.outbound({ethernet(ip(Family::v4, tcp(1, 2))), ethernet(ip(Family::v6, udp(1, 2))),
                   head(ethernet(numbered(1)), 40), ethernet(ip(Family::v4, udp(1, 2), 0, 1))});
    TestSa spent = sa;
    spent.sequence_reserved = 1;
    world.add_outbound(spent);
    hold.outbound({ethernet(numbered(1))});
    EXPECT_FALSE(world.counters().contains("in.held"));
    EXPECT_FALSE(world.counters().contains("out.held"));
    EXPECT_EQ(world.counters().at("drops.sequence_unreserved"), 1u);
}

// The last round judges by what holds then, and says so.
TEST(Hold, APolicyThatChangedMeanwhileDecides) {
    HoldWorld hold(200);
    TunnelWorld& world = hold.world;
    world.set_policies({protect_entry(Family::v4, 1)});
    hold.outbound(departures(0, 3));
    SpdEntry discard = protect_entry(Family::v4, 1);
    discard.action = SpdAction::discard;
    world.set_policies({discard});
    EXPECT_EQ(hold.all_held(world.out, HoldList::Round::again).discarded, 3u);
    EXPECT_EQ(world.counters().at("drops.policy_discard"), 3u);
    EXPECT_FALSE(world.counters().contains("drops.no_sa"));
}

// Up to the stage that looks for the SA nothing is written: a frame that waited is the frame that
// came, with all that surrounds it in its buffer.
TEST(Hold, AFrameOnHoldIsUntouched) {
    FrameBuffers buffers(4);
    std::vector<std::pair<bool, Bytes>> frames;  // inbound?
    for (const Family outer : kFamilies) {
        TestSa sa;
        sa.outer = outer;
        frames.emplace_back(true, esp_frame(sa, 7, numbered(1)));
        frames.emplace_back(
            true, ethernet(outer == Family::v4 ? ipv4({.options = repeated(8, 1)},
                                                      raw(50, esp_of(sa, 7, numbered(1))))
                                               : ipv6({.extensions = {destination_options()}},
                                                      raw(50, esp_of(sa, 7, numbered(1))))));
        frames.emplace_back(false, ethernet(ip(outer, tcp(1, 2, 700))));
    }
    for (const auto& [is_inbound, bytes] : frames) {
        for (const auto round : {HoldList::Round::again, HoldList::Round::last}) {
            TunnelWorld world(64, 10, kAgeMax);
            world.set_policies({protect_entry(Family::v4, 1), protect_entry(Family::v6, 1)});
            const Frame frame = buffers.put(0, bytes);
            Bytes before(buffers.base(0), buffers.base(0) + kFrameBytes);
            if (is_inbound) {
                world.in.run({&frame, 1});
                ASSERT_EQ(world.in.on_hold().count(), 1u);
                world.in.run_held(1, round);
            } else {
                world.out.run({&frame, 1}, OutboundSource::port);
                ASSERT_EQ(world.out.on_hold().count(), 1u);
                world.out.run_held(1, round);
            }
            EXPECT_EQ(std::memcmp(before.data(), buffers.base(0), kFrameBytes), 0);
        }
    }
}

// Random traffic of several SAs, which come and go, while time passes: a reference that keeps the
// numbers of waiting packets says what is delivered, in which order, and what is dropped.
class Reference {
  public:
    static constexpr uint32_t kRoom = 100;
    static constexpr uint32_t kSas = 4;
    struct Waiting {
        uint32_t sa, number;
        uint64_t since;
    };
    // Numbers in the order in which they must come out.
    std::vector<uint32_t> arrive(const std::vector<std::pair<uint32_t, uint32_t>>& packets,
                                 uint64_t now) {
        std::vector<uint32_t> out;
        for (const auto& [sa, number] : packets) {
            if (installed[sa]) {
                out.push_back(number);
            } else if (waiting.size() < kRoom) {
                waiting.push_back({sa, number, now});
                ++held;
            } else {
                ++dropped;
            }
        }
        delivered += out.size();
        return out;
    }
    std::vector<uint32_t> release() {
        std::vector<uint32_t> out;
        std::erase_if(waiting, [&](const Waiting& one) {
            if (!installed[one.sa]) return false;
            out.push_back(one.number);
            return true;
        });
        delivered += out.size();
        return out;
    }
    void expire(uint64_t now) {
        while (!waiting.empty() && now - waiting.front().since > kAgeMax) {
            waiting.pop_front();
            ++dropped;
        }
    }
    std::array<bool, kSas> installed{};
    std::deque<Waiting> waiting;
    uint64_t held = 0, delivered = 0, dropped = 0;
};

void check_against_reference(bool is_inbound, uint32_t seed) {
    std::mt19937 random(seed);
    HoldWorld hold(Reference::kRoom);
    TunnelWorld& world = hold.world;
    Reference reference;
    std::vector<TestSa> sas(Reference::kSas);
    std::vector<InboundSa*> inbound;
    std::vector<OutboundSa*> outbound;
    std::vector<SpdEntry> policies;
    for (uint32_t i = 0; i < sas.size(); ++i) {
        sas[i].spi = 0x1000 + i;
        sas[i].id = sas[i].policy = i;
        sas[i].replay_window = 0;
        inbound.push_back(&world.make_inbound(sas[i]));
        outbound.push_back(&world.make_outbound(sas[i]));
        policies.push_back(protect_entry(Family::v4, i));
        policies.back().destination = prefix("10.2." + std::to_string(i) + ".0/24");
    }
    world.set_policies(policies);
    const auto numbers = [&](const HoldWorld::Result& result) {
        std::vector<uint32_t> out;
        for (const Bytes& packet : result.delivered) {
            const uint32_t spi = is_inbound ? 0 : get32(packet, 20);
            out.push_back(number_of(is_inbound ? packet : opened(sas[spi - 0x1000], packet)));
        }
        return out;
    };
    const auto release = [&] {
        return is_inbound ? hold.all_held(world.in, HoldList::Round::again)
                          : hold.all_held(world.out, HoldList::Round::again);
    };
    uint64_t now = 1;
    uint32_t next = 1;
    for (int step = 0; step < 3000; ++step) {
        now += random() % 200;
        world.in.on_hold().set_now(now);
        world.out.on_hold().set_now(now);
        if (is_inbound) {
            hold.expire(world.in, now);
        } else {
            hold.expire(world.out, now);
        }
        reference.expire(now);
        if (const auto sa = static_cast<uint32_t>(random() % Reference::kSas); random() % 4 == 0) {
            if (reference.installed[sa]) {
                world.sad.remove(inbound[sa]);
                world.table.remove(outbound[sa]);
            } else {
                ASSERT_TRUE(world.sad.insert(inbound[sa]));
                ASSERT_TRUE(world.table.insert(outbound[sa]));
            }
            reference.installed[sa] = !reference.installed[sa];
            if (reference.installed[sa]) {
                ASSERT_EQ(numbers(release()), reference.release());
            }
        }
        std::vector<std::pair<uint32_t, uint32_t>> packets;
        std::vector<Bytes> frames;
        const auto count =
            static_cast<uint32_t>(random() % (random() % 3 == 0 ? kBurstMax + 1 : 8));
        for (uint32_t i = 0; i < count; ++i) {
            const auto sa = static_cast<uint32_t>(random() % Reference::kSas);
            const Bytes packet = numbered(next, "10.2." + std::to_string(sa) + ".9");
            frames.push_back(is_inbound ? esp_frame(sas[sa], next, packet) : ethernet(packet));
            packets.emplace_back(sa, next++);
        }
        const auto result = is_inbound
                                ? hold.inbound(frames)
                                : hold.outbound(frames, random() % 2 == 0 ? OutboundSource::port
                                                                          : OutboundSource::kernel);
        ASSERT_EQ(numbers(result), reference.arrive(packets, now)) << step;

        const DirectionCounters& counters =
            is_inbound ? world.worker_counters.inbound : world.worker_counters.outbound;
        const DropReason reason = is_inbound ? DropReason::unknown_spi : DropReason::no_sa;
        ASSERT_EQ(world.worker_counters.drops[static_cast<size_t>(reason)].read(),
                  reference.dropped);
        ASSERT_EQ(counters.on_hold.read(), reference.waiting.size());
        ASSERT_EQ(counters.held.read(), reference.held);
        ASSERT_EQ(counters.delivered.read(), reference.delivered);
        ASSERT_EQ(counters.frames.read(),
                  reference.delivered + reference.dropped + reference.waiting.size());
    }
    EXPECT_GT(reference.held, 3000u);
    EXPECT_GT(reference.dropped, 1000u);
    EXPECT_GT(reference.delivered, 3000u);
}

TEST(Hold, InboundEqualsTheReference) {
    for (uint32_t seed = 1; seed <= 4; ++seed) check_against_reference(true, seed);
}
TEST(Hold, OutboundEqualsTheReference) {
    for (uint32_t seed = 1; seed <= 4; ++seed) check_against_reference(false, seed);
}

}  // namespace
}  // namespace sallyport::test
