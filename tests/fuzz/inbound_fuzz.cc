// SPDX-License-Identifier: Apache-2.0
// Bytes from outside through the inbound pipeline.
//
// Input: mode, then up to 64 records of a 2-byte length and that many bytes. Mode bit 0 clear:
// records are frames as they arrive. Set: records are plaintexts, which the oracle encrypts for an
// SA with its next sequence number, so that the fuzzer reaches what lies behind the ICV. Bit 1:
// the outer header is IPv6. Bit 2: the SA uses ESN.
//
// Checked: conservation, frames within their buffers, and that nothing comes out which the oracle
// has not encrypted. An unauthenticated delivery would need a forged ICV, so in the first mode
// nothing may be delivered at all.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dataplane/pipeline/inbound.h"
#include "tests/fuzz/fuzz_world.h"

namespace sallyport::fuzz {
namespace {

void run(std::span<const std::byte> input) {
    Records records(input);
    const bool encrypted = (records.mode() & 1) != 0;
    const size_t outer = (records.mode() & 2) != 0 ? 1 : 0;
    const bool esn = (records.mode() & 4) != 0;

    World& world = the_world();
    InboundSaPtr sa = world.make_inbound(outer, esn);
    Sad sad(8);
    check(sad.insert(sa.get()));
    WorkerCounters counters;
    NullEventSink events;
    InboundPipeline pipeline(sad, world.aead, counters, events, WorkerId{0});

    std::vector<Frame> burst;
    std::vector<test::Bytes> plaintexts;
    for (uint64_t sequence = 1; burst.size() < kBurstMax; ++sequence) {
        const auto record = records.next();
        if (!record) break;
        test::Bytes frame(record->begin(), record->end());
        if (encrypted) {
            // ESP text ends on a 4-byte boundary and is never empty.
            while (frame.size() < 4 || frame.size() % 4 != 0) frame.push_back(std::byte{0});
            frame.resize(std::min<size_t>(frame.size(), 2000));
            plaintexts.push_back(frame);
            frame = world.seal(outer, esn, sequence, frame);
        }
        frame.resize(std::min<size_t>(frame.size(), kFrameDataBytesMax));
        burst.push_back(world.buffers.put(static_cast<uint32_t>(burst.size()), frame));
    }
    pipeline.run(burst);
    world.check_conservation(pipeline.delivered(), pipeline.discarded(), burst.size());
    check(counters.inbound.frames.read() == burst.size());
    check(counters.inbound.delivered.read() == pipeline.delivered().size());

    if (!encrypted) check(pipeline.delivered().empty());
    for (const auto& outgoing : pipeline.delivered()) {
        const auto& plaintext = plaintexts[world.buffers.index_of(outgoing.frame.data)];
        const uint32_t bytes = outgoing.frame.bytes - 14;
        check(bytes <= plaintext.size() - 2);
        const std::byte* packet = outgoing.frame.data + 14;
        const bool is_v6 = static_cast<uint8_t>(packet[0]) >> 4 == 6;
        // The outer header says Not-ECT, so not a bit may have changed.
        check(std::memcmp(packet, plaintext.data(), bytes) == 0);
        check(static_cast<uint8_t>(plaintext.back()) == (is_v6 ? 41 : 4));
        // Within the selectors of the SA.
        const uint8_t* at = reinterpret_cast<const uint8_t*>(packet);
        if (is_v6) {
            check(bytes >= 40 && at[8] == 0x20 && at[24] == 0x20);
        } else {
            check(bytes >= 20 && at[12] == 10 && at[16] == 10);
        }
    }
}

}  // namespace
}  // namespace sallyport::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    sallyport::fuzz::run(std::as_bytes(std::span(data, size)));
    return 0;
}
