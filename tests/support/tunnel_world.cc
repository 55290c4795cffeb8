// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tunnel_world.h"

#include <gtest/gtest.h>

#include "tests/support/sanitizers.h"

namespace sallyport::test {
namespace {

constexpr WorkerId kWorker{0};

std::vector<Selector> default_selectors() {
    return {{.source = prefix("10.1.0.0/16"), .destination = prefix("10.2.0.0/16")},
            {.source = prefix("2001:db8:1::/48"), .destination = prefix("2001:db8:2::/48")}};
}

}  // namespace

Bytes TestSa::key_material() const {
    if (!key.empty()) return key;
    Bytes bytes;
    for (size_t i = 0; i < suite->key_material_bytes(); ++i) {
        bytes.push_back(static_cast<std::byte>((spi * 31 + i * 7 + 1) & 0xff));
    }
    return bytes;
}
std::string TestSa::source_text() const {
    if (!source.empty()) return source;
    return outer == Family::v4 ? "192.0.2.1" : "2001:db8:ffff::1";
}
std::string TestSa::destination_text() const {
    if (!destination.empty()) return destination;
    return outer == Family::v4 ? "192.0.2.2" : "2001:db8:ffff::2";
}

Bytes esp_of(const TestSa& sa, uint64_t sequence, const Bytes& inner, const EspShape& shape) {
    const uint8_t by_version = !inner.empty() && get8(inner, 0) >> 4 == 6 ? 41 : 4;
    const Bytes text = !shape.text.empty() ? shape.text
                                           : esp_text(inner, shape.next_header.value_or(by_version),
                                                      shape.pad_bytes, shape.tfc_bytes);
    return esp_seal(sa.key_material(), sa.esn, sa.spi, sequence, shape.iv.value_or(sequence), text);
}

Bytes outer_packet(const TestSa& sa, const Bytes& esp, uint8_t dscp_ecn) {
    if (sa.outer == Family::v4) {
        return ipv4({.source = sa.source_text(),
                     .destination = sa.destination_text(),
                     .dscp_ecn = dscp_ecn},
                    raw(50, esp));
    }
    return ipv6({.source = sa.source_text(),
                 .destination = sa.destination_text(),
                 .traffic_class = dscp_ecn},
                raw(50, esp));
}

Bytes esp_frame(const TestSa& sa, uint64_t sequence, const Bytes& inner, const EspShape& shape) {
    return ethernet(outer_packet(sa, esp_of(sa, sequence, inner, shape), shape.outer_dscp_ecn));
}

Selector any_selector(Family family) {
    const char* text = family == Family::v4 ? "0.0.0.0/0" : "::/0";
    return {.source = prefix(text), .destination = prefix(text)};
}

SpdEntry protect_entry(Family family, uint32_t policy) {
    const bool is_v4 = family == Family::v4;
    return {.policy = PolicyId{policy},
            .action = SpdAction::protect,
            .source = prefix(is_v4 ? "10.1.0.0/16" : "2001:db8:1::/48"),
            .destination = prefix(is_v4 ? "10.2.0.0/16" : "2001:db8:2::/48")};
}

TunnelWorld::TunnelWorld(uint32_t sa_capacity, uint32_t hold_frames, uint64_t hold_age_max)
    : aead(crypto::Aead::create().value()),
      sad(sa_capacity),
      table(sa_capacity),
      in(sad, aead, worker_counters, events, kWorker, hold_frames, hold_age_max),
      out(table, aead, worker_counters, events, kWorker, hold_frames, hold_age_max) {}

InboundSa& TunnelWorld::make_inbound(const TestSa& sa) {
    const Bytes key = sa.key_material();
    const auto selectors = sa.selectors.empty() ? default_selectors() : sa.selectors;
    auto made = make_inbound_sa(aead, {.id = SaId{sa.id},
                                       .policy = PolicyId{sa.policy},
                                       .spi = Spi{sa.spi},
                                       .source = address(sa.source_text()),
                                       .destination = address(sa.destination_text()),
                                       .suite = sa.suite,
                                       .key = key,
                                       .esn = sa.esn,
                                       .replay_window = sa.replay_window,
                                       .replay_top = sa.replay_top,
                                       .owner = kWorker,
                                       .selectors = selectors});
    EXPECT_TRUE(made) << made.error();
    inbound_.push_back(std::move(*made));
    return *inbound_.back();
}

InboundSa& TunnelWorld::add_inbound(const TestSa& sa) {
    InboundSa& made = make_inbound(sa);
    EXPECT_TRUE(sad.insert(&made));
    return made;
}

OutboundSa& TunnelWorld::make_outbound(const TestSa& sa) {
    const Bytes key = sa.key_material();
    const uint64_t reserved =
        sa.sequence_reserved.value_or(sa.esn ? kSequenceEndEsn : kSequenceEnd32);
    auto made =
        make_outbound_sa(aead, {.id = SaId{sa.id},
                                .policy = PolicyId{sa.policy},
                                .spi = Spi{sa.spi},
                                .source = address(sa.source_text()),
                                .destination = address(sa.destination_text()),
                                .suite = sa.suite,
                                .key = key,
                                .esn = sa.esn,
                                .sequence_next = sa.sequence_next,
                                .sequence_reserved = reserved,
                                .sequence_low_water = sa.sequence_low_water.value_or(reserved),
                                .iv_mask = sa.iv_mask,
                                .rank = sa.rank,
                                .owner = kWorker,
                                .mtu = sa.mtu,
                                .df = sa.df,
                                .copy_dscp = sa.copy_dscp,
                                .outer_ttl = sa.outer_ttl});
    EXPECT_TRUE(made) << made.error();
    outbound_.push_back(std::move(*made));
    return *outbound_.back();
}

OutboundSa& TunnelWorld::add_outbound(const TestSa& sa) {
    OutboundSa& made = make_outbound(sa);
    EXPECT_TRUE(table.insert(&made));
    return made;
}

void TunnelWorld::set_policies(const std::vector<SpdEntry>& ordered) {
    spd_ = std::make_unique<Spd>(compile_spd(ordered).value(), CompiledSpd{});
    out.set_spd(spd_.get());
}

template <typename Pipeline>
std::vector<Outcome> TunnelWorld::collect(Pipeline& pipeline, uint32_t count) {
    std::vector<Outcome> outcomes(count);
    for (uint32_t i = 0; i < count; ++i) SP_TEST_UNPOISON(buffers.base(i), kFrameBytes);
    for (const auto& outgoing : pipeline.delivered()) {
        const uint32_t index = buffers.index_of(outgoing.frame.data);
        if (index >= count || outcomes[index].delivered) {
            ADD_FAILURE() << "a delivered frame lies in no buffer of the burst, or twice";
            continue;
        }
        if (outgoing.frame.data < buffers.base(index) + kFrameHeadroomOffset ||
            outgoing.frame.data + outgoing.frame.bytes > buffers.base(index) + kFrameBytes) {
            ADD_FAILURE() << "a delivered frame reaches beyond its buffer";
            continue;
        }
        outcomes[index].delivered =
            Bytes(outgoing.frame.data, outgoing.frame.data + outgoing.frame.bytes);
    }
    for (std::byte* data : pipeline.discarded()) {
        const uint32_t index = buffers.index_of(data);
        if (index >= count || outcomes[index].delivered || outcomes[index].discarded) {
            ADD_FAILURE() << "a discarded frame is not of the burst, or not only discarded";
            continue;
        }
        outcomes[index].discarded = true;
    }
    for (const Outcome& outcome : outcomes) {
        EXPECT_TRUE(outcome.delivered.has_value() != outcome.discarded) << "a frame was lost";
    }
    return outcomes;
}

std::vector<Outcome> TunnelWorld::run_inbound(const std::vector<Bytes>& frames) {
    std::vector<Frame> burst;
    for (uint32_t i = 0; i < frames.size(); ++i) {
        const Frame frame = buffers.put(i, frames[i]);
        SP_TEST_POISON(buffers.base(i), kFrameDataOffset);
        SP_TEST_POISON(frame.data + frame.bytes, kFrameDataBytesMax - frame.bytes);
        burst.push_back(frame);
    }
    in.run(burst);
    return collect(in, static_cast<uint32_t>(frames.size()));
}

std::vector<Outcome> TunnelWorld::run_outbound(const std::vector<Bytes>& frames,
                                               OutboundSource source, bool poison_tail) {
    std::vector<Frame> burst;
    for (uint32_t i = 0; i < frames.size(); ++i) {
        const Frame frame = buffers.put(i, frames[i]);
        if (poison_tail) {
            SP_TEST_POISON(frame.data + frame.bytes, kFrameDataBytesMax - frame.bytes);
        }
        burst.push_back(frame);
    }
    out.run(burst, source);
    return collect(out, static_cast<uint32_t>(frames.size()));
}

std::map<std::string, uint64_t> TunnelWorld::counters() const {
    std::map<std::string, uint64_t> all;
    const auto note = [&](const std::string& name, const Counter& counter) {
        if (counter.read() != 0) all[name] = counter.read();
    };
    const auto note_drops = [&](const std::string& name, const auto& drops) {
        for (size_t i = 0; i < kDropReasonCount; ++i) {
            note(name + "drops." + std::string(kDropReasonLabels[i]), drops[i]);
        }
    };
    const auto note_direction = [&](const std::string& name, const DirectionCounters& counters) {
        note(name + ".frames", counters.frames);
        note(name + ".bytes", counters.bytes);
        note(name + ".delivered", counters.delivered);
        note(name + ".bursts", counters.bursts);
        note(name + ".held", counters.held);
        note(name + ".on_hold", counters.on_hold);
    };
    const auto note_sa = [&](const std::string& name, const auto& sa) {
        note(name + "packets", sa.packets);
        note(name + "bytes", sa.bytes);
        note_drops(name, sa.drops);
    };
    note_direction("in", worker_counters.inbound);
    note_direction("out", worker_counters.outbound);
    note_drops("", worker_counters.drops);
    note("egress_frames", worker_counters.egress_frames);
    note("from_kernel", worker_counters.from_kernel);
    note("checksums_completed", worker_counters.checksums_completed);
    note("events_lost", worker_counters.events_lost);
    note("audits_suppressed", worker_counters.audits_suppressed);
    for (const auto& sa : inbound_) {
        note_sa("sa " + std::to_string(sa->spi.host()) + " in.", *sa);
    }
    for (const auto& sa : outbound_) {
        note_sa("sa " + std::to_string(sa->spi.host()) + " out.", *sa);
    }
    return all;
}

Deltas moved(const Deltas& before, const Deltas& after) {
    Deltas deltas;
    for (const auto& [name, value] : after) {
        const auto found = before.find(name);
        const uint64_t was = found == before.end() ? 0 : found->second;
        if (value != was) deltas[name] = value - was;
    }
    return deltas;
}

}  // namespace sallyport::test
