// SPDX-License-Identifier: Apache-2.0
// Bytes from the protected side through the outbound pipeline, under an SPD that has every action,
// protocols and ports.
//
// Input: mode, then up to 64 records of a 2-byte length and that many bytes: frames. Mode bit 0:
// they come from the kernel. Bit 1: outer header IPv6. Bit 2: ESN.
//
// Checked: conservation, frames within their buffers, and that the oracle decrypts every packet
// that leaves to the one that came in, but for one hop of its TTL.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dataplane/pipeline/outbound.h"
#include "tests/fuzz/fuzz_world.h"

namespace sallyport::fuzz {
namespace {

SpdEntry entry(uint32_t policy, SpdAction action, const char* source, const char* destination) {
    return {.policy = PolicyId{policy},
            .action = action,
            .source = test::prefix(source),
            .destination = test::prefix(destination)};
}

std::vector<SpdEntry> policies() {
    std::vector<SpdEntry> list = {
        entry(2, SpdAction::discard, "10.1.66.0/24", "10.0.0.0/8"),
        entry(3, SpdAction::bypass, "10.1.0.0/16", "10.99.0.0/16"),
        entry(4, SpdAction::protect, "10.1.0.0/16", "10.3.0.0/16"),  // has no SA
        entry(5, SpdAction::discard, "10.1.0.0/16", "10.2.0.0/16"),
        entry(1, SpdAction::protect, "10.0.0.0/8", "10.0.0.0/8"),
        entry(1, SpdAction::protect, "2001:db8::/32", "2001:db8::/32"),
    };
    list[3].protocol = 17;
    list[3].has_ports = true;
    list[3].destination_port_lo = 53;
    list[3].destination_port_hi = 69;
    return list;
}

// 1: beside the hop a checksum of TCP or UDP has changed, which is all that may.
uint64_t check_opens_to(const World& world, size_t outer, bool esn, uint64_t sequence,
                        const OutgoingFrame& outgoing, const test::Bytes& came_in,
                        OutboundSource source) {
    const size_t header_bytes = outer == 0 ? 20 : 40;
    const std::span<const std::byte> frame(outgoing.frame.data, outgoing.frame.bytes);
    check(frame.size() > 14 + header_bytes + 32);
    if (outer == 0) check(test::ipv4_checksum_right(frame.subspan(14)));
    const auto esp = frame.subspan(14 + header_bytes);
    check(test::get32(esp, 4) == static_cast<uint32_t>(sequence));
    const auto text = test::esp_open(world.key, esn, static_cast<uint32_t>(sequence >> 32), esp);
    check(text.has_value());
    const auto opened = test::read_text(*text);
    check(opened.has_value());
    const test::Bytes& packet = opened->packet;
    check(packet.size() + 14 <= came_in.size());
    const bool is_v6 = opened->next_header == 41;
    const size_t ttl_at = is_v6 ? 7 : 8;
    const unsigned hop = source == OutboundSource::port ? 1 : 0;
    size_t changed_at = 0;
    for (size_t i = 0; i < packet.size(); ++i) {
        const unsigned before = test::get8(came_in, 14 + i);
        const unsigned after = test::get8(packet, i);
        if (i == ttl_at) {
            check(after + hop == before && after > 0);
        } else if (is_v6 || hop == 0 || (i != 10 && i != 11)) {  // the checksum goes with the TTL
            if (after == before) continue;
            if (changed_at == 0) changed_at = i;
            check(changed_at >= (is_v6 ? 46 : 26) && i - changed_at < 2 && hop == 1);
        }
    }
    return changed_at == 0 ? 0 : 1;
}

void run(std::span<const std::byte> input) {
    Records records(input);
    const OutboundSource source =
        (records.mode() & 1) != 0 ? OutboundSource::kernel : OutboundSource::port;
    const size_t outer = (records.mode() & 2) != 0 ? 1 : 0;
    const bool esn = (records.mode() & 4) != 0;

    World& world = the_world();
    static const Spd spd(compile_spd(policies()).value(), CompiledSpd{});
    OutboundSaPtr sa = world.make_outbound(outer, esn);
    const uint64_t first = sa->sequence_next.read();
    OutboundTable table(8);
    check(table.insert(sa.get()));
    WorkerCounters counters;
    NullEventSink events;
    OutboundPipeline pipeline(table, world.aead, counters, events, WorkerId{0});
    pipeline.set_spd(&spd);

    std::vector<Frame> burst;
    std::vector<test::Bytes> frames;
    while (burst.size() < kBurstMax) {
        const auto record = records.next();
        if (!record) break;
        test::Bytes frame(record->begin(), record->end());
        frame.resize(std::min<size_t>(frame.size(), kFrameDataBytesMax));
        burst.push_back(world.buffers.put(static_cast<uint32_t>(burst.size()), frame));
        frames.push_back(std::move(frame));
    }
    pipeline.run(burst, source);
    world.check_conservation(pipeline.delivered(), pipeline.discarded(), burst.size());
    check(counters.outbound.frames.read() == burst.size());
    check(counters.outbound.delivered.read() == pipeline.delivered().size());
    check(sa->sequence_next.read() == first + pipeline.delivered().size());
    uint64_t sequence = first;
    uint64_t completed = 0;
    for (const auto& outgoing : pipeline.delivered()) {
        completed += check_opens_to(world, outer, esn, sequence++, outgoing,
                                    frames[world.buffers.index_of(outgoing.frame.data)], source);
    }
    check(completed <= counters.checksums_completed.read());
}

}  // namespace
}  // namespace sallyport::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    sallyport::fuzz::run(std::as_bytes(std::span(data, size)));
    return 0;
}
