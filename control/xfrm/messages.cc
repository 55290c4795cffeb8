// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/messages.h"

#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "control/xfrm/wire.h"
#include "dataplane/base/byte_order.h"

namespace sallyport::xfrm {

const uint16_t kMessageState = XFRM_MSG_NEWSA;
const uint16_t kMessagePolicy = XFRM_MSG_NEWPOLICY;

namespace {

using namespace wire;

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
    body.family = linux_family(state.id.destination.family);
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

RequestBuffer encode_state_id(uint16_t type, uint16_t flags, const StateId& id, uint32_t sequence) {
    xfrm_usersa_id body{};
    body.daddr = linux_address(id.destination);
    body.spi = Be32(to_index(id.spi)).raw();
    body.family = linux_family(id.destination.family);
    body.proto = IPPROTO_ESP;
    Writer writer(type, flags, sequence);
    writer.put(body);
    return writer.take();
}

xfrm_selector linux_selector(const PolicySelector& selector) {
    xfrm_selector out{};
    out.family = linux_family(selector.source.address.family);
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
    return out;
}

}  // namespace

std::string to_text(Spi spi) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", to_index(spi));
    return text;
}

std::byte* RequestBuffer::extend(size_t count) {
    // A bound that encode functions cannot reach: the largest state is below 1 KiB.
    if (count > kCapacity - size_) std::abort();
    std::byte* out = bytes_.data() + size_;
    size_ += count;
    return out;
}

RequestBuffer encode_new_state(const NewState& state, StateAttributes attributes,
                               uint32_t sequence) {
    Writer writer(XFRM_MSG_NEWSA, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence);
    writer.put(state_body(state));
    xfrm_algo_aead algorithm{};
    constexpr char kName[] = "rfc4106(gcm(aes))";
    std::memcpy(algorithm.alg_name, kName, sizeof kName);
    algorithm.alg_key_len = static_cast<unsigned>(state.key.size() * 8);
    algorithm.alg_icv_len = 128;
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

RequestBuffer encode_get_state(const StateId& id, uint32_t sequence) {
    return encode_state_id(XFRM_MSG_GETSA, NLM_F_ACK, id, sequence);
}

RequestBuffer encode_delete_state(const StateId& id, uint32_t sequence) {
    return encode_state_id(XFRM_MSG_DELSA, NLM_F_ACK, id, sequence);
}

RequestBuffer encode_dump_states(uint32_t sequence) {
    return Writer(XFRM_MSG_GETSA, NLM_F_DUMP, sequence).take();
}

std::expected<StateInfo, std::string> decode_state(std::span<const std::byte> payload) {
    const auto body = peek<xfrm_usersa_info>(payload);
    if (!body) return std::unexpected("a state is shorter than its fixed part");
    const auto family = from_linux_family(body->family);
    if (!family) return std::unexpected("a state has an unknown address family");
    StateInfo info;
    info.id.spi = Spi{Be32::from_raw(body->id.spi).host()};
    info.id.destination = from_linux_address(body->id.daddr, *family);
    info.source = from_linux_address(body->saddr, *family);
    info.protocol = body->id.proto;
    info.reqid = body->reqid;
    const bool whole = for_each_attribute(payload.subspan(sizeof(xfrm_usersa_info)),
                                          [&](uint16_t type, std::span<const std::byte> value) {
                                              if (type == kAttributeSaPcpu)
                                                  info.pcpu = peek<uint32_t>(value);
                                              if (type == kAttributeSaDirection)
                                                  info.direction = peek<uint8_t>(value);
                                          });
    if (!whole) return std::unexpected("an attribute of a state is longer than the message");
    return info;
}

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

std::expected<PolicyInfo, std::string> decode_policy(std::span<const std::byte> payload) {
    const auto body = peek<xfrm_userpolicy_info>(payload);
    if (!body) return std::unexpected("a policy is shorter than its fixed part");
    PolicyInfo info;
    info.row.index = body->index;
    if (body->dir >= XFRM_POLICY_MAX) {
        info.per_socket = true;
        return info;
    }
    const auto selector = from_linux_selector(body->sel);
    if (!selector) return std::unexpected(selector.error());
    info.row.selector = *selector;
    info.row.direction = static_cast<PolicyDirection>(body->dir);
    info.row.action = body->action == XFRM_POLICY_BLOCK ? PolicyAction::block : PolicyAction::allow;
    info.row.priority = body->priority;
    info.row.icmp_errors = (body->flags & XFRM_POLICY_ICMP) != 0;
    return info;
}

std::expected<std::optional<Message>, std::string> next_message(std::span<const std::byte>& rest) {
    if (rest.empty()) return std::nullopt;
    const auto header = peek<nlmsghdr>(rest);
    if (!header || header->nlmsg_len < sizeof(nlmsghdr) || header->nlmsg_len > rest.size()) {
        return std::unexpected("a netlink message is longer than what was received");
    }
    Message message{
        .type = header->nlmsg_type,
        .flags = header->nlmsg_flags,
        .sequence = header->nlmsg_seq,
        .port = header->nlmsg_pid,
        .payload = rest.subspan(sizeof(nlmsghdr), header->nlmsg_len - sizeof(nlmsghdr))};
    rest = rest.subspan(std::min(align4(header->nlmsg_len), rest.size()));
    return message;
}

void sign_request(RequestBuffer& request, uint32_t port) {
    std::memcpy(request.data() + offsetof(nlmsghdr, nlmsg_pid), &port, sizeof port);
}

int decode_dump_end(std::span<const std::byte> payload) {
    const auto error = peek<int32_t>(payload);
    if (!error || *error >= 0) return 0;
    return *error >= -4095 ? -*error : EPROTO;
}

std::expected<Acknowledgement, std::string> decode_acknowledgement(const Message& message) {
    const auto body = peek<nlmsgerr>(message.payload);
    if (!body) return std::unexpected("a netlink acknowledgement is too short");
    Acknowledgement out;
    out.number = body->error <= 0 && body->error >= -4095 ? -body->error : EPROTO;
    if ((message.flags & NLM_F_ACK_TLVS) == 0) return out;
    // Behind the error stands our request, whole unless capped, then the kernel's attributes.
    size_t offset = sizeof(nlmsgerr);
    if ((message.flags & NLM_F_CAPPED) == 0) {
        if (body->msg.nlmsg_len < sizeof(nlmsghdr)) return out;
        offset += align4(body->msg.nlmsg_len - sizeof(nlmsghdr));
    }
    if (offset > message.payload.size()) {
        return std::unexpected("a netlink acknowledgement quotes more than it holds");
    }
    const bool whole = for_each_attribute(message.payload.subspan(offset),
                                          [&](uint16_t type, std::span<const std::byte> value) {
                                              if (type != NLMSGERR_ATTR_MSG) return;
                                              for (const std::byte b : value) {
                                                  if (b == std::byte{0}) break;
                                                  const auto c = static_cast<char>(b);
                                                  out.text += c >= ' ' && c <= '~' ? c : '?';
                                              }
                                          });
    if (!whole) return std::unexpected("an attribute of an acknowledgement is too long");
    return out;
}

}  // namespace sallyport::xfrm
