// SPDX-License-Identifier: Apache-2.0
//
// NETLINK_XFRM messages without a kernel: layouts, round trips, every truncation.

#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "control/xfrm/guard.h"
#include "control/xfrm/messages.h"

namespace sallyport::xfrm {
namespace {

using netlink::next_message;

IpAddress address(const char* text) {
    return *parse_ip_address(text);
}
IpPrefix prefix(const char* text) {
    return *parse_ip_prefix(text);
}

std::vector<std::byte> copy(const RequestBuffer& request) {
    return {request.bytes().begin(), request.bytes().end()};
}

Message only_message(std::span<const std::byte> bytes) {
    const auto message = next_message(bytes);
    EXPECT_TRUE(message && *message);
    EXPECT_TRUE(bytes.empty());
    return **message;
}

NewState example_state(std::span<const std::byte> key) {
    return {.id = {Spi{0x12345678}, address("2001:db8::2")},
            .source = address("2001:db8::1"),
            .reqid = 0x53500007,
            .direction = StateDirection::inbound,
            .suite = crypto::find_suite("aes-gcm-16-256"),
            .key = key,
            .esn = true,
            .replay_window = 4096,
            .pcpu = 3};
}

TEST(XfrmMessages, NewStateComesBackAsItWasSaid) {
    const std::vector<std::byte> key(36, std::byte{0x5a});
    const NewState state = example_state(key);
    const RequestBuffer request = encode_new_state(state, StateAttributes::all, 9);
    const Message message = only_message(request.bytes());
    EXPECT_EQ(message.type, kMessageState);
    EXPECT_EQ(message.sequence, 9u);
    EXPECT_EQ(message.flags, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);

    const auto info = decode_kernel_sa(message.payload);
    ASSERT_TRUE(info) << info.error();
    EXPECT_EQ(info->name, (SaName{.spi = state.id.spi, .destination = state.id.destination}));
    EXPECT_EQ(info->source, state.source);
    EXPECT_EQ(info->reqid, state.reqid);
    EXPECT_EQ(info->pcpu, 3u);
    EXPECT_EQ(info->direction, StateDirection::inbound);
}

TEST(XfrmMessages, OlderKernelsGetFewerAttributes) {
    const std::vector<std::byte> key(20, std::byte{1});
    const auto decoded = [&](StateAttributes attributes) {
        const RequestBuffer request = encode_new_state(example_state(key), attributes, 1);
        return std::move(*decode_kernel_sa(only_message(request.bytes()).payload));
    };
    EXPECT_EQ(decoded(StateAttributes::direction_only).direction, StateDirection::inbound);
    EXPECT_FALSE(decoded(StateAttributes::direction_only).pcpu);
    EXPECT_FALSE(decoded(StateAttributes::none).direction);
    EXPECT_FALSE(decoded(StateAttributes::none).pcpu);
}

// Value of the attribute `type` behind a body of `body_bytes`.
template <typename T>
T attribute(std::span<const std::byte> payload, size_t body_bytes, uint16_t type) {
    for (size_t at = body_bytes; at + sizeof(nlattr) <= payload.size();) {
        nlattr header;
        std::memcpy(&header, payload.data() + at, sizeof header);
        if (header.nla_type == type) {
            T value;
            std::memcpy(&value, payload.data() + at + sizeof header, sizeof value);
            return value;
        }
        at += (header.nla_len + 3u) & ~3u;
    }
    ADD_FAILURE() << "no attribute " << type;
    return {};
}

TEST(XfrmMessages, OutboundStateHasItsSequenceNumbersUsedUp) {
    const std::vector<std::byte> key(20, std::byte{1});
    NewState state = example_state(key);
    state.direction = StateDirection::outbound;
    for (const bool esn : {false, true}) {
        state.esn = esn;
        for (const auto attributes : {StateAttributes::all, StateAttributes::none}) {
            const RequestBuffer request = encode_new_state(state, attributes, 1);
            const auto replay =
                attribute<xfrm_replay_state_esn>(only_message(request.bytes()).payload,
                                                 sizeof(xfrm_usersa_info), XFRMA_REPLAY_ESN_VAL);
            EXPECT_EQ(replay.oseq, 0xffffffff);
            EXPECT_EQ(replay.oseq_hi, esn ? 0xffffffff : 0u);
            // Without a direction, which newer kernels do not take with such numbers, a window is
            // always right.
            EXPECT_EQ(replay.replay_window, 32u);
            EXPECT_EQ(replay.bmp_len, 1u);
            const auto info = decode_kernel_sa(only_message(request.bytes()).payload);
            ASSERT_TRUE(info);
            EXPECT_FALSE(info->direction);
            EXPECT_FALSE(info->pcpu);
        }
    }
}

TEST(XfrmMessages, ReplayBitmapFitsEveryWindow) {
    const std::vector<std::byte> key(20, std::byte{1});
    NewState state = example_state(key);
    state.esn = false;
    for (uint32_t window = 32; window <= 4096; ++window) {
        state.replay_window = window;
        const RequestBuffer request = encode_new_state(state, StateAttributes::all, 1);
        const auto replay = attribute<xfrm_replay_state_esn>(
            only_message(request.bytes()).payload, sizeof(xfrm_usersa_info), XFRMA_REPLAY_ESN_VAL);
        ASSERT_EQ(replay.replay_window, window);
        ASSERT_EQ(replay.bmp_len, (window + 31) / 32);
    }
}

TEST(XfrmMessages, AllocateSpiCarriesNoKey) {
    const std::vector<std::byte> key(20, std::byte{0x77});
    const RequestBuffer request = encode_allocate_spi(example_state(key), StateAttributes::all, 1);
    const auto bytes = copy(request);
    EXPECT_EQ(std::ranges::search(bytes, std::vector<std::byte>(4, std::byte{0x77})).size(), 0u);
    xfrm_userspi_info body;
    ASSERT_GE(bytes.size(), sizeof(nlmsghdr) + sizeof body);
    std::memcpy(&body, bytes.data() + sizeof(nlmsghdr), sizeof body);
    EXPECT_EQ(body.min, 0x12345678u);
    EXPECT_EQ(body.max, 0x12345678u);
}

TEST(XfrmMessages, RequestIsWipedWhenCleared) {
    const std::vector<std::byte> key(20, std::byte{0x77});
    RequestBuffer request = encode_new_state(example_state(key), StateAttributes::all, 1);
    const std::byte* memory = request.data();
    const size_t size = request.size();
    request.clear();
    for (size_t i = 0; i < size; ++i) ASSERT_EQ(memory[i], std::byte{0});
}

TEST(XfrmMessages, PolicyRoundTrip) {
    const PolicyRow row{.selector = {.source = prefix("10.1.0.0/16"),
                                     .destination = prefix("10.2.3.0/24"),
                                     .protocol = 6,
                                     .source_port = 1000,
                                     .source_port_mask = 0xfff8,
                                     .destination_port = 443,
                                     .destination_port_mask = 0xffff},
                        .direction = PolicyDirection::forward,
                        .action = PolicyAction::block,
                        .priority = 20001,
                        .index = 0x53000012};
    const RequestBuffer request = encode_update_policy(row, 4);
    const auto policy = decode_kernel_policy(only_message(request.bytes()).payload);
    ASSERT_TRUE(policy) << policy.error();
    ASSERT_TRUE(*policy) << "taken for one of a socket";
    EXPECT_EQ((*policy)->row, row);
}

TEST(XfrmMessages, PolicyForIcmpErrorsCarriesTheFlag) {
    for (const bool icmp_errors : {false, true}) {
        const PolicyRow row{
            .selector = {.source = prefix("fd00:1::/64"), .destination = prefix("fd00:2::/64")},
            .icmp_errors = icmp_errors};
        const RequestBuffer request = encode_update_policy(row, 4);
        const Message message = only_message(request.bytes());
        xfrm_userpolicy_info body{};
        ASSERT_GE(message.payload.size(), sizeof body);
        std::memcpy(&body, message.payload.data(), sizeof body);
        EXPECT_EQ(body.flags, icmp_errors ? XFRM_POLICY_ICMP : 0);
        EXPECT_EQ(decode_kernel_policy(message.payload).value().value().row, row);
    }
}

TEST(XfrmMessages, EveryTruncationIsAnErrorOrShorter) {
    const std::vector<std::byte> key(36, std::byte{0x5a});
    const auto state = copy(encode_new_state(example_state(key), StateAttributes::all, 1));
    const auto payload = std::span(state).subspan(sizeof(nlmsghdr));
    size_t accepted = 0;
    for (size_t bytes = 0; bytes < payload.size(); ++bytes) {
        // Heap memory of exactly this size, so that a sanitizer sees any read behind it.
        const std::vector<std::byte> part(payload.begin(),
                                          payload.begin() + static_cast<ptrdiff_t>(bytes));
        const auto info = decode_kernel_sa(part);
        EXPECT_TRUE(!info || bytes >= sizeof(xfrm_usersa_info));
        accepted += info ? 1u : 0u;
    }
    // Only cuts between attributes are valid messages (the body alone and after each of 4).
    EXPECT_LE(accepted, 12u);
    for (size_t bytes = 1; bytes < state.size(); ++bytes) {
        const std::vector<std::byte> part(state.begin(),
                                          state.begin() + static_cast<ptrdiff_t>(bytes));
        std::span<const std::byte> rest = part;
        EXPECT_FALSE(next_message(rest)) << bytes;
    }
}

// ---- the SPD as xfrm policies ------------------------------------------------------------------

TEST(XfrmPolicyGuard, PortRangesAreCoveredExactly) {
    const auto covers = [](uint16_t lo, uint16_t hi) {
        const auto masks = cover_port_range(lo, hi);
        EXPECT_LE(masks.size(), 30u);
        for (uint32_t port = 0; port <= 0xffff; ++port) {
            size_t matches = 0;
            for (const PortMask& mask : masks) {
                matches += ((port ^ mask.value) & mask.mask) == 0 ? 1u : 0u;
            }
            if (matches != (port >= lo && port <= hi ? 1u : 0u)) return false;
        }
        return true;
    };
    EXPECT_TRUE(covers(0, 65535));
    EXPECT_TRUE(covers(0, 0));
    EXPECT_TRUE(covers(65535, 65535));
    EXPECT_TRUE(covers(1, 65534));
    EXPECT_TRUE(covers(443, 443));
    EXPECT_TRUE(covers(1000, 2000));
    EXPECT_TRUE(covers(32767, 32768));
    EXPECT_EQ(cover_port_range(0, 65535), (std::vector<PortMask>{{0, 0}}));
}

config::Policy policy(const char* name, config::SpdAction action, const char* local,
                      const char* remote) {
    config::Policy out;
    out.name = name;
    out.action = action;
    out.local = {prefix(local)};
    out.remote = {prefix(remote)};
    return out;
}

constexpr size_t kNeighbourRows = 9;  // three masks of types, three directions

TEST(XfrmPolicyGuard, MirrorsTheSpdUpToItsLastProtect) {
    using enum config::SpdAction;
    const std::vector<config::Policy> policies = {
        policy("web", bypass, "10.1.0.0/24", "10.2.0.80/32"),
        policy("branch", protect, "10.1.0.0/24", "10.2.0.0/24"),
        policy("rest", discard, "0.0.0.0/0", "0.0.0.0/0")};
    const auto rows = guard_rows(policies, {});
    ASSERT_TRUE(rows) << rows.error();
    ASSERT_EQ(rows->size(), 6u);
    const auto& web = (*rows)[0];
    EXPECT_EQ(web.direction, PolicyDirection::out);
    EXPECT_EQ(web.action, PolicyAction::allow);
    EXPECT_EQ(web.selector.destination, prefix("10.2.0.80/32"));
    const auto& branch_in = (*rows)[4];
    EXPECT_EQ(branch_in.direction, PolicyDirection::in);
    EXPECT_EQ(branch_in.action, PolicyAction::block);
    EXPECT_EQ(branch_in.selector.source, prefix("10.2.0.0/24"));
    EXPECT_EQ(branch_in.selector.destination, prefix("10.1.0.0/24"));
    EXPECT_LT(web.priority, branch_in.priority);
    EXPECT_EQ((*rows)[5].direction, PolicyDirection::forward);
    for (const PolicyRow& row : *rows) {
        EXPECT_EQ(row.icmp_errors,
                  row.direction == PolicyDirection::out && row.action == PolicyAction::block);
    }
}

TEST(XfrmPolicyGuard, ProtectWithPortsBlocksLaterFragmentsToo) {
    config::Policy web = policy("web", config::SpdAction::protect, "10.1.0.0/24", "10.2.0.0/24");
    web.protocol = 6;
    web.remote_ports = {{443, 443}};
    const auto rows = guard_rows(std::span(&web, 1), {});
    ASSERT_TRUE(rows);
    ASSERT_EQ(rows->size(), 10u);  // four of them about ICMP errors
    const PolicySelector& fragment = (*rows)[3].selector;
    EXPECT_EQ(fragment.source_port_mask, 0xffff);
    EXPECT_EQ(fragment.destination_port_mask, 0xffff);
    EXPECT_EQ(fragment.destination_port, 0);
    const PolicySelector& back = (*rows)[1].selector;  // direction in: ports change places
    EXPECT_EQ(back.source_port, 443);
    EXPECT_EQ(back.destination_port_mask, 0);
}

// Whether the out rows block an ICMP message of this type between the two hosts.
bool blocks_icmp(const std::vector<PolicyRow>& rows, uint8_t protocol, uint16_t type) {
    return std::ranges::any_of(rows, [&](const PolicyRow& row) {
        const PolicySelector& s = row.selector;
        return row.direction == PolicyDirection::out && row.action == PolicyAction::block &&
               (s.protocol == 0 || s.protocol == protocol) &&
               ((type ^ s.source_port) & s.source_port_mask) == 0 && s.destination_port_mask == 0;
    });
}

TEST(XfrmPolicyGuard, ErrorsAboutPacketsOfANarrowPolicyStay) {
    const struct {
        const char* local;
        const char* remote;
        uint8_t icmp;
        std::vector<uint16_t> errors, others;
    } families[] = {
        {"10.1.0.0/24", "10.2.0.0/24", 1, {3, 4, 5, 11, 12}, {0, 8, 9, 10, 13, 14, 15, 17}},
        {"fd00:1::/64", "fd00:2::/64", 58, {1, 2, 3, 4, 100, 127}, {128, 129, 133, 135, 136, 255}},
    };
    for (const auto& f : families) {
        config::Policy narrow = policy("n", config::SpdAction::protect, f.local, f.remote);
        narrow.protocol = 17;
        const auto rows = guard_rows(std::span(&narrow, 1), {});
        ASSERT_TRUE(rows);
        for (const uint16_t type : f.errors) EXPECT_TRUE(blocks_icmp(*rows, f.icmp, type)) << type;
        for (const uint16_t type : f.others) EXPECT_FALSE(blocks_icmp(*rows, f.icmp, type)) << type;
        // What covers ICMP has rows of its own for it; what does not protect has none.
        for (const auto& protocol : {std::optional<uint8_t>{}, std::optional<uint8_t>{f.icmp}}) {
            narrow.protocol = protocol;
            const size_t neighbours = f.icmp == 58 ? kNeighbourRows : 0;
            EXPECT_EQ(guard_rows(std::span(&narrow, 1), {})->size(), 3u + neighbours);
        }
    }
}

TEST(XfrmPolicyGuard, OuterEspOfOurSasPassesAWideProtect) {
    const config::Policy wide = policy("all", config::SpdAction::protect, "0.0.0.0/0", "0.0.0.0/0");
    config::StaticSa sa;
    sa.direction = config::SaDirection::outbound;
    sa.source = address("192.0.2.1");
    sa.destination = address("192.0.2.2");
    const auto rows = guard_rows(std::span(&wide, 1), std::span(&sa, 1));
    ASSERT_TRUE(rows);
    EXPECT_EQ(rows->front().action, PolicyAction::allow);
    EXPECT_EQ(rows->front().selector.protocol, 50);
    EXPECT_EQ(rows->front().selector.source, prefix("192.0.2.1/32"));
    EXPECT_LT(rows->front().priority, rows->back().priority);
}

// What the first row that matches says of an ICMPv6 message of this type.
PolicyAction first_match(const std::vector<PolicyRow>& rows, PolicyDirection direction,
                         uint16_t type) {
    const auto found = std::ranges::find_if(rows, [&](const PolicyRow& row) {
        const PolicySelector& s = row.selector;
        return row.direction == direction && (s.protocol == 0 || s.protocol == 58) &&
               ((type ^ s.source_port) & s.source_port_mask) == 0;
    });
    EXPECT_NE(found, rows.end());
    return found->action;
}

TEST(XfrmPolicyGuard, NeighbourDiscoveryPassesAWideProtectOnTheLinkAlone) {
    const config::Policy wide = policy("all", config::SpdAction::protect, "::/0", "::/0");
    const auto rows = guard_rows(std::span(&wide, 1), {});
    ASSERT_TRUE(rows);
    for (uint16_t type = 0; type < 256; ++type) {
        const auto expected =
            type >= 133 && type <= 136 ? PolicyAction::allow : PolicyAction::block;
        EXPECT_EQ(first_match(*rows, PolicyDirection::out, type), expected) << type;
        EXPECT_EQ(first_match(*rows, PolicyDirection::in, type), expected) << type;
        EXPECT_EQ(first_match(*rows, PolicyDirection::forward, type), PolicyAction::block) << type;
    }
    EXPECT_LT(rows->front().priority, rows->back().priority);
}

TEST(XfrmPolicyGuard, IPv6TowardsTheInterfaceOfAConnectionIsAllowed) {
    config::Policy v4 = policy("v4", config::SpdAction::protect, "10.1.0.0/24", "10.2.0.0/24");
    config::Policy v6 = policy("v6", config::SpdAction::protect, "fd00:1::/64", "fd00:9::/64");
    v4.if_id = 7;
    const std::vector<config::Policy> without = {v4, v6};
    EXPECT_EQ(guard_rows(without, {}, 5)->size(), 6u + kNeighbourRows)
        << "no IPv6 policy has an if_id";
    v6.if_id = 8;
    const std::vector<config::Policy> policies = {v4, v6};
    EXPECT_EQ(guard_rows(policies, {})->size(), 6u + kNeighbourRows) << "there is no interface";
    const auto rows = guard_rows(policies, {}, 5);
    ASSERT_TRUE(rows) << rows.error();
    ASSERT_EQ(rows->size(), 7u + kNeighbourRows);
    const PolicyRow& allow = rows->front();
    EXPECT_EQ(allow.action, PolicyAction::allow);
    EXPECT_EQ(allow.direction, PolicyDirection::out);
    EXPECT_EQ(allow.selector.ifindex, 5u);
    EXPECT_EQ(allow.selector.destination.bits, 0);
    EXPECT_EQ(allow.selector.destination.address.family, Family::v6);
    for (const PolicyRow& row : std::span(*rows).subspan(1 + kNeighbourRows)) {
        EXPECT_EQ(row.action, PolicyAction::block);
        EXPECT_EQ(row.selector.ifindex, 0u);
        EXPECT_GT(row.priority, allow.priority);
    }
}

TEST(XfrmPolicyGuard, TooManyRowsAreRefusedByName) {
    config::Policy huge = policy("huge", config::SpdAction::protect, "10.1.0.0/24", "10.2.0.0/24");
    huge.protocol = 17;
    huge.local_ports = {{1, 65534}};
    huge.remote_ports = {{1, 65534}};
    huge.local.clear();
    for (int i = 0; i < 100; ++i) {
        huge.local.push_back(prefix(("10.1." + std::to_string(i) + ".0/24").c_str()));
    }
    const auto rows = guard_rows(std::span(&huge, 1), {});
    ASSERT_FALSE(rows);
    EXPECT_NE(rows.error().find("'huge'"), std::string::npos);
}

}  // namespace
}  // namespace sallyport::xfrm
