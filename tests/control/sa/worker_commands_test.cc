// SPDX-License-Identifier: Apache-2.0
//
// Commands that wait for room, and what workers still read. The rings are queues of a fixed size;
// no threads: the io_context runs the retries.

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <deque>
#include <memory>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "control/sa/worker_commands.h"

namespace sallyport::control {
namespace {

constexpr WorkerId kFirst{0};
constexpr WorkerId kSecond{1};

class WorkerCommandsTest : public testing::Test {
  protected:
    struct Ring {
        size_t room = 2;
        std::deque<Command> commands;
    };

    bool submit(WorkerId worker, const Command& command) {
        Ring& ring = rings_[to_index(worker)];
        if (ring.commands.size() >= ring.room) return false;
        ring.commands.push_back(command);
        return true;
    }

    void send(WorkerId worker, uint64_t number) {
        commands_.send(worker, command::ExtendSequence{.reserved = number});
    }
    // What the worker takes next; 0 where its ring is empty.
    uint64_t take(WorkerId worker) {
        Ring& ring = rings_[to_index(worker)];
        if (ring.commands.empty()) return 0;
        const auto command = std::get<command::ExtendSequence>(ring.commands.front());
        ring.commands.pop_front();
        return command.reserved;
    }

    static std::unique_ptr<const NextHops> routes() {
        return std::make_unique<NextHops>(std::span<const PrefixTable::Entry>{},
                                          std::vector<NextHop>{}, std::vector<EgressFilter>{});
    }
    const NextHops* next_routes(WorkerId worker) {
        Ring& ring = rings_[to_index(worker)];
        const auto command = std::get<command::PublishNextHops>(ring.commands.front());
        ring.commands.pop_front();
        return command.next_hops;
    }

    boost::asio::io_context context_;
    std::vector<Ring> rings_{2};
    WorkerCommands commands_{context_, 2, [this](WorkerId worker, const Command& command) {
                                 return submit(worker, command);
                             }};
};

TEST_F(WorkerCommandsTest, GoStraightIntoARingWithRoom) {
    send(kFirst, 1);
    EXPECT_EQ(commands_.waiting(kFirst), 0u);
    EXPECT_EQ(take(kFirst), 1u);
    EXPECT_EQ(context_.poll(), 0u);  // no timer
}

TEST_F(WorkerCommandsTest, KeepTheirOrderWhenTheRingIsFull) {
    for (uint64_t number = 1; number <= 100; ++number) send(kFirst, number);
    EXPECT_EQ(commands_.waiting(kFirst), 98u);
    EXPECT_FALSE(commands_.flush());
    EXPECT_EQ(take(kFirst), 1u);
    send(kFirst, 101);  // there is room, but others come first
    for (uint64_t number = 2; number <= 101; ++number) {
        ASSERT_EQ(take(kFirst), number);
        commands_.flush();
    }
    EXPECT_EQ(take(kFirst), 0u);
    EXPECT_TRUE(commands_.flush());
}

TEST_F(WorkerCommandsTest, OneFullRingHoldsUpNobodyElse) {
    for (uint64_t number = 1; number <= 3; ++number) send(kFirst, number);
    send(kSecond, 7);
    EXPECT_EQ(commands_.waiting(kFirst), 1u);
    EXPECT_EQ(commands_.waiting(kSecond), 0u);
    EXPECT_EQ(take(kSecond), 7u);
}

TEST_F(WorkerCommandsTest, AreTriedAgainWithoutBeingAsked) {
    for (uint64_t number = 1; number <= 4; ++number) send(kFirst, number);
    EXPECT_EQ(context_.run_one(), 1u);  // still full
    EXPECT_EQ(commands_.waiting(kFirst), 2u);
    EXPECT_EQ(take(kFirst), 1u);
    EXPECT_EQ(take(kFirst), 2u);
    context_.run();  // ends: nothing waits any more
    EXPECT_EQ(commands_.waiting(kFirst), 0u);
    EXPECT_EQ(take(kFirst), 3u);
    EXPECT_EQ(take(kFirst), 4u);
}

TEST_F(WorkerCommandsTest, SayWhenAllAreTaken) {
    int said = 0;
    commands_.when_taken([&] { ++said; });
    EXPECT_EQ(said, 1);
    for (uint64_t number = 1; number <= 3; ++number) send(kFirst, number);
    commands_.when_taken([&] { ++said; });
    context_.run_one();
    EXPECT_EQ(said, 1);
    take(kFirst);
    context_.run();
    EXPECT_EQ(said, 2);
    commands_.flush();
    EXPECT_EQ(said, 2);  // once
}

TEST_F(WorkerCommandsTest, AnSpdLivesUntilTheLastWorkerHasReleasedIt) {
    const CompiledSpd none;
    auto made = std::make_unique<const Spd>(none, none);
    const Spd* const earlier = made.get();
    commands_.publish(std::move(made));
    commands_.publish(std::make_unique<const Spd>(none, none));
    EXPECT_EQ(commands_.held(), 2u);
    commands_.released(earlier);
    EXPECT_EQ(commands_.held(), 2u);  // the other worker reads it
    commands_.released(earlier);
    EXPECT_EQ(commands_.held(), 1u);
    commands_.released(earlier);  // not known any more
    EXPECT_EQ(commands_.held(), 1u);
}

TEST_F(WorkerCommandsTest, EverySpdReachesAWorkerThatIsSlow) {
    const CompiledSpd none;
    rings_[0].room = 0;
    for (int i = 0; i < 3; ++i) commands_.publish(std::make_unique<const Spd>(none, none));
    EXPECT_EQ(commands_.waiting(kFirst), 3u);  // SAs between them may need each
    EXPECT_EQ(commands_.held(), 3u);
}

TEST_F(WorkerCommandsTest, OfNextHopsThatWaitOnlyTheLatestIsKept) {
    rings_[0].room = 0;
    for (int i = 0; i < 100; ++i) commands_.publish(routes());
    EXPECT_EQ(commands_.waiting(kFirst), 1u);
    EXPECT_EQ(commands_.waiting(kSecond), 1u);
    EXPECT_EQ(commands_.held(), 3u);  // two in the second worker's ring, and the latest
    rings_[0].room = rings_[1].room = 3;
    EXPECT_TRUE(commands_.flush());
    const NextHops* const latest = next_routes(kFirst);
    const NextHops* const oldest = next_routes(kSecond);
    next_routes(kSecond);
    EXPECT_EQ(next_routes(kSecond), latest);
    commands_.released(oldest);
    EXPECT_EQ(commands_.held(), 2u);
}

}  // namespace
}  // namespace sallyport::control
