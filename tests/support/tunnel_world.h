// SPDX-License-Identifier: Apache-2.0
#pragma once

// A worker's world in memory: SAs, SAD, SPD, both pipelines and their counters, without a kernel.
// Traffic runs one way, from 10.1.0.0/16 (2001:db8:1::/48) to 10.2.0.0/16 (2001:db8:2::/48); the
// same world plays the sending gateway and, with the inbound SA, the receiving one.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dataplane/pipeline/inbound.h"
#include "dataplane/pipeline/outbound.h"
#include "tests/support/esp_oracle.h"
#include "tests/support/frame_buffers.h"
#include "tests/support/packets.h"

namespace sallyport::test {

// Keeps what the pipelines tell control.
class RecordedEvents final : public EventSink {
  public:
    void post(const Event& event) override { events.push_back(event); }
    std::vector<Event> events;
};

// One SA of a test, for either direction and for the oracle.
struct TestSa {
    uint32_t spi = 0x1001;
    uint32_t id = 1;
    uint32_t policy = 1;
    Family outer = Family::v4;
    std::string source = {};  // by default 192.0.2.1 or 2001:db8:ffff::1
    std::string destination = {};
    const crypto::Suite* suite = crypto::find_suite("aes-gcm-16-128");
    Bytes key = {};  // by default bytes that follow from the SPI
    bool esn = false;
    // inbound
    uint32_t replay_window = 64;
    uint64_t replay_top = 0;
    std::vector<Selector> selectors = {};  // by default the networks above, both families
    // outbound
    uint64_t sequence_next = 1;
    std::optional<uint64_t> sequence_reserved = {};  // by default all there are
    std::optional<uint64_t> sequence_low_water = {};
    uint64_t iv_mask = 0;
    uint64_t rank = 0;
    uint16_t mtu = 1500;
    DfPolicy df = DfPolicy::copy;
    bool copy_dscp = true;
    uint8_t outer_ttl = 64;

    [[nodiscard]] Bytes key_material() const;
    [[nodiscard]] std::string source_text() const;
    [[nodiscard]] std::string destination_text() const;
};

// How the oracle's ESP packet departs from the ordinary one.
struct EspShape {
    std::optional<uint8_t> next_header = {};
    std::optional<uint8_t> pad_bytes = {};
    size_t tfc_bytes = 0;
    uint8_t outer_dscp_ecn = 0;
    std::optional<uint64_t> iv = {};
    Bytes text = {};  // instead of packet and trailer
};
// SPI to ICV, made by the oracle.
Bytes esp_of(const TestSa& sa, uint64_t sequence, const Bytes& inner, const EspShape& shape = {});
// The outer packet and its frame.
Bytes outer_packet(const TestSa& sa, const Bytes& esp, uint8_t dscp_ecn = 0);
Bytes esp_frame(const TestSa& sa, uint64_t sequence, const Bytes& inner,
                const EspShape& shape = {});

Selector any_selector(Family family);
SpdEntry protect_entry(Family family, uint32_t policy);

// What became of one frame.
struct Outcome {
    std::optional<Bytes> delivered;
    bool discarded = false;
};

class TunnelWorld {
  public:
    // `hold_frames` of each direction may wait for an SA, for `hold_age_max` of any unit.
    explicit TunnelWorld(uint32_t sa_capacity = 64, uint32_t hold_frames = 0,
                         uint64_t hold_age_max = 0);

    // SAs live as long as the world; add_*() puts them into their table too.
    InboundSa& make_inbound(const TestSa& sa);
    OutboundSa& make_outbound(const TestSa& sa);
    InboundSa& add_inbound(const TestSa& sa);
    OutboundSa& add_outbound(const TestSa& sa);
    // Replaces the SPD; outbound entries in order.
    void set_policies(const std::vector<SpdEntry>& ordered);

    // Runs one burst; one outcome for each frame, in order. Fails the test when a frame is lost,
    // doubled, or delivered from outside its buffer. Under AddressSanitizer an inbound frame is
    // surrounded by poison: a read before or behind it ends the test.
    std::vector<Outcome> run_inbound(const std::vector<Bytes>& frames);
    std::vector<Outcome> run_outbound(const std::vector<Bytes>& frames,
                                      OutboundSource source = OutboundSource::port,
                                      bool poison_tail = false);

    // Every counter that is not zero, by name: "in.frames", "drops.replayed",
    // "sa 4097 in.packets", "sa 4097 in.drops.replayed".
    [[nodiscard]] std::map<std::string, uint64_t> counters() const;

    crypto::Aead aead;
    Sad sad;
    OutboundTable table;
    WorkerCounters worker_counters;
    RecordedEvents events;
    InboundPipeline in;
    OutboundPipeline out;
    FrameBuffers buffers{kBurstMax};

  private:
    template <typename Pipeline>
    std::vector<Outcome> collect(Pipeline& pipeline, uint32_t count);

    std::vector<InboundSaPtr> inbound_;
    std::vector<OutboundSaPtr> outbound_;
    std::unique_ptr<Spd> spd_;
};

using Deltas = std::map<std::string, uint64_t>;
// What moved between two readings.
Deltas moved(const Deltas& before, const Deltas& after);

}  // namespace sallyport::test
