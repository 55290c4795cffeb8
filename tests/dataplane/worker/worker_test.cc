// SPDX-License-Identifier: Apache-2.0
// The commands by which control installs, replaces and extends SAs in a running worker, and the
// frames that wait for an SA.

#include <chrono>
#include <thread>

#include "tests/dataplane/worker/worker_rig.h"

namespace sallyport::test {
namespace {

using namespace std::chrono_literals;
using Numbers = std::vector<uint32_t>;

// The SA that the worker has let go; null: another event.
const InboundSa* retired(const std::optional<Event>& event) {
    const auto* answer = event ? std::get_if<event::InboundRetired>(&*event) : nullptr;
    return answer != nullptr ? answer->sa : nullptr;
}

TEST_F(WorkerTest, InboundFramesWaitForTheirSa) {
    start(64, 20'000);
    const TestSa sa;
    wire_->send(arrivals(sa, {1, 2, 3, 4, 5}));
    const auto& in = worker_->counters().inbound;
    ASSERT_TRUE(reached([&] { return in.on_hold.read() == 5; }));
    EXPECT_EQ(dropped(DropReason::unknown_spi), 0u);
    EXPECT_EQ(egress_->kept().size(), 0u);
    // Another SA changes nothing.
    TestSa other;
    other.spi = 0x2002;
    submit(command::InstallInbound{&makes_.make_inbound(other)});
    wire_->send(arrivals(sa, {6}));
    ASSERT_TRUE(reached([&] { return in.on_hold.read() == 6; }));
    submit(command::InstallInbound{&makes_.make_inbound(sa)});
    ASSERT_TRUE(waits_for_kept(6));
    EXPECT_EQ(kept_numbers(), (Numbers{1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(in.held.read(), 6u);
    EXPECT_EQ(in.frames.read(), 6u);
    EXPECT_EQ(in.delivered.read(), 6u);
    EXPECT_EQ(in.on_hold.read(), 0u);
}

TEST_F(WorkerTest, OutboundFramesWaitForTheirSa) {
    start(64, 20'000);
    publish_spd();
    kernel_->send(departures(10));
    const auto& out = worker_->counters().outbound;
    ASSERT_TRUE(reached([&] { return out.on_hold.read() == 10; }));
    TestSa sa;
    sa.iv_mask = 0x5555;
    submit(command::InstallOutbound{&makes_.make_outbound(sa)});
    ASSERT_TRUE(waits_for_kept(10));
    const auto kept = egress_->kept();
    for (uint32_t i = 0; i < 10; ++i) {
        EXPECT_EQ(get32(kept[i], 24), i + 1);
        EXPECT_EQ(get32(kept[i], 32), (i + 1) ^ 0x5555);
    }
    EXPECT_EQ(out.held.read(), 10u);
    EXPECT_EQ(dropped(DropReason::no_sa), 0u);
}

// Where a new SPD brings a packet under a policy that has an SA, it waits no longer.
TEST_F(WorkerTest, ANewSpdReleasesFramesToo) {
    start(64, 20'000);
    publish_spd();
    kernel_->send(departures(3));
    ASSERT_TRUE(reached([&] { return worker_->counters().outbound.on_hold.read() == 3; }));
    TestSa sa;
    sa.policy = 2;
    submit(command::InstallOutbound{&makes_.make_outbound(sa)});
    const auto old_spd = std::move(spd_);
    spd_ = std::make_unique<Spd>(compile_spd(std::vector{protect_entry(Family::v4, 2)}).value(),
                                 CompiledSpd{});
    submit(command::PublishSpd{spd_.get()});
    EXPECT_TRUE(waits_for_kept(3));
    const auto released = next_event();
    ASSERT_TRUE(released);
    EXPECT_TRUE(std::holds_alternative<event::SpdReleased>(*released));
}

// An idle worker sleeps for 250 ms unless something is due.
TEST_F(WorkerTest, ExpiryWakesAnIdleWorker) {
    constexpr auto kHold = 40ms;
    start(64, 40);
    publish_spd();
    const TestSa sa;
    auto best = 10'000ms;
    for (uint64_t round = 1; round <= 5; ++round) {
        std::this_thread::sleep_for(20ms);
        const auto begin = std::chrono::steady_clock::now();
        wire_->send(arrivals(sa, {1}));
        kernel_->send(departures(1));
        ASSERT_TRUE(reached([&] {
            return dropped(DropReason::unknown_spi) == round && dropped(DropReason::no_sa) == round;
        }));
        const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
            std::chrono::steady_clock::now() - begin);
        EXPECT_GE(took, kHold - 1ms);
        best = std::min(best, took);
    }
    EXPECT_LT(best, 150ms);
    EXPECT_EQ(worker_->counters().inbound.held.read(), 5u);
    EXPECT_EQ(worker_->counters().outbound.held.read(), 5u);
}

// poll() has an error for a TAP without its device, at once and each time.
TEST_F(WorkerTest, WithoutItsTapAnIdleWorkerSleepsAndABusyOneGoesOn) {
    start(0, 0);
    publish_spd();
    ASSERT_EQ(std::system("ip link del sp0"), 0);
    const auto turns_in_a_second = [&] {
        const uint64_t before = worker_->counters().loops.read();
        std::this_thread::sleep_for(1s);
        return worker_->counters().loops.read() - before;
    };
    // Four in each second; a hundred thousand where it does not sleep.
    EXPECT_TRUE(reached([&] { return turns_in_a_second() < 500; }));
    EXPECT_LT(turns_in_a_second(), 500u);
    const TestSa sa;
    submit(command::InstallInbound{&makes_.make_inbound(sa)});
    wire_->send(arrivals(sa, {1, 2, 3}));
    EXPECT_TRUE(waits_for_kept(3));
}

TEST_F(WorkerTest, StopDropsWhatWaits) {
    start(10, 60'000);
    publish_spd();
    const TestSa sa;
    wire_->send(arrivals(sa, {1, 2, 3}));
    kernel_->send(departures(15));
    const auto& counters = worker_->counters();
    ASSERT_TRUE(reached([&] {
        return counters.inbound.on_hold.read() == 3 && counters.outbound.frames.read() == 15;
    }));
    EXPECT_EQ(counters.outbound.on_hold.read(), 10u);
    EXPECT_EQ(dropped(DropReason::no_sa), 5u);  // had no room
    stop();
    EXPECT_EQ(dropped(DropReason::unknown_spi), 3u);
    EXPECT_EQ(dropped(DropReason::no_sa), 15u);
    EXPECT_EQ(egress_->kept().size(), 0u);
}

TEST_F(WorkerTest, WithoutHoldFramesAreDroppedAtOnce) {
    start(0, 60'000);
    publish_spd();
    wire_->send(arrivals(TestSa{}, {1, 2}));
    kernel_->send(departures(2));
    EXPECT_TRUE(reached(
        [&] { return dropped(DropReason::unknown_spi) == 2 && dropped(DropReason::no_sa) == 2; }));
    EXPECT_EQ(worker_->counters().inbound.held.read(), 0u);
}

TEST_F(WorkerTest, ReplaceInboundKeepsReplayStateAndCounters) {
    start(0, 0);
    TestSa sa;
    InboundSa& first = makes_.make_inbound(sa);
    submit(command::InstallInbound{&first});
    wire_->send(arrivals(sa, {1, 2, 5}));
    ASSERT_TRUE(waits_for_kept(3));
    EXPECT_EQ(first.replay.top(), 5u);

    InboundSa& second = makes_.make_inbound(sa);
    submit(command::ReplaceInbound{.old = &first, .sa = &second});
    auto event = next_event();
    ASSERT_TRUE(event);
    EXPECT_EQ(retired(event), &first);
    wire_->send(arrivals(sa, {1, 2, 5, 3, 6}));
    ASSERT_TRUE(waits_for_kept(5));
    EXPECT_EQ(kept_numbers(3), (Numbers{3, 6}));
    EXPECT_EQ(dropped(DropReason::replayed), 3u);
    EXPECT_EQ(second.packets.read(), 5u);

    // Another destination and window.
    TestSa moved = sa;
    moved.destination = "198.51.100.7";
    moved.replay_window = 256;
    InboundSa& third = makes_.make_inbound(moved);
    submit(command::ReplaceInbound{.old = &second, .sa = &third});
    event = next_event();
    ASSERT_TRUE(event);
    EXPECT_EQ(retired(event), &second);
    wire_->send(arrivals(sa, {7}));
    wire_->send(arrivals(moved, {4, 6, 7}));
    ASSERT_TRUE(waits_for_kept(6));
    EXPECT_EQ(kept_numbers(5), Numbers{7});
    EXPECT_EQ(dropped(DropReason::unknown_spi), 1u);
    EXPECT_EQ(dropped(DropReason::replayed), 5u);
    EXPECT_EQ(third.packets.read(), 6u);
}

TEST_F(WorkerTest, WhatTheKernelHasAcceptedIsSkipped) {
    start(0, 0);
    TestSa sa;
    InboundSa& in = makes_.make_inbound(sa);
    submit(command::InstallInbound{&in});
    wire_->send(arrivals(sa, {5}));
    ASSERT_TRUE(waits_for_kept(1));
    const command::SkipReplay skip{
        .id = in.id, .spi = Spi{sa.spi}, .destination = in.outer_destination, .last = 3};
    command::SkipReplay of_another = skip;
    of_another.id = SaId{to_index(in.id) + 1};
    of_another.last = 100;
    command::SkipReplay of_nobody = skip;
    of_nobody.spi = Spi{sa.spi + 1};
    submit(of_another);
    submit(of_nobody);
    submit(skip);
    // The worker has taken commands when it answers one.
    TestSa other = sa;
    other.destination = "198.51.100.7";
    InboundSa& marker = makes_.make_inbound(other);
    submit(command::RetireInbound{&marker});
    ASSERT_TRUE(next_event());
    wire_->send(arrivals(sa, {1, 3, 4, 6}));
    ASSERT_TRUE(waits_for_kept(3));
    EXPECT_EQ(kept_numbers(1), (Numbers{4, 6}));
    EXPECT_EQ(dropped(DropReason::replayed), 2u);
}

TEST_F(WorkerTest, SasWithoutALimitOfTheirOwnFollowThatOfThePorts) {
    start(0, 0);
    publish_spd();
    TestSa sa;
    const auto is_limited_to = [&](uint16_t bytes) {
        submit(command::SetOuterMtu{.bytes = bytes});
        // The worker has taken commands when it answers one.
        InboundSa& marker = makes_.make_inbound(TestSa{});
        submit(command::RetireInbound{&marker});
        return next_event().has_value();
    };
    for (const uint16_t own : std::initializer_list<uint16_t>{0, 1500}) {
        sa.mtu = own;
        OutboundSa& sender = makes_.make_outbound(sa);
        submit(command::InstallOutbound{&sender});
        const size_t before = egress_->kept().size();
        const uint64_t too_big = dropped(DropReason::too_big);
        ASSERT_TRUE(is_limited_to(60));
        kernel_->send(departures(3));
        if (own == 0) {
            ASSERT_TRUE(reached([&] { return dropped(DropReason::too_big) == too_big + 3; }));
        } else {
            ASSERT_TRUE(waits_for_kept(before + 3));
        }
        ASSERT_TRUE(is_limited_to(1500));
        kernel_->send(departures(2));
        ASSERT_TRUE(waits_for_kept(before + (own == 0 ? 2 : 5)));
        submit(command::RetireOutbound{&sender});
        ASSERT_TRUE(next_event());
    }
}

TEST_F(WorkerTest, ExtendRaisesNumbers) {
    start(0, 0);
    publish_spd();
    TestSa sa;
    sa.iv_mask = 0xff00;
    sa.sequence_reserved = 100;
    OutboundSa& sender = makes_.make_outbound(sa);
    submit(command::InstallOutbound{&sender});
    kernel_->send(departures(3));
    ASSERT_TRUE(waits_for_kept(3));
    for (const uint32_t next_at_least : {500u, 0u}) {
        submit(command::ExtendSequence{
            .sa = &sender, .reserved = 1000, .low_water = 900, .next_at_least = next_at_least});
    }
    // The worker has taken commands when it answers one.
    InboundSa& marker = makes_.make_inbound(TestSa{});
    submit(command::RetireInbound{&marker});
    ASSERT_TRUE(next_event());
    kernel_->send(departures(1));
    ASSERT_TRUE(waits_for_kept(4));
    const auto kept = egress_->kept();
    const uint32_t sequences[] = {1, 2, 3, 500};
    for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(get32(kept[i], 24), sequences[i]);
        EXPECT_EQ(get32(kept[i], 32), sequences[i] ^ 0xff00);
    }
    EXPECT_EQ(sender.packets.read(), 4u);
}

// No place for the new one: the old one stays and the new one comes back.
TEST_F(WorkerTest, ReplaceThatFailsChangesNothing) {
    start(0, 0);
    publish_spd();
    TestSa sa;
    TestSa rival = sa;
    rival.destination = "198.51.100.7";
    rival.id = 2;
    InboundSa& first = makes_.make_inbound(sa);
    InboundSa& blocking = makes_.make_inbound(rival);
    InboundSa& refused = makes_.make_inbound(rival);
    submit(command::InstallInbound{&first});
    submit(command::InstallInbound{&blocking});
    submit(command::ReplaceInbound{.old = &first, .sa = &refused});
    auto event = next_event();
    ASSERT_TRUE(event);
    EXPECT_EQ(retired(event), &refused);
    wire_->send(arrivals(sa, {1}));
    wire_->send(arrivals(rival, {2}));
    ASSERT_TRUE(waits_for_kept(2));
    EXPECT_EQ(first.packets.read(), 1u);
    EXPECT_EQ(blocking.packets.read(), 1u);
}

// Control frees an SA when its answer comes, so no answer may be lost, however late control looks.
TEST_F(WorkerTest, AnswersOutliveAFullRing) {
    start(64, 20'000);
    InboundSa& marker = makes_.make_inbound(TestSa{});
    constexpr size_t kAnswers = 40000;  // the ring has room for 16384
    for (size_t i = 0; i < kAnswers; ++i) {
        ASSERT_TRUE(reached([&] { return worker_->submit(command::RetireInbound{&marker}); }));
    }
    size_t answers = 0;
    while (answers < kAnswers && next_event()) ++answers;
    EXPECT_EQ(answers, kAnswers);
    EXPECT_EQ(worker_->counters().events_lost.read(), 0u);
}

// The old one was retired, answered and freed before the command came: it is not looked at, and
// the new one is installed as it was built.
TEST_F(WorkerTest, ReplaceOfWhatIsGoneInstalls) {
    start(0, 0);
    publish_spd();
    const crypto::Aead aead = crypto::Aead::create().value();
    const TestSa sa;
    const Bytes key = sa.key_material();
    const auto selector = any_selector(Family::v4);
    auto gone_in = make_inbound_sa(aead, {.spi = Spi{sa.spi},
                                          .source = address("192.0.2.1"),
                                          .destination = address("192.0.2.9"),
                                          .suite = sa.suite,
                                          .key = key,
                                          .selectors = {&selector, 1}})
                       .value();
    InboundSa* const stale_in = gone_in.get();
    submit(command::InstallInbound{stale_in});
    submit(command::RetireInbound{stale_in});
    ASSERT_TRUE(next_event());
    InboundSa& next_in = makes_.make_inbound(sa);  // not in the same memory
    gone_in.reset();
    submit(command::ReplaceInbound{.old = stale_in, .sa = &next_in});
    wire_->send(arrivals(sa, {1}));
    ASSERT_TRUE(waits_for_kept(1));
    Event event;
    EXPECT_FALSE(worker_->next_event(event)) << "the old one is not answered a second time";
}

}  // namespace
}  // namespace sallyport::test
