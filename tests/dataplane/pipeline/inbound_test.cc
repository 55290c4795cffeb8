// SPDX-License-Identifier: Apache-2.0
// The inbound pipeline as a table: ESP frames made by the OpenSSL oracle in, inner packets or a
// drop reason out. Rows whose name begins with a conformance id are that id's test.

#include <random>

#include "tests/dataplane/pipeline/rows.h"

namespace sallyport::test {
namespace {

struct InboundRow {
    std::string name;
    std::vector<TestSa> sas;
    std::vector<StepBurst> bursts;
};

void PrintTo(const InboundRow& row, std::ostream* out) {
    *out << row.name;
}

// Drops that happen once the SA is known and are counted there too.
bool counted_at_sa(DropReason reason) {
    switch (reason) {
        case DropReason::replayed:
        case DropReason::before_window:
        case DropReason::icv_mismatch:
        case DropReason::bad_padding:
        case DropReason::dummy_packet:
        case DropReason::bad_next_header:
        case DropReason::malformed_inner:
        case DropReason::bad_ip_checksum:
        case DropReason::selector_mismatch:
        case DropReason::ecn_not_capable:
            return true;
        default:
            return false;
    }
}

// RFC 4303 section 4 and RFC 4301 5.2.
bool must_be_audited(DropReason reason) {
    switch (reason) {
        case DropReason::unknown_spi:
        case DropReason::replayed:
        case DropReason::before_window:
        case DropReason::icv_mismatch:
        case DropReason::outer_fragment:
        case DropReason::selector_mismatch:
            return true;
        default:
            return false;
    }
}

// SPI of a frame whose ESP follows the plain outer header.
uint32_t spi_of(const Bytes& frame) {
    return get32(frame, get16(frame, 12) == 0x0800 ? 34 : 54);
}

void check_row(const InboundRow& row) {
    TunnelWorld world;
    for (const TestSa& sa : row.sas) world.add_inbound(sa);
    for (size_t n = 0; n < row.bursts.size(); ++n) {
        SCOPED_TRACE("burst " + std::to_string(n));
        const StepBurst& steps = row.bursts[n];
        const Deltas before = world.counters();
        world.events.events.clear();
        std::vector<Bytes> frames;
        Deltas expected{{"in.bursts", 1}};
        size_t audits = 0;
        for (const Step& step : steps) {
            frames.push_back(step.frame);
            ++expected["in.frames"];
            if (!step.frame.empty()) expected["in.bytes"] += step.frame.size();
            // Every row has one SA, or several on whose SPI the frame says which.
            const bool several = row.sas.size() > 1;
            const uint32_t spi = several ? spi_of(step.frame) : row.sas[0].spi;
            const std::string sa = "sa " + std::to_string(spi) + " in.";
            const DropReason reason = reason_of(step.verdict);
            if (reason == DropReason::none) {
                ++expected["in.delivered"];
                ++expected[sa + "packets"];
                expected[sa + "bytes"] += ip_bytes(std::get<Bytes>(step.verdict));
            } else {
                ++expected["drops." + std::string(label(reason))];
                if (counted_at_sa(reason)) {
                    ++expected[sa + "drops." + std::string(label(reason))];
                }
                audits += must_be_audited(reason) ? 1u : 0u;
            }
        }
        const auto outcomes = world.run_inbound(frames);
        EXPECT_EQ(moved(before, world.counters()), expected);
        EXPECT_EQ(world.events.events.size(), audits);
        for (size_t i = 0; i < steps.size(); ++i) {
            SCOPED_TRACE("frame " + std::to_string(i));
            if (is_drop(steps[i].verdict)) {
                EXPECT_FALSE(outcomes[i].delivered);
                continue;
            }
            const Bytes& packet = std::get<Bytes>(steps[i].verdict);
            ASSERT_TRUE(outcomes[i].delivered);
            const Bytes& frame = *outcomes[i].delivered;
            ASSERT_GE(frame.size(), 14u);
            EXPECT_EQ(get16(frame, 12), get8(packet, 0) >> 4 == 6 ? 0x86dd : 0x0800);
            EXPECT_EQ(to_hex(std::span(frame).subspan(14)), to_hex(packet));
        }
    }
}

StepBurst one(Bytes frame, Verdict verdict) {
    return {{.frame = std::move(frame), .verdict = std::move(verdict)}};
}

Bytes flipped(Bytes frame, size_t at) {
    put8(frame, at, static_cast<uint8_t>(get8(frame, at) ^ 1));
    return frame;
}

Bytes extended(Bytes bytes, size_t count) {
    bytes.resize(bytes.size() + count);
    return bytes;
}

// An inner header field overwritten after the packet was built.
Bytes with8(Bytes packet, size_t at, uint8_t value) {
    put8(packet, at, value);
    return packet;
}

class Rows {
  public:
    Rows(Family inner, Family outer)
        : inner_(inner), outer_(outer), suffix_("_" + combination(inner, outer)) {
        sa_.outer = outer;
        packet_ = ip(inner, udp(1000, 2000));
        add_shapes();
        add_padding();
        add_outer_headers();
        add_sad();
        add_replay();
        add_icv();
        add_inner_errors();
        add_selectors();
    }
    std::vector<InboundRow> rows;

  private:
    using R = DropReason;

    void add(const std::string& name, std::vector<StepBurst> bursts) {
        rows.push_back({.name = name + suffix_, .sas = {sa_}, .bursts = std::move(bursts)});
    }
    void add(const std::string& name, const TestSa& sa, std::vector<StepBurst> bursts) {
        rows.push_back({.name = name + suffix_, .sas = {sa}, .bursts = std::move(bursts)});
    }
    [[nodiscard]] Bytes frame(uint64_t sequence) const { return esp_frame(sa_, sequence, packet_); }
    [[nodiscard]] Bytes frame_of(const Bytes& packet, const EspShape& shape = {}) const {
        return esp_frame(sa_, 1, packet, shape);
    }

    void add_shapes() {
        add("I1_Tunnel", {one(frame(1), packet_)});
        const Bytes icmp = ip(inner_, inner_ == Family::v4 ? icmp_echo(0) : icmpv6_echo(0));
        add("I1_SmallIcmp", {one(frame_of(icmp), icmp)});
        const Bytes large = ip(inner_, tcp(1, 2, 1300));
        add("I1_LargeTcp", {one(frame_of(large), large)});
        const Bytes bare = ip(inner_, raw(59, {}));
        add("I1_HeaderAlone", {one(frame_of(bare), bare)});
        if (inner_ == Family::v4) {
            const Bytes options = ipv4({.options = repeated(40, 1)}, udp(1, 2));
            add("I1_InnerOptions", {one(frame_of(options), options)});
        } else {
            const Bytes chain = ipv6({.extensions = {hop_by_hop(), destination_options(2),
                                                     routing(), fragment(0, false)}},
                                     udp(1, 2));
            add("I1_InnerExtensionHeaders", {one(frame_of(chain), chain)});
        }
        for (const crypto::Suite& suite : crypto::suites()) {
            // The oracle of these rows has no other. All: engine_test, conservation, esp_kat.
            if (suite.family != "AES-GCM") continue;
            const auto bits = std::to_string(suite.key_bytes * 8);
            for (const bool esn : {false, true}) {
                TestSa sa = sa_;
                sa.suite = &suite;
                sa.esn = esn;
                add("D5_D2_Gcm" + bits + (esn ? "Esn" : ""), sa,
                    {one(esp_frame(sa, 1, packet_), packet_)});
            }
        }
        // The IV is the sender's affair: ours need not be a counter.
        add("B9_RandomIv", {one(frame_of(packet_, {.iv = 0xfedcba9876543210}), packet_)});
        StepBurst full;
        for (uint64_t i = 1; i <= kBurstMax; ++i) full.push_back({frame(i), packet_});
        add("FullBurst", {full});
    }

    void add_padding() {
        add("B6_TfcPadding", {one(frame_of(packet_, {.tfc_bytes = 100}), packet_)});
        add("B6_TfcPaddingAndMaximumPad",
            {one(frame_of(packet_, {.pad_bytes = 254, .tfc_bytes = 4}), packet_)});
        add("B5_Dummy", {one(frame_of(packet_, {.next_header = 59}), R::dummy_packet)});
        add("B5_DummyOfAnything",
            {one(frame_of({}, {.text = esp_text(repeated(38, 0xff), 59)}), R::dummy_packet)});
        Bytes too_long = esp_text(repeated(18, 0), 4);
        put8(too_long, too_long.size() - 2, 19);
        add("B7_PadLengthBeyondText", {one(frame_of({}, {.text = too_long}), R::bad_padding)});
        put8(too_long, too_long.size() - 2, 255);
        add("B7_PadLength255OfNothing", {one(frame_of({}, {.text = too_long}), R::bad_padding)});
        Bytes pad = esp_text(packet_, inner_ == Family::v4 ? 4 : 41, 10);
        while (pad.size() % 4 != 0) {
            pad = esp_text(packet_, inner_ == Family::v4 ? 4 : 41,
                           static_cast<uint8_t>(get8(pad, pad.size() - 2) + 1));
        }
        const size_t pad_at = pad.size() - 2 - get8(pad, pad.size() - 2);
        for (const size_t at : {pad_at, pad_at + 4, pad.size() - 3}) {
            Bytes text = pad;
            put8(text, at, 0xee);
            add("B7_PadByte" + std::to_string(at - pad_at),
                {one(frame_of({}, {.text = text}), R::bad_padding)});
        }
    }

    void add_outer_headers() {
        const Bytes good = frame(1);
        const Bytes esp = esp_of(sa_, 1, packet_);
        add("EthernetPadding", {one(extended(good, 60), packet_)});
        add("TruncatedFrame_0", {one({}, R::truncated)});
        add("TruncatedFrame_13", {one(head(good, 13), R::truncated)});
        add("TruncatedFrame_33", {one(head(good, 33), R::truncated)});
        add("NotIp", {one(ethernet(0x0806, repeated(60, 1)), R::unsupported_packet)});
        add("Vlan", {one(ethernet(0x8100, repeated(60, 1)), R::unsupported_packet)});
        add("TwoTypesOneVersion",
            {one(ethernet(outer_ == Family::v4 ? 0x86dd : 0x0800, repeated(80, 0x11)),
                 R::malformed_ip)});
        // Too short for SPI, sequence, IV, a trailer and the ICV; not on a 4-byte boundary.
        for (const size_t bytes : {0u, 4u, 8u, 16u, 32u, 35u}) {
            add("EspOf" + std::to_string(bytes) + "Bytes",
                {one(ethernet(outer_packet(sa_, head(esp, bytes))), R::malformed_esp)});
        }
        add("EspUnaligned", {one(ethernet(outer_packet(sa_, extended(esp, 2))), R::malformed_esp)});
        add("OtherProtocol", {one(ethernet(ip(outer_, tcp(1, 2))), R::unsupported_packet)});
        add("UdpOther", {one(ethernet(ip(outer_, udp(4500, 4501))), R::unsupported_packet)});
        add("NatTraversal",
            {one(ethernet(ip(outer_, udp(4500, 4500, 100))), R::unexpected_encapsulation)});

        if (outer_ == Family::v4) {
            const auto outer = [&](const Ipv4Fields& fields) {
                Ipv4Fields all = fields;
                all.source = sa_.source_text();
                all.destination = sa_.destination_text();
                return ethernet(ipv4(all, raw(50, esp)));
            };
            add("OuterOptions", {one(outer({.options = repeated(8, 1)}), packet_)});
            add("OuterMaximumOptions", {one(outer({.options = repeated(40, 1)}), packet_)});
            add("OuterDontFragment", {one(outer({.dont_fragment = true}), packet_)});
            add("B1_FirstFragment", {one(outer({.more_fragments = true}), R::outer_fragment)});
            add("B1_LastFragment", {one(outer({.fragment_offset = 1}), R::outer_fragment)});
            add("B1_MiddleFragment",
                {one(outer({.more_fragments = true, .fragment_offset = 185}), R::outer_fragment)});
            add("B1_FragmentWithOptions",
                {one(outer({.more_fragments = true, .options = repeated(4, 1)}),
                     R::outer_fragment)});
            add("OuterLengthBeyondFrame", {one(outer({.total_bytes = 1500}), R::malformed_ip)});
            add("OuterLengthOfHeader", {one(outer({.total_bytes = 20}), R::malformed_esp)});
            add("OuterVersion", {one(with8(good, 14, 0x55), R::malformed_ip)});
            add("OuterHeaderLength4", {one(with8(good, 14, 0x44), R::malformed_ip)});
            add("OuterHeaderLengthBeyondPacket",
                {one(ethernet(with8(outer_packet(sa_, {}), 0, 0x4f)), R::malformed_ip)});
        } else {
            const auto outer = [&](const Ipv6Fields& fields) {
                Ipv6Fields all = fields;
                all.source = sa_.source_text();
                all.destination = sa_.destination_text();
                return ethernet(ipv6(all, raw(50, esp)));
            };
            add("TruncatedFrame_53", {one(head(good, 53), R::truncated)});
            add("OuterExtensionHeaders",
                {one(outer({.extensions = {hop_by_hop(1), destination_options(), routing()}}),
                     packet_)});
            // A fragment header without fragmentation (RFC 6946) is a whole packet.
            add("OuterAtomicFragment", {one(outer({.extensions = {fragment(0, false)}}), packet_)});
            add("B1_FirstFragment",
                {one(outer({.extensions = {fragment(0, true)}}), R::outer_fragment)});
            add("B1_LastFragment",
                {one(outer({.extensions = {fragment(9, false)}}), R::outer_fragment)});
            add("B1_FragmentBehindHopByHop",
                {one(outer({.extensions = {hop_by_hop(), fragment(0, true)}}), R::outer_fragment)});
            add("OuterEightExtensionHeaders",
                {one(outer({.extensions = std::vector<Extension>(8, destination_options())}),
                     packet_)});
            add("OuterNineExtensionHeaders",
                {one(outer({.extensions = std::vector<Extension>(9, destination_options())}),
                     R::malformed_ip)});
            add("OuterExtensionBeyondPacket",
                {one(with8(outer({.extensions = {hop_by_hop()}}), 55, 255), R::malformed_ip)});
            add("OuterLengthBeyondFrame", {one(outer({.payload_bytes = 1460}), R::malformed_ip)});
            add("OuterLengthZero", {one(outer({.payload_bytes = 0}), R::malformed_esp)});
            add("OuterVersion", {one(with8(good, 14, 0x55), R::malformed_ip)});
        }
    }

    void add_sad() {
        TestSa other = sa_;
        other.spi = 0x1002;
        add("A3_UnknownSpi", {one(esp_frame(other, 1, packet_), R::unknown_spi)});
        other = sa_;
        other.destination = outer_ == Family::v4 ? "192.0.2.3" : "2001:db8:ffff::3";
        add("A3_OtherDestination", {one(esp_frame(other, 1, packet_), R::unknown_spi)});
        if (outer_ == Family::v6) {
            // Same last 32 bits, which the hash sees, in another network.
            other.destination = "2001:db8:fffe::2";
            add("A3_SameLastWord", {one(esp_frame(other, 1, packet_), R::unknown_spi)});
        }
        TestSa otherwise = sa_;
        otherwise.outer = outer_ == Family::v4 ? Family::v6 : Family::v4;
        add("A3_OtherFamily", {one(esp_frame(otherwise, 1, packet_), R::unknown_spi)});

        TestSa second = sa_;
        second.spi = 0x1002;
        second.id = 2;
        InboundRow parallel{.name = "A4_ParallelSas" + suffix_, .sas = {sa_, second}, .bursts = {}};
        parallel.bursts.push_back({{esp_frame(sa_, 1, packet_), packet_},
                                   {esp_frame(second, 1, packet_), packet_},
                                   {esp_frame(sa_, 2, packet_), packet_},
                                   {esp_frame(second, 1, packet_), R::replayed}});
        rows.push_back(parallel);
        // Whose key is whose: a packet of one SA under the other's SPI is forged.
        TestSa mixed = second;
        mixed.key = sa_.key_material();
        InboundRow swapped{
            .name = "A4_KeyOfTheOtherSa" + suffix_, .sas = {sa_, second}, .bursts = {}};
        swapped.bursts.push_back({{esp_frame(mixed, 1, packet_), R::icv_mismatch}});
        rows.push_back(swapped);
    }

    void add_replay() {
        add("B3_TwiceInOneBurst", {{{frame(1), packet_}, {frame(1), R::replayed}}});
        add("B3_TwiceInTwoBursts", {one(frame(1), packet_), one(frame(1), R::replayed)});
        add("B3_ReorderedInWindow",
            {{{frame(64), packet_}, {frame(1), packet_}, {frame(63), packet_}, {frame(2), packet_}},
             {{frame(1), R::replayed}, {frame(3), packet_}, {frame(64), R::replayed}}});
        add("B3_BeforeWindow", {one(frame(65), packet_), one(frame(1), R::before_window)});
        // In one burst the window is still where it was when the check before the ICV is made.
        add("B3_BeforeWindowInOneBurst", {{{frame(65), packet_}, {frame(1), R::before_window}}});
        add("B3_SequenceZero", {one(frame(0), R::before_window)});
        // A forged packet far ahead must not move the window, in the same burst or later.
        add("B3_ForgedMovesNothing",
            {{{frame(10), packet_},
              {flipped(frame(100000), frame(1).size() - 1), R::icv_mismatch},
              {frame(9), packet_}},
             {{frame(8), packet_}, {frame(100000), packet_}}});
        add("B3_ForgedBurnsNoNumber",
            {{{flipped(frame(5), frame(1).size() - 1), R::icv_mismatch}, {frame(5), packet_}}});
        // A replayed packet is refused before its ICV is looked at.
        add("B3_ReplayBeforeIcv",
            {one(frame(5), packet_), one(flipped(frame(5), frame(1).size() - 1), R::replayed)});
        add("B2_LastSequence32",
            {one(frame(0xffffffff), packet_), one(frame(1), R::before_window)});

        TestSa off = sa_;
        off.replay_window = 0;
        add("B4_WindowOff", off,
            {{{esp_frame(off, 1, packet_), packet_},
              {esp_frame(off, 1, packet_), packet_},
              {esp_frame(off, 0, packet_), packet_}}});
        TestSa wide = sa_;
        wide.replay_window = 4096;
        add("B4_Window4096", wide,
            {{{esp_frame(wide, 5000, packet_), packet_},
              {esp_frame(wide, 905, packet_), packet_},
              {esp_frame(wide, 904, packet_), R::before_window},
              {esp_frame(wide, 905, packet_), R::replayed}}});
        TestSa narrow = sa_;
        narrow.replay_window = 32;
        add("B4_Window32", narrow,
            {{{esp_frame(narrow, 100, packet_), packet_},
              {esp_frame(narrow, 69, packet_), packet_},
              {esp_frame(narrow, 68, packet_), R::before_window}}});
        TestSa resumed = sa_;
        resumed.replay_top = 1000;
        add("B4_ResumedBehindTop", resumed,
            {{{esp_frame(resumed, 1000, packet_), R::replayed},
              {esp_frame(resumed, 990, packet_), R::replayed},
              {esp_frame(resumed, 936, packet_), R::before_window},
              // The word of the bitmap that holds 1000 also holds these.
              {esp_frame(resumed, 1003, packet_), packet_},
              {esp_frame(resumed, 1001, packet_), packet_},
              {esp_frame(resumed, 1002, packet_), packet_},
              {esp_frame(resumed, 1001, packet_), R::replayed}}});

        TestSa esn = sa_;
        esn.esn = true;
        const auto high = [](uint64_t h, uint64_t low) { return h << 32 | low; };
        const auto esp = [&](uint64_t sequence) { return esp_frame(esn, sequence, packet_); };
        add("B4_EsnFirst", esn, {{{esp(1), packet_}, {esp(2), packet_}, {esp(1), R::replayed}}});
        // A large first number is a jump, not something from before the beginning.
        add("B4_EsnFirstIsLarge", esn, {one(esp(0xfffffff0), packet_)});
        esn.replay_top = high(5, 0xffffffd0);
        add("B4_EsnWrap", esn,
            {{{esp(high(5, 0xffffffe0)), packet_}},
             {{esp(high(6, 3)), packet_}},           // case A, low below the window
             {{esp(high(5, 0xfffffff0)), packet_}},  // case B, back over the wrap
             {{esp(high(6, 2)), packet_}},           // case B, this side of it
             {{esp(high(5, 0xfffffff0)), R::replayed}},
             {{esp(high(6, 200)), packet_}},
             // Inferred as high half 7, which the ICV denies.
             {{esp(high(6, 100)), R::icv_mismatch}}});
        // Before and behind the wrap within one burst: each high half is inferred when the burst
        // comes in, when the window still ends at 5:ffffffe0.
        add("B4_EsnWrapInOneBurst", esn,
            {{{esp(high(5, 0xffffffff)), packet_},
              {esp(high(6, 0)), packet_},
              {esp(high(6, 1)), packet_}}});
        esn.replay_top = 0;
        esn.replay_window = 0;
        add("B4_EsnWindowOffReordered", esn,
            {{{esp(10), packet_}}, {{esp(9), packet_}}, {{esp(11), packet_}}});
    }

    void add_icv() {
        const Bytes good = frame(1);
        const size_t esp_at = outer_ == Family::v4 ? 34 : 54;
        add("IcvLastByte", {one(flipped(good, good.size() - 1), R::icv_mismatch)});
        add("IcvFirstByte", {one(flipped(good, good.size() - 16), R::icv_mismatch)});
        add("Ciphertext", {one(flipped(good, esp_at + 16), R::icv_mismatch)});
        add("Iv", {one(flipped(good, esp_at + 8), R::icv_mismatch)});
        add("B9_SequenceIsAuthenticated", {one(flipped(good, esp_at + 6), R::icv_mismatch)});
        TestSa wrong = sa_;
        wrong.key = sa_.key_material();
        put8(wrong.key, 0, 0xff);
        add("OtherKey", {one(esp_frame(wrong, 1, packet_), R::icv_mismatch)});
        wrong.key = sa_.key_material();
        put8(wrong.key, wrong.key.size() - 1, 0xff);
        add("OtherSalt", {one(esp_frame(wrong, 1, packet_), R::icv_mismatch)});
        TestSa esn = sa_;
        esn.esn = true;
        add("B9_EsnPacketForShortSa", {one(esp_frame(esn, 1, packet_), R::icv_mismatch)});
        add("B9_ShortPacketForEsnSa", esn, {one(esp_frame(sa_, 1, packet_), R::icv_mismatch)});
        add("B9_EsnHighHalfIsAuthenticated", esn,
            {one(esp_frame(esn, uint64_t{1} << 32 | 1, packet_), R::icv_mismatch)});
    }

    void add_inner_errors() {
        const uint8_t right = inner_ == Family::v4 ? 4 : 41;
        const uint8_t other = inner_ == Family::v4 ? 41 : 4;
        for (const uint8_t next_header : std::initializer_list<uint8_t>{0, 6, 17, 50, 255}) {
            add("NextHeader" + std::to_string(next_header),
                {one(frame_of(packet_, {.next_header = next_header}), R::bad_next_header)});
        }
        add("NextHeaderOfOtherFamily",
            {one(frame_of(packet_, {.next_header = other}), R::malformed_inner)});
        add("InnerEmpty", {one(frame_of({}, {.text = esp_text({}, right)}), R::malformed_inner)});
        add("InnerCut",
            {one(frame_of({}, {.text = esp_text(head(packet_, packet_.size() - 4), right)}),
                 R::malformed_inner)});
        add("InnerHalfHeader",
            {one(frame_of({}, {.text = esp_text(head(packet_, 12), right)}), R::malformed_inner)});
        add("InnerVersion",
            {one(frame_of(with8(packet_, 0, 0x75), {.next_header = right}), R::malformed_inner)});
        if (inner_ == Family::v4) {
            add("InnerHeaderLength4", {one(frame_of(with8(packet_, 0, 0x44)), R::malformed_inner)});
            add("InnerHeaderBeyondPacket",
                {one(frame_of(with8(ip(inner_, raw(59, {})), 0, 0x46)), R::malformed_inner)});
            add("InnerLengthBelowHeader",
                {one(frame_of(ipv4({.total_bytes = 19}, udp(1, 2))), R::malformed_inner)});
            add("InnerLengthBeyondText",
                {one(frame_of(ipv4({.total_bytes = 1000}, udp(1, 2))), R::malformed_inner)});
            const Bytes options = ipv4({.options = Bytes(8)}, udp(1, 2));
            add("A12_InnerWithOptions", {one(frame_of(options), options)});
            add("A12_InnerChecksum", {one(frame_of(flipped(packet_, 10)), R::bad_ip_checksum)});
            add("A12_InnerTtl", {one(frame_of(flipped(packet_, 8)), R::bad_ip_checksum)});
            add("A12_InnerDestination", {one(frame_of(flipped(packet_, 19)), R::bad_ip_checksum)});
            add("A12_InnerOption", {one(frame_of(flipped(options, 27)), R::bad_ip_checksum)});
        } else {
            add("InnerLengthBeyondText",
                {one(frame_of(ipv6({.payload_bytes = 1000}, udp(1, 2))), R::malformed_inner)});
            add("InnerExtensionBeyondPacket",
                {one(frame_of(with8(ipv6({.extensions = {hop_by_hop()}}, udp(1, 2)), 41, 200)),
                     R::malformed_inner)});
            add("InnerExtensionCut",
                {one(frame_of(ipv6({.extensions = {hop_by_hop()}, .payload_bytes = 4}, udp(1, 2))),
                     R::malformed_inner)});
            add("InnerNineExtensionHeaders",
                {one(
                    frame_of(ipv6({.extensions = std::vector<Extension>(9, routing())}, udp(1, 2))),
                    R::malformed_inner)});
        }
    }

    void add_selectors() {
        const bool is_v4 = inner_ == Family::v4;
        const auto addressed = [&](const char* source_v4, const char* destination_v4,
                                   const char* source_v6, const char* destination_v6) {
            return is_v4 ? ipv4({.source = source_v4, .destination = destination_v4}, udp(1, 2))
                         : ipv6({.source = source_v6, .destination = destination_v6}, udp(1, 2));
        };
        add("A1_Source",
            {one(frame_of(addressed("10.3.0.5", "10.2.0.9", "2001:db8:3::5", "2001:db8:2::9")),
                 R::selector_mismatch)});
        add("A1_Destination",
            {one(frame_of(addressed("10.1.0.5", "10.3.0.9", "2001:db8:1::5", "2001:db8:3::9")),
                 R::selector_mismatch)});
        add("A1_Reversed",
            {one(frame_of(addressed("10.2.0.9", "10.1.0.5", "2001:db8:2::9", "2001:db8:1::5")),
                 R::selector_mismatch)});
        const Bytes edges =
            addressed("10.1.255.255", "10.2.0.0", "2001:db8:1:ffff::ffff", "2001:db8:2::");
        add("A1_EdgesOfThePrefixes", {one(frame_of(edges), edges)});
        TestSa other_family = sa_;
        other_family.selectors = {any_selector(is_v4 ? Family::v6 : Family::v4)};
        add("A1_Family", other_family, {one(frame(1), R::selector_mismatch)});
        TestSa any = sa_;
        any.selectors = {any_selector(inner_)};
        add("A1_Anything", any, {one(frame(1), packet_)});

        TestSa only_tcp = sa_;
        only_tcp.selectors = {any_selector(inner_)};
        only_tcp.selectors[0].protocol = 6;
        const Bytes tcp_packet = ip(inner_, tcp(7, 8));
        add("A1_Protocol", only_tcp,
            {{{frame(1), R::selector_mismatch}, {esp_frame(sa_, 2, tcp_packet), tcp_packet}}});

        TestSa ports = sa_;
        ports.selectors = {any_selector(inner_)};
        ports.selectors[0].protocol = 17;
        ports.selectors[0].has_ports = true;
        ports.selectors[0].source_port_lo = 1000;
        ports.selectors[0].source_port_hi = 1009;
        ports.selectors[0].destination_port_lo = 53;
        ports.selectors[0].destination_port_hi = 53;
        StepBurst sweep;
        uint64_t sequence = 1;
        const auto probe = [&](const Bytes& packet, bool accepted) {
            sweep.push_back({esp_frame(sa_, sequence++, packet),
                             accepted ? Verdict(packet) : Verdict(R::selector_mismatch)});
        };
        probe(ip(inner_, udp(1000, 53)), true);
        probe(ip(inner_, udp(1009, 53)), true);
        probe(ip(inner_, udp(999, 53)), false);
        probe(ip(inner_, udp(1010, 53)), false);
        probe(ip(inner_, udp(1000, 52)), false);
        probe(ip(inner_, udp(1000, 54)), false);
        probe(ip(inner_, tcp(1000, 53)), false);
        probe(ip(inner_, raw(17, repeated(3, 0))), false);  // too short to have ports
        if (is_v4) {
            probe(ipv4({.more_fragments = true}, udp(1000, 53)), true);
            probe(ipv4({.fragment_offset = 3}, udp(1000, 53)), false);
        } else {
            probe(ipv6({.extensions = {fragment(0, true)}}, udp(1000, 53)), true);
            probe(ipv6({.extensions = {fragment(3, false)}}, udp(1000, 53)), false);
            probe(ipv6({.extensions = {hop_by_hop(), routing(1)}}, udp(1000, 53)), true);
            probe(ipv6({.extensions = {hop_by_hop(), routing(1)}}, udp(1000, 54)), false);
        }
        add("A1_A10_Ports", ports, {sweep});
        // Without port selectors an SA carries fragments.
        const Bytes later = is_v4 ? ipv4({.fragment_offset = 3}, udp(1, 2))
                                  : ipv6({.extensions = {fragment(3, false)}}, udp(1, 2));
        add("A10_LaterFragmentWithoutPortSelectors", {one(frame_of(later), later)});

        TestSa many = sa_;
        for (int i = 0; i < 32; ++i) {
            Selector selector = any_selector(inner_);
            selector.protocol = static_cast<uint8_t>(100 + i);
            many.selectors.push_back(selector);
        }
        const Bytes last = ip(inner_, raw(131, repeated(8, 1)));
        const Bytes none = ip(inner_, raw(132, repeated(8, 1)));
        add("A1_LastOfThirtyTwoSelectors", many,
            {{{frame_of(last), last}, {esp_frame(sa_, 2, none), R::selector_mismatch}}});
    }

    Family inner_;
    Family outer_;
    std::string suffix_;
    TestSa sa_;
    Bytes packet_;
};

std::vector<InboundRow> inbound_rows() {
    std::vector<InboundRow> all;
    for (const Family inner : kFamilies) {
        for (const Family outer : kFamilies) {
            for (auto& row : Rows(inner, outer).rows) all.push_back(std::move(row));
        }
    }
    return all;
}

class Inbound : public ::testing::TestWithParam<InboundRow> {};

TEST_P(Inbound, Row) {
    check_row(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Table, Inbound, ::testing::ValuesIn(inbound_rows()), row_name<InboundRow>);

// RFC 6040 4.2, figure 4, as the RFC prints it: rows by inner, columns by outer field.
TEST(ConformanceE1, DecapsulationTable) {
    constexpr uint8_t kNotEct = 0;
    constexpr uint8_t kEct1 = 1;
    constexpr uint8_t kEct0 = 2;
    constexpr uint8_t kCe = 3;
    constexpr uint8_t kDrop = 9;
    struct Cell {
        uint8_t inner;
        uint8_t outer;
        uint8_t result;
    };
    constexpr Cell kFigure4[] = {
        {kNotEct, kNotEct, kNotEct}, {kNotEct, kEct0, kNotEct},
        {kNotEct, kEct1, kNotEct},   {kNotEct, kCe, kDrop},
        {kEct0, kNotEct, kEct0},     {kEct0, kEct0, kEct0},
        {kEct0, kEct1, kEct1},       {kEct0, kCe, kCe},
        {kEct1, kNotEct, kEct1},     {kEct1, kEct0, kEct1},
        {kEct1, kEct1, kEct1},       {kEct1, kCe, kCe},
        {kCe, kNotEct, kCe},         {kCe, kEct0, kCe},
        {kCe, kEct1, kCe},           {kCe, kCe, kCe},
    };
    for (const Family inner : kFamilies) {
        for (const Family outer : kFamilies) {
            for (const Cell& cell : kFigure4) {
                for (const unsigned dscp : {0x00u, 0x2eu, 0x3fu}) {
                    const auto dscp_bits = static_cast<uint8_t>(dscp << 2);
                    TestSa sa;
                    sa.outer = outer;
                    const Bytes sent =
                        ip(inner, udp(1, 2), static_cast<uint8_t>(dscp_bits | cell.inner));
                    // The outer DSCP is another one and must not come in.
                    const EspShape shape{
                        .outer_dscp_ecn = static_cast<uint8_t>((~dscp_bits & 0xfc) | cell.outer)};
                    check_row(
                        {.name = combination(inner, outer),
                         .sas = {sa},
                         .bursts = {one(
                             esp_frame(sa, 1, sent, shape),
                             cell.result == kDrop
                                 ? Verdict(DropReason::ecn_not_capable)
                                 : Verdict(ip(inner, udp(1, 2),
                                              static_cast<uint8_t>(dscp_bits | cell.result))))}});
                }
            }
        }
    }
}

// The checksum of a header whose ECN changes stays right, whatever else the header holds.
TEST(ConformanceE1, ChecksumOfRandomHeadersAfterChange) {
    std::mt19937 random(3);
    TunnelWorld world;
    TestSa sa;
    sa.selectors = {any_selector(Family::v4)};
    sa.replay_window = 0;
    world.add_inbound(sa);
    for (int round = 0; round < 300; ++round) {
        std::vector<Bytes> frames;
        std::vector<Bytes> packets;
        for (uint32_t i = 0; i < kBurstMax; ++i) {
            Bytes packet = ipv4({}, udp(1, 2));
            put8(packet, 1, static_cast<uint8_t>((random() & 0xfc) | 2));
            put16(packet, 4, static_cast<uint16_t>(random()));
            put8(packet, 8, static_cast<uint8_t>(random()));
            put8(packet, 9, static_cast<uint8_t>(random()));
            put32(packet, 12, static_cast<uint32_t>(random()));
            put32(packet, 16, static_cast<uint32_t>(random()));
            repair_ipv4_checksum(packet);
            frames.push_back(esp_frame(sa, 1, packet, {.outer_dscp_ecn = 3}));
            put8(packet, 1, static_cast<uint8_t>(get8(packet, 1) | 3));
            repair_ipv4_checksum(packet);
            packets.push_back(packet);
        }
        const auto outcomes = world.run_inbound(frames);
        for (size_t i = 0; i < packets.size(); ++i) {
            ASSERT_TRUE(outcomes[i].delivered);
            const std::span packet = std::span(*outcomes[i].delivered).subspan(14);
            ASSERT_TRUE(ipv4_checksum_right(packet));
            ASSERT_EQ(to_hex(packet), to_hex(packets[i]));
        }
    }
}

// Every pad length there is, with the inner length that keeps the text on its boundary.
TEST(ConformanceB7, EveryPadLength) {
    for (const Family inner : kFamilies) {
        TunnelWorld world;
        TestSa sa;
        world.add_inbound(sa);
        uint64_t sequence = 1;
        for (unsigned pad = 0; pad <= 255; ++pad) {
            const size_t headers = inner == Family::v4 ? 28 : 48;
            const size_t data_bytes = (4 - (headers + pad + 2) % 4) % 4 + 8;
            const Bytes packet = ip(inner, udp(1, 2, data_bytes));
            const EspShape shape{.pad_bytes = static_cast<uint8_t>(pad)};
            const auto good = world.run_inbound({esp_frame(sa, sequence++, packet, shape)});
            ASSERT_TRUE(good[0].delivered) << pad;
            EXPECT_EQ(to_hex(std::span(*good[0].delivered).subspan(14)), to_hex(packet)) << pad;
            // And each of its bytes wrong in turn.
            for (unsigned at = 0; at < pad; at += pad < 16 ? 1 : 17) {
                Bytes text =
                    esp_text(packet, inner == Family::v4 ? 4 : 41, static_cast<uint8_t>(pad));
                put8(text, packet.size() + at,
                     static_cast<uint8_t>(get8(text, packet.size() + at) ^ 0x80));
                const uint64_t drops = world.counters()["drops.bad_padding"];
                const auto bad = world.run_inbound({esp_frame(sa, sequence++, {}, {.text = text})});
                EXPECT_FALSE(bad[0].delivered) << pad << " " << at;
                EXPECT_EQ(world.counters()["drops.bad_padding"], drops + 1) << pad << " " << at;
            }
        }
    }
}

// A pad length may claim all of the text but its trailer, and not one byte more.
TEST(ConformanceB7, EveryPadLengthOverAShortText) {
    TunnelWorld world;
    TestSa sa;
    world.add_inbound(sa);
    uint64_t sequence = 1;
    for (unsigned pad = 0; pad <= 255; ++pad) {
        Bytes text;
        for (unsigned i = 0; i < 42; ++i) {
            // Right pad bytes for as many as there are.
            text.push_back(static_cast<std::byte>(i + 1 + pad - 42));
        }
        text.push_back(static_cast<std::byte>(pad));
        text.push_back(static_cast<std::byte>(59));
        Deltas before = world.counters();
        world.run_inbound({esp_frame(sa, sequence++, {}, {.text = text})});
        Deltas deltas = moved(before, world.counters());
        EXPECT_EQ(deltas["drops.dummy_packet"], pad <= 42 ? 1u : 0u) << pad;
        EXPECT_EQ(deltas["drops.bad_padding"], pad <= 42 ? 0u : 1u) << pad;
    }
}

std::vector<std::pair<TestSa, Bytes>> kinds_of_packets() {
    std::vector<std::pair<TestSa, Bytes>> kinds;
    for (const Family outer : kFamilies) {
        TestSa sa;
        sa.outer = outer;
        kinds.emplace_back(sa, ip(Family::v4, udp(1, 2, 20)));
        kinds.emplace_back(sa, ipv4({.options = repeated(12, 1)}, tcp(1, 2, 5)));
        kinds.emplace_back(sa, ip(Family::v6, icmpv6_echo(9)));
        kinds.emplace_back(
            sa, ipv6({.extensions = {hop_by_hop(), routing(1), fragment(0, true)}}, udp(1, 2, 7)));
    }
    return kinds;
}

// A valid packet of each kind, cut at every length: nothing comes out, nothing beyond is read.
TEST(InboundSweep, EveryTruncation) {
    for (const auto& [sa, packet] : kinds_of_packets()) {
        TunnelWorld world;
        world.add_inbound(sa);
        std::vector<Bytes> whole = {esp_frame(sa, 1, packet)};
        if (sa.outer == Family::v6) {
            whole.push_back(ethernet(ipv6({.source = sa.source_text(),
                                           .destination = sa.destination_text(),
                                           .extensions = {hop_by_hop(1), destination_options()}},
                                          raw(50, esp_of(sa, 1, packet)))));
        } else {
            whole.push_back(ethernet(ipv4({.source = sa.source_text(),
                                           .destination = sa.destination_text(),
                                           .options = repeated(16, 1)},
                                          raw(50, esp_of(sa, 1, packet)))));
        }
        for (const Bytes& frame : whole) {
            for (size_t cut = 0; cut < frame.size(); ++cut) {
                const auto outcomes = world.run_inbound({head(frame, cut)});
                ASSERT_FALSE(outcomes[0].delivered) << cut;
            }
        }
        // Cut, with outer lengths that agree with the cut: each ends at the ESP checks.
        const Bytes esp = esp_of(sa, 1, packet);
        for (size_t cut = 0; cut < esp.size(); ++cut) {
            const auto outcomes = world.run_inbound({ethernet(outer_packet(sa, head(esp, cut)))});
            ASSERT_FALSE(outcomes[0].delivered) << cut;
        }
        const auto outcomes = world.run_inbound(whole);
        EXPECT_TRUE(outcomes[0].delivered);  // all that was cut has burnt nothing
        EXPECT_FALSE(outcomes[1].delivered);
        EXPECT_EQ(world.counters()["drops.replayed"], 1u);
    }
}

// An inner packet, authentic but cut at every length behind its header's back.
TEST(InboundSweep, EveryInnerTruncation) {
    for (const auto& [sa, packet] : kinds_of_packets()) {
        TunnelWorld world;
        world.add_inbound(sa);
        uint64_t sequence = 1;
        const uint8_t next_header = get8(packet, 0) >> 4 == 6 ? 41 : 4;
        for (size_t cut = 0; cut < packet.size(); ++cut) {
            const Bytes part = head(packet, cut);
            const auto outcomes = world.run_inbound(
                {esp_frame(sa, sequence++, {}, {.text = esp_text(part, next_header)})});
            ASSERT_FALSE(outcomes[0].delivered) << cut;
        }
        EXPECT_EQ(world.counters()["drops.malformed_inner"], packet.size());
    }
}

// One byte of the ESP part changed, each in turn, in three ways: never delivered, and the window
// and the numbers are as if the packet had not come.
TEST(InboundSweep, EveryByteOfEspIsProtected) {
    for (const auto& [sa, packet] : kinds_of_packets()) {
        TunnelWorld world;
        world.add_inbound(sa);
        const Bytes esp = esp_of(sa, 1, packet);
        for (size_t at = 0; at < esp.size(); ++at) {
            for (const unsigned change : {0x01u, 0x80u, 0xffu}) {
                Bytes damaged = esp;
                put8(damaged, at, static_cast<uint8_t>(get8(damaged, at) ^ change));
                Deltas before = world.counters();
                const auto outcomes = world.run_inbound({ethernet(outer_packet(sa, damaged))});
                ASSERT_FALSE(outcomes[0].delivered) << at;
                Deltas deltas = moved(before, world.counters());
                const bool sequence_zero = get32(damaged, 4) == 0;
                EXPECT_EQ(deltas["drops.unknown_spi"], at < 4 ? 1u : 0u);
                EXPECT_EQ(deltas["drops.before_window"], sequence_zero ? 1u : 0u);
                EXPECT_EQ(deltas["drops.icv_mismatch"], at >= 4 && !sequence_zero ? 1u : 0u);
            }
        }
        EXPECT_TRUE(world.run_inbound({esp_frame(sa, 1, packet)})[0].delivered);
    }
}

// What does not authenticate is not left readable in the buffer.
TEST(Inbound_Wipe, PlaintextIsGoneAfterIcvFailure) {
    for (const Family outer : kFamilies) {
        TunnelWorld world;
        TestSa sa;
        sa.outer = outer;
        world.add_inbound(sa);
        const Bytes packet = ip(Family::v4, udp(1, 2, 600));
        Bytes frame = esp_frame(sa, 1, packet);
        put8(frame, frame.size() - 1, static_cast<uint8_t>(get8(frame, frame.size() - 1) ^ 1));
        const auto outcomes = world.run_inbound({frame});
        ASSERT_TRUE(outcomes[0].discarded);
        const size_t text_at = kFrameDataOffset + (outer == Family::v4 ? 34u : 54u) + 16;
        const size_t text_bytes = frame.size() - (text_at - kFrameDataOffset) - 16;
        for (size_t i = 0; i < text_bytes; ++i) {
            ASSERT_EQ(world.buffers.base(0)[text_at + i], std::byte{0}) << i;
        }
    }
}

// RFC 4303 section 4: SPI, addresses and sequence number; the time is control's to add.
TEST(ConformanceB8, AuditFields) {
    for (const Family outer : kFamilies) {
        TestSa sa;
        sa.outer = outer;
        const Bytes packet = ip(Family::v4, udp(1, 2));
        const Bytes stray = ipv4({.source = "10.9.0.1"}, udp(1, 2));
        Bytes forged = esp_frame(sa, 40, packet);
        put8(forged, forged.size() - 1, static_cast<uint8_t>(get8(forged, forged.size() - 1) ^ 1));
        TestSa unknown = sa;
        unknown.spi = 0xabcdef01;
        const Bytes fragment_frame =
            ethernet(outer == Family::v4 ? ipv4({.source = sa.source_text(),
                                                 .destination = sa.destination_text(),
                                                 .more_fragments = true},
                                                raw(50, esp_of(sa, 3, packet)))
                                         : ipv6({.source = sa.source_text(),
                                                 .destination = sa.destination_text(),
                                                 .extensions = {hop_by_hop(), fragment(0, true)}},
                                                raw(50, esp_of(sa, 3, packet))));
        struct Case {
            Bytes frame;
            DropReason reason;
            uint32_t spi;
            uint64_t sequence;
            std::string source, destination;
        };
        const std::string from = sa.source_text();
        const std::string to = sa.destination_text();
        const std::vector<Case> cases = {
            {esp_frame(unknown, 0x12345678, packet), DropReason::unknown_spi, 0xabcdef01,
             0x12345678, from, to},
            {forged, DropReason::icv_mismatch, sa.spi, 40, from, to},
            {esp_frame(sa, 100, packet), DropReason::replayed, sa.spi, 100, from, to},
            {esp_frame(sa, 2, packet), DropReason::before_window, sa.spi, 2, from, to},
            {fragment_frame, DropReason::outer_fragment, 0, 0, from, to},
            {esp_frame(sa, 101, stray), DropReason::selector_mismatch, sa.spi, 101, "10.9.0.1",
             "10.2.0.9"},
        };
        TunnelWorld world;
        world.add_inbound(sa);
        ASSERT_TRUE(world.run_inbound({esp_frame(sa, 100, packet)})[0].delivered);
        for (const Case& c : cases) {
            SCOPED_TRACE(label(c.reason));
            world.events.events.clear();
            world.run_inbound({c.frame});
            ASSERT_EQ(world.events.events.size(), 1u);
            const auto& record = std::get<event::Audit>(world.events.events[0]);
            EXPECT_EQ(record.reason, c.reason);
            EXPECT_EQ(to_index(record.spi), c.spi);
            EXPECT_EQ(record.sequence, c.sequence);
            EXPECT_EQ(to_string(record.source), c.source);
            EXPECT_EQ(to_string(record.destination), c.destination);
        }
        // A copy within one burst is noticed after the ICV and has the same record.
        world.events.events.clear();
        world.run_inbound({esp_frame(sa, 102, packet), esp_frame(sa, 102, packet)});
        ASSERT_EQ(world.events.events.size(), 1u);
        const auto& record = std::get<event::Audit>(world.events.events[0]);
        EXPECT_EQ(record.reason, DropReason::replayed);
        EXPECT_EQ(record.sequence, 102u);
        EXPECT_EQ(to_string(record.source), from);
    }
}

// With ESN the record holds the whole number.
TEST(ConformanceB8, ExtendedSequenceInTheRecord) {
    TestSa sa;
    sa.esn = true;
    sa.replay_top = uint64_t{3} << 32 | 500;
    TunnelWorld world;
    world.add_inbound(sa);
    Bytes forged = esp_frame(sa, uint64_t{3} << 32 | 501, ip(Family::v4, udp(1, 2)));
    put8(forged, forged.size() - 1, static_cast<uint8_t>(get8(forged, forged.size() - 1) ^ 1));
    world.run_inbound({forged});
    ASSERT_EQ(world.events.events.size(), 1u);
    EXPECT_EQ(std::get<event::Audit>(world.events.events[0]).sequence, uint64_t{3} << 32 | 501);
}

}  // namespace
}  // namespace sallyport::test
