// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "dataplane/io/packet_memory.h"

namespace sallyport::io {
namespace {

class PacketMemoryTest : public ::testing::Test {
  protected:
    static void SetUpTestSuite() {
        cpu_set_t before;
        sched_getaffinity(0, sizeof before, &before);
        const auto started = start_eal(16384, true);
        ASSERT_TRUE(started) << started.error();
        cpu_set_t after;
        sched_getaffinity(0, sizeof after, &after);
        EXPECT_TRUE(CPU_EQUAL(&before, &after)) << "the EAL changed which CPUs this thread uses";
    }
};

TEST_F(PacketMemoryTest, SecondEalIsRefused) {
    EXPECT_FALSE(start_eal(1024, false));
}

TEST_F(PacketMemoryTest, TooSmallIsRefused) {
    EXPECT_FALSE(PacketMemory::create(8, false));
}

TEST_F(PacketMemoryTest, EveryFrameOnceAndAligned) {
    auto memory = PacketMemory::create(1000, true);
    ASSERT_TRUE(memory) << memory.error();
    EXPECT_EQ(memory->frame_count(), 1000u);
    EXPECT_EQ(memory->available(), 1000u);
    EXPECT_EQ(memory->bytes(), 1000u * kFrameBytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->base()) % kFrameBytes, 0u);

    std::set<std::byte*> seen;
    std::byte* frame = nullptr;
    while (memory->take({&frame, 1})) {
        ASSERT_EQ(frame - frame_base(frame), kFrameDataOffset);
        ASSERT_GE(frame, memory->base());
        ASSERT_LE(frame_base(frame) + kFrameBytes, memory->base() + memory->bytes());
        ASSERT_TRUE(seen.insert(frame).second) << "handed out twice";
        *frame = std::byte{1};
        frame[kFrameDataBytesMax - 1] = std::byte{2};
    }
    EXPECT_EQ(seen.size(), 1000u);
    EXPECT_EQ(memory->available(), 0u);
    // A pointer anywhere into the buffer gives it back.
    int64_t shift = -int64_t{kFrameHeadroomBytes};
    for (std::byte* each : seen) {
        std::byte* inside = each + shift;
        shift =
            shift + 977 < int64_t{kFrameDataBytesMax} ? shift + 977 : -int64_t{kFrameHeadroomBytes};
        memory->give({&inside, 1});
    }
    EXPECT_EQ(memory->available(), 1000u);
}

TEST_F(PacketMemoryTest, TakeIsAllOrNothing) {
    auto memory = PacketMemory::create(100, false);
    ASSERT_TRUE(memory) << memory.error();
    std::vector<std::byte*> frames(101);
    EXPECT_FALSE(memory->take(frames));
    EXPECT_EQ(memory->available(), 100u);
    EXPECT_TRUE(memory->take(std::span(frames).first(100)));
    EXPECT_EQ(memory->available(), 0u);
    EXPECT_FALSE(memory->take(std::span(frames).first(1)));
    memory->give(std::span(frames).first(100));
    EXPECT_EQ(memory->available(), 100u);
}

constexpr auto kRelaxed = std::memory_order_relaxed;
std::atomic_ref<std::byte> mark(std::byte& first_byte) {
    return std::atomic_ref(first_byte);
}

// Registered threads have caches: available() counts them and unregister_thread() empties them.
TEST_F(PacketMemoryTest, ConservationOverRegisteredThreads) {
    constexpr uint32_t kFrames = 8192;
    auto memory = PacketMemory::create(kFrames, false);
    ASSERT_TRUE(memory) << memory.error();
    std::array<bool, 3> registered{};
    std::array<uint32_t, 3> failed{};
    {
        std::vector<std::jthread> threads;
        for (size_t t = 0; t < registered.size(); ++t) {
            threads.emplace_back([&, t] {
                // The last one stays unregistered: no cache, same result.
                registered[t] = t == 2 || PacketMemory::register_thread();
                std::vector<std::vector<std::byte*>> held;
                for (uint32_t round = 0; round < 20000; ++round) {
                    std::vector<std::byte*> burst(1 + (round * 7 + t) % kBurstMax);
                    if (!memory->take(burst)) {
                        ++failed[t];
                        continue;
                    }
                    // Written by its owner only: anything else means two owners. Atomic, because
                    // ThreadSanitizer does not see the order that DPDK's pool makes between owners.
                    for (std::byte* frame : burst) mark(*frame).store(std::byte(t + 1), kRelaxed);
                    held.push_back(std::move(burst));
                    if (held.size() == 16) {
                        for (const auto& each : held) {
                            for (std::byte* frame : each) {
                                if (mark(*frame).load(kRelaxed) != std::byte(t + 1)) {
                                    failed[t] += 1000;
                                }
                            }
                            memory->give(each);
                        }
                        held.clear();
                    }
                }
                for (const auto& each : held) memory->give(each);
                if (t != 2) memory->unregister_thread();
            });
        }
    }
    EXPECT_TRUE(registered[0] && registered[1]);
    EXPECT_EQ(failed, (std::array<uint32_t, 3>{}));
    EXPECT_EQ(memory->available(), kFrames);
    EXPECT_EQ(memory->recover(), 0u);

    // All of it can be taken by one thread: nothing is left in a dead thread's cache.
    std::vector<std::byte*> all(kFrames);
    ASSERT_TRUE(memory->take(all));
    memory->give(all);
}

TEST_F(PacketMemoryTest, RecoverFindsWhatIsMissing) {
    auto memory = PacketMemory::create(512, false);
    ASSERT_TRUE(memory) << memory.error();
    std::vector<std::byte*> lost(77);
    ASSERT_TRUE(memory->take(lost));
    EXPECT_EQ(memory->available(), 512u - 77u);
    EXPECT_EQ(memory->recover(), 77u);
    EXPECT_EQ(memory->available(), 512u);
    EXPECT_EQ(memory->recover(), 0u);
    std::vector<std::byte*> all(512);
    ASSERT_TRUE(memory->take(all));
    EXPECT_EQ(std::set<std::byte*>(all.begin(), all.end()).size(), 512u);
    memory->give(all);
}

}  // namespace
}  // namespace sallyport::io
