// SPDX-License-Identifier: Apache-2.0
//
// Requests about the kernel's register of SAs: what is written back has the form that the state
// has, and a full replay window.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "control/xfrm/messages.h"
#include "tests/control/xfrm/builder.h"

namespace sallyport::xfrm {
namespace {

using namespace test;

struct Request {
    nlmsghdr header{};
    Buffer payload;
};

Request open_request(const RequestBuffer& request) {
    Request out;
    EXPECT_GE(request.size(), sizeof out.header);
    std::memcpy(&out.header, request.bytes().data(), sizeof out.header);
    EXPECT_EQ(out.header.nlmsg_len, request.size());
    out.payload.assign(request.bytes().begin() + sizeof(nlmsghdr), request.bytes().end());
    return out;
}

// Value of the attribute `type` behind a body of `body_bytes`; nullopt if there is none.
std::optional<Buffer> attribute(const Buffer& payload, size_t body_bytes, uint16_t type) {
    for (size_t at = body_bytes; at + sizeof(nlattr) <= payload.size();) {
        nlattr header;
        std::memcpy(&header, payload.data() + at, sizeof header);
        const auto begin = payload.begin() + static_cast<ptrdiff_t>(at + sizeof header);
        if (header.nla_type == type) {
            return Buffer(begin, begin + (header.nla_len - static_cast<int>(sizeof header)));
        }
        at += (header.nla_len + 3u) & ~3u;
    }
    return std::nullopt;
}

template <typename T>
T value_of(const std::optional<Buffer>& bytes) {
    T out{};
    EXPECT_TRUE(bytes && bytes->size() >= sizeof out);
    if (bytes && bytes->size() >= sizeof out) std::memcpy(&out, bytes->data(), sizeof out);
    return out;
}

KernelSa state_of(const Payload& payload) {
    auto sa = decode_kernel_sa(payload.bytes());
    EXPECT_TRUE(sa);
    return std::move(*sa);
}

TEST(XfrmRegisterRequests, CountersHaveTheFormOfTheState) {
    constexpr uint64_t kHigh = uint64_t{3} << 32;
    struct Row {
        bool esn;
        bool esn_form;
        uint32_t words;
        uint32_t window;
        uint64_t sent, top;            // asked for
        uint64_t sent_said, top_said;  // written
    };
    for (const Row& row :
         std::initializer_list<Row>{{false, false, 0, 32, 7, 0, 7, 0},
                                    {false, false, 0, 32, 0, 9, 0, 9},
                                    {false, false, 0, 32, kHigh, kHigh + 5, 0xffffffff, 0xffffffff},
                                    {false, true, 1, 32, 7, 9, 7, 9},
                                    {false, true, 0, 0, 7, 0, 7, 0},
                                    {false, true, 0, 0, kHigh + 1, 0, 0xffffffff, 0},
                                    {true, true, 0, 0, kHigh + 1, 0, kHigh + 1, 0},
                                    {true, true, 2, 64, 0, kHigh + 2, 0, kHigh + 2},
                                    {true, true, 128, 4096, ~uint64_t{0}, 1, ~uint64_t{0}, 1}}) {
        xfrm_usersa_info body = state_body(0x1001);
        if (row.esn) body.flags = XFRM_STATE_ESN;
        body.replay_window = row.esn_form ? 0 : 32;
        Payload payload(body);
        payload.add(XFRMA_ALG_AEAD, aead(1));
        if (row.esn_form) {
            payload.add(XFRMA_REPLAY_ESN_VAL,
                        esn_replay({.words = row.words, .window = row.window}));
        } else {
            payload.add(XFRMA_REPLAY_VAL, xfrm_replay_state{});
        }
        const Request request = open_request(encode_counters(
            state_of(payload), {.replay = Replay{.sent = row.sent, .top = row.top}}, 5));
        EXPECT_EQ(request.header.nlmsg_type, kMessageNewEvent);
        EXPECT_EQ(request.header.nlmsg_flags, NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE);
        EXPECT_EQ(request.header.nlmsg_seq, 5u);

        const auto event = decode_counter_event(request.payload);
        ASSERT_TRUE(event) << event.error();
        EXPECT_EQ(event->name, name(0x1001));
        ASSERT_TRUE(event->replay);
        EXPECT_EQ(event->replay->esn_form, row.esn_form);
        EXPECT_EQ(event->replay->sent, row.sent_said);
        EXPECT_EQ(event->replay->top, row.top_said);
        EXPECT_EQ(event->replay->bitmap_words, row.words);
        if (!row.esn_form) {
            const auto legacy = value_of<xfrm_replay_state>(
                attribute(request.payload, sizeof(xfrm_aevent_id), XFRMA_REPLAY_VAL));
            EXPECT_EQ(legacy.bitmap, 0xffffffff);
            continue;
        }
        EXPECT_EQ(event->replay->window, row.window);
        // The kernel refuses any other length than that of its own replay state.
        const auto replay =
            attribute(request.payload, sizeof(xfrm_aevent_id), XFRMA_REPLAY_ESN_VAL);
        ASSERT_TRUE(replay);
        ASSERT_EQ(replay->size(), 24 + row.words * size_t{4});
        EXPECT_TRUE(std::all_of(replay->begin() + 24, replay->end(),
                                [](std::byte b) { return b == std::byte{0xff}; }));
    }
}

TEST(XfrmRegisterRequests, CountersKeepTimesThatAreNotGiven) {
    xfrm_usersa_info body = state_body(1, "2001:db8::2", "2001:db8::1");
    body.curlft = {.bytes = 1, .packets = 2, .add_time = 1000, .use_time = 2000};
    const KernelSa state = state_of(
        Payload(body).add(XFRMA_ALG_AEAD, aead(1)).add(XFRMA_MARK, xfrm_mark{.v = 3, .m = 4}));
    const auto said = [&](const Usage& usage) {
        return decode_counter_event(
            open_request(encode_counters(state, {.usage = usage}, 1)).payload);
    };
    EXPECT_EQ(said({50, 60, 0, 0})->usage, (Usage{50, 60, 1000, 2000}));
    EXPECT_EQ(said({50, 60, 7, 8})->usage, (Usage{50, 60, 7, 8}));
    EXPECT_FALSE(said({50, 60, 7, 8})->replay) << "a number that is not said is not put down";
    EXPECT_EQ(said({})->name, name(1, "2001:db8::2", {3, 4}));
    EXPECT_EQ(said({})->reqid, 7u);
}

TEST(XfrmRegisterRequests, ExpireNamesTheState) {
    const KernelSa state =
        state_of(full_state(0x99, 1, "2001:db8::2").add(XFRMA_MARK, xfrm_mark{.v = 3, .m = 4}));
    for (const bool hard : {false, true}) {
        const Request request = open_request(encode_expire(state, hard, 8));
        EXPECT_EQ(request.header.nlmsg_type, kMessageExpire);
        const auto expire = decode_expire(request.payload);
        ASSERT_TRUE(expire) << expire.error();
        EXPECT_EQ(expire->name, state.name);
        EXPECT_EQ(expire->reqid, 7u);
        EXPECT_EQ(expire->hard, hard);
    }
}

// A whole state, as it would be read again, but for the limits and what it has counted.
TEST(XfrmRegisterRequests, LimitsComeWithAllOfTheState) {
    for (const char* form : {"esn", "plain"}) {
        SCOPED_TRACE(form);
        KernelSa state;
        state.name.spi = Spi{0x1001};
        state.name.destination.bytes = {192, 0, 2, 1};
        state.name.mark = {.value = 1, .mask = 0xff};
        state.source.bytes = {192, 0, 2, 9};
        state.reqid = 7;
        state.esn = form[0] == 'e';
        state.flags = state.esn ? XFRM_STATE_ESN | XFRM_STATE_AF_UNSPEC : XFRM_STATE_AF_UNSPEC;
        state.algorithm = "rfc4106(gcm(aes))";
        state.aead = true;
        state.icv_bits = 128;
        state.key = SecretBytes(std::array<std::byte, 20>{std::byte{1}});
        state.if_id = 3;
        state.limits.hard_add_s = 3600;
        state.replay = state.esn ? Replay{.esn_form = true, .bitmap_words = 2, .window = 64}
                                 : Replay{.window = 32};
        Limits limits = state.limits;
        limits.soft_add_s = 100;
        const Request request = open_request(encode_limits(state, limits, 5));
        EXPECT_EQ(request.header.nlmsg_type, XFRM_MSG_UPDSA);
        const auto read = decode_kernel_sa(request.payload);
        ASSERT_TRUE(read) << read.error();
        EXPECT_EQ(read->limits, limits);
        EXPECT_EQ(read->name, state.name);
        EXPECT_EQ(read->source, state.source);
        EXPECT_EQ(read->reqid, state.reqid);
        EXPECT_EQ(read->mode, Mode::tunnel);
        EXPECT_EQ(read->esn, state.esn);
        EXPECT_EQ(read->flags, state.flags);
        EXPECT_EQ(read->algorithm, state.algorithm);
        EXPECT_EQ(read->icv_bits, state.icv_bits);
        EXPECT_TRUE(std::ranges::equal(read->key.bytes(), state.key.bytes()));
        EXPECT_EQ(read->if_id, state.if_id);
        EXPECT_EQ(read->replay, state.replay);
        EXPECT_FALSE(read->direction);
    }
}

TEST(XfrmRegisterRequests, GetNamesTheState) {
    const Request request = open_request(encode_get_sa(name(0x99, "2001:db8::2", {3, 4}), 8));
    EXPECT_EQ(request.header.nlmsg_flags, NLM_F_REQUEST | NLM_F_ACK);
    const auto same_form = decode_deleted_sa(request.payload);
    EXPECT_EQ(same_form->name, name(0x99, "2001:db8::2", {3, 4}));
    EXPECT_FALSE(same_form->last);
    EXPECT_FALSE(attribute(open_request(encode_get_sa(name(1), 8)).payload, sizeof(xfrm_usersa_id),
                           XFRMA_MARK));
}

TEST(XfrmRegisterRequests, SignatureStandsInTheHeader) {
    RequestBuffer request = encode_get_sa(name(1), 8);
    sign_request(request, 0x80001234);
    std::span<const std::byte> bytes = request.bytes();
    const auto message = netlink::next_message(bytes);
    ASSERT_TRUE(message && *message);
    EXPECT_EQ((*message)->port, 0x80001234);
}

}  // namespace
}  // namespace sallyport::xfrm
