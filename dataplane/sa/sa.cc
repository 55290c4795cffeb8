// SPDX-License-Identifier: Apache-2.0
#include "dataplane/sa/sa.h"

#include <algorithm>
#include <new>

#include "dataplane/base/secret_bytes.h"
#include "dataplane/sa/sa_memory.h"
#include "dataplane/wire/headers.h"

namespace sallyport {
namespace {

constexpr size_t kLine = 64;

// An odd number of lines: SAs that follow one another in memory then spread over all cache sets.
constexpr size_t odd_lines(size_t bytes) {
    const size_t lines = (bytes + kLine - 1) / kLine;
    return (lines | 1) * kLine;
}

struct InboundLayout {
    size_t selectors_at;
    size_t words_at;
    size_t bytes;
};

InboundLayout layout_of(size_t key_block_bytes, uint32_t replay_window, size_t selector_count) {
    InboundLayout layout{};
    layout.selectors_at = sizeof(InboundSa) + key_block_bytes;
    layout.words_at = layout.selectors_at + (selector_count - 1) * sizeof(SelectorMatch);
    layout.words_at = (layout.words_at + 7) & ~size_t{7};
    layout.bytes = odd_lines(layout.words_at + ReplayWindow::word_bytes(replay_window));
    return layout;
}

size_t outbound_bytes(size_t key_block_bytes) {
    return odd_lines(sizeof(OutboundSa) + key_block_bytes);
}

template <typename Parameters>
std::expected<void, std::string> check_common(const Parameters& parameters) {
    if (to_index(parameters.spi) < 256) {
        return std::unexpected("SPIs 0 to 255 are reserved (RFC 4303 2.1)");
    }
    if (parameters.source.family != parameters.destination.family) {
        return std::unexpected("outer source and destination differ in family");
    }
    if (parameters.suite == nullptr) return std::unexpected("an SA needs an algorithm");
    if (parameters.key.size() != parameters.suite->key_material_bytes()) {
        return std::unexpected("the key has not the length its algorithm needs");
    }
    return {};
}

// What an SA has of its suite: form, key block, salt.
template <typename Sa>
void set_suite(Sa& sa, void* memory, const crypto::Aead& aead, const crypto::Suite& suite,
               std::span<const std::byte> key) {
    sa.form = suite.form;
    sa.key_block_bytes = suite.key_block_bytes;
    crypto::expand_key(aead, suite, key.first(suite.key_bytes),
                       static_cast<std::byte*>(memory) + sizeof sa);
    const size_t unused = sizeof sa.salt - suite.form.salt_bytes;
    std::memcpy(reinterpret_cast<std::byte*>(&sa.salt) + unused, key.data() + suite.key_bytes,
                suite.form.salt_bytes);
}

// Everything of the outer header that is the same for each packet of the SA.
void write_outer_template(OutboundSa& sa, const OutboundSaParameters& parameters) {
    if (parameters.source.family == Family::v4) {
        wire::Ipv4 header{};
        header.version_ihl = 0x45;
        header.ttl = parameters.outer_ttl;
        header.protocol = wire::kProtocolEsp;
        std::memcpy(&header.source, parameters.source.bytes.data(), 4);
        std::memcpy(&header.destination, parameters.destination.bytes.data(), 4);
        std::memcpy(sa.outer.data(), &header, sizeof header);
        sa.outer_checksum = wire::sum_words(sa.outer.data(), sizeof header);
        sa.header_bytes = sizeof header;
    } else {
        wire::Ipv6 header{};
        header.version_class_flow = Be32(uint32_t{6} << 28);
        header.next_header = wire::kProtocolEsp;
        header.hop_limit = parameters.outer_ttl;
        std::memcpy(&header.source, parameters.source.bytes.data(), 16);
        std::memcpy(&header.destination, parameters.destination.bytes.data(), 16);
        std::memcpy(sa.outer.data(), &header, sizeof header);
        sa.header_bytes = sizeof header;
    }
}

}  // namespace

void InboundSa::take_over(const InboundSa& before) {
    packets.set(before.packets.read());
    bytes.set(before.bytes.read());
    for (size_t i = 0; i < kDropReasonCount; ++i) drops[i].set(before.drops[i].read());
    replay.take_over(before.replay);
}

SelectorMatch::SelectorMatch(const Selector& selector)
    : family(selector.source.address.family),
      protocol(selector.protocol),
      has_ports(selector.has_ports),
      source_port_lo(selector.source_port_lo),
      source_port_hi(selector.source_port_hi),
      destination_port_lo(selector.destination_port_lo),
      destination_port_hi(selector.destination_port_hi) {
    const size_t width = selector.source.address.bit_count() / 8;
    const auto place = [&](const IpPrefix& prefix, size_t at) {
        std::array<uint8_t, 16> mask_bytes{};
        for (unsigned bit = 0; bit < prefix.bits; ++bit) {
            mask_bytes[bit / 8] |= static_cast<uint8_t>(0x80u >> (bit % 8));
        }
        auto* want_bytes = reinterpret_cast<std::byte*>(want.data());
        auto* mask_at = reinterpret_cast<std::byte*>(mask.data());
        std::memcpy(want_bytes + at, prefix.address.bytes.data(), width);
        std::memcpy(mask_at + at, mask_bytes.data(), width);
    };
    place(selector.source, 0);
    place(selector.destination, width);
}

std::expected<OutboundSaPtr, std::string> make_outbound_sa(const crypto::Aead& aead,
                                                           const OutboundSaParameters& parameters) {
    if (auto checked = check_common(parameters); !checked) {
        return std::unexpected(checked.error());
    }
    if (parameters.sequence_next == 0) {
        return std::unexpected("sequence numbers begin with 1 (RFC 4303 3.3.3)");
    }
    void* memory = sa_memory::allocate(outbound_bytes(parameters.suite->key_block_bytes));
    if (memory == nullptr) return std::unexpected("no memory for another SA");
    OutboundSaPtr sa(new (memory) OutboundSa());
    set_suite(*sa, memory, aead, *parameters.suite, parameters.key);
    sa->sequence_next.set(parameters.sequence_next);
    sa->sequence_end = parameters.esn ? kSequenceEndEsn : kSequenceEnd32;
    sa->reserve(parameters.sequence_reserved, parameters.sequence_low_water);
    sa->iv_mask = parameters.iv_mask;
    sa->rank = parameters.rank;
    sa->spi = Be32(to_index(parameters.spi));
    sa->esn = parameters.esn;
    sa->mtu = parameters.mtu;
    sa->owner = parameters.owner;
    sa->df = parameters.df;
    sa->copy_dscp = parameters.copy_dscp;
    sa->id = parameters.id;
    sa->policy = parameters.policy;
    write_outer_template(*sa, parameters);
    return sa;
}

std::expected<InboundSaPtr, std::string> make_inbound_sa(const crypto::Aead& aead,
                                                         const InboundSaParameters& parameters) {
    if (auto checked = check_common(parameters); !checked) {
        return std::unexpected(checked.error());
    }
    const uint32_t window = parameters.replay_window;
    if (window != 0 && (window < 32 || window > kReplayWindowMax)) {
        return std::unexpected("the replay window is 0 (off) or 32 to 4096 packets");
    }
    if (parameters.selectors.empty() || parameters.selectors.size() > kSelectorsMax) {
        return std::unexpected("an SA has 1 to " + std::to_string(kSelectorsMax) + " selectors");
    }
    const InboundLayout layout =
        layout_of(parameters.suite->key_block_bytes, window, parameters.selectors.size());
    void* memory = sa_memory::allocate(layout.bytes);
    if (memory == nullptr) return std::unexpected("no memory for another SA");
    InboundSaPtr sa(new (memory) InboundSa());
    auto* start = static_cast<std::byte*>(memory);

    set_suite(*sa, memory, aead, *parameters.suite, parameters.key);
    sa->replay.init(new (start + layout.words_at) uint64_t[ReplayWindow::word_count(window)],
                    window, parameters.replay_top);
    sa->spi = Be32(to_index(parameters.spi));
    sa->esn = parameters.esn;
    sa->outer_family = parameters.destination.family;
    sa->outer_destination = parameters.destination;
    sa->outer_source = parameters.source;
    sa->owner = parameters.owner;
    sa->id = parameters.id;
    sa->policy = parameters.policy;
    sa->selector = SelectorMatch(parameters.selectors.front());
    const auto more = parameters.selectors.subspan(1);
    auto* more_selectors = new (start + layout.selectors_at) SelectorMatch[more.size()];
    std::ranges::transform(more, more_selectors,
                           [](const Selector& selector) { return SelectorMatch(selector); });
    sa->more_selectors = more_selectors;
    sa->more_selector_count = static_cast<uint8_t>(more.size());
    return sa;
}

void SaDeleter::operator()(OutboundSa* sa) const {
    const size_t bytes = memory_bytes(*sa);
    wipe(static_cast<void*>(sa), bytes);
    sa_memory::release(sa, bytes);
}

void SaDeleter::operator()(InboundSa* sa) const {
    const size_t bytes = memory_bytes(*sa);
    wipe(static_cast<void*>(sa), bytes);
    sa_memory::release(sa, bytes);
}

size_t memory_bytes(const OutboundSa& sa) {
    return outbound_bytes(sa.key_block_bytes);
}

size_t memory_bytes(const InboundSa& sa) {
    return layout_of(sa.key_block_bytes, sa.replay.window(), sa.more_selector_count + size_t{1})
        .bytes;
}

}  // namespace sallyport
