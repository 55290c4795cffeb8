// SPDX-License-Identifier: Apache-2.0
// Single steps of the hand-over, one after another by hand. Their orders and their failures are in
// handover_simulation_test.cc.

#include "control/sa/kernel/handover.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "control/sa/kernel/reconcile.h"
#include "control/sa/kernel/tour.h"
#include "control/sa/kernel/way_back.h"
#include "tests/control/sa/kernel/handover_models.h"

namespace sallyport::control {
namespace {

using model::State;
using std::chrono::milliseconds;
using std::chrono::seconds;
using xfrm::StateDirection;

struct Steered final : Steering {
    std::expected<void, std::string> insert(const xfrm::SaName& name, WorkerId) override {
        names.insert(name);
        return {};
    }
    void remove(const xfrm::SaName& name) override { names.erase(name); }
    std::set<xfrm::SaName> names;
};
struct Sent final : Commands {
    void send(WorkerId, const Command& command) override { all.push_back(command); }
    template <typename T>
    [[nodiscard]] std::vector<T> of() const {
        std::vector<T> out;
        for (const Command& one : all) {
            if (const T* found = std::get_if<T>(&one)) out.push_back(*found);
        }
        return out;
    }
    std::vector<Command> all;
};
struct Time final : Clock {
    [[nodiscard]] std::chrono::steady_clock::time_point now() const override { return at; }
    [[nodiscard]] uint64_t seconds() const override { return of_day; }
    std::chrono::steady_clock::time_point at{std::chrono::hours(1)};
    uint64_t of_day = 1;
};
struct NoMask final : Random {
    std::expected<uint64_t, std::string> bits() override { return 0; }
};
struct Said final : Notices {
    void warning(const std::string& text) override { warnings.push_back(text); }
    void error(const std::string& text) override { errors.push_back(text); }
    std::vector<std::string> warnings;
    std::vector<std::string> errors;
};

// A gateway with one worker, which does at once what it is told.
class HandoverTest : public ::testing::Test {
  protected:
    HandoverTest() {
        registered_.forgotten = [this](const xfrm::KernelSa& last) { remember(memory_, last); };
        registered_.faults.failed = [](const xfrm::SaName&) {};
        reconciler_.take_over();
    }

    static xfrm::SaName name(bool outbound, uint32_t number = 0) {
        xfrm::SaName out;
        out.spi = Spi{(outbound ? 0x1000u : 0x2000u) + number};
        out.destination.bytes = {192, 0, 2, 1};
        return out;
    }
    State& add(bool outbound, uint64_t used = 0, uint32_t number = 0) {
        State state;
        state.name = name(outbound, number);
        state.source.bytes = {192, 0, 2, 9};
        state.key = ++keys_;
        state.outbound = outbound;
        (outbound ? state.sent : state.top) = used;
        kernel_.add(state);
        return kernel_.states.at(state.name);
    }
    // Both directions of each, and what the register says of it.
    xfrm::RegisterChanges add_tunnels(uint32_t count, const IpAddress& here) {
        for (uint32_t i = 0; i < count; ++i) {
            const IpAddress peer{.bytes = {10, 0, 0, static_cast<uint8_t>(i * 37 % 251)}};
            for (const bool outbound : {true, false}) {
                State state;
                state.name = name(outbound, i);
                state.name.destination = outbound ? peer : here;
                state.source = outbound ? here : peer;
                state.key = ++keys_;
                state.outbound = outbound;
                kernel_.add(state);
            }
        }
        while (!kernel_.notices.empty()) registered_.hear_one();
        return std::exchange(registered_.changes, {});
    }
    void add_outbound(uint32_t count) {
        for (uint32_t i = 0; i < count; ++i) add(true, 0, i);
    }
    Slot& slot(bool outbound) {
        Slot* found = slots_.find(name(outbound));
        EXPECT_NE(found, nullptr);
        return *found;
    }
    OutboundSa& sender() { return *slot(true).outbound()->sa; }

    [[nodiscard]] Reconciler::Decisions decide() const {
        Reconciler::Decisions now;
        for (const auto& [known, state] : registered_.known()) {
            SaDecision decision;
            decision.direction =
                to_index(known.spi) < 0x2000 ? StateDirection::outbound : StateDirection::inbound;
            decision.suite = crypto::find_suite("aes-gcm-16-128");
            decision.selectors.resize(1);
            now.emplace(known, std::move(decision));
        }
        return now;
    }
    // As KernelSas::round(), when all messages have been heard, and then what follows it.
    void round() {
        while (!kernel_.notices.empty()) registered_.hear_one();
        const xfrm::RegisterChanges changes = std::exchange(registered_.changes, {});
        for (const xfrm::SaName& used : changes.used) {
            if (Slot* found = slots_.find(used)) handover_.kernel_used({&found, 1});
        }
        const Reconciler::Decisions now = decide();
        const auto decided = model::difference(decided_, now);
        const auto plan = reconciler_.plan(now, decided, changes, 1);
        reconciler_.owners_published(plan);
        reconciler_.carry_out(plan, now, changes);
        decided_ = now;
        for (bool first = true;; first = false) {
            const auto batch = reconciler_.plan_batch(now);
            if (!first && batch.coming.empty()) return;
            reconciler_.owners_published(batch);
            reconciler_.carry_out_batch(batch, now);
            obey();
            time_.at += Handover::kSettle;
            reconciler_.go_on();
            obey();
        }
    }
    // As KernelSas::on_tick(), of a second.
    void tick() {
        time_.at += seconds(1);
        for (uint32_t turn = 0; turn < Tour::kTurns; ++turn) {
            tour_.begin();
            while (tour_.go_on()) {
            }
        }
        feedback_.send_rekey_requests(RekeyPacer::kPerSecond);
        obey();
    }
    void look_after(Slot& each) {
        Slot* one = &each;
        handover_.look_after({&one, 1});
    }
    void obey() {
        for (; obeyed_ < sent_.all.size(); ++obeyed_) {
            const Command command = sent_.all[obeyed_];
            if (const auto* more = std::get_if<command::ExtendSequence>(&command)) {
                more->sa->reserve(more->reserved, more->low_water);
                more->sa->raise_sequence(more->next_at_least);
            } else if (const auto* out = std::get_if<command::RetireOutbound>(&command)) {
                handover_.take(event::OutboundRetired{.id = out->sa->id, .sa = out->sa});
            } else if (const auto* in = std::get_if<command::RetireInbound>(&command)) {
                handover_.take(event::InboundRetired{.id = in->sa->id, .sa = in->sa});
            }
        }
    }
    // What the worker and the kernel itself send. The worker asks for more when it is low.
    void worker_sends(uint64_t count) {
        OutboundSa& sa = sender();
        wire_.sent(sa.salt, sa.sequence_next.read(), count, "a worker");
        sa.sequence_next.set(sa.sequence_next.read() + count);
        sa.packets.add(count);
        if (sa.sequence_next.read() < sa.sequence_low_water) return;
        handover_.take(event::SequenceLow{.id = sa.id, .next = sa.sequence_next.read()});
        EXPECT_FALSE(handover_.extend_some());
        obey();
    }
    // Same name and key, and nobody hears of it.
    State& add_again_unheard(bool outbound, uint64_t used) {
        State state = kernel_.states.at(name(outbound));
        (outbound ? state.sent : state.top) = used;
        kernel_.remove(state.name);
        kernel_.add(state);
        kernel_.notices.clear();
        return kernel_.states.at(state.name);
    }
    // As KernelSas::read_again().
    void read_again() {
        registered_.read_again();
        for (const auto& [known, each] : slots_.by_name()) {
            if (const xfrm::KernelSa* state = registered_.find(known)) {
                handover_.compare(*each, *state);
            }
        }
    }
    // Those who are asked to be rekeyed.
    std::vector<xfrm::SaName> asked() {
        std::vector<xfrm::SaName> out;
        while (const auto next = pacer_.next()) out.push_back(*next);
        return out;
    }
    void kernel_sends(uint64_t count = 1) {
        kernel_.send(kernel_.states.at(name(true)), count, "the kernel");
    }
    void TearDown() override { EXPECT_EQ(judge_.verdict().value_or(""), ""); }

    crypto::Aead aead_ = *crypto::Aead::create();
    model::Judge judge_;
    model::Wire wire_{judge_};
    model::Kernel kernel_{judge_, wire_};
    model::Dice dice_{1};
    model::RegisterModel registered_{kernel_, dice_};
    Steered steered_;
    Sent sent_;
    size_t obeyed_ = 0;
    Time time_;
    NoMask mask_;
    Said said_;
    Surroundings around_{.kernel = registered_,
                         .steering = steered_,
                         .workers = sent_,
                         .clock = time_,
                         .random = mask_,
                         .notices = said_,
                         .another_round = [](milliseconds) {}};
    SlotTable slots_{512};
    SequenceMemory memory_;
    RekeyPacer pacer_{1};
    Feedback feedback_{around_, pacer_};
    Handover handover_{around_, {slots_, memory_, feedback_}, aead_};
    Reconciler reconciler_{around_, slots_, handover_};
    Reconciler::Decisions decided_;
    Tour tour_{time_, slots_, handover_, feedback_};
    model::KeyNumber keys_ = 0;
};

// ---- many ---------------------------------------------------------------------------------------

// However many SAs there are, of each only what comes while its own batch settles is held.
TEST_F(HandoverTest, ManyComeInBatchesOfWholeTunnels) {
    constexpr uint32_t kTunnels = 100;
    const IpAddress here{.bytes = {192, 0, 2, 9}};
    const xfrm::RegisterChanges changes = add_tunnels(kTunnels, here);
    const Reconciler::Decisions now = decide();
    Reconciler::Plan plan = reconciler_.plan(now, model::difference({}, now), changes, 1);
    reconciler_.carry_out(plan, now, changes);
    EXPECT_TRUE(plan.coming.empty()) << "their frames would wait for the end of the round";
    EXPECT_TRUE(reconciler_.is_under_way());
    plan = reconciler_.plan_batch(now);
    reconciler_.carry_out_batch(plan, now);
    size_t batches = 0;
    for (size_t come = 0; come < 2 * kTunnels; ++batches) {
        ASSERT_FALSE(plan.coming.empty());
        ASSERT_LE(plan.coming.size(), Reconciler::kBatch);
        std::set<IpAddress> half;  // tunnels of which one direction has come
        for (const xfrm::SaName& each : plan.coming) {
            const Slot* coming = slots_.find(each);
            ASSERT_NE(coming, nullptr);
            EXPECT_EQ(coming->phase, Phase::steered);
            const IpAddress& peer = each.destination == here ? coming->source : each.destination;
            if (!half.insert(peer).second) half.erase(peer);
        }
        EXPECT_TRUE(half.empty());
        come += plan.coming.size();
        EXPECT_EQ(slots_.size(), come) << "the others are with the kernel";
        EXPECT_EQ(steered_.names.size(), come / 2);
        time_.at += Handover::kSettle;
        reconciler_.go_on();
        for (const xfrm::SaName& each : plan.coming) {
            EXPECT_EQ(slots_.find(each)->phase, Phase::installed);
        }
        plan = reconciler_.plan_batch(now);
        reconciler_.carry_out_batch(plan, now);
    }
    EXPECT_EQ(batches, 6u) << "8, 16, 32, 64, 64, 16";
    EXPECT_FALSE(reconciler_.is_under_way());
}

// On a machine short of CPU frames wait as briefly, and many tunnels come later.
TEST_F(HandoverTest, ASlowMachineTakesFewAtATime) {
    constexpr uint32_t kTunnels = 250;
    const xfrm::RegisterChanges changes = add_tunnels(kTunnels, {.bytes = {192, 0, 2, 9}});
    const Reconciler::Decisions now = decide();
    reconciler_.carry_out(reconciler_.plan(now, model::difference({}, now), changes, 1), now,
                          changes);
    const auto size_of_next = [&](milliseconds took) {
        const Reconciler::Plan plan = reconciler_.plan_batch(now);
        reconciler_.carry_out_batch(plan, now);
        time_.at += took;
        reconciler_.go_on();
        return plan.coming.size();
    };
    constexpr milliseconds kSlow = Reconciler::kHeldMax + milliseconds(1);
    for (const size_t size : {8u, 4u, 2u, 2u}) EXPECT_EQ(size_of_next(kSlow), size);
    EXPECT_EQ(size_of_next(Reconciler::kHeldMax), 2u) << "as it should be";
    for (const size_t size : {2u, 4u, 8u, 16u, 32u, 64u, 64u}) {
        EXPECT_EQ(size_of_next(Handover::kSettle), size);
    }
    for (const size_t size : {64u, 32u}) EXPECT_EQ(size_of_next(kSlow), size);
}

// What came, changed or went while it waited is for the next round.
TEST_F(HandoverTest, OneThatChangesWhileItWaitsIsNotTaken) {
    Reconciler one_by_one(around_, slots_, handover_, 1);
    one_by_one.take_over();
    add(true);
    add(false);
    while (!kernel_.notices.empty()) registered_.hear_one();
    const xfrm::RegisterChanges changes = std::exchange(registered_.changes, {});
    const Reconciler::Decisions now = decide();
    one_by_one.carry_out(one_by_one.plan(now, model::difference({}, now), changes, 1), now,
                         changes);
    one_by_one.carry_out_batch(one_by_one.plan_batch(now), now);
    ASSERT_EQ(slots_.size(), 1u);
    const bool first_is_outbound = slots_.find(name(true)) != nullptr;
    kernel_.remove(name(!first_is_outbound));
    add(!first_is_outbound);
    while (!kernel_.notices.empty()) registered_.hear_one();
    time_.at += Handover::kSettle;
    one_by_one.go_on();
    EXPECT_TRUE(one_by_one.plan_batch(now).coming.empty());
    EXPECT_FALSE(one_by_one.is_under_way());
}

// The kernel has as much to do at any time: a tenth of the SAs each time, each once in a second.
TEST_F(HandoverTest, CountersAreWrittenInTurns) {
    constexpr uint32_t kSas = 40;
    add_outbound(kSas);
    round();
    for (const auto& [known, each] : slots_.by_name()) each->outbound()->sa->packets.add(7);
    size_t before = 0;
    for (uint32_t turn = 1; turn <= Tour::kTurns; ++turn) {
        tour_.begin();
        while (tour_.go_on()) {
        }
        const auto written = static_cast<size_t>(std::ranges::count_if(
            kernel_.states, [](const auto& item) { return item.second.packets == 7; }));
        EXPECT_EQ(written - before, kSas / Tour::kTurns);
        before = written;
    }
    EXPECT_EQ(before, kSas);
}

// However many say so at once, control answers others in between.
TEST_F(HandoverTest, ManyThatAreLowAreServedInParts) {
    constexpr uint32_t kSas = 100;
    add_outbound(kSas);
    round();
    for (const auto& [known, each] : slots_.by_name()) {
        OutboundSa& sa = *each->outbound()->sa;
        sa.sequence_next.set(sa.sequence_low_water);
        handover_.take(event::SequenceLow{.id = sa.id, .next = sa.sequence_low_water});
    }
    EXPECT_TRUE(sent_.of<command::ExtendSequence>().empty());
    EXPECT_TRUE(handover_.extend_some());
    const size_t at_first = sent_.of<command::ExtendSequence>().size();
    EXPECT_LT(at_first, kSas);
    EXPECT_FALSE(handover_.extend_some());
    EXPECT_EQ(sent_.of<command::ExtendSequence>().size(), kSas);
    obey();
}

// ---- the way back -------------------------------------------------------------------------------

// While a batch goes back the others stay; the kernel sends before its worker gives an SA up, and
// has inbound frames when it knows what the worker has accepted.
TEST_F(HandoverTest, AllGoBackInBatches) {
    add(true);
    add(false);
    round();
    worker_sends(5);
    WayBack way_back(time_, slots_, handover_, reconciler_, 1);
    way_back.begin();
    OwnerChanges owners;
    for (size_t left = 2; left > 0; --left) {
        ASSERT_TRUE(way_back.name());
        EXPECT_FALSE(way_back.name()) << "one batch at a time";
        const auto plan = reconciler_.plan_owners();
        owners.insert(plan.owners.begin(), plan.owners.end());
        reconciler_.owners_published(plan);
        way_back.retire();
        EXPECT_EQ(slots_.by_name().size(), left) << "what is on its way has not arrived";
        time_.at += Handover::kSettle;
        way_back.retire();
        EXPECT_EQ(slots_.by_name().size(), left - 1);
        obey();
        EXPECT_EQ(slots_.size(), left - 1);
    }
    EXPECT_TRUE(way_back.is_done());
    EXPECT_EQ(owners, (OwnerChanges{{PolicyId{0}, {}}}));
    EXPECT_TRUE(steered_.names.empty());
    EXPECT_EQ(kernel_.states.at(name(true)).packets, 5u);
    round();
    EXPECT_EQ(slots_.size(), 0u) << "nobody comes again";
}

// It has no owner any more, and the worker has not let go: what the kernel sends is what it should.
TEST_F(HandoverTest, WhatTheKernelSendsOfThoseThatGoIsNoRound) {
    add(true);
    round();
    worker_sends(5);
    WayBack way_back(time_, slots_, handover_, reconciler_);
    way_back.begin();
    ASSERT_TRUE(way_back.name());
    kernel_sends(7);
    while (!kernel_.notices.empty()) registered_.hear_one();
    Slot* going = &slot(true);
    handover_.kernel_used({&going, 1});
    worker_sends(kSequenceBlock32 / 2);  // and is told of more
    EXPECT_TRUE(said_.warnings.empty());
    EXPECT_FALSE(handover_.host_uses(*registered_.find(name(true))));
    time_.at += Handover::kSettle;
    way_back.retire();
    obey();
    EXPECT_TRUE(way_back.is_done());
    kernel_sends(3);
}

// Owners that a round names meanwhile are without those that go.
TEST_F(HandoverTest, ARoundOnTheWayBackBringsNobodyBack) {
    add(true);
    round();
    WayBack way_back(time_, slots_, handover_, reconciler_);
    way_back.begin();
    ASSERT_TRUE(way_back.name());
    const auto without = reconciler_.plan_owners();
    EXPECT_EQ(without.owners, (OwnerChanges{{PolicyId{0}, {}}}));
    reconciler_.owners_published(without);
    const auto plan = reconciler_.plan(decide(), {.whole = true}, {}, 1);
    EXPECT_TRUE(plan.owners.empty());
    EXPECT_TRUE(plan.coming.empty());
}

// After a stop the kernel asks by itself, for one after another.
TEST_F(HandoverTest, RekeysAfterAStopAreSpread) {
    constexpr uint32_t kSas = 50;
    time_.of_day = 1000;
    add_outbound(kSas);
    round();
    ASSERT_EQ(slots_.size(), kSas);
    for (const auto& [known, each] : slots_.by_name()) each->outbound()->sa->packets.add(1);
    WayBack way_back(time_, slots_, handover_, reconciler_);
    way_back.begin();
    ASSERT_TRUE(way_back.name());
    time_.at += Handover::kSettle;
    way_back.retire();
    obey();
    ASSERT_TRUE(way_back.is_done());
    feedback_.leave_rekey_requests();
    ASSERT_EQ(registered_.limits.size(), kSas);
    std::multiset<uint64_t> when;
    for (const auto& [known, limits] : registered_.limits) {
        when.insert(limits.soft_add_s + kernel_.states.at(known).add_time - time_.of_day);
        EXPECT_EQ(limits.hard_add_s, 0u);
    }
    EXPECT_EQ(*when.begin(), 1u);
    EXPECT_EQ(*when.rbegin(), 1 + (kSas - 1) * Feedback::kSpread / seconds(1));
    EXPECT_LE(when.count(2), size_t{seconds(1) / Feedback::kSpread} + 1) << "no storm";
    EXPECT_EQ(pacer_.waiting(), 0u);
}

// ---- reservations ------------------------------------------------------------------------------

TEST_F(HandoverTest, AFreshSaBeginsWithOne) {
    add(true);
    round();
    EXPECT_EQ(sender().sequence_next.read(), 1u);
    EXPECT_EQ(kernel_.states.at(name(true)).sent + 1, sender().sequence_reserved);
}

TEST_F(HandoverTest, WhatTheKernelSendsMeanwhileIsNotTheWorkers) {
    State& state = add(true, 100);
    bool sends = true;
    registered_.faults.before_write = [&] {
        if (std::exchange(sends, false)) kernel_.send(state, 7, "the kernel, meanwhile");
    };
    round();
    EXPECT_GE(sender().sequence_next.read(), 108u);
    EXPECT_EQ(kernel_.states.at(name(true)).sent + 1, sender().sequence_reserved);
    worker_sends(1000);
    kernel_sends(1000);
}

TEST_F(HandoverTest, AKernelThatSendsTooMuchMeanwhileIsAskedAgain) {
    State& state = add(true);
    int looks = 0;
    registered_.faults.before_write = [&] {
        if (++looks < 3) kernel_.send(state, 10'000, "the kernel, meanwhile");
    };
    round();
    EXPECT_EQ(looks, 3);
    worker_sends(1000);
    kernel_sends(1000);
}

TEST_F(HandoverTest, AKernelThatNeverLeavesRoomKeepsTheSa) {
    State& state = add(true);
    registered_.faults.before_write = [&] { kernel_.send(state, 10'000, "the kernel, meanwhile"); };
    round();
    EXPECT_EQ(slots_.size(), 0u);
    EXPECT_NE(handover_.kept().at(name(true)).find("the kernel itself sends"), std::string::npos);
}

// ---- traffic of the host on a worker's SA ------------------------------------------------------

TEST_F(HandoverTest, AfterTwoRoundsTheKernelHasTheSa) {
    State& state = add(true);
    round();
    uint64_t moved = 0;
    for (int i = 0; i < 100 && slots_.find(name(true)) != nullptr; ++i) {
        worker_sends(3);
        kernel_sends();
        moved = state.sent;
        round();
    }
    EXPECT_EQ(slots_.size(), 0u);
    EXPECT_EQ(handover_.kept().at(name(true)), Handover::kHostUsesIt);
    EXPECT_EQ(said_.warnings.size(), 2u);
    size_t jumps = 0;
    for (const auto& more : sent_.of<command::ExtendSequence>()) jumps += more.next_at_least > 0;
    EXPECT_EQ(jumps, Reservations::kRoundsMax);
    EXPECT_LE(moved, kSequenceBlock32 + 3 * kSequenceBlockMin32);
    EXPECT_LE(state.sent, moved) << "on the way back nothing is used up";
    kernel_sends(1000);
}

TEST_F(HandoverTest, SuccessorsStayWithTheKernelForAWhile) {
    add(true);
    round();
    for (unsigned i = 0; i < Reservations::kRoundsMax; ++i) {
        kernel_sends();
        round();
        kernel_.remove(name(true));
        add(true);  // rekeyed
        round();
    }
    EXPECT_EQ(slots_.size(), 0u);
    EXPECT_EQ(handover_.kept().at(name(true)), Handover::kHostUsesIt);
    time_.at += RekeyPacer::kPause + seconds(1);
    kernel_.remove(name(true));
    add(true);
    round();
    EXPECT_NE(sender().spi.host(), 0u);
    EXPECT_TRUE(handover_.kept().empty());
}

TEST_F(HandoverTest, OtherTunnelsAreNotKept) {
    add(true);
    round();
    for (int i = 0; i < 5; ++i) {
        kernel_sends();
        round();
    }
    kernel_.remove(name(true));
    State other;
    other.name = name(true);
    other.source.bytes = {192, 0, 2, 8};
    other.key = ++keys_;
    other.outbound = true;
    kernel_.add(other);
    round();
    EXPECT_NE(sender().spi.host(), 0u);
}

// ---- what waited for an SA in the kernel -------------------------------------------------------

// The kernel asked for the SA, and lets its queue out when a worker has it already.
TEST_F(HandoverTest, WhatWaitedForAnSaIsNoRound) {
    for (int tunnel = 0; tunnel < 4; ++tunnel) {
        State& state = add(true);
        handover_.note_acquire(state.source, state.name.destination);
        round();
        worker_sends(3);
        for (int seen = 0; seen < 4; ++seen) {
            kernel_sends(25);
            round();
        }
        ASSERT_NE(slots_.find(name(true)), nullptr) << "tunnel " << tunnel;
        EXPECT_GT(sender().sequence_next.read(), 100u) << "above what the kernel has sent";
        worker_sends(3);
        EXPECT_EQ(asked(), std::vector{name(true)}) << "its key has had two senders";
        kernel_.remove(name(true));
        round();
        time_.at += seconds(10);
    }
    EXPECT_TRUE(said_.warnings.empty());
}

TEST_F(HandoverTest, AHostThatGoesOnSendingIsFoundBehindWhatWaited) {
    State& state = add(true);
    handover_.note_acquire(state.source, state.name.destination);
    round();
    int looks = 0;
    for (; looks < 100 && slots_.find(name(true)) != nullptr; ++looks) {
        worker_sends(3);
        kernel_sends();
        time_.at += milliseconds(100);
        round();
    }
    EXPECT_EQ(handover_.kept().at(name(true)), Handover::kHostUsesIt);
    EXPECT_LE(looks, 15);
    EXPECT_LE(state.sent, kSequenceBlock32 + 15 * kSequenceBlockMin32);
}

TEST_F(HandoverTest, AHostThatSendsOftenIsFoundBehindWhatWaited) {
    State& state = add(true);
    handover_.note_acquire(state.source, state.name.destination);
    round();
    constexpr unsigned kLooks = Reservations::kQueueLooks + Reservations::kRoundsMax + 1;
    for (unsigned i = 0; i < kLooks; ++i) {
        kernel_sends();
        while (!kernel_.notices.empty()) registered_.hear_one();
        Slot* one = &slot(true);
        handover_.kernel_used({&one, 1});
        obey();
    }
    EXPECT_EQ(handover_.kept().at(name(true)), Handover::kHostUsesIt);
}

TEST_F(HandoverTest, NothingWaitsForLong) {
    State& state = add(true);
    handover_.note_acquire(state.source, state.name.destination);
    round();
    time_.at += Reservations::kQueueAge + seconds(1);
    kernel_sends();
    round();
    EXPECT_EQ(said_.warnings.size(), 1u);
}

// ---- how many numbers are reserved -------------------------------------------------------------

TEST_F(HandoverTest, ABlockIsWhatTheSaSendsInTenSeconds) {
    State& state = add(true);
    round();
    EXPECT_EQ(state.sent, kSequenceBlock32) << "new: all numbers are there";
    time_.at += seconds(5);
    worker_sends(600'000);
    const uint64_t in_ten_seconds = 1'200'000;
    EXPECT_NEAR(static_cast<double>(state.sent - kSequenceBlock32), in_ten_seconds, 5'000);
    // Slow from now on, and half way the next block is asked for.
    time_.at += seconds(3600);
    uint64_t before = state.sent;
    while (state.sent == before) worker_sends(100'000);
    EXPECT_EQ(state.sent - before, kSequenceBlockMin32);
    // As fast as nothing is.
    before = state.sent;
    while (state.sent == before) worker_sends(100'000);
    EXPECT_EQ(state.sent - before, kSequenceBlockMax32);
}

// A worker that was told of more by a tick says so again before its first word was heard.
TEST_F(HandoverTest, TwoWordsOfOneSaAreOne) {
    State& state = add(true);
    round();
    const event::SequenceLow low{.id = slot(true).id, .next = 1};
    handover_.take(low);
    handover_.take(low);
    EXPECT_FALSE(handover_.extend_some());
    obey();
    EXPECT_EQ(sent_.of<command::ExtendSequence>().size(), 1u);
    EXPECT_EQ(state.sent, kSequenceBlock32 + kSequenceBlockMin32);
    EXPECT_TRUE(said_.warnings.empty()) << "nobody else has sent";
}

TEST_F(HandoverTest, OneThatComesBackHasABlockByWhatItHasSent) {
    State& state = add(true, 5'000'000);
    state.packets = 5'000'000;
    state.add_time = 100;
    time_.of_day = 200;
    round();
    EXPECT_EQ(state.sent, 5'000'000 + 500'000);
}

// ---- states that were added again, and nobody said so ------------------------------------------

TEST_F(HandoverTest, AnOutboundStateWithLowerNumbersIsAnother) {
    add(true);
    round();
    worker_sends(1000);
    const SaId before = slot(true).id;
    const uint64_t reserved = sender().sequence_reserved;
    const State& state = add_again_unheard(true, 10);
    read_again();
    round();
    EXPECT_NE(slot(true).id, before);
    EXPECT_GE(sender().sequence_next.read(), reserved);
    EXPECT_GT(state.sent, reserved);
    worker_sends(1000);
    kernel_sends(1000);
}

TEST_F(HandoverTest, AnExtensionNoticesItToo) {
    add(true);
    round();
    const uint64_t reserved = sender().sequence_reserved;
    const State& state = add_again_unheard(true, 10);
    worker_sends(kSequenceBlock32 / 2);
    EXPECT_EQ(state.sent, 10u) << "nothing is written into it as if it were the one before";
    round();
    EXPECT_GE(sender().sequence_next.read(), reserved);
    worker_sends(1000);
    kernel_sends(1000);
}

TEST_F(HandoverTest, AnInboundStateWithALowerTopIsAnother) {
    add(false, 5);
    round();
    slot(false).inbound()->sa->replay.commit(20);
    slot(false).inbound()->sa->packets.add(1);
    tick();
    ASSERT_EQ(kernel_.states.at(name(false)).top, 20u);
    const SaId before = slot(false).id;
    add_again_unheard(false, 5);
    read_again();
    round();
    EXPECT_NE(slot(false).id, before);
    EXPECT_EQ(slot(false).inbound()->sa->replay.top(), 20u);
}

TEST_F(HandoverTest, AYoungerStateIsAnother) {
    add(false, 5);
    round();
    const SaId before = slot(false).id;
    add_again_unheard(false, 5);
    read_again();
    round();
    EXPECT_NE(slot(false).id, before);
}

TEST_F(HandoverTest, TheSameStateIsNotAnother) {
    add(true);
    add(false, 5);
    round();
    worker_sends(kSequenceBlock32 / 2);
    tick();
    const SaId out = slot(true).id;
    const SaId in = slot(false).id;
    read_again();
    round();
    EXPECT_EQ(slot(true).id, out);
    EXPECT_EQ(slot(false).id, in);
}

// ---- requests to rekey -------------------------------------------------------------------------

TEST_F(HandoverTest, ARequestThatIsNotObeyedIsMadeAgain) {
    add(true, 100);
    round();
    EXPECT_EQ(asked().size(), 1u) << "the kernel has used its key";
    for (int i = 0; i < 3; ++i) {
        time_.at += Feedback::kAskAgain - milliseconds(1);
        look_after(slot(true));
        EXPECT_EQ(asked().size(), 0u);
        time_.at += milliseconds(1);
        look_after(slot(true));
        look_after(slot(true));
        EXPECT_EQ(asked().size(), 1u);
    }
}

TEST_F(HandoverTest, WhoNeedsNoNewKeyIsNotAsked) {
    add(true);
    round();
    worker_sends(10);
    time_.at += 2 * Feedback::kAskAgain;
    look_after(slot(true));
    EXPECT_EQ(asked().size(), 0u);
}

TEST_F(HandoverTest, ASoftLimitIsToldAgain) {
    State& state = add(true);
    round();
    slot(true).limits.soft_packets = 10;
    worker_sends(10);
    tick();
    EXPECT_TRUE(slot(true).soft_reported);
    time_.at += Feedback::kAskAgain;
    look_after(slot(true));
    EXPECT_EQ(asked(), std::vector{state.name});
}

// The request of before does not stand in the way of the one that cannot wait.
TEST_F(HandoverTest, TheEndOfTheNumbersIsToldWhateverWasAskedBefore) {
    State& state = add(true, kSequenceEnd32 - 1 - 3 * kSequenceBlockMin32 / 2);
    round();
    EXPECT_EQ(asked().size(), 1u);
    worker_sends(kSequenceBlockMin32 / 2);
    EXPECT_EQ(state.sent, kSequenceEnd32 - 1) << "the last block";
    EXPECT_EQ(asked(), std::vector{state.name});
    worker_sends(kSequenceBlockMin32 / 2);
    EXPECT_EQ(asked().size(), 0u);
    time_.at += Feedback::kAskAgain;
    look_after(slot(true));
    EXPECT_EQ(asked(), std::vector{state.name});
}

TEST_F(HandoverTest, OneWithoutNumbersEnds) {
    add(true, kSequenceEnd32 - 1 - 1000);
    round();
    worker_sends(999);
    tick();
    EXPECT_TRUE(kernel_.states.contains(name(true)));
    worker_sends(1);
    tick();
    EXPECT_FALSE(kernel_.states.contains(name(true)))
        << "a hard expiry: the IKE daemon makes a new one";
    round();
    EXPECT_EQ(slots_.size(), 0u);
}

// ---- inbound -----------------------------------------------------------------------------------

TEST_F(HandoverTest, WhatTheKernelAcceptsLateIsNotAcceptedAgain) {
    State& state = add(false, 5);
    round();
    kernel_.receive(state, 9);
    EXPECT_EQ(sent_.of<command::SkipReplay>().size(), 0u);
    tick();
    tick();
    const auto skips = sent_.of<command::SkipReplay>();
    ASSERT_EQ(skips.size(), 1u) << "once";
    EXPECT_EQ(skips[0].last, 9u);
    EXPECT_EQ(skips[0].id, slot(false).id);
}

TEST_F(HandoverTest, NothingIsSkippedWhereTheKernelAcceptsNothing) {
    add(false, 5);
    round();
    tick();
    EXPECT_EQ(sent_.of<command::SkipReplay>().size(), 0u);
}

}  // namespace
}  // namespace sallyport::control
