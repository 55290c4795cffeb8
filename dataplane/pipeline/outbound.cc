// SPDX-License-Identifier: Apache-2.0
#include "dataplane/pipeline/outbound.h"

#include <cassert>
#include <cstddef>

#include "dataplane/wire/ecn.h"
#include "dataplane/wire/headers.h"

namespace sallyport {
namespace {

constexpr uint32_t kEthernetBytes = sizeof(wire::Ethernet);
constexpr uint32_t kEspHeaderBytes = sizeof(wire::Esp) + crypto::kGcmIvBytes;
constexpr uint32_t kEspTrailerBytes = 2;  // pad length, next header
constexpr uint32_t kHeadroomNeeded = sizeof(wire::Ipv6) + kEspHeaderBytes;
static_assert(kHeadroomNeeded <= kFrameHeadroomBytes);

// Pad bytes 1, 2, 3, pad length, next header, by pad length: what follows the inner packet. Eight
// bytes are written at once; those beyond the trailer lie where the ICV will be.
using Trailer = std::array<uint8_t, 8>;
constexpr Trailer make_trailer(uint8_t pad_bytes, uint8_t next_header) {
    Trailer trailer{};
    for (uint8_t i = 0; i < pad_bytes; ++i) trailer[i] = static_cast<uint8_t>(i + 1);
    trailer[pad_bytes] = pad_bytes;
    trailer[pad_bytes + 1u] = next_header;
    return trailer;
}
constexpr std::array<std::array<Trailer, 4>, 2> kTrailers = {{
    {make_trailer(0, wire::kProtocolIpip), make_trailer(1, wire::kProtocolIpip),
     make_trailer(2, wire::kProtocolIpip), make_trailer(3, wire::kProtocolIpip)},
    {make_trailer(0, wire::kProtocolIpv6), make_trailer(1, wire::kProtocolIpv6),
     make_trailer(2, wire::kProtocolIpv6), make_trailer(3, wire::kProtocolIpv6)},
}};

// Up to three bytes bring the end of the trailer to a 4-byte boundary (RFC 4303 2.4).
constexpr uint32_t pad_bytes_for(uint32_t inner_bytes) {
    return (0u - (inner_bytes + kEspTrailerBytes)) & 3u;
}
constexpr uint32_t text_bytes_for(uint32_t inner_bytes) {
    return inner_bytes + pad_bytes_for(inner_bytes) + kEspTrailerBytes;
}
constexpr uint32_t outer_bytes_for(const OutboundSa& sa, uint32_t inner_bytes) {
    return sa.header_bytes + kEspHeaderBytes + text_bytes_for(inner_bytes) + crypto::kGcmIcvBytes;
}

// Headers are read and written field by field. A whole header assembled in a local variable would
// be copied by wide loads right behind narrow stores, which the CPU cannot forward: that costs more
// than everything else here.
void decrement_ttl(std::byte* ip, Family family) {
    if (family == Family::v4) {
        // TTL and protocol share a checksum word, as they stand in memory: TTL is its low byte.
        const auto before = wire::read<uint16_t>(ip + offsetof(wire::Ipv4, ttl));
        const auto after = static_cast<uint16_t>(before - 1);
        const auto checksum = wire::read<uint16_t>(ip + offsetof(wire::Ipv4, checksum));
        ip[offsetof(wire::Ipv4, ttl)] = static_cast<std::byte>(after);
        wire::write(ip + offsetof(wire::Ipv4, checksum),
                    wire::update_checksum(checksum, before, after));
    } else {
        std::byte& hop_limit = ip[offsetof(wire::Ipv6, hop_limit)];
        hop_limit = static_cast<std::byte>(static_cast<uint8_t>(hop_limit) - 1);
    }
}

uint16_t outer_flags(const OutboundSa& sa, const wire::IpPacket& inner) {
    switch (sa.df) {
        case DfPolicy::copy:
            return inner.dont_fragment ? wire::kIpv4DontFragment : 0;
        case DfPolicy::set:
            return wire::kIpv4DontFragment;
        case DfPolicy::clear:
            return 0;
    }
    return 0;
}

// DSCP by configuration, ECN always copied (RFC 6040 4.1, normal mode).
uint8_t outer_dscp_ecn(const OutboundSa& sa, const wire::IpPacket& inner) {
    return sa.copy_dscp ? inner.dscp_ecn : static_cast<uint8_t>(inner.dscp_ecn & wire::kEcnMask);
}

void write_outer_ipv4(OutboundSa& sa, const wire::IpPacket& inner, std::byte* at,
                      uint32_t outer_bytes) {
    const uint8_t dscp_ecn = outer_dscp_ecn(sa, inner);
    const auto total_bytes = Be16(static_cast<uint16_t>(outer_bytes));
    const auto id = Be16(sa.outer_id++);
    const auto flags_offset = Be16(outer_flags(sa, inner));
    const uint16_t checksum =
        wire::fold_checksum(sa.outer_checksum + (uint32_t{dscp_ecn} << 8) + total_bytes.raw() +
                            id.raw() + flags_offset.raw());
    std::memcpy(at, sa.outer.data(), sizeof(wire::Ipv4));
    wire::write(at + offsetof(wire::Ipv4, dscp_ecn), dscp_ecn);
    wire::write(at + offsetof(wire::Ipv4, total_bytes), total_bytes);
    wire::write(at + offsetof(wire::Ipv4, id), id);
    wire::write(at + offsetof(wire::Ipv4, flags_offset), flags_offset);
    wire::write(at + offsetof(wire::Ipv4, checksum), checksum);
}

void write_outer_ipv6(const OutboundSa& sa, const wire::IpPacket& inner, const std::byte* inner_ip,
                      std::byte* at, uint32_t outer_bytes) {
    // The flow label goes along, so that paths that hash on it keep flows apart (RFC 4301 5.1.2.2).
    const uint32_t flow_label =
        inner.family == Family::v6 ? wire::read<Be32>(inner_ip).host() & 0xfffff : 0;
    const auto payload_bytes = static_cast<uint16_t>(outer_bytes - sizeof(wire::Ipv6));
    std::memcpy(at, sa.outer.data(), sizeof(wire::Ipv6));
    wire::write(at,
                Be32(uint32_t{6} << 28 | uint32_t{outer_dscp_ecn(sa, inner)} << 20 | flow_label));
    wire::write(at + offsetof(wire::Ipv6, payload_bytes), Be16(payload_bytes));
}

}  // namespace

template <typename Clock>
void OutboundPipeline::run(std::span<const Frame> frames, OutboundSource source, Clock& clock) {
    clock.start();
    uint64_t bytes = 0;
    for (const Frame& frame : frames) bytes += frame.bytes;
    counters_.outbound.frames.add(frames.size());
    counters_.outbound.bytes.add(bytes);
    counters_.outbound.bursts.add(1);
    run_stages(frames, source, clock);
}

template <typename Clock>
inline void OutboundPipeline::run_stages(std::span<const Frame> frames, OutboundSource source,
                                         Clock& clock) {
    burst_.load(frames);
    delivered_count_ = 0;
    source_ = source;

    using Self = OutboundPipeline;
    burst_.pass<&Self::parse_inner, &Self::lookup_policy>(  // asks for the SA; without one: on hold
        *this, [](const Packet& packet) { __builtin_prefetch(packet.frame.data); });
    clock.mark(0);
    burst_.pass<&Self::check_mtu, &Self::assign_sequence, &Self::encapsulate, &Self::deliver>(
        *this, [](const Packet& packet) {
            __builtin_prefetch(packet.ip, 1);
            __builtin_prefetch(packet.ip - kHeadroomNeeded, 1);
            __builtin_prefetch(packet.ip + packet.inner.total_bytes, 1);
        });
    clock.mark(1);
    encrypt();
    counters_.outbound.delivered.add(delivered_count_);
    clock.mark(2);
}

void OutboundPipeline::run(std::span<const Frame> frames, OutboundSource source) {
    NoClock none;
    run(frames, source, none);
}
template void OutboundPipeline::run(std::span<const Frame> frames, OutboundSource source,
                                    TscClock& clock);

uint32_t OutboundPipeline::run_held(uint32_t most, HoldList::Round round) {
    const auto again = hold_.take(most, round);
    NoClock none;
    run_stages(again.frames, again.source, none);
    hold_.settle();
    return static_cast<uint32_t>(again.frames.size());
}

inline DropReason OutboundPipeline::parse_inner(Packet& packet) {
    const uint8_t ttl_needed = source_ == OutboundSource::port ? 2 : 1;
    const Frame frame = packet.frame;
    if (frame.bytes < kEthernetBytes + sizeof(wire::Ipv4)) return DropReason::truncated;
    // MLD reports and the like, which every device with IPv6 sends.
    if (source_ == OutboundSource::kernel && (frame.data[0] & std::byte{1}) != std::byte{0}) {
        return DropReason::kernel_multicast;
    }
    packet.ip = frame.data + kEthernetBytes;
    const uint32_t ip_bytes = frame.bytes - kEthernetBytes;
    const auto type = wire::read<Be16>(frame.data + 12);
    bool valid = false;
    if (type == wire::kEtherTypeIpv4) {
        valid = wire::parse_ipv4(packet.ip, ip_bytes, packet.inner);
    } else if (type == wire::kEtherTypeIpv6) {
        valid = wire::parse_ipv6(packet.ip, ip_bytes, packet.inner);
    } else {
        return DropReason::unsupported_packet;
    }
    if (!valid) return DropReason::malformed_ip;
    return packet.inner.ttl < ttl_needed ? DropReason::ttl_exceeded : DropReason::none;
}

inline DropReason OutboundPipeline::lookup_policy(Packet& packet) {
    if (spd_ == nullptr) return DropReason::no_policy;
    const bool is_v4 = packet.inner.family == Family::v4;
    const SpdKey key{.family = packet.inner.family,
                     .source = packet.ip + (is_v4 ? 12 : 8),
                     .destination = packet.ip + (is_v4 ? 16 : 24),
                     .protocol = packet.inner.protocol,
                     .protocol_known = packet.inner.protocol_known,
                     .ports_known = packet.inner.ports_known,
                     .source_port = packet.inner.source_port,
                     .destination_port = packet.inner.destination_port};
    const SpdVerdict verdict = spd_->lookup(SpdDirection::outbound, key);
    switch (verdict.kind) {
        case SpdVerdict::Kind::matched:
            break;
        case SpdVerdict::Kind::no_match:
            return DropReason::no_policy;
        case SpdVerdict::Kind::ports_unknown:
            return DropReason::fragment_without_ports;
    }
    switch (verdict.action) {
        case SpdAction::protect:
            break;
        case SpdAction::bypass:
            return DropReason::bypass_in_tunnel;
        case SpdAction::discard:
            return DropReason::policy_discard;
    }
    OutboundSa* sa = sas_.find(verdict.policy);
    if (sa == nullptr) return DropReason::no_sa;
    packet.outbound_sa = sa;
    __builtin_prefetch(sa, 1);
    __builtin_prefetch(&sa->outer);
    return DropReason::none;
}

inline DropReason OutboundPipeline::check_mtu(Packet& packet) {
    const OutboundSa& sa = *packet.outbound_sa;
    const uint32_t outer_bytes = outer_bytes_for(sa, packet.inner.total_bytes);
    const auto room = static_cast<uint32_t>(frame_base(packet.ip) + kFrameBytes - packet.ip);
    const bool fits = outer_bytes - sa.header_bytes - kEspHeaderBytes <= room;
    return outer_bytes > sa.mtu || !fits ? DropReason::too_big : DropReason::none;
}

// From here on the number is spent: the stages that follow drop nothing.
inline DropReason OutboundPipeline::assign_sequence(Packet& packet) {
    OutboundSa& sa = *packet.outbound_sa;
    assert(sa.owner == worker_);
    const uint64_t sequence = sa.sequence_next.read();
    if (sequence >= sa.sequence_low_water) [[unlikely]] {
        if (!sa.low_water_reported) {
            sa.low_water_reported = true;
            events_.post(event::SequenceLow{.id = sa.id, .next = sequence});
        }
        if (sequence >= sa.sequence_end) return DropReason::sequence_exhausted;
        if (sequence >= sa.sequence_reserved) return DropReason::sequence_unreserved;
    }
    sa.sequence_next.set(sequence + 1);
    packet.sequence = sequence;
    return DropReason::none;
}

inline DropReason OutboundPipeline::encapsulate(Packet& packet) {
    OutboundSa& sa = *packet.outbound_sa;
    const uint32_t inner_bytes = packet.inner.total_bytes;
    std::byte* inner = packet.ip;
    if (source_ == OutboundSource::port) decrement_ttl(inner, packet.inner.family);

    const bool is_v6 = packet.inner.family == Family::v6;
    std::memcpy(inner + inner_bytes, kTrailers[is_v6][pad_bytes_for(inner_bytes)].data(),
                sizeof(Trailer));

    const auto sequence_low = Be32(static_cast<uint32_t>(packet.sequence));
    const uint64_t iv = Be64(packet.sequence ^ sa.iv_mask).raw();
    packet.esp = inner - kEspHeaderBytes;
    wire::write(packet.esp, sa.spi);
    wire::write(packet.esp + offsetof(wire::Esp, sequence_low), sequence_low);
    wire::write(packet.esp + sizeof(wire::Esp), iv);

    crypto::AeadJob& job = packet.job;
    job.key = &sa.key;
    job.suite = sa.suite;
    job.text = inner;
    job.text_bytes = text_bytes_for(inner_bytes);
    job.icv = inner + job.text_bytes;
    std::memcpy(job.nonce, &sa.salt, crypto::kGcmSaltBytes);
    std::memcpy(job.nonce + crypto::kGcmSaltBytes, &iv, crypto::kGcmIvBytes);
    // AAD: SPI, then the sequence number, extended when the SA uses it (RFC 4106 5).
    const Be32 spi = sa.spi;
    std::memcpy(job.aad, &spi, 4);
    if (sa.esn) {
        wire::write(job.aad + 4, Be64(packet.sequence));
        job.aad_bytes = 12;
    } else {
        wire::write(job.aad + 4, sequence_low);
        job.aad_bytes = 8;
    }

    const uint32_t outer_bytes = outer_bytes_for(sa, inner_bytes);
    std::byte* outer = packet.esp - sa.header_bytes;
    if (sa.header_bytes == sizeof(wire::Ipv4)) {
        write_outer_ipv4(sa, packet.inner, outer, outer_bytes);
    } else {
        write_outer_ipv6(sa, packet.inner, inner, outer, outer_bytes);
    }
    packet.ip = outer;
    packet.esp_bytes = outer_bytes - sa.header_bytes;
    return DropReason::none;
}

// The whole burst, last: what deliver() listed is handed out only when run() returns.
void OutboundPipeline::encrypt() {
    std::array<crypto::AeadJob*, kBurstMax> jobs;
    const auto alive = burst_.alive();
    for (size_t i = 0; i < alive.size(); ++i) jobs[i] = &alive[i]->job;
    aead_.seal({jobs.data(), alive.size()});
}

inline DropReason OutboundPipeline::deliver(Packet& packet) {
    OutboundSa& sa = *packet.outbound_sa;
    sa.packets.add(1);
    sa.bytes.add(packet.inner.total_bytes);
    std::byte* frame = packet.ip - kEthernetBytes;
    wire::write(frame + 12, sa.header_bytes == sizeof(wire::Ipv4) ? wire::kEtherTypeIpv4
                                                                  : wire::kEtherTypeIpv6);
    delivered_[delivered_count_++] = {
        .frame = {.data = frame, .bytes = kEthernetBytes + sa.header_bytes + packet.esp_bytes},
        .kind = FrameKind::originated};
    return DropReason::none;
}

// The stages up to lookup_policy() only read, so the frame is as it came.
[[gnu::cold]] bool OutboundPipeline::hold(const Packet& packet, DropReason reason) {
    return reason == DropReason::no_sa && hold_.put(packet.frame, source_);
}

[[gnu::cold]] void OutboundPipeline::drop(const Packet& packet, DropReason reason) {
    counters_.drops[static_cast<size_t>(reason)].add(1);
    OutboundSa* sa = packet.outbound_sa;
    if (sa == nullptr) return;
    sa->drops[static_cast<size_t>(reason)].add(1);
    if (reason == DropReason::sequence_exhausted) {
        events_.post(event::SequenceExhausted{
            .id = sa->id, .spi = Spi{sa->spi.host()}, .next = sa->sequence_next.read()});
    }
}

}  // namespace sallyport
