// SPDX-License-Identifier: Apache-2.0
// Conservation: ten million frames, good, bad, cut, forged and replayed, through both pipelines
// and several SAs, in buffers taken from a pool. After each burst every buffer is either in the
// pool or was delivered or was discarded, once; at the end counters say the same as the test.

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "tests/support/sanitizers.h"
#include "tests/support/tunnel_world.h"

namespace sallyport::test {
namespace {

constexpr uint64_t kFrames = SP_TEST_WITH_ASAN ? 300'000 : 10'000'000;
constexpr uint32_t kBuffers = 1024;
constexpr uint32_t kSas = 6;

// Buffers that nobody holds. Taking and giving back keep a mark per buffer, so that a buffer given
// back twice or never is noticed where it happens.
class Pool {
  public:
    Pool() : buffers_(kBuffers) {
        for (uint32_t i = 0; i < kBuffers; ++i) free_.push_back(i);
        taken_.assign(kBuffers, false);
    }
    std::byte* take() {
        const uint32_t index = free_.back();
        free_.pop_back();
        taken_[index] = true;
        return buffers_.base(index) + kFrameDataOffset;
    }
    // `at`: anywhere in the buffer.
    [[nodiscard]] bool give_back(const std::byte* at) {
        const uint32_t index = buffers_.index_of(at);
        if (index >= kBuffers || !taken_[index]) return false;
        taken_[index] = false;
        free_.push_back(index);
        return true;
    }
    [[nodiscard]] size_t free_count() const { return free_.size(); }

  private:
    FrameBuffers buffers_;
    std::vector<uint32_t> free_;
    std::vector<bool> taken_;
};

struct Totals {
    uint64_t out_frames = 0, out_delivered = 0, out_discarded = 0;
    uint64_t in_frames = 0, in_delivered = 0, in_discarded = 0;
    uint64_t bursts = 0;
};

std::vector<Bytes> inner_frames() {
    std::vector<Bytes> frames;
    for (uint32_t sa = 0; sa <= kSas; ++sa) {  // one network more than there are SAs
        const std::string v4 = "10.2." + std::to_string(sa) + ".9";
        const std::string v6 = "2001:db8:2:" + std::to_string(sa) + "::9";
        for (const size_t data_bytes : {0u, 18u, 200u, 1100u, 1460u}) {
            frames.push_back(ethernet(ipv4({.destination = v4}, udp(1000, 2000, data_bytes))));
            frames.push_back(ethernet(ipv6({.destination = v6}, tcp(1000, 2000, data_bytes))));
        }
        frames.push_back(ethernet(ipv4({.destination = v4, .ttl = 1}, udp(1, 2))));
        frames.push_back(ethernet(ipv4({.destination = v4, .fragment_offset = 8}, udp(1, 2))));
        frames.push_back(ethernet(ipv4({.destination = v4, .total_bytes = 4000}, udp(1, 2))));
        frames.push_back(ethernet(
            ipv6({.destination = v6, .extensions = {hop_by_hop(), fragment(0, true)}}, udp(1, 2))));
    }
    frames.push_back(ethernet(0x0806, repeated(46, 0)));
    frames.push_back(repeated(20, 0));
    return frames;
}

class Traffic {
  public:
    Traffic() : world_(64), templates_(inner_frames()), random_(42) {
        std::vector<SpdEntry> entries;
        for (uint32_t i = 0; i < kSas; ++i) {
            TestSa sa;
            sa.spi = 0x1000 + i;
            sa.id = i;
            sa.policy = i;
            sa.outer = i % 2 == 0 ? Family::v4 : Family::v6;
            sa.suite = &crypto::suites()[i % crypto::suites().size()];
            sa.esn = i == 1 || i == 2;
            sa.replay_window = std::array<uint32_t, kSas>{64, 0, 32, 1000, 4096, 128}[i];
            // One crosses into the next 2^32 numbers, one ends for want of numbers on disk, one by
            // the protocol, all soon after the beginning.
            if (i == 4) sa.sequence_reserved = kFrames / 100;
            if (i == 2) sa.sequence_next = (uint64_t{1} << 32) - kFrames / 100;
            if (i == 5) sa.sequence_next = kSequenceEnd32 - kFrames / 50;
            sa.replay_top = sa.sequence_next - 1;
            world_.add_outbound(sa);
            // The last network is one that its SA is not made for.
            if (i == 3) sa.selectors = {any_selector(Family::v6)};
            world_.add_inbound(sa);
            for (const Family family : {Family::v4, Family::v6}) {
                const std::string remote = family == Family::v4
                                               ? "10.2." + std::to_string(i) + ".0/24"
                                               : "2001:db8:2:" + std::to_string(i) + "::/64";
                entries.push_back(
                    {.policy = PolicyId{i},
                     .action = SpdAction::protect,
                     .source = prefix(family == Family::v4 ? "10.1.0.0/16" : "2001:db8:1::/48"),
                     .destination = prefix(remote)});
            }
        }
        world_.set_policies(entries);
    }

    void run() {
        while (totals_.out_frames + totals_.in_frames < kFrames) {
            round();
            if (::testing::Test::HasFatalFailure()) return;
        }
        check_counters();
        std::printf("%lu frames (%lu out, %lu in), %lu bursts%s\n",
                    totals_.out_frames + totals_.in_frames, totals_.out_frames, totals_.in_frames,
                    totals_.bursts, SP_TEST_WITH_ASAN ? ", fewer because of the sanitizer" : "");
    }

  private:
    uint32_t chance(uint32_t of) { return static_cast<uint32_t>(random_() % of); }

    // Inner packets out; what leaves comes back in, some of it damaged, doubled or cut.
    void round() {
        burst_.clear();
        world_.events.events.clear();
        const uint32_t count = chance(16) == 0 ? chance(kBurstMax + 1) : kBurstMax;
        for (uint32_t i = 0; i < count; ++i) {
            const Bytes& frame = templates_[chance(static_cast<uint32_t>(templates_.size()))];
            std::byte* data = pool_.take();
            std::memcpy(data, frame.data(), frame.size());
            auto bytes = static_cast<uint32_t>(frame.size());
            if (chance(40) == 0) bytes = chance(bytes + 1);
            if (chance(40) == 0 && bytes > 14) flip(data + 14 + chance(bytes - 14));
            burst_.push_back({.data = data, .bytes = bytes});
        }
        world_.out.run(burst_, chance(4) == 0 ? OutboundSource::kernel : OutboundSource::port);
        ++totals_.bursts;
        totals_.out_frames += count;
        totals_.out_delivered += world_.out.delivered().size();
        totals_.out_discarded += world_.out.discarded().size();
        ASSERT_EQ(world_.out.delivered().size() + world_.out.discarded().size(), count);
        for (std::byte* data : world_.out.discarded()) ASSERT_TRUE(pool_.give_back(data));

        // What was delivered is still in hand: all buffers are accounted for.
        ASSERT_EQ(pool_.free_count() + world_.out.delivered().size(), kBuffers);
        arrived_.clear();
        for (const auto& outgoing : world_.out.delivered()) arrive(outgoing.frame);
        while (!arrived_.empty()) {
            const size_t take = std::min<size_t>(arrived_.size(), kBurstMax);
            const std::span part = std::span(arrived_).last(take);
            world_.in.run(part);
            arrived_.resize(arrived_.size() - take);
            totals_.in_frames += take;
            totals_.in_delivered += world_.in.delivered().size();
            totals_.in_discarded += world_.in.discarded().size();
            ASSERT_EQ(world_.in.delivered().size() + world_.in.discarded().size(), take);
            for (const auto& outgoing : world_.in.delivered()) {
                const std::byte* base = frame_base(outgoing.frame.data);
                ASSERT_GE(outgoing.frame.data, base + kFrameHeadroomOffset);
                ASSERT_LE(outgoing.frame.data + outgoing.frame.bytes, base + kFrameBytes);
                ASSERT_TRUE(pool_.give_back(outgoing.frame.data));
            }
            for (std::byte* data : world_.in.discarded()) ASSERT_TRUE(pool_.give_back(data));
            ASSERT_EQ(pool_.free_count() + arrived_.size(), kBuffers);
        }
    }

    void arrive(Frame frame) {
        const uint32_t fate = chance(32);
        if (fate < 4) {  // a copy: a replay in this burst or soon after
            std::byte* copy = pool_.take();
            std::memcpy(copy, frame.data, frame.bytes);
            arrived_.push_back({.data = copy, .bytes = frame.bytes});
        } else if (fate == 4) {
            flip(frame.data + 14 + chance(frame.bytes - 14));
        } else if (fate == 5) {
            frame.bytes = chance(frame.bytes);
        } else if (fate == 6) {  // another SPI
            const uint32_t at = get16({frame.data, 14}, 12) == 0x0800 ? 34 : 54;
            flip(frame.data + at + 3);
        }
        arrived_.push_back(frame);
    }

    void flip(std::byte* at) { *at ^= static_cast<std::byte>(1u << chance(8)); }

    void check_counters() {
        const WorkerCounters& counters = world_.worker_counters;
        EXPECT_EQ(counters.outbound.frames.read(), totals_.out_frames);
        EXPECT_EQ(counters.outbound.delivered.read(), totals_.out_delivered);
        EXPECT_EQ(counters.inbound.frames.read(), totals_.in_frames);
        EXPECT_EQ(counters.inbound.delivered.read(), totals_.in_delivered);
        uint64_t drops = 0;
        for (const Counter& counter : counters.drops) drops += counter.read();
        EXPECT_EQ(drops, totals_.out_discarded + totals_.in_discarded);
        EXPECT_EQ(counters.drops[0].read(), 0u);

        // SAs know the same numbers.
        Deltas sums;
        for (const auto& [name, value] : world_.counters()) {
            if (name.starts_with("sa ")) sums[name.substr(name.rfind(' ') + 1)] += value;
        }
        EXPECT_EQ(sums["out.packets"], totals_.out_delivered);
        EXPECT_EQ(sums["in.packets"], totals_.in_delivered);
        const auto all = world_.counters();
        for (const char* reason :
             {"replayed", "before_window", "icv_mismatch", "selector_mismatch"}) {
            const auto found = all.find(std::string("drops.") + reason);
            ASSERT_NE(found, all.end()) << reason << " never happened";
            EXPECT_EQ(sums[std::string("in.drops.") + reason], found->second);
        }
        // The mix is a mix.
        for (const char* reason :
             {"truncated", "malformed_ip", "unknown_spi", "unsupported_packet", "no_policy",
              "ttl_exceeded", "too_big", "sequence_unreserved", "sequence_exhausted"}) {
            EXPECT_TRUE(all.contains(std::string("drops.") + reason)) << reason;
        }
        EXPECT_GT(totals_.in_delivered, totals_.in_frames / 2);
    }

    Pool pool_;
    TunnelWorld world_;
    std::vector<Bytes> templates_;
    std::mt19937_64 random_;
    std::vector<Frame> burst_;
    std::vector<Frame> arrived_;
    Totals totals_;
};

TEST(Conservation, TenMillionFrames) {
    Traffic().run();
}

}  // namespace
}  // namespace sallyport::test
