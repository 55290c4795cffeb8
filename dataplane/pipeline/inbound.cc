// SPDX-License-Identifier: Apache-2.0
#include "dataplane/pipeline/inbound.h"

#include <cassert>

#include "dataplane/wire/ecn.h"
#include "dataplane/wire/headers.h"

namespace sallyport {
namespace {

constexpr uint32_t kEthernetBytes = sizeof(wire::Ethernet);
constexpr uint32_t kEspOverhead = sizeof(wire::Esp) + crypto::kGcmIvBytes + crypto::kGcmIcvBytes;
constexpr uint32_t kEspTrailerBytes = 2;  // pad length, next header

// Finds ESP behind an outer header that is not the plain one. Returns its offset from the IP
// header, or the reason why there is none.
DropReason find_esp(const std::byte* ip, uint32_t bytes, bool is_v6, uint32_t& esp_offset,
                    uint32_t& total_bytes) {
    wire::IpPacket outer;
    if (!(is_v6 ? wire::parse_ipv6(ip, bytes, outer) : wire::parse_ipv4(ip, bytes, outer))) {
        return DropReason::malformed_ip;
    }
    if (outer.fragment) return DropReason::outer_fragment;
    if (outer.protocol == wire::kProtocolUdp && outer.ports_known &&
        outer.destination_port == wire::kPortNatTraversal) {
        return DropReason::unexpected_encapsulation;
    }
    if (outer.protocol != wire::kProtocolEsp) return DropReason::unsupported_packet;
    esp_offset = outer.transport_offset;
    total_bytes = outer.total_bytes;
    return DropReason::none;
}

// Ones' complement arithmetic keeps a header checksum right while the TOS byte changes.
void set_ipv4_ecn(std::byte* ip, uint8_t dscp_ecn) {
    auto header = wire::read<wire::Ipv4>(ip);
    const auto before = static_cast<uint16_t>(header.version_ihl | header.dscp_ecn << 8);
    const auto after = static_cast<uint16_t>(header.version_ihl | dscp_ecn << 8);
    header.dscp_ecn = dscp_ecn;
    header.checksum = wire::update_checksum(header.checksum, before, after);
    wire::write(ip, header);
}

void set_ipv6_ecn(std::byte* ip, uint8_t ecn) {
    const auto word = wire::read<Be32>(ip).host();
    wire::write(ip, Be32((word & ~(uint32_t{wire::kEcnMask} << 20)) | uint32_t{ecn} << 20));
}

bool selector_accepts(const SelectorMatch& selector, const wire::IpPacket& inner,
                      const std::byte* ip) {
    if (!selector.addresses_match(inner.family, ip)) return false;
    if (selector.protocol != 0 && selector.protocol != inner.protocol) return false;
    if (!selector.has_ports) return true;
    // A later fragment has no ports to compare, and no state is kept to know them: RFC 4301 7.
    return inner.ports_known && inner.source_port >= selector.source_port_lo &&
           inner.source_port <= selector.source_port_hi &&
           inner.destination_port >= selector.destination_port_lo &&
           inner.destination_port <= selector.destination_port_hi;
}

// What RFC 4303 section 4 and RFC 4301 5.2 want on record.
bool is_auditable(DropReason reason) {
    return reason == DropReason::unknown_spi || reason == DropReason::icv_mismatch ||
           reason == DropReason::replayed || reason == DropReason::before_window ||
           reason == DropReason::outer_fragment || reason == DropReason::selector_mismatch;
}

}  // namespace

template <typename Clock>
void InboundPipeline::run(std::span<const Frame> frames, Clock& clock) {
    clock.start();
    uint64_t bytes = 0;
    for (const Frame& frame : frames) bytes += frame.bytes;
    counters_.inbound.frames.add(frames.size());
    counters_.inbound.bytes.add(bytes);
    counters_.inbound.bursts.add(1);
    run_stages(frames, clock);
}

template <typename Clock>
inline void InboundPipeline::run_stages(std::span<const Frame> frames, Clock& clock) {
    burst_.load(frames);
    delivered_count_ = 0;

    using Self = InboundPipeline;
    const auto nothing = [](const Packet&) {};
    burst_.pass<&Self::parse_esp>(  // asks for the SAD slot
        *this, [](const Packet& packet) { __builtin_prefetch(packet.frame.data); });
    clock.mark(0);
    burst_.pass<&Self::lookup_sa>(*this, nothing);  // asks for the SA; without one: on hold
    clock.mark(1);
    burst_.pass<&Self::check_replay>(*this, [](const Packet& packet) {
        __builtin_prefetch(packet.esp);
        // Needed in the last pass only.
        __builtin_prefetch(&packet.inbound_sa->selector);
    });
    clock.mark(2);
    decrypt();
    clock.mark(3);
    burst_.pass<&Self::check_icv, &Self::commit_replay, &Self::decapsulate, &Self::check_selectors,
                &Self::deliver>(*this, [](const Packet& packet) {
        __builtin_prefetch(packet.job.text, 1);
        __builtin_prefetch(packet.job.text + packet.job.text_bytes - 1);
    });
    counters_.inbound.delivered.add(delivered_count_);
    clock.mark(4);
}

void InboundPipeline::run(std::span<const Frame> frames) {
    NoClock none;
    run(frames, none);
}
template void InboundPipeline::run(std::span<const Frame> frames, TscClock& clock);

uint32_t InboundPipeline::run_held(uint32_t most, HoldList::Round round) {
    const auto again = hold_.take(most, round);
    NoClock none;
    run_stages(again.frames, none);
    hold_.settle();
    return static_cast<uint32_t>(again.frames.size());
}

inline DropReason InboundPipeline::parse_esp(Packet& packet) {
    const Frame frame = packet.frame;
    if (frame.bytes < kEthernetBytes + sizeof(wire::Ipv4)) return DropReason::truncated;
    std::byte* ip = frame.data + kEthernetBytes;
    const uint32_t ip_bytes = frame.bytes - kEthernetBytes;
    const auto type = wire::read<Be16>(frame.data + 12);
    uint32_t esp_offset = 0;
    uint32_t total_bytes = 0;
    if (type == wire::kEtherTypeIpv4) {
        const auto fragment = wire::read<Be16>(ip + offsetof(wire::Ipv4, flags_offset));
        constexpr uint16_t kFragmentBits =
            Be16(wire::kIpv4MoreFragments | wire::kIpv4OffsetMask).raw();
        total_bytes = wire::read<Be16>(ip + offsetof(wire::Ipv4, total_bytes)).host();
        esp_offset = sizeof(wire::Ipv4);
        if (wire::read<uint8_t>(ip) != 0x45 ||
            wire::read<uint8_t>(ip + offsetof(wire::Ipv4, protocol)) != wire::kProtocolEsp ||
            (fragment.raw() & kFragmentBits) != 0 || total_bytes > ip_bytes) [[unlikely]] {
            const DropReason reason = find_esp(ip, ip_bytes, false, esp_offset, total_bytes);
            if (reason != DropReason::none) return reason;
        }
        packet.outer_family = Family::v4;
        packet.outer_dscp_ecn = wire::read<uint8_t>(ip + offsetof(wire::Ipv4, dscp_ecn));
        packet.daddr_word = wire::read<uint32_t>(ip + offsetof(wire::Ipv4, destination));
    } else if (type == wire::kEtherTypeIpv6) {
        if (ip_bytes < sizeof(wire::Ipv6)) return DropReason::truncated;
        const uint32_t first_word = wire::read<Be32>(ip).host();
        total_bytes = uint32_t{sizeof(wire::Ipv6)} +
                      wire::read<Be16>(ip + offsetof(wire::Ipv6, payload_bytes)).host();
        esp_offset = sizeof(wire::Ipv6);
        if (wire::read<uint8_t>(ip + offsetof(wire::Ipv6, next_header)) != wire::kProtocolEsp ||
            total_bytes > ip_bytes || first_word >> 28 != 6) [[unlikely]] {
            const DropReason reason = find_esp(ip, ip_bytes, true, esp_offset, total_bytes);
            if (reason != DropReason::none) return reason;
        }
        packet.outer_family = Family::v6;
        packet.outer_dscp_ecn = static_cast<uint8_t>(first_word >> 20);
        packet.daddr_word = wire::read<uint32_t>(ip + offsetof(wire::Ipv6, destination) + 12);
    } else {
        return DropReason::unsupported_packet;
    }
    // GCM ciphertext ends on a 4-byte boundary (RFC 4303 2.4) and holds at least the trailer.
    if (total_bytes < esp_offset + kEspOverhead + 4) return DropReason::malformed_esp;
    packet.ip = ip;
    packet.esp = ip + esp_offset;
    packet.esp_bytes = total_bytes - esp_offset;
    if ((packet.esp_bytes & 3) != 0) return DropReason::malformed_esp;
    packet.spi = wire::read<Be32>(packet.esp);
    packet.sad_hint = sad_.hint(packet.spi, packet.daddr_word);
    sad_.prefetch(packet.sad_hint);
    return DropReason::none;
}

inline DropReason InboundPipeline::lookup_sa(Packet& packet) {
    const std::byte* daddr = packet.ip + (packet.outer_family == Family::v4 ? 16 : 24);
    InboundSa* sa =
        sad_.find(packet.sad_hint, packet.spi, packet.outer_family, daddr, packet.daddr_word);
    if (sa == nullptr) return DropReason::unknown_spi;
    packet.inbound_sa = sa;
    __builtin_prefetch(sa, 1);
    __builtin_prefetch(sa + 1, 1);  // where the bitmap begins, for one selector
    return DropReason::none;
}

// Before the ICV: cheap refusal of what cannot be new. Also prepares decryption, since the
// extended sequence number it infers goes into the AAD.
inline DropReason InboundPipeline::check_replay(Packet& packet) {
    const InboundSa& sa = *packet.inbound_sa;
    assert(sa.owner == worker_);
    const uint32_t low = wire::read<Be32>(packet.esp + 4).host();
    packet.sequence = sa.esn ? sa.replay.infer_esn(low) : low;
    switch (sa.replay.would_accept(packet.sequence)) {
        case ReplayVerdict::fresh:
            break;
        case ReplayVerdict::replayed:
            return DropReason::replayed;
        case ReplayVerdict::before_window:
            return DropReason::before_window;
    }
    crypto::AeadJob& job = packet.job;
    job.key = &sa.key;
    job.suite = sa.suite;
    job.text = packet.esp + sizeof(wire::Esp) + crypto::kGcmIvBytes;
    job.text_bytes = packet.esp_bytes - kEspOverhead;
    job.icv = packet.esp + packet.esp_bytes - crypto::kGcmIcvBytes;
    std::memcpy(job.nonce, &sa.salt, crypto::kGcmSaltBytes);
    std::memcpy(job.nonce + crypto::kGcmSaltBytes, packet.esp + sizeof(wire::Esp),
                crypto::kGcmIvBytes);
    // AAD: SPI, then the sequence number, extended when the SA uses it (RFC 4106 5).
    if (sa.esn) {
        std::memcpy(job.aad, &packet.spi, 4);
        wire::write(job.aad + 4, Be64(packet.sequence));
        job.aad_bytes = 12;
    } else {
        std::memcpy(job.aad, packet.esp, 8);
        job.aad_bytes = 8;
    }
    return DropReason::none;
}

void InboundPipeline::decrypt() {
    std::array<crypto::AeadJob*, kBurstMax> jobs;
    const auto alive = burst_.alive();
    for (size_t i = 0; i < alive.size(); ++i) jobs[i] = &alive[i]->job;
    aead_.open({jobs.data(), alive.size()});
}

inline DropReason InboundPipeline::check_icv(Packet& packet) {
    return packet.job.authentic ? DropReason::none : DropReason::icv_mismatch;
}

// After the ICV: only now may the window move. Asks again, because a copy of this packet may
// have been accepted earlier in the same burst.
inline DropReason InboundPipeline::commit_replay(Packet& packet) {
    switch (packet.inbound_sa->replay.commit(packet.sequence)) {
        case ReplayVerdict::fresh:
            return DropReason::none;
        case ReplayVerdict::replayed:
            return DropReason::replayed;
        case ReplayVerdict::before_window:
            return DropReason::before_window;
    }
    return DropReason::replayed;
}

inline DropReason InboundPipeline::decapsulate(Packet& packet) {
    const std::byte* text = packet.job.text;
    const uint32_t text_bytes = packet.job.text_bytes;
    const auto pad_bytes = static_cast<uint8_t>(text[text_bytes - 2]);
    const auto next_header = static_cast<uint8_t>(text[text_bytes - 1]);
    if (pad_bytes + kEspTrailerBytes > text_bytes) return DropReason::bad_padding;
    const uint32_t inner_bytes = text_bytes - kEspTrailerBytes - pad_bytes;
    for (uint32_t i = 0; i < pad_bytes; ++i) {
        if (static_cast<uint8_t>(text[inner_bytes + i]) != i + 1) {
            return DropReason::bad_padding;
        }
    }
    if (next_header == wire::kProtocolNone) return DropReason::dummy_packet;

    // The inner header says how long the packet is: what follows it is TFC padding (RFC 4303
    // 2.7). Its checksum is left to the receiving host, as any router in between may.
    bool valid = false;
    if (next_header == wire::kProtocolIpip) {
        valid = wire::parse_ipv4(text, inner_bytes, packet.inner);
    } else if (next_header == wire::kProtocolIpv6) {
        valid = wire::parse_ipv6(text, inner_bytes, packet.inner);
    } else {
        return DropReason::bad_next_header;
    }
    if (!valid) return DropReason::malformed_inner;

    packet.ip = packet.job.text;
    const uint8_t inner_ecn = packet.inner.dscp_ecn & wire::kEcnMask;
    const uint8_t ecn = wire::kEcnDecapsulation[inner_ecn][packet.outer_dscp_ecn & wire::kEcnMask];
    if (ecn != inner_ecn) [[unlikely]] {
        if (ecn == wire::kEcnDrop) return DropReason::ecn_not_capable;
        if (packet.inner.family == Family::v4) {
            set_ipv4_ecn(packet.ip,
                         static_cast<uint8_t>((packet.inner.dscp_ecn & ~wire::kEcnMask) | ecn));
        } else {
            set_ipv6_ecn(packet.ip, ecn);
        }
    }
    return DropReason::none;
}

// The packet must be one that this SA was made for (RFC 4301 5.2 step 4).
inline DropReason InboundPipeline::check_selectors(Packet& packet) {
    const InboundSa& sa = *packet.inbound_sa;
    if (selector_accepts(sa.selector, packet.inner, packet.ip)) [[likely]] {
        return DropReason::none;
    }
    for (size_t i = 0; i < sa.more_selector_count; ++i) {
        if (selector_accepts(sa.more_selectors[i], packet.inner, packet.ip)) {
            return DropReason::none;
        }
    }
    return DropReason::selector_mismatch;
}

inline DropReason InboundPipeline::deliver(Packet& packet) {
    InboundSa& sa = *packet.inbound_sa;
    sa.packets.add(1);
    sa.bytes.add(packet.inner.total_bytes);
    std::byte* frame = packet.ip - kEthernetBytes;
    wire::write(frame + 12,
                packet.inner.family == Family::v4 ? wire::kEtherTypeIpv4 : wire::kEtherTypeIpv6);
    delivered_[delivered_count_++] = {
        .frame = {.data = frame, .bytes = kEthernetBytes + packet.inner.total_bytes},
        .kind = FrameKind::transit};
    return DropReason::none;
}

// The stages up to lookup_sa() only read, so the frame is as it came.
[[gnu::cold]] bool InboundPipeline::hold(const Packet& packet, DropReason reason) {
    return reason == DropReason::unknown_spi && hold_.put(packet.frame);
}

[[gnu::cold]] void InboundPipeline::drop(const Packet& packet, DropReason reason) {
    counters_.drops[static_cast<size_t>(reason)].add(1);
    if (packet.inbound_sa != nullptr) {
        packet.inbound_sa->drops[static_cast<size_t>(reason)].add(1);
    }
    if (!is_auditable(reason)) return;
    event::Audit audit{.reason = reason};
    if (reason == DropReason::outer_fragment) {
        // Nothing behind the IP header was read.
        const std::byte* ip = packet.frame.data + kEthernetBytes;
        const Family family = wire::read<Be16>(packet.frame.data + 12) == wire::kEtherTypeIpv4
                                  ? Family::v4
                                  : Family::v6;
        audit.source = wire::source_of(family, ip);
        audit.destination = wire::destination_of(family, ip);
    } else {
        const Family family =
            reason == DropReason::selector_mismatch ? packet.inner.family : packet.outer_family;
        audit.spi = Spi{packet.spi.host()};
        audit.sequence = packet.inbound_sa != nullptr ? packet.sequence
                                                      : wire::read<Be32>(packet.esp + 4).host();
        audit.source = wire::source_of(family, packet.ip);
        audit.destination = wire::destination_of(family, packet.ip);
    }
    events_.post(audit);
}

}  // namespace sallyport
