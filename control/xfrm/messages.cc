// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/messages.h"

#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>

#include "dataplane/base/byte_order.h"

namespace sallyport::xfrm {

using netlink::Attributes;
using netlink::behind;
using netlink::Bytes;
using netlink::family_of;
using netlink::number_of;
using netlink::peek;
using netlink::read;
using netlink::Writer;

const uint16_t kMessageState = XFRM_MSG_NEWSA;
const uint16_t kMessagePolicy = XFRM_MSG_NEWPOLICY;
const uint16_t kMessageDeleteState = XFRM_MSG_DELSA;
const uint16_t kMessageUpdateState = XFRM_MSG_UPDSA;
const uint16_t kMessageExpire = XFRM_MSG_EXPIRE;
const uint16_t kMessageFlushStates = XFRM_MSG_FLUSHSA;
const uint16_t kMessageDeletePolicy = XFRM_MSG_DELPOLICY;
const uint16_t kMessageUpdatePolicy = XFRM_MSG_UPDPOLICY;
const uint16_t kMessagePolicyExpire = XFRM_MSG_POLEXPIRE;
const uint16_t kMessageFlushPolicies = XFRM_MSG_FLUSHPOLICY;
const uint16_t kMessageAcquire = XFRM_MSG_ACQUIRE;
const uint16_t kMessageMapping = XFRM_MSG_MAPPING;
const uint16_t kMessageMigrate = XFRM_MSG_MIGRATE;
const uint16_t kMessageNewEvent = XFRM_MSG_NEWAE;

namespace {

using Error = std::unexpected<std::string>;

// Newer than the kernel headers of the oldest distribution we build on.
inline constexpr uint16_t kAttributeSaDirection = 33;  // XFRMA_SA_DIR, u8: 1 in, 2 out
inline constexpr uint16_t kAttributeSaPcpu = 35;       // XFRMA_SA_PCPU, u32

inline constexpr uint8_t kDirectionIn = 1;
inline constexpr uint8_t kDirectionOut = 2;

constexpr uint32_t kBitmapWordsMax = XFRMA_REPLAY_ESN_MAX / 32;
constexpr uint64_t kSequenceMax32 = 0xffffffff;

Error cut_off(const char* what) {
    return Error(std::string(what) + " is cut off");
}
Error malformed_attribute(const char* what) {
    return Error(std::string("an attribute of ") + what + " is cut off");
}

// ---- values of the kernel's headers -------------------------------------------------------------

xfrm_address_t linux_address(const IpAddress& address) {
    xfrm_address_t out{};
    std::memcpy(&out, address.bytes.data(), address.bit_count() / 8);
    return out;
}

IpAddress from_linux_address(const xfrm_address_t& address, Family family) {
    IpAddress out;
    out.family = family;
    std::memcpy(out.bytes.data(), &address, out.bit_count() / 8);
    return out;
}

// The kernel does not mind bits behind a prefix's length; IpPrefix has none.
IpPrefix from_linux_prefix(const xfrm_address_t& address, uint8_t bits, Family family) {
    IpPrefix out{.address = from_linux_address(address, family), .bits = bits};
    for (unsigned bit = bits; bit < out.address.bit_count(); ++bit) {
        uint8_t& byte = out.address.bytes[bit / 8];
        byte = static_cast<uint8_t>(byte & ~(0x80u >> (bit % 8)));
    }
    return out;
}

std::expected<PolicySelector, std::string> from_linux_selector(const xfrm_selector& from) {
    const auto family = family_of(from.family);
    if (!family) return Error("a policy has an unknown address family");
    const unsigned bits = IpAddress{.family = *family}.bit_count();
    if (from.prefixlen_s > bits || from.prefixlen_d > bits) {
        return Error("a policy has a prefix longer than its addresses");
    }
    return PolicySelector{.source = from_linux_prefix(from.saddr, from.prefixlen_s, *family),
                          .destination = from_linux_prefix(from.daddr, from.prefixlen_d, *family),
                          .protocol = from.proto,
                          .source_port = Be16::from_raw(from.sport).host(),
                          .source_port_mask = Be16::from_raw(from.sport_mask).host(),
                          .destination_port = Be16::from_raw(from.dport).host(),
                          .destination_port_mask = Be16::from_raw(from.dport_mask).host(),
                          .ifindex = static_cast<uint32_t>(from.ifindex),
                          .user = from.user};
}

xfrm_selector linux_selector(const PolicySelector& selector) {
    xfrm_selector out{};
    out.family = number_of(selector.source.address.family);
    out.saddr = linux_address(selector.source.address);
    out.prefixlen_s = selector.source.bits;
    out.daddr = linux_address(selector.destination.address);
    out.prefixlen_d = selector.destination.bits;
    out.proto = selector.protocol;
    out.sport = Be16(selector.source_port).raw();
    out.sport_mask = Be16(selector.source_port_mask).raw();
    out.dport = Be16(selector.destination_port).raw();
    out.dport_mask = Be16(selector.destination_port_mask).raw();
    out.ifindex = static_cast<int>(selector.ifindex);
    out.user = selector.user;
    return out;
}

uint64_t join(uint32_t high, uint32_t low) {
    return uint64_t{high} << 32 | low;
}

Mark from_linux(const xfrm_mark& mark) {
    return {.value = mark.v, .mask = mark.m};
}

Limits from_linux(const xfrm_lifetime_cfg& limits) {
    return {.soft_bytes = limits.soft_byte_limit,
            .hard_bytes = limits.hard_byte_limit,
            .soft_packets = limits.soft_packet_limit,
            .hard_packets = limits.hard_packet_limit,
            .soft_add_s = limits.soft_add_expires_seconds,
            .hard_add_s = limits.hard_add_expires_seconds,
            .soft_use_s = limits.soft_use_expires_seconds,
            .hard_use_s = limits.hard_use_expires_seconds};
}

Usage from_linux(const xfrm_lifetime_cur& usage) {
    return {.bytes = usage.bytes,
            .packets = usage.packets,
            .add_time = usage.add_time,
            .use_time = usage.use_time};
}

Mode from_linux_mode(uint8_t mode) {
    if (mode == XFRM_MODE_TRANSPORT) return Mode::transport;
    return mode == XFRM_MODE_TUNNEL ? Mode::tunnel : Mode::other;
}

SaName name_of(const xfrm_address_t& destination, __be32 spi, uint8_t protocol, Family family) {
    return {.spi = Spi{Be32::from_raw(spi).host()},
            .destination = from_linux_address(destination, family),
            .protocol = protocol};
}

// ---- algorithms ------------------------------------------------------------------------------

struct Algorithm {
    std::string name;
    uint32_t bits = 0;  // ICV, where the structure tells
    Bytes key;
    [[nodiscard]] bool hidden() const {
        return !key.empty() &&
               std::ranges::all_of(key, [](std::byte b) { return b == std::byte{}; });
    }
};

// xfrm_algo, xfrm_algo_auth and xfrm_algo_aead differ in what stands between length and key.
template <typename T>
std::optional<Algorithm> read_algorithm(Bytes bytes) {
    T head{};
    if (!read(bytes, head)) return std::nullopt;
    const size_t key_bytes = (size_t{head.alg_key_len} + 7) / 8;
    if (key_bytes > bytes.size() - sizeof(T)) return std::nullopt;
    Algorithm out;
    for (const char c : head.alg_name) {
        if (c == '\0') break;
        out.name += c >= ' ' && c <= '~' ? c : '?';  // it is shown to the operator
    }
    out.key = bytes.subspan(sizeof(T), key_bytes);
    if constexpr (requires { head.alg_icv_len; }) out.bits = head.alg_icv_len;
    if constexpr (requires { head.alg_trunc_len; }) out.bits = head.alg_trunc_len;
    return out;
}

bool read_algorithms(const Attributes& attributes, KernelSa& sa) {
    if (attributes.has(XFRMA_ALG_AEAD)) {
        const auto aead = read_algorithm<xfrm_algo_aead>(attributes.value(XFRMA_ALG_AEAD));
        if (!aead) return false;
        sa.aead = true;
        sa.algorithm = aead->name;
        sa.icv_bits = aead->bits;
        sa.keys_hidden = aead->hidden();
        if (!sa.keys_hidden) sa.key = SecretBytes(aead->key);
        return true;
    }
    const auto add = [&sa](const std::optional<Algorithm>& algorithm) {
        if (!algorithm) return false;
        sa.algorithm += (sa.algorithm.empty() ? "" : " + ") + algorithm->name;
        sa.keys_hidden |= algorithm->hidden();
        if (algorithm->bits != 0) sa.icv_bits = algorithm->bits;
        return true;
    };
    if (attributes.has(XFRMA_ALG_CRYPT) &&
        !add(read_algorithm<xfrm_algo>(attributes.value(XFRMA_ALG_CRYPT)))) {
        return false;
    }
    // The kernel shows integrity in both forms; the newer one has the length of the ICV.
    if (attributes.has(XFRMA_ALG_AUTH_TRUNC)) {
        if (!add(read_algorithm<xfrm_algo_auth>(attributes.value(XFRMA_ALG_AUTH_TRUNC)))) {
            return false;
        }
    } else if (attributes.has(XFRMA_ALG_AUTH)) {
        if (!add(read_algorithm<xfrm_algo>(attributes.value(XFRMA_ALG_AUTH)))) return false;
    }
    return !attributes.has(XFRMA_ALG_COMP) ||
           add(read_algorithm<xfrm_algo>(attributes.value(XFRMA_ALG_COMP)));
}

// ---- replay state ----------------------------------------------------------------------------

// False: malformed. Without either attribute `out` stays empty.
bool read_replay(const Attributes& attributes, std::optional<Replay>& out) {
    if (attributes.has(XFRMA_REPLAY_ESN_VAL)) {
        const Bytes bytes = attributes.value(XFRMA_REPLAY_ESN_VAL);
        xfrm_replay_state_esn head{};
        if (!read(bytes, head) || head.bmp_len > kBitmapWordsMax ||
            bytes.size() < sizeof head + size_t{head.bmp_len} * 4) {
            return false;
        }
        out = Replay{.esn_form = true,
                     .bitmap_words = head.bmp_len,
                     .window = head.replay_window,
                     .sent = join(head.oseq_hi, head.oseq),
                     .top = join(head.seq_hi, head.seq)};
        return true;
    }
    return attributes.with<xfrm_replay_state>(
        XFRMA_REPLAY_VAL, [&out](const xfrm_replay_state& value) {
            out = Replay{.sent = value.oseq, .top = value.seq};
        });
}

// ---- states ----------------------------------------------------------------------------------

std::expected<KernelSa, std::string> read_state(const xfrm_usersa_info& body,
                                                const Attributes& attributes) {
    const auto family = family_of(body.family);
    if (!family) return Error("a state has an unknown address family");
    KernelSa sa;
    sa.name = name_of(body.id.daddr, body.id.spi, body.id.proto, *family);
    sa.source = from_linux_address(body.saddr, *family);
    sa.reqid = body.reqid;
    sa.family = *family;
    sa.mode = from_linux_mode(body.mode);
    sa.flags = body.flags;
    sa.esn = (body.flags & XFRM_STATE_ESN) != 0;
    sa.has_selector = body.sel.prefixlen_s != 0 || body.sel.prefixlen_d != 0 ||
                      body.sel.proto != 0 || body.sel.sport_mask != 0 || body.sel.dport_mask != 0 ||
                      body.sel.ifindex != 0;
    sa.limits = from_linux(body.lft);
    sa.usage = from_linux(body.curlft);
    sa.encapsulated = attributes.has(XFRMA_ENCAP);
    sa.offloaded = attributes.has(XFRMA_OFFLOAD_DEV);
    sa.has_security_context = attributes.has(XFRMA_SEC_CTX);
    sa.has_care_of_address = attributes.has(XFRMA_COADDR);
    // The kernel does not say so, but only a state that waits for its keys has no algorithm.
    sa.larval = (sa.name.protocol == kProtocolEsp || sa.name.protocol == kProtocolAh) &&
                !attributes.has(XFRMA_ALG_AEAD) && !attributes.has(XFRMA_ALG_CRYPT) &&
                !attributes.has(XFRMA_ALG_AUTH) && !attributes.has(XFRMA_ALG_AUTH_TRUNC);

    std::optional<Replay> replay;
    uint8_t direction = 0;
    const bool whole =
        read_algorithms(attributes, sa) && read_replay(attributes, replay) &&
        attributes.with<xfrm_mark>(
            XFRMA_MARK, [&](const xfrm_mark& mark) { sa.name.mark = from_linux(mark); }) &&
        attributes.number(XFRMA_SET_MARK, sa.output_mark.value) &&
        attributes.number(XFRMA_SET_MARK_MASK, sa.output_mark.mask) &&
        attributes.number(XFRMA_IF_ID, sa.if_id) && attributes.number(XFRMA_TFCPAD, sa.tfc_pad) &&
        attributes.number(XFRMA_SA_EXTRA_FLAGS, sa.extra_flags) &&
        attributes.number(XFRMA_LASTUSED, sa.last_used) &&
        attributes.number(kAttributeSaDirection, direction) &&
        attributes.with<uint32_t>(kAttributeSaPcpu, [&](uint32_t cpu) { sa.pcpu = cpu; });
    if (!whole) return malformed_attribute("a state");
    if (direction == kDirectionIn) sa.direction = StateDirection::inbound;
    if (direction == kDirectionOut) sa.direction = StateDirection::outbound;
    if (replay) sa.replay = *replay;
    if (!sa.replay.esn_form) sa.replay.window = body.replay_window;
    if (!sa.esn) {
        sa.replay.sent &= kSequenceMax32;
        sa.replay.top &= kSequenceMax32;
    }
    return sa;
}

// ---- policies --------------------------------------------------------------------------------

bool read_templates(Bytes bytes, Family family, std::vector<Template>& out) {
    const size_t count = bytes.size() / sizeof(xfrm_user_tmpl);
    constexpr size_t kTemplatesMax = 6;  // XFRM_MAX_DEPTH
    if (count > kTemplatesMax || bytes.size() % sizeof(xfrm_user_tmpl) != 0) return false;
    for (size_t i = 0; i < count; ++i) {
        const auto from = *peek<xfrm_user_tmpl>(bytes.subspan(i * sizeof(xfrm_user_tmpl)));
        // Old programs leave the family out: then it is the policy's.
        const auto own = from.family == AF_UNSPEC ? family : family_of(from.family);
        if (!own) return false;
        out.push_back({.source = from_linux_address(from.saddr, *own),
                       .destination = from_linux_address(from.id.daddr, *own),
                       .spi = Spi{Be32::from_raw(from.id.spi).host()},
                       .protocol = from.id.proto,
                       .mode = from_linux_mode(from.mode),
                       .reqid = from.reqid,
                       .optional = from.optional != 0});
    }
    return true;
}

std::expected<KernelPolicy, std::string> read_policy(const xfrm_userpolicy_info& body,
                                                     const Attributes& attributes) {
    const auto selector = from_linux_selector(body.sel);
    if (!selector) return Error(selector.error());
    if (body.dir >= XFRM_POLICY_MAX) return Error("a policy has an unknown direction");
    KernelPolicy policy;
    policy.row = {
        .selector = *selector,
        .direction = static_cast<PolicyDirection>(body.dir),
        .action = body.action == XFRM_POLICY_ALLOW ? PolicyAction::allow : PolicyAction::block,
        .priority = body.priority,
        .index = body.index,
        .icmp_errors = (body.flags & XFRM_POLICY_ICMP) != 0};
    policy.selector_ifindex = static_cast<uint32_t>(body.sel.ifindex);
    policy.offloaded = attributes.has(XFRMA_OFFLOAD_DEV);
    policy.has_security_context = attributes.has(XFRMA_SEC_CTX);
    const bool whole =
        attributes.number(XFRMA_IF_ID, policy.if_id) &&
        attributes.with<xfrm_mark>(
            XFRMA_MARK, [&](const xfrm_mark& mark) { policy.mark = from_linux(mark); }) &&
        attributes.with<xfrm_userpolicy_type>(XFRMA_POLICY_TYPE,
                                              [&](const xfrm_userpolicy_type& type) {
                                                  policy.main_type =
                                                      type.type == XFRM_POLICY_TYPE_MAIN;
                                              }) &&
        read_templates(attributes.value(XFRMA_TMPL), selector->source.address.family,
                       policy.templates);
    if (!whole) return malformed_attribute("a policy");
    return policy;
}

// ---- requests -----------------------------------------------------------------------------------

xfrm_usersa_id linux_id(const SaName& name, Family family) {
    xfrm_usersa_id id{};
    id.daddr = linux_address(name.destination);
    id.spi = Be32(to_index(name.spi)).raw();
    id.family = number_of(family);
    id.proto = name.protocol;
    return id;
}

void put_mark(Writer& writer, const Mark& mark) {
    if (mark == Mark{}) return;
    writer.attribute(XFRMA_MARK, xfrm_mark{.v = mark.value, .m = mark.mask});
}

void put_replay(Writer& writer, const KernelSa& state, const Replay& replay) {
    const uint64_t most = state.esn ? ~uint64_t{0} : kSequenceMax32;
    const uint64_t sent = std::min(replay.sent, most);
    const uint64_t top = std::min(replay.top, most);
    if (!state.replay.esn_form) {
        writer.attribute(XFRMA_REPLAY_VAL, xfrm_replay_state{.oseq = static_cast<uint32_t>(sent),
                                                             .seq = static_cast<uint32_t>(top),
                                                             .bitmap = ~uint32_t{0}});
        return;
    }
    xfrm_replay_state_esn out{};
    out.bmp_len = std::min(state.replay.bitmap_words, kBitmapWordsMax);
    out.oseq = static_cast<uint32_t>(sent);
    out.oseq_hi = static_cast<uint32_t>(sent >> 32);
    out.seq = static_cast<uint32_t>(top);
    out.seq_hi = static_cast<uint32_t>(top >> 32);
    out.replay_window = state.replay.window;
    std::array<std::byte, kBitmapWordsMax * 4> bitmap;
    bitmap.fill(std::byte{0xff});
    writer.attribute(XFRMA_REPLAY_ESN_VAL, out, std::span(bitmap).first(size_t{out.bmp_len} * 4));
}

xfrm_usersa_info state_body(const NewState& state) {
    xfrm_usersa_info body{};
    body.sel.family = AF_UNSPEC;  // a tunnel carries both families, whatever its own
    body.id.daddr = linux_address(state.id.destination);
    body.id.spi = Be32(to_index(state.id.spi)).raw();
    body.id.proto = IPPROTO_ESP;
    body.saddr = linux_address(state.source);
    body.lft.soft_byte_limit = XFRM_INF;
    body.lft.hard_byte_limit = XFRM_INF;
    body.lft.soft_packet_limit = XFRM_INF;
    body.lft.hard_packet_limit = XFRM_INF;
    body.reqid = state.reqid;
    body.family = number_of(state.id.destination.family);
    body.mode = XFRM_MODE_TUNNEL;
    body.flags = XFRM_STATE_AF_UNSPEC;
    if (state.esn) body.flags |= XFRM_STATE_ESN;
    return body;
}

void put_direction_and_cpu(Writer& writer, const NewState& state, StateAttributes attributes) {
    if (attributes == StateAttributes::none) return;
    writer.attribute(kAttributeSaDirection,
                     state.direction == StateDirection::inbound ? kDirectionIn : kDirectionOut);
    if (attributes == StateAttributes::all && state.pcpu) {
        writer.attribute(kAttributeSaPcpu, *state.pcpu);
    }
}

// Replay state of a new SA. The kernel wants the bitmap's length to fit the window, and kernels
// that do not know directions want a window on outbound SAs too.
void put_replay_state(Writer& writer, const NewState& state) {
    xfrm_replay_state_esn replay{};
    if (state.direction == StateDirection::inbound) {
        replay.replay_window = state.esn ? std::max(state.replay_window, 32u) : state.replay_window;
    } else {
        replay.oseq = 0xffffffff;
        replay.oseq_hi = state.esn ? 0xffffffff : 0;
        replay.replay_window = 32;
    }
    if (replay.replay_window == 0 && state.direction == StateDirection::inbound) return;
    replay.bmp_len = (replay.replay_window + 31) / 32;
    constexpr std::array<std::byte, 4096 / 8> kEmptyBitmap{};
    writer.attribute(XFRMA_REPLAY_ESN_VAL, replay,
                     std::span(kEmptyBitmap).first(std::min<size_t>(replay.bmp_len, 128) * 4));
}

}  // namespace

std::string to_text(Spi spi) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", to_index(spi));
    return text;
}

// ---- states that we make ------------------------------------------------------------------------

RequestBuffer encode_new_state(const NewState& state, StateAttributes attributes,
                               uint32_t sequence) {
    Writer writer(XFRM_MSG_NEWSA, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence);
    writer.put(state_body(state));
    xfrm_algo_aead algorithm{};
    const std::string_view name = state.suite->kernel.aead;
    // The end is a zero byte, as it is in all of alg_name.
    name.copy(algorithm.alg_name, sizeof algorithm.alg_name - 1);
    algorithm.alg_key_len = static_cast<unsigned>(state.key.size() * 8);
    algorithm.alg_icv_len = state.suite->icv_bits();
    writer.attribute(XFRMA_ALG_AEAD, algorithm, state.key);
    put_replay_state(writer, state);
    // Since Linux 6.17 (and 6.12 with its updates) a state with the direction "out" may not have
    // its numbers used up, so an outbound one has no direction.
    put_direction_and_cpu(
        writer, state,
        state.direction == StateDirection::outbound ? StateAttributes::none : attributes);
    return writer.take();
}

RequestBuffer encode_allocate_spi(const NewState& state, StateAttributes attributes,
                                  uint32_t sequence) {
    Writer writer(XFRM_MSG_ALLOCSPI, NLM_F_ACK, sequence);
    xfrm_userspi_info body{};
    body.info = state_body(state);
    body.info.flags = 0;
    body.min = to_index(state.id.spi);
    body.max = to_index(state.id.spi);
    writer.put(body);
    put_direction_and_cpu(writer, state, attributes);
    return writer.take();
}

RequestBuffer encode_delete_state(const StateId& id, uint32_t sequence) {
    Writer writer(XFRM_MSG_DELSA, NLM_F_ACK, sequence);
    writer.put(linux_id({.spi = id.spi, .destination = id.destination}, id.destination.family));
    return writer.take();
}

// ---- states of the register ---------------------------------------------------------------------

RequestBuffer encode_dump_states(uint32_t sequence) {
    return Writer(XFRM_MSG_GETSA, NLM_F_DUMP, sequence).take();
}

RequestBuffer encode_get_sa(const SaName& name, uint32_t sequence) {
    Writer writer(XFRM_MSG_GETSA, NLM_F_ACK, sequence);
    writer.put(linux_id(name, name.destination.family));
    put_mark(writer, name.mark);
    return writer.take();
}

RequestBuffer encode_counters(const KernelSa& state, const CounterUpdate& update,
                              uint32_t sequence) {
    Writer writer(XFRM_MSG_NEWAE, NLM_F_ACK | NLM_F_REPLACE, sequence);
    xfrm_aevent_id body{};
    body.sa_id = linux_id(state.name, state.family);
    body.saddr = linux_address(state.source);
    body.reqid = state.reqid;
    writer.put(body);
    put_mark(writer, state.name.mark);
    const auto or_known = [](uint64_t time, uint64_t known) { return time != 0 ? time : known; };
    if (update.usage) {
        writer.attribute(
            XFRMA_LTIME_VAL,
            xfrm_lifetime_cur{.bytes = update.usage->bytes,
                              .packets = update.usage->packets,
                              .add_time = or_known(update.usage->add_time, state.usage.add_time),
                              .use_time = or_known(update.usage->use_time, state.usage.use_time)});
    }
    if (update.replay) put_replay(writer, state, *update.replay);
    return writer.take();
}

// The kernel makes a whole state of it, takes the limits over into the one that it has and throws
// the rest away, so that all must be right, but nothing of it comes into force.
RequestBuffer encode_limits(const KernelSa& state, const Limits& limits, uint32_t sequence) {
    Writer writer(XFRM_MSG_UPDSA, NLM_F_ACK | NLM_F_REPLACE, sequence);
    xfrm_usersa_info body{};
    body.sel.family = AF_UNSPEC;
    body.id.daddr = linux_address(state.name.destination);
    body.id.spi = Be32(to_index(state.name.spi)).raw();
    body.id.proto = state.name.protocol;
    body.saddr = linux_address(state.source);
    body.lft = {.soft_byte_limit = limits.soft_bytes,
                .hard_byte_limit = limits.hard_bytes,
                .soft_packet_limit = limits.soft_packets,
                .hard_packet_limit = limits.hard_packets,
                .soft_add_expires_seconds = limits.soft_add_s,
                .hard_add_expires_seconds = limits.hard_add_s,
                .soft_use_expires_seconds = limits.soft_use_s,
                .hard_use_expires_seconds = limits.hard_use_s};
    body.reqid = state.reqid;
    body.family = number_of(state.family);
    body.mode = static_cast<uint8_t>(state.mode);
    body.flags = state.flags | XFRM_STATE_AF_UNSPEC;
    if (!state.replay.esn_form) body.replay_window = static_cast<uint8_t>(state.replay.window);
    writer.put(body);
    put_mark(writer, state.name.mark);
    xfrm_algo_aead algorithm{};
    state.algorithm.copy(algorithm.alg_name, sizeof algorithm.alg_name - 1);
    algorithm.alg_key_len = static_cast<unsigned>(state.key.size() * 8);
    algorithm.alg_icv_len = state.icv_bits;
    writer.attribute(XFRMA_ALG_AEAD, algorithm, state.key.bytes());
    if (state.replay.esn_form) {
        const xfrm_replay_state_esn empty{.bmp_len = state.replay.bitmap_words,
                                          .replay_window = state.replay.window};
        constexpr std::array<std::byte, kBitmapWordsMax * 4> kEmpty{};
        writer.attribute(
            XFRMA_REPLAY_ESN_VAL, empty,
            std::span(kEmpty).first(size_t{std::min(empty.bmp_len, kBitmapWordsMax)} * 4));
    }
    if (state.extra_flags != 0) writer.attribute(XFRMA_SA_EXTRA_FLAGS, state.extra_flags);
    if (state.if_id != 0) writer.attribute(XFRMA_IF_ID, state.if_id);
    if (state.direction) {
        writer.attribute(kAttributeSaDirection, *state.direction == StateDirection::inbound
                                                    ? kDirectionIn
                                                    : kDirectionOut);
    }
    if (state.pcpu) writer.attribute(kAttributeSaPcpu, *state.pcpu);
    return writer.take();
}

RequestBuffer encode_expire(const KernelSa& state, bool hard, uint32_t sequence) {
    Writer writer(XFRM_MSG_EXPIRE, NLM_F_ACK, sequence);
    xfrm_user_expire body{};
    body.state.id.daddr = linux_address(state.name.destination);
    body.state.id.spi = Be32(to_index(state.name.spi)).raw();
    body.state.id.proto = state.name.protocol;
    body.state.saddr = linux_address(state.source);
    body.state.reqid = state.reqid;
    body.state.family = number_of(state.family);
    body.hard = hard ? 1 : 0;
    writer.put(body);
    put_mark(writer, state.name.mark);
    return writer.take();
}

std::expected<KernelSa, std::string> decode_kernel_sa(Bytes payload) {
    const auto body = peek<xfrm_usersa_info>(payload);
    if (!body) return cut_off("a state");
    Attributes attributes;
    if (!attributes.parse(behind<xfrm_usersa_info>(payload))) return malformed_attribute("a state");
    return read_state(*body, attributes);
}

std::expected<Deletion, std::string> decode_deleted_sa(Bytes payload) {
    const auto body = peek<xfrm_usersa_id>(payload);
    if (!body) return cut_off("a deletion");
    const auto family = family_of(body->family);
    if (!family) return Error("a deletion has an unknown address family");
    Attributes attributes;
    Deletion out{.name = name_of(body->daddr, body->spi, body->proto, *family),
                 .last = std::nullopt};
    if (!attributes.parse(behind<xfrm_usersa_id>(payload)) ||
        !attributes.with<xfrm_mark>(
            XFRMA_MARK, [&](const xfrm_mark& mark) { out.name.mark = from_linux(mark); })) {
        return malformed_attribute("a deletion");
    }
    // What stands behind the fixed part of a state stands beside it here.
    const auto state = peek<xfrm_usersa_info>(attributes.value(XFRMA_SA));
    if (!state) return out;
    auto last = read_state(*state, attributes);
    if (last && last->name == out.name) out.last = std::move(*last);
    return out;
}

std::expected<Expiry, std::string> decode_expire(Bytes payload) {
    const auto body = peek<xfrm_user_expire>(payload);
    if (!body) return cut_off("an expiry");
    const auto family = family_of(body->state.family);
    if (!family) return Error("an expiry has an unknown address family");
    Attributes attributes;
    Expiry out{
        .name = name_of(body->state.id.daddr, body->state.id.spi, body->state.id.proto, *family),
        .reqid = body->state.reqid,
        .hard = body->hard != 0};
    if (!attributes.parse(behind<xfrm_user_expire>(payload)) ||
        !attributes.with<xfrm_mark>(
            XFRMA_MARK, [&](const xfrm_mark& mark) { out.name.mark = from_linux(mark); })) {
        return malformed_attribute("an expiry");
    }
    return out;
}

std::expected<CounterEvent, std::string> decode_counter_event(Bytes payload) {
    const auto body = peek<xfrm_aevent_id>(payload);
    if (!body) return cut_off("a counter event");
    const auto family = family_of(body->sa_id.family);
    if (!family) return Error("a counter event has an unknown address family");
    Attributes attributes;
    CounterEvent out{
        .name = name_of(body->sa_id.daddr, body->sa_id.spi, body->sa_id.proto, *family),
        .reqid = body->reqid,
        .by_program = (body->flags & XFRM_AE_CU) != 0};
    if (!attributes.parse(behind<xfrm_aevent_id>(payload)) ||
        !read_replay(attributes, out.replay) ||
        !attributes.with<xfrm_lifetime_cur>(
            XFRMA_LTIME_VAL,
            [&](const xfrm_lifetime_cur& usage) { out.usage = from_linux(usage); }) ||
        !attributes.with<xfrm_mark>(
            XFRMA_MARK, [&](const xfrm_mark& mark) { out.name.mark = from_linux(mark); })) {
        return malformed_attribute("a counter event");
    }
    return out;
}

std::expected<uint8_t, std::string> decode_flush_states(Bytes payload) {
    const auto body = peek<xfrm_usersa_flush>(payload);
    if (!body) return cut_off("a flush of states");
    return body->proto;
}

// ---- policies -----------------------------------------------------------------------------------

RequestBuffer encode_update_policy(const PolicyRow& row, uint32_t sequence) {
    xfrm_userpolicy_info body{};
    body.sel = linux_selector(row.selector);
    body.lft.soft_byte_limit = XFRM_INF;
    body.lft.hard_byte_limit = XFRM_INF;
    body.lft.soft_packet_limit = XFRM_INF;
    body.lft.hard_packet_limit = XFRM_INF;
    body.priority = row.priority;
    body.index = row.index;
    body.dir = static_cast<uint8_t>(row.direction);
    body.action = row.action == PolicyAction::block ? XFRM_POLICY_BLOCK : XFRM_POLICY_ALLOW;
    if (row.icmp_errors) body.flags |= XFRM_POLICY_ICMP;
    Writer writer(XFRM_MSG_UPDPOLICY, NLM_F_ACK, sequence);
    writer.put(body);
    return writer.take();
}

RequestBuffer encode_delete_policy(uint32_t index, uint32_t sequence) {
    xfrm_userpolicy_id body{};
    body.index = index;
    body.dir = static_cast<uint8_t>(index & 7);
    Writer writer(XFRM_MSG_DELPOLICY, NLM_F_ACK, sequence);
    writer.put(body);
    return writer.take();
}

RequestBuffer encode_dump_policies(uint32_t sequence) {
    return Writer(XFRM_MSG_GETPOLICY, NLM_F_DUMP, sequence).take();
}

std::expected<std::optional<KernelPolicy>, std::string> decode_kernel_policy(Bytes payload) {
    const auto body = peek<xfrm_userpolicy_info>(payload);
    if (!body) return cut_off("a policy");
    if (body->dir >= XFRM_POLICY_MAX) return std::nullopt;
    Attributes attributes;
    if (!attributes.parse(behind<xfrm_userpolicy_info>(payload))) {
        return malformed_attribute("a policy");
    }
    return read_policy(*body, attributes);
}

std::expected<uint32_t, std::string> decode_deleted_policy(Bytes payload) {
    const auto body = peek<xfrm_userpolicy_id>(payload);
    if (!body) return cut_off("a deletion");
    Attributes attributes;
    if (!attributes.parse(behind<xfrm_userpolicy_id>(payload))) {
        return malformed_attribute("a deletion");
    }
    // Deleted by selector: the index stands only in the policy that goes with the message.
    uint32_t index = body->index;
    if (!attributes.with<xfrm_userpolicy_info>(
            XFRMA_POLICY, [&](const xfrm_userpolicy_info& policy) { index = policy.index; })) {
        return malformed_attribute("a deletion");
    }
    if (index == 0) return Error("a deletion does not say which policy");
    return index;
}

std::expected<PolicyExpiry, std::string> decode_policy_expire(Bytes payload) {
    const auto body = peek<xfrm_user_polexpire>(payload);
    if (!body) return cut_off("an expiry");
    return PolicyExpiry{.index = body->pol.index, .hard = body->hard != 0};
}

std::expected<bool, std::string> decode_flush_policies(Bytes payload) {
    Attributes attributes;
    bool main_type = true;  // kernels without sub policies say nothing
    if (!attributes.parse(payload) || !attributes.with<xfrm_userpolicy_type>(
                                          XFRMA_POLICY_TYPE, [&](const xfrm_userpolicy_type& type) {
                                              main_type = type.type == XFRM_POLICY_TYPE_MAIN;
                                          })) {
        return malformed_attribute("a flush of policies");
    }
    return main_type;
}

std::expected<AcquireMessage, std::string> decode_acquire(Bytes payload) {
    const auto body = peek<xfrm_user_acquire>(payload);
    if (!body) return cut_off("an acquire");
    Attributes attributes;
    if (!attributes.parse(behind<xfrm_user_acquire>(payload))) {
        return malformed_attribute("an acquire");
    }
    auto policy = read_policy(body->policy, attributes);
    if (!policy) return Error(policy.error());
    AcquireMessage out;
    // The message does not name the family of the tunnel, its template does.
    const Family family = policy->templates.empty() ? policy->row.selector.source.address.family
                                                    : policy->templates.front().destination.family;
    out.source = from_linux_address(body->saddr, family);
    out.destination = from_linux_address(body->id.daddr, family);
    out.policy = std::move(*policy);
    return out;
}

}  // namespace sallyport::xfrm
