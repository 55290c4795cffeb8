// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/sequence_memory.h"

#include <gtest/gtest.h>

#include <array>

#include "control/sa/kernel/slot.h"

namespace sallyport::control {
namespace {

SequenceMemory::Name name_of(uint32_t spi, uint8_t key = 1) {
    SequenceMemory::Name name{.spi = Spi{spi}, .protocol = 50};
    name.key.bytes[0] = key;
    return name;
}

TEST(SequenceMemory, KnowsNothingOfAFreshSa) {
    const SequenceMemory memory;
    EXPECT_EQ(memory.find(name_of(1)).outbound_next, 1u);
    EXPECT_EQ(memory.find(name_of(1)).inbound_top, 0u);
}

// MOBIKE brings an SA back with counters that are behind.
TEST(SequenceMemory, OnlyMovesUp) {
    SequenceMemory memory;
    memory.raise(name_of(1), {.outbound_next = 100, .inbound_top = 7});
    memory.raise(name_of(1), {.outbound_next = 50, .inbound_top = 9});
    EXPECT_EQ(memory.find(name_of(1)).outbound_next, 100u);
    EXPECT_EQ(memory.find(name_of(1)).inbound_top, 9u);
}

TEST(SequenceMemory, AnotherKeyUnderTheSameSpiIsAnotherSa) {
    SequenceMemory memory;
    memory.raise(name_of(1, 1), {.outbound_next = 100});
    EXPECT_EQ(memory.find(name_of(1, 2)).outbound_next, 1u);
}

TEST(SequenceMemory, KnowsSpisByProtocol) {
    SequenceMemory memory;
    EXPECT_FALSE(memory.knows(Spi{7}, 50));
    memory.raise(name_of(7), {.outbound_next = 100});
    EXPECT_TRUE(memory.knows(Spi{7}, 50));
    EXPECT_FALSE(memory.knows(Spi{7}, 51));
    EXPECT_FALSE(memory.knows(Spi{6}, 50));
    EXPECT_FALSE(memory.knows(Spi{8}, 50));
}

// Of every state that the kernel forgets: bounded like the rest, and nothing where nothing is used.
TEST(SequenceMemory, RemembersWhatTheKernelHasUsed) {
    SequenceMemory memory;
    xfrm::KernelSa last;
    last.name.spi = Spi{7};
    last.replay = {.sent = 6, .top = 9};
    remember(memory, last);
    EXPECT_EQ(memory.size(), 0u) << "its key is hidden";
    last.key = SecretBytes(std::array<std::byte, 20>{std::byte{1}});
    remember(memory, last);
    EXPECT_EQ(memory.find(memory_name_of(last)).outbound_next, 7u);
    EXPECT_EQ(memory.find(memory_name_of(last)).inbound_top, 9u);
    last.replay = {.sent = ~uint64_t{0}};
    remember(memory, last);
    EXPECT_EQ(memory.find(memory_name_of(last)).outbound_next, ~uint64_t{0});
    last.name.spi = Spi{8};
    last.replay = {};
    remember(memory, last);
    EXPECT_EQ(memory.size(), 1u) << "a fresh one";
}

TEST(SequenceMemory, ForgetsTheOneThatWasNotedLongestAgo) {
    SequenceMemory memory;
    for (uint32_t i = 0; i < SequenceMemory::kNamesMax; ++i) {
        memory.raise(name_of(i), {.outbound_next = 5});
    }
    memory.raise(name_of(0), {.outbound_next = 6});  // noted again: now the latest
    memory.raise(name_of(0xffffffff), {.outbound_next = 5});
    EXPECT_EQ(memory.size(), SequenceMemory::kNamesMax);
    EXPECT_EQ(memory.find(name_of(0)).outbound_next, 6u);
    EXPECT_EQ(memory.find(name_of(1)).outbound_next, 1u);
}

}  // namespace
}  // namespace sallyport::control
