// SPDX-License-Identifier: Apache-2.0
// The in-memory pipelines of one worker beside raw ipsec-mb on the same buffers, interleaved in one
// process: cycles per packet out and in, 64 B and 1400 B inner packets, 1 and 1000 SAs in random
// order. Measures and prints; asserts nothing.

#include <x86intrin.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "bench/raw_gcm.h"
#include "dataplane/pipeline/inbound.h"
#include "dataplane/pipeline/observer.h"
#include "dataplane/pipeline/outbound.h"

namespace sallyport::bench {
namespace {

constexpr uint32_t kFrames = 256;
constexpr int kRounds = 200;
constexpr int kBurstsPerRound = 64;

class Buffers {
  public:
    Buffers()
        : memory_(static_cast<std::byte*>(std::aligned_alloc(kFrameBytes, kFrames * kFrameBytes))) {
    }
    ~Buffers() { std::free(memory_); }
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;
    [[nodiscard]] std::byte* data(uint32_t frame) const {
        return memory_ + frame % kFrames * kFrameBytes + kFrameDataOffset;
    }

  private:
    std::byte* memory_;
};

IpAddress v4(uint32_t host) {
    IpAddress address;
    const Be32 value(host);
    std::memcpy(address.bytes.data(), &value, 4);
    return address;
}

constexpr uint32_t kLocalNet = 0x0a010000;   // 10.1.0.0/16
constexpr uint32_t kRemoteNet = 0xac100000;  // 172.16.0.0, one /24 for each SA
constexpr uint32_t kGateway = 0xc0000201;
constexpr uint32_t kPeer = 0xc0000202;

// One tunnel end to end: what one side encrypts, the other decrypts.
struct World {
    crypto::Aead aead = crypto::Aead::create().value();
    std::vector<OutboundSaPtr> outbound;
    std::vector<InboundSaPtr> inbound;
    Sad sad;
    OutboundTable table;
    std::unique_ptr<Spd> spd;
    WorkerCounters counters;
    NullEventSink events;
    OutboundPipeline out;
    InboundPipeline in;

    explicit World(uint32_t sa_count)
        : sad(sa_count),
          table(sa_count),
          out(table, aead, counters, events, WorkerId{0}),
          in(sad, aead, counters, events, WorkerId{0}) {
        std::mt19937 random(7);
        const crypto::Suite* suite = crypto::find_suite("aes-gcm-16-128");
        std::vector<SpdEntry> entries;
        for (uint32_t i = 0; i < sa_count; ++i) {
            std::byte key[20];
            for (auto& byte : key) byte = static_cast<std::byte>(random());
            const IpPrefix local{.address = v4(kLocalNet), .bits = 16};
            const IpPrefix remote{.address = v4(kRemoteNet + (i << 8)), .bits = 24};
            const auto spi = Spi{(static_cast<uint32_t>(random()) | 0x1000) & 0x7fffffff};
            outbound.push_back(make_outbound_sa(aead, {.id = SaId{i},
                                                       .policy = PolicyId{i},
                                                       .spi = spi,
                                                       .source = v4(kGateway),
                                                       .destination = v4(kPeer),
                                                       .suite = suite,
                                                       .key = key,
                                                       .sequence_reserved = kSequenceEnd32,
                                                       .sequence_low_water = kSequenceEnd32})
                                   .value());
            // What leaves here to the peer comes back in as if the peer were we.
            const Selector selector{.source = local, .destination = remote};
            inbound.push_back(make_inbound_sa(aead, {.id = SaId{i},
                                                     .policy = PolicyId{i},
                                                     .spi = spi,
                                                     .source = v4(kGateway),
                                                     .destination = v4(kPeer),
                                                     .suite = suite,
                                                     .key = key,
                                                     .selectors = {&selector, 1}})
                                  .value());
            table.insert(outbound.back().get());
            sad.insert(inbound.back().get());
            entries.push_back({.policy = PolicyId{i},
                               .action = SpdAction::protect,
                               .source = local,
                               .destination = remote});
        }
        spd = std::make_unique<Spd>(compile_spd(entries).value(), CompiledSpd{});
        out.set_spd(spd.get());
    }
};

void write_inner(std::byte* frame, uint32_t ip_bytes, uint32_t sa) {
    wire::Ethernet ethernet{.type = wire::kEtherTypeIpv4};
    wire::write(frame, ethernet);
    wire::Ipv4 ip{.version_ihl = 0x45,
                  .total_bytes = Be16(static_cast<uint16_t>(ip_bytes)),
                  .ttl = 64,
                  .protocol = wire::kProtocolUdp,
                  .source = Be32(kLocalNet + 5),
                  .destination = Be32(kRemoteNet + (sa << 8) + 9)};
    ip.checksum = 0;
    wire::write(frame + 14, ip);
    ip.checksum = wire::fold_checksum(wire::sum_words(frame + 14, sizeof ip));
    wire::write(frame + 14, ip);
}

struct Series {
    std::vector<double> cycles_per_packet;
    void add(uint64_t cycles, uint32_t packets) {
        cycles_per_packet.push_back(static_cast<double>(cycles) / packets);
    }
    [[nodiscard]] double at(double quantile) {
        std::ranges::sort(cycles_per_packet);
        return cycles_per_packet[static_cast<size_t>(
            quantile * static_cast<double>(cycles_per_packet.size() - 1))];
    }
};

struct Result {
    Series raw_out, raw_in, raw_keys_out, raw_keys_in, out, in;
};

Result measure(uint32_t sa_count, uint32_t ip_bytes, uint32_t burst) {
    World world(sa_count);
    RawGcm raw(1);
    RawGcm raw_keys(sa_count);
    const Buffers buffers;
    std::mt19937 random(11);
    Result result;
    std::vector<Frame> frames(burst);
    std::vector<RawGcm::Text> texts(burst);
    std::vector<Frame> arrived;
    uint32_t next = 0;
    const auto prepare = [&] {
        for (uint32_t i = 0; i < burst; ++i) {
            std::byte* data = buffers.data(next++);
            const uint32_t sa = static_cast<uint32_t>(random()) % sa_count;
            write_inner(data, ip_bytes, sa);
            frames[i] = {.data = data, .bytes = 14 + ip_bytes};
            texts[i] = {.data = data + 14, .bytes = (ip_bytes + 2 + 3) & ~3u, .key = sa};
        }
    };
    for (int round = 0; round < kRounds; ++round) {
        uint64_t cycles[4] = {};
        for (int i = 0; i < kBurstsPerRound; ++i) {
            prepare();
            for (auto& text : texts) text.key = 0;
            uint64_t begin = __rdtsc();
            raw.encrypt(texts);
            uint64_t middle = __rdtsc();
            raw.decrypt(texts);
            uint64_t end = __rdtsc();
            cycles[0] += middle - begin;
            cycles[1] += end - middle;

            prepare();
            begin = __rdtsc();
            world.out.run(frames, OutboundSource::port);
            middle = __rdtsc();
            const auto sent = world.out.delivered();
            arrived.clear();
            for (const auto& outgoing : sent) arrived.push_back(outgoing.frame);
            const uint64_t in_begin = __rdtsc();
            world.in.run(arrived);
            end = __rdtsc();
            cycles[2] += middle - begin;
            cycles[3] += end - in_begin;
            if (sent.size() != burst || world.in.delivered().size() != burst) {
                std::fprintf(stderr,
                             "pipeline_bench: packets were lost, the figures mean nothing\n");
                for (size_t reason = 0; reason < kDropReasonCount; ++reason) {
                    if (world.counters.drops[reason].read() != 0) {
                        std::fprintf(stderr, "  %s\n", kDropReasonLabels[reason].data());
                    }
                }
                std::exit(1);
            }
        }
        const uint32_t packets = burst * kBurstsPerRound;
        if (round < 10) continue;  // caches, branch predictors and clocks settle
        result.raw_out.add(cycles[0], packets);
        result.raw_in.add(cycles[1], packets);
        result.out.add(cycles[2], packets);
        result.in.add(cycles[3], packets);
    }
    // By itself: its keys would push those of the pipeline out of the cache.
    for (int round = 0; round < kRounds / 4; ++round) {
        uint64_t cycles[2] = {};
        for (int i = 0; i < kBurstsPerRound; ++i) {
            prepare();
            const uint64_t begin = __rdtsc();
            raw_keys.encrypt(texts);
            const uint64_t middle = __rdtsc();
            raw_keys.decrypt(texts);
            cycles[0] += middle - begin;
            cycles[1] += __rdtsc() - middle;
        }
        result.raw_keys_out.add(cycles[0], burst * kBurstsPerRound);
        result.raw_keys_in.add(cycles[1], burst * kBurstsPerRound);
    }
    return result;
}

void print_row(const char* what, uint32_t ip_bytes, uint32_t sas, uint32_t burst, Series& raw,
               Series& raw_keys, Series& pipeline, double one_sa) {
    const double floor = raw.at(0.5);
    const double median = pipeline.at(0.5);
    std::printf("%-4s %5u %5u %6u  %7.0f (%4.0f-%4.0f) %9.0f %9.0f (%4.0f-%4.0f) %7.2f", what,
                ip_bytes, sas, burst, floor, raw.at(0.1), raw.at(0.9), raw_keys.at(0.5), median,
                pipeline.at(0.1), pipeline.at(0.9), median / floor);
    if (sas == 1) {
        std::printf("\n");
    } else {
        std::printf("  %+5.1f %%\n", (median / one_sa - 1) * 100);
    }
}

// Where the cycles of one burst go.
void print_passes(uint32_t sa_count, uint32_t ip_bytes) {
    constexpr uint32_t kBurst = 64;
    constexpr int kBursts = 20000;
    World world(sa_count);
    const Buffers buffers;
    std::mt19937 random(13);
    CycleObserver out;
    CycleObserver in;
    uint32_t next = 0;
    for (int i = 0; i < kBursts; ++i) {
        std::array<Frame, kBurst> frames;
        for (Frame& frame : frames) {
            frame = {.data = buffers.data(next++), .bytes = 14 + ip_bytes};
            write_inner(frame.data, ip_bytes, static_cast<uint32_t>(random()) % sa_count);
        }
        world.out.run(frames, OutboundSource::port, out);
        for (uint32_t n = 0; n < kBurst; ++n) frames[n] = world.out.delivered()[n].frame;
        world.in.run(frames, in);
    }
    const auto cycles = [&](const CycleObserver& observer, int pass) {
        return static_cast<double>(observer.cycles(pass)) / (double{kBursts} * kBurst);
    };
    std::printf("%5u %5u  out: parse+policy %4.1f, encapsulate %4.1f, encrypt %5.1f", ip_bytes,
                sa_count, cycles(out, 0), cycles(out, 1), cycles(out, 2));
    std::printf("   in: parse %4.1f, sa %4.1f, replay %4.1f, decrypt %5.1f, rest %4.1f\n",
                cycles(in, 0), cycles(in, 1), cycles(in, 2), cycles(in, 3), cycles(in, 4));
}

int run() {
    std::printf("crypto: %s\n", crypto::Aead::create().value().description().c_str());
    std::printf(
        "AES-128-GCM, IPv4 tunnel; TSC cycles per packet, median (10 %% - 90 %% of %d rounds)\n",
        kRounds - 10);
    std::printf(
        "dir  bytes   SAs  burst  raw ipsec-mb         pipeline              ratio  against 1 "
        "SA\n");
    for (const uint32_t ip_bytes : {64u, 1400u}) {
        for (const uint32_t burst : {32u, 64u}) {
            Result one = measure(1, ip_bytes, burst);
            print_row("out", ip_bytes, 1, burst, one.raw_out, one.raw_keys_out, one.out, 0);
            print_row("in", ip_bytes, 1, burst, one.raw_in, one.raw_keys_in, one.in, 0);
            Result many = measure(1000, ip_bytes, burst);
            print_row("out", ip_bytes, 1000, burst, many.raw_out, many.raw_keys_out, many.out,
                      one.out.at(0.5));
            print_row("in", ip_bytes, 1000, burst, many.raw_in, many.raw_keys_in, many.in,
                      one.in.at(0.5));
        }
    }
    std::printf("cycles per packet and pass, mean\nbytes   SAs\n");
    for (const uint32_t ip_bytes : {64u, 1400u}) {
        for (const uint32_t sas : {1u, 1000u}) print_passes(sas, ip_bytes);
    }
    World world(1);
    std::printf(
        "memory of one SA pair: %zu bytes (outbound %zu, inbound with a window of 64: %zu)\n",
        memory_bytes(*world.outbound[0]) + memory_bytes(*world.inbound[0]),
        memory_bytes(*world.outbound[0]), memory_bytes(*world.inbound[0]));
    return 0;
}

}  // namespace
}  // namespace sallyport::bench

int main() {
    return sallyport::bench::run();
}
