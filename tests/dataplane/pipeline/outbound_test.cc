// SPDX-License-Identifier: Apache-2.0
// The outbound pipeline as a table: inner packets in, ESP packets out, which the OpenSSL oracle
// opens, or a drop reason. Rows whose name begins with a conformance id are that id's test.

#include <optional>
#include <random>
#include <set>

#include "tests/dataplane/pipeline/rows.h"

namespace sallyport::test {
namespace {

struct OutboundRow {
    std::string name;
    std::optional<TestSa> sa;
    std::vector<SpdEntry> policies;
    bool spd_published = true;
    OutboundSource source = OutboundSource::port;
    std::vector<StepBurst> bursts;
    uint64_t checksums_completed = 0;  // in the first burst
};

void PrintTo(const OutboundRow& row, std::ostream* out) {
    *out << row.name;
}

bool counted_at_sa(DropReason reason) {
    return reason == DropReason::too_big || reason == DropReason::sequence_exhausted ||
           reason == DropReason::sequence_unreserved;
}

// An ESP packet as the far gateway would see it, taken apart without dataplane code.
struct Opened {
    Bytes outer_header;
    uint32_t spi = 0;
    uint32_t sequence_low = 0;
    uint64_t iv = 0;
    Bytes packet;
};

std::string address_at(std::span<const std::byte> packet, size_t at, Family family) {
    IpAddress found{.family = family};
    for (size_t i = 0; i < found.bit_count() / 8; ++i) found.bytes[i] = get8(packet, at + i);
    return to_string(found);
}

void open_frame(const TestSa& sa, uint32_t sequence_high, const Bytes& frame, Opened& out) {
    const bool is_v4 = sa.outer == Family::v4;
    const size_t header_bytes = is_v4 ? 20 : 40;
    ASSERT_GE(frame.size(), 14 + header_bytes + 36);
    ASSERT_EQ(get16(frame, 12), is_v4 ? 0x0800 : 0x86dd);
    const std::span<const std::byte> outer = std::span(frame).subspan(14);
    out.outer_header = Bytes(outer.begin(), outer.begin() + static_cast<ptrdiff_t>(header_bytes));
    if (is_v4) {
        EXPECT_EQ(get8(outer, 0), 0x45);
        EXPECT_EQ(get16(outer, 2), outer.size());
        EXPECT_EQ(get8(outer, 9), 50);
        EXPECT_TRUE(ipv4_checksum_right(outer));
        EXPECT_EQ(address_at(outer, 12, sa.outer), sa.source_text());
        EXPECT_EQ(address_at(outer, 16, sa.outer), sa.destination_text());
    } else {
        EXPECT_EQ(get8(outer, 0) >> 4, 6);
        EXPECT_EQ(get16(outer, 4) + 40u, outer.size());
        EXPECT_EQ(get8(outer, 6), 50);
        EXPECT_EQ(address_at(outer, 8, sa.outer), sa.source_text());
        EXPECT_EQ(address_at(outer, 24, sa.outer), sa.destination_text());
    }
    const auto esp = outer.subspan(header_bytes);
    EXPECT_EQ(esp.size() % 4, 0u);
    out.spi = get32(esp, 0);
    out.sequence_low = get32(esp, 4);
    out.iv = uint64_t{get32(esp, 8)} << 32 | get32(esp, 12);
    const auto text = esp_open(sa.key_material(), sa.esn, sequence_high, esp);
    ASSERT_TRUE(text) << "the ICV is wrong";
    const auto content = read_text(*text);
    ASSERT_TRUE(content) << "the padding is wrong";
    EXPECT_LT(content->pad_bytes, 4);
    ASSERT_FALSE(content->packet.empty());
    EXPECT_EQ(content->next_header, get8(content->packet, 0) >> 4 == 6 ? 41 : 4);
    out.packet = content->packet;
}

void check_row(const OutboundRow& row) {
    TunnelWorld world;
    if (row.sa) world.add_outbound(*row.sa);
    if (row.spd_published) world.set_policies(row.policies);
    uint64_t sequence = row.sa ? row.sa->sequence_next : 0;
    for (size_t n = 0; n < row.bursts.size(); ++n) {
        SCOPED_TRACE("burst " + std::to_string(n));
        const StepBurst& steps = row.bursts[n];
        std::vector<Bytes> frames;
        Deltas expected{{"out.bursts", 1}};
        const std::string sa = "sa " + std::to_string(row.sa ? row.sa->spi : 0) + " out.";
        for (const Step& step : steps) {
            frames.push_back(step.frame);
            ++expected["out.frames"];
            if (!step.frame.empty()) expected["out.bytes"] += step.frame.size();
            const DropReason reason = reason_of(step.verdict);
            if (reason == DropReason::none) {
                ++expected["out.delivered"];
                ++expected[sa + "packets"];
                expected[sa + "bytes"] += ip_bytes(std::get<Bytes>(step.verdict));
            } else {
                ++expected["drops." + std::string(label(reason))];
                if (counted_at_sa(reason)) {
                    ++expected[sa + "drops." + std::string(label(reason))];
                }
            }
        }
        if (n == 0 && row.checksums_completed > 0) {
            expected["checksums_completed"] = row.checksums_completed;
        }
        const Deltas before = world.counters();
        const auto outcomes = world.run_outbound(frames, row.source);
        EXPECT_EQ(moved(before, world.counters()), expected);
        for (size_t i = 0; i < steps.size(); ++i) {
            SCOPED_TRACE("frame " + std::to_string(i));
            if (is_drop(steps[i].verdict)) {
                EXPECT_FALSE(outcomes[i].delivered);
                continue;
            }
            ASSERT_TRUE(outcomes[i].delivered);
            Opened opened;
            open_frame(*row.sa, static_cast<uint32_t>(sequence >> 32), *outcomes[i].delivered,
                       opened);
            if (::testing::Test::HasFatalFailure()) return;
            EXPECT_EQ(opened.spi, row.sa->spi);
            EXPECT_EQ(opened.sequence_low, static_cast<uint32_t>(sequence));
            EXPECT_EQ(opened.iv, sequence ^ row.sa->iv_mask);
            EXPECT_EQ(to_hex(opened.packet), to_hex(std::get<Bytes>(steps[i].verdict)));
            ++sequence;
        }
    }
}

StepBurst one(Bytes frame, Verdict verdict) {
    return {{.frame = std::move(frame), .verdict = std::move(verdict)}};
}

Bytes with8(Bytes packet, size_t at, uint8_t value) {
    put8(packet, at, value);
    return packet;
}

// As it must arrive: one hop less.
Bytes one_hop_on(Bytes packet) {
    const size_t at = get8(packet, 0) >> 4 == 6 ? 7 : 8;
    put8(packet, at, static_cast<uint8_t>(get8(packet, at) - 1));
    if (get8(packet, 0) >> 4 == 4) repair_ipv4_checksum(packet);
    return packet;
}

class Rows {
  public:
    Rows(Family inner, Family outer) : inner_(inner), suffix_("_" + combination(inner, outer)) {
        sa_.outer = outer;
        packet_ = ip(inner, udp(1000, 2000));
        protect_ = protect_entry(inner, sa_.policy);
        add_shapes();
        add_checksums();
        add_malformed();
        add_policies();
        add_sequences();
        add_hops();
        add_sizes();
    }
    std::vector<OutboundRow> rows;

  private:
    using R = DropReason;

    OutboundRow& add(const std::string& name, std::vector<StepBurst> bursts) {
        rows.push_back({.name = name + suffix_,
                        .sa = sa_,
                        .policies = {protect_},
                        .bursts = std::move(bursts)});
        return rows.back();
    }
    OutboundRow& add_good(const std::string& name, const Bytes& packet) {
        return add(name, {one(ethernet(packet), one_hop_on(packet))});
    }

    void add_shapes() {
        const bool is_v4 = inner_ == Family::v4;
        add_good("I1_B2_FirstPacket", packet_);
        for (size_t data_bytes = 0; data_bytes < 8; ++data_bytes) {
            add_good("I1_B7_Payload" + std::to_string(data_bytes),
                     ip(inner_, udp(1, 2, data_bytes)));
        }
        add_good("I1_Tcp", ip(inner_, tcp(1, 2, 1200)));
        add_good("I1_Icmp", ip(inner_, is_v4 ? icmp_echo(3) : icmpv6_echo(3)));
        add_good("I1_Sctp", ip(inner_, sctp(1, 2)));
        add_good("I1_OtherProtocol", ip(inner_, raw(89, repeated(5, 1))));
        add_good("I1_HeaderAlone", ip(inner_, raw(59, {})));
        add_good("I1_EspInEsp", ip(inner_, raw(50, repeated(60, 2))));
        if (is_v4) {
            add_good("I1_Options", ipv4({.options = repeated(40, 1)}, udp(1, 2)));
            add_good("A10_FirstFragment", ipv4({.more_fragments = true}, udp(1, 2)));
            add_good("A10_LaterFragment", ipv4({.fragment_offset = 9}, udp(1, 2)));
        } else {
            add_good(
                "I1_ExtensionHeaders",
                ipv6({.extensions = {hop_by_hop(), routing(2), destination_options()}}, udp(1, 2)));
            add_good("A10_FirstFragment", ipv6({.extensions = {fragment(0, true)}}, udp(1, 2)));
            add_good("A10_LaterFragment", ipv6({.extensions = {fragment(9, false)}}, udp(1, 2)));
        }
        Bytes padded = ethernet(packet_);
        padded.resize(padded.size() + 30);
        add("EthernetPadding", {one(padded, one_hop_on(packet_))});
        for (const crypto::Suite& suite : crypto::suites()) {
            // The oracle of these rows has no other. All: engine_test, conservation, esp_kat.
            if (suite.family != "AES-GCM") continue;
            const auto bits = std::to_string(suite.key_bytes * 8);
            for (const bool esn : {false, true}) {
                auto& row = add_good("D5_D2_Gcm" + bits + (esn ? "Esn" : ""), packet_);
                row.sa->suite = &suite;
                row.sa->esn = esn;
            }
        }
        StepBurst full;
        for (uint32_t i = 0; i < kBurstMax; ++i) {
            full.push_back({ethernet(packet_), one_hop_on(packet_)});
        }
        add("FullBursts", {full, full});
        add_good("IvMask", packet_).sa->iv_mask = 0x0123456789abcdef;
    }

    // What a host has left to its device arrives complete, and nothing else is touched.
    void add_checksums() {
        StepBurst burst;
        for (size_t data_bytes = 0; data_bytes < 40; ++data_bytes) {
            for (const Payload& payload : {tcp(1, 2, data_bytes), udp(1, 2, data_bytes)}) {
                const Bytes packet = ip(inner_, payload);
                if (burst.size() < kBurstMax) {
                    burst.push_back({ethernet(with_partial_checksum(packet)), one_hop_on(packet)});
                }
            }
        }
        const size_t count = burst.size();
        add("PartialChecksums", {std::move(burst)}).checksums_completed = count;
        const Bytes long_one = ip(inner_, tcp(1, 2, 1301));
        add("PartialChecksumOfALongPacket",
            {one(ethernet(with_partial_checksum(long_one)), one_hop_on(long_one))})
            .checksums_completed = 1;
        Bytes padded = ethernet(with_partial_checksum(packet_));
        append(padded, repeated(11, 0xff));
        add("PartialChecksumAndEthernetPadding", {one(padded, one_hop_on(packet_))})
            .checksums_completed = 1;
        const size_t header = inner_ == Family::v4 ? 20 : 40;
        Bytes none = packet_;
        put16(none, header + 6, 0);
        add_good("UdpWithoutChecksum", none);
        Bytes wrong = packet_;
        put16(wrong, header + 6, get16(wrong, header + 6) ^ 1u);
        add_good("WrongChecksumStaysWrong", wrong);
        add("PartialChecksumFromTheKernel",
            {one(ethernet(with_partial_checksum(packet_)), with_partial_checksum(packet_))})
            .source = OutboundSource::kernel;
        Bytes stump = ip(inner_, raw(6, repeated(19, 0)));
        add_good("TcpTooShortForAChecksum", stump);
        if (inner_ == Family::v4) {
            const auto piece = [](const Ipv4Fields& fields) {
                return with_partial_checksum(ipv4(fields, udp(1, 2)));
            };
            add_good("PartialChecksumFirstFragment", piece({.more_fragments = true}));
            add_good("PartialChecksumLaterFragment", piece({.fragment_offset = 9}));
        }
        // A right checksum that happens to be the sum of the pseudo-header.
        for (uint32_t value = 0; value <= 0xffff; ++value) {
            Payload payload = udp(1, 2, 4);
            put16(payload.bytes, 8, static_cast<uint16_t>(value));
            const Bytes right = ip(inner_, payload);
            if (with_partial_checksum(right) == right) {
                add_good("RightChecksumThatLooksPartial", right);
                return;
            }
        }
        ADD_FAILURE() << "no such packet";
    }

    void add_malformed() {
        const Bytes good = ethernet(packet_);
        add("Truncated_0", {one({}, R::truncated)});
        add("Truncated_33", {one(head(good, 33), R::truncated)});
        add("Cut", {one(head(good, good.size() - 1), R::malformed_ip)});
        add("NotIp", {one(ethernet(0x0806, repeated(60, 1)), R::unsupported_packet)});
        add("Version", {one(with8(good, 14, 0x75), R::malformed_ip)});
        add("TypeOfOtherFamily",
            {one(ethernet(inner_ == Family::v4 ? 0x86dd : 0x0800, packet_), R::malformed_ip)});
        if (inner_ == Family::v4) {
            add("HeaderLength4", {one(with8(good, 14, 0x44), R::malformed_ip)});
            add("LengthBelowHeader",
                {one(ethernet(ipv4({.total_bytes = 19}, udp(1, 2))), R::malformed_ip)});
            add("LengthBeyondFrame",
                {one(ethernet(ipv4({.total_bytes = 2000}, udp(1, 2))), R::malformed_ip)});
        } else {
            add("LengthBeyondFrame",
                {one(ethernet(ipv6({.payload_bytes = 2000}, udp(1, 2))), R::malformed_ip)});
            add("ExtensionBeyondPacket",
                {one(with8(ethernet(ipv6({.extensions = {hop_by_hop()}}, udp(1, 2))), 55, 200),
                     R::malformed_ip)});
            add("NineExtensionHeaders",
                {one(ethernet(
                         ipv6({.extensions = std::vector<Extension>(9, hop_by_hop())}, udp(1, 2))),
                     R::malformed_ip)});
        }
    }

    void add_policies() {
        const Bytes frame = ethernet(packet_);
        add("A6_NoSpdYet", {one(frame, R::no_policy)}).spd_published = false;
        add("A6_EmptySpd", {one(frame, R::no_policy)}).policies = {};
        const Bytes elsewhere = inner_ == Family::v4
                                    ? ipv4({.destination = "10.3.0.9"}, udp(1, 2))
                                    : ipv6({.destination = "2001:db8:3::9"}, udp(1, 2));
        add("A6_NoPolicy", {one(ethernet(elsewhere), R::no_policy)});
        SpdEntry discard = protect_;
        discard.action = SpdAction::discard;
        discard.policy = PolicyId{2};
        add("A6_Discard", {one(frame, R::policy_discard)}).policies = {discard, protect_};
        add("A6_ProtectBeforeDiscard", {one(frame, one_hop_on(packet_))}).policies = {protect_,
                                                                                      discard};
        SpdEntry bypass = discard;
        bypass.action = SpdAction::bypass;
        add("A6_Bypass", {one(frame, R::bypass_in_tunnel)}).policies = {bypass, protect_};
        add("NoSa", {one(frame, R::no_sa)}).sa.reset();
        add("SaOfOtherPolicy", {one(frame, R::no_sa)}).sa->policy = 5;

        SpdEntry dns = protect_;
        dns.protocol = 17;
        dns.has_ports = true;
        dns.destination_port_lo = 53;
        dns.destination_port_hi = 53;
        const Bytes query = ip(inner_, udp(1000, 53));
        const Bytes later = inner_ == Family::v4
                                ? ipv4({.fragment_offset = 9}, udp(1000, 53))
                                : ipv6({.extensions = {fragment(9, false)}}, udp(1000, 53));
        const Bytes first = inner_ == Family::v4
                                ? ipv4({.more_fragments = true}, udp(1000, 53))
                                : ipv6({.extensions = {fragment(0, true)}}, udp(1000, 53));
        add("A10_Ports",
            {{{ethernet(query), one_hop_on(query)},
              {ethernet(ip(inner_, udp(1000, 54))), R::no_policy},
              {ethernet(ip(inner_, tcp(1000, 53))), R::no_policy},
              {ethernet(first), one_hop_on(first)},
              {ethernet(later), R::fragment_without_ports},
              {ethernet(ip(inner_, raw(17, repeated(3, 0)))), R::fragment_without_ports}}})
            .policies = {dns};
        if (inner_ == Family::v4) return;
        // A later fragment that begins inside extension headers does not show its protocol: an
        // entry that asks for one must not be passed over in favour of the next.
        const Bytes hidden =
            ipv6({.extensions = {fragment(9, false), destination_options()}}, udp(1000, 53));
        SpdEntry discard_udp = discard;
        discard_udp.protocol = 17;
        add("A10_HiddenProtocol", {one(ethernet(hidden), R::fragment_without_ports)}).policies = {
            discard_udp, protect_};
        add("A10_HiddenProtocolOfNoConcern", {one(ethernet(hidden), one_hop_on(hidden))});
    }

    void add_sequences() {
        const Step good{ethernet(packet_), one_hop_on(packet_)};
        const auto dropped = [&](R reason) { return Step{ethernet(packet_), reason}; };
        auto* row = &add("B2_D1_EndOf32Bits", {{good, good, dropped(R::sequence_exhausted)},
                                               {dropped(R::sequence_exhausted)}});
        row->sa->sequence_next = 0xfffffffe;
        row = &add("B2_D1_EndOfExtended", {{good, good, dropped(R::sequence_exhausted)}});
        row->sa->esn = true;
        row->sa->sequence_next = ~uint64_t{0} - 2;
        row = &add("B4_EsnCarry", {{good, good, good}});
        row->sa->esn = true;
        row->sa->sequence_next = 0x5fffffffe;
        row = &add("D1_Unreserved", {{good, good, dropped(R::sequence_unreserved)},
                                     {dropped(R::sequence_unreserved)}});
        row->sa->sequence_next = 10;
        row->sa->sequence_reserved = 12;
        row = &add("D1_NothingReserved", {{dropped(R::sequence_unreserved)}});
        row->sa->sequence_reserved = 1;
        // A low-water mark beyond the reservation must not open it.
        row = &add("D1_LowWaterBeyondReserved", {{good, dropped(R::sequence_unreserved)}});
        row->sa->sequence_reserved = 2;
        row->sa->sequence_low_water = 100;
        row = &add("B2_LowWaterAndReservedBeyondTheEnd", {{good, dropped(R::sequence_exhausted)}});
        row->sa->sequence_next = 0xffffffff;
        row->sa->sequence_reserved = uint64_t{1} << 40;
        row->sa->sequence_low_water = uint64_t{1} << 40;
        // What is dropped uses no number.
        add("D1_DropsSpendNoNumber",
            {{{ethernet(ip(inner_, udp(1, 2), 0, 1)), R::ttl_exceeded},
              good,
              {head(ethernet(packet_), 40), inner_ == Family::v4 ? R::malformed_ip : R::truncated},
              good}});
    }

    void add_hops() {
        for (const uint8_t ttl : std::initializer_list<uint8_t>{2, 3, 128, 255}) {
            add_good("A11_HopFromPort" + std::to_string(ttl), ip(inner_, udp(1, 2), 0, ttl));
        }
        for (const uint8_t ttl : std::initializer_list<uint8_t>{0, 1}) {
            add("A11_NoHopFromPort" + std::to_string(ttl),
                {one(ethernet(ip(inner_, udp(1, 2), 0, ttl)), R::ttl_exceeded)});
        }
        // The kernel has counted its hop already, or is the source.
        for (const uint8_t ttl : std::initializer_list<uint8_t>{1, 2, 64, 255}) {
            const Bytes packet = ip(inner_, udp(1, 2), 0, ttl);
            add("A11_KernelHop" + std::to_string(ttl), {one(ethernet(packet), packet)}).source =
                OutboundSource::kernel;
        }
        add("A11_KernelHop0", {one(ethernet(ip(inner_, udp(1, 2), 0, 0)), R::ttl_exceeded)})
            .source = OutboundSource::kernel;
        // By its Ethernet destination, whatever it holds.
        Bytes multicast = ethernet(packet_);
        multicast[0] |= std::byte{1};
        add("KernelMulticast", {one(multicast, R::kernel_multicast)}).source =
            OutboundSource::kernel;
    }

    void add_sizes() {
        // Outer header, SPI and sequence, IV, text on its 4-byte boundary, ICV.
        const size_t headers = (inner_ == Family::v4 ? 20u : 40u) + 8;
        const size_t outer_bytes = sa_.outer == Family::v4 ? 20 : 40;
        const size_t text_bytes = (1500 - outer_bytes - 16 - 16) / 4 * 4;
        const Bytes fits = ip(inner_, udp(1, 2, text_bytes - 2 - headers));
        const Bytes larger = ip(inner_, udp(1, 2, text_bytes - 2 - headers + 1));
        add("A8_MtuExactly",
            {{{ethernet(fits), one_hop_on(fits)}, {ethernet(larger), R::too_big}}});
        // A jumbo MTU and a packet that leaves no room for trailer and ICV in its buffer.
        const size_t room = kFrameDataBytesMax - 14;
        const Bytes last = ip(inner_, udp(1, 2, (room - 16) / 4 * 4 - 2 - headers));
        const Bytes beyond = ip(inner_, udp(1, 2, (room - 16) / 4 * 4 - 2 - headers + 1));
        auto& row = add("A8_BufferExactly",
                        {{{ethernet(last), one_hop_on(last)}, {ethernet(beyond), R::too_big}}});
        row.sa->mtu = 9000;
    }

    Family inner_;
    std::string suffix_;
    TestSa sa_;
    Bytes packet_;
    SpdEntry protect_;
};

std::vector<OutboundRow> outbound_rows() {
    std::vector<OutboundRow> all;
    for (const Family inner : kFamilies) {
        for (const Family outer : kFamilies) {
            for (auto& row : Rows(inner, outer).rows) all.push_back(std::move(row));
        }
    }
    return all;
}

class Outbound : public ::testing::TestWithParam<OutboundRow> {};

TEST_P(Outbound, Row) {
    check_row(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Table, Outbound, ::testing::ValuesIn(outbound_rows()),
                         row_name<OutboundRow>);

// One packet through an SA; the outer header it gets.
Bytes outer_header_for(const TestSa& sa, const Bytes& packet) {
    TunnelWorld world;
    world.add_outbound(sa);
    world.set_policies(
        {protect_entry(Family::v4, sa.policy), protect_entry(Family::v6, sa.policy)});
    const auto outcomes = world.run_outbound({ethernet(packet)});
    EXPECT_TRUE(outcomes[0].delivered);
    Opened opened;
    if (outcomes[0].delivered) open_frame(sa, 0, *outcomes[0].delivered, opened);
    return opened.outer_header;
}

TEST(ConformanceA7, DontFragment) {
    struct Case {
        DfPolicy policy;
        bool inner_df, outer_df;
    };
    for (const Case& c : {Case{DfPolicy::copy, false, false},
                          {DfPolicy::copy, true, true},
                          {DfPolicy::set, false, true},
                          {DfPolicy::set, true, true},
                          {DfPolicy::clear, false, false},
                          {DfPolicy::clear, true, false}}) {
        TestSa sa;
        sa.df = c.policy;
        const Bytes outer = outer_header_for(sa, ipv4({.dont_fragment = c.inner_df}, udp(1, 2)));
        EXPECT_EQ(get16(outer, 6), c.outer_df ? 0x4000 : 0);
    }
    // An IPv6 packet is never to be fragmented on the way, which is what DF says.
    TestSa sa;
    EXPECT_EQ(get16(outer_header_for(sa, ip(Family::v6, udp(1, 2))), 6), 0x4000);
    // A fragment inside makes no fragment outside.
    EXPECT_EQ(
        get16(outer_header_for(sa, ipv4({.more_fragments = true, .fragment_offset = 5}, udp(1, 2))),
              6),
        0);
}

TEST(ConformanceA11, OuterTtlAndTrafficClass) {
    for (const Family inner : kFamilies) {
        for (const Family outer : kFamilies) {
            for (const uint8_t ttl : std::initializer_list<uint8_t>{1, 64, 255}) {
                for (const bool copy_dscp : {true, false}) {
                    for (unsigned field = 0; field <= 255; field += 1) {
                        TestSa sa;
                        sa.outer = outer;
                        sa.outer_ttl = ttl;
                        sa.copy_dscp = copy_dscp;
                        if (field > 8 && field % 29 != 0 && ttl != 64) continue;
                        const auto dscp_ecn = static_cast<uint8_t>(field);
                        const Bytes header =
                            outer_header_for(sa, ip(inner, udp(1, 2), dscp_ecn, 9));
                        // RFC 6040 4.1: ECN is always copied; DSCP as configured.
                        const unsigned expected = copy_dscp ? field : field & 3;
                        if (outer == Family::v4) {
                            ASSERT_EQ(get8(header, 1), expected);
                            ASSERT_EQ(get8(header, 8), ttl);
                        } else {
                            ASSERT_EQ(get32(header, 0) >> 20 & 0xff, expected);
                            ASSERT_EQ(get8(header, 7), ttl);
                        }
                    }
                }
            }
        }
    }
}

TEST(ConformanceA11, FlowLabel) {
    TestSa sa;
    sa.outer = Family::v6;
    for (const uint32_t label : {0u, 1u, 0x12345u, 0xfffffu}) {
        const Bytes header = outer_header_for(sa, ipv6({.flow_label = label}, udp(1, 2)));
        EXPECT_EQ(get32(header, 0) & 0xfffff, label);
    }
    EXPECT_EQ(get32(outer_header_for(sa, ip(Family::v4, udp(1, 2))), 0), 0x60000000u);
}

// Both checksums that the pipeline computes, over random headers: the outer one from its template,
// the inner one after the hop.
TEST(ConformanceA11, ChecksumsOfRandomHeaders) {
    std::mt19937 random(5);
    const auto next = [&] { return static_cast<uint32_t>(random()); };
    for (int round = 0; round < 200; ++round) {
        TestSa sa;
        sa.source = to_string(IpAddress{
            .family = Family::v4,
            .bytes = {1, static_cast<uint8_t>(next()), 255, static_cast<uint8_t>(next())}});
        sa.outer_ttl = static_cast<uint8_t>(next() % 255 + 1);
        sa.df = static_cast<DfPolicy>(next() % 3);
        TunnelWorld world;
        world.add_outbound(sa).outer_id = static_cast<uint16_t>(next());
        world.set_policies({{.policy = PolicyId{1},
                             .action = SpdAction::protect,
                             .source = prefix("0.0.0.0/0"),
                             .destination = prefix("0.0.0.0/0")}});
        std::vector<Bytes> frames;
        for (uint32_t i = 0; i < kBurstMax; ++i) {
            Bytes packet = ipv4({.options = repeated(next() % 11 * 4, 1)},
                                raw(static_cast<uint8_t>(next()), repeated(next() % 40, 3)));
            put8(packet, 1, static_cast<uint8_t>(next()));
            put16(packet, 4, static_cast<uint16_t>(next()));
            put16(packet, 6, next() % 2 == 0 ? 0x4000 : 0);
            put8(packet, 8, static_cast<uint8_t>(next() % 254 + 2));
            put32(packet, 12, next());
            put32(packet, 16, next());
            repair_ipv4_checksum(packet);
            frames.push_back(ethernet(packet));
        }
        const auto outcomes = world.run_outbound(frames);
        for (size_t i = 0; i < frames.size(); ++i) {
            ASSERT_TRUE(outcomes[i].delivered);
            Opened opened;
            open_frame(sa, 0, *outcomes[i].delivered, opened);
            const Bytes packet(frames[i].begin() + 14, frames[i].end());
            ASSERT_EQ(to_hex(opened.packet), to_hex(one_hop_on(packet)));
        }
    }
}

// IPv4 identification moves on, so that what a later hop fragments can be put together.
TEST(Outbound_Identification, Counts) {
    TestSa sa;
    TunnelWorld world;
    world.add_outbound(sa).outer_id = 0xfffe;
    world.set_policies({protect_entry(Family::v4, 1)});
    const Bytes frame = ethernet(ip(Family::v4, udp(1, 2)));
    const auto outcomes = world.run_outbound({frame, frame, frame});
    EXPECT_EQ(get16(*outcomes[0].delivered, 18), 0xfffe);
    EXPECT_EQ(get16(*outcomes[1].delivered, 18), 0xffff);
    EXPECT_EQ(get16(*outcomes[2].delivered, 18), 0);
}

// The rule that GCM stands on: in one SA no IV comes twice, and no number beyond what is reserved
// is used, whatever mix of good packets, drops and reservations there is.
TEST(ConformanceD1, NoIvTwiceAndNoneUnreserved) {
    std::mt19937 random(9);
    for (const uint64_t mask : {uint64_t{0}, uint64_t{0xdeadbeefcafef00d}}) {
        TestSa sa;
        sa.iv_mask = mask;
        sa.sequence_next = 1000;
        sa.sequence_reserved = 1000;
        TunnelWorld world;
        OutboundSa& outbound = world.add_outbound(sa);
        world.set_policies({protect_entry(Family::v4, 1)});
        std::set<uint64_t> used;
        for (int round = 0; round < 400; ++round) {
            if (random() % 3 == 0) {
                const uint64_t reserved = outbound.sequence_reserved + random() % 150;
                // Sometimes with a low-water mark that makes no sense.
                const uint64_t low_water = reserved + random() % 50 - 25;
                outbound.reserve(reserved, low_water);
            }
            std::vector<Bytes> frames;
            const size_t count = 1 + random() % kBurstMax;
            for (size_t i = 0; i < count; ++i) {
                frames.push_back(ethernet(random() % 4 == 0 ? ip(Family::v4, udp(1, 2), 0, 1)
                                                            : ip(Family::v4, udp(1, 2))));
            }
            for (const auto& outcome : world.run_outbound(frames)) {
                if (!outcome.delivered) continue;
                Opened opened;
                open_frame(sa, 0, *outcome.delivered, opened);
                ASSERT_TRUE(used.insert(opened.iv).second) << "IV used twice";
                ASSERT_GE(opened.sequence_low, 1000u);
                ASSERT_LT(opened.sequence_low, outbound.sequence_reserved);
            }
        }
        EXPECT_GT(used.size(), 5000u);
    }
}

TEST(ConformanceB2, LowWaterIsReportedOnceAndTheEndEachTime) {
    TestSa sa;
    sa.id = 9;
    sa.sequence_next = 0xfffffffd;
    sa.sequence_low_water = 0xfffffffe;
    TunnelWorld world;
    world.add_outbound(sa);
    world.set_policies({protect_entry(Family::v4, 1)});
    const Bytes frame = ethernet(ip(Family::v4, udp(1, 2)));
    world.run_outbound({frame});
    EXPECT_TRUE(world.events.events.empty());
    world.run_outbound({frame, frame});
    ASSERT_EQ(world.events.events.size(), 1u);
    const auto& low = std::get<event::SequenceLow>(world.events.events[0]);
    EXPECT_EQ(to_index(low.id), 9u);
    EXPECT_EQ(low.next, 0xfffffffeu);
    world.run_outbound({frame, frame});
    ASSERT_EQ(world.events.events.size(), 3u);
    // RFC 4303 section 4: overflow is on record with SPI and number.
    const auto& exhausted = std::get<event::SequenceExhausted>(world.events.events[1]);
    EXPECT_EQ(to_index(exhausted.spi), sa.spi);
    EXPECT_EQ(to_index(exhausted.id), 9u);
    EXPECT_EQ(exhausted.next, uint64_t{1} << 32);
    EXPECT_TRUE(std::holds_alternative<event::SequenceExhausted>(world.events.events[2]));
}

// A packet of each kind, cut at every length: nothing comes out, nothing beyond is read.
TEST(OutboundSweep, EveryTruncation) {
    for (const Bytes& packet :
         {ip(Family::v4, udp(1, 2)), ipv4({.options = repeated(40, 1)}, tcp(1, 2)),
          ip(Family::v6, tcp(1, 2)),
          ipv6({.extensions = {hop_by_hop(1), routing(), fragment(0, true)}}, udp(1, 2))}) {
        TunnelWorld world;
        TestSa sa;
        world.add_outbound(sa);
        world.set_policies({protect_entry(Family::v4, 1), protect_entry(Family::v6, 1)});
        const Bytes frame = ethernet(packet);
        for (size_t cut = 0; cut < frame.size(); ++cut) {
            const auto outcomes =
                world.run_outbound({head(frame, cut)}, OutboundSource::port, true);
            ASSERT_FALSE(outcomes[0].delivered) << cut;
        }
        EXPECT_TRUE(world.run_outbound({frame})[0].delivered);
    }
}

}  // namespace
}  // namespace sallyport::test
