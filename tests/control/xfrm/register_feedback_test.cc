// SPDX-License-Identifier: Apache-2.0
//
// States with keys in the running kernel: mirrored, their counters and expiries written back, and
// what comes back of that. Skipped where the kernel has no ESP or no AES-GCM.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <string>

#include "control/xfrm/mirror_socket.h"
#include "tests/control/xfrm/builder.h"
#include "tests/support/new_namespace.h"

namespace sallyport::xfrm {
namespace {

using namespace test;
using sallyport::test::succeeds;

const std::string kName = "src 192.0.2.9 dst 192.0.2.1 proto esp spi 0x1001";
const std::string kKeys =
    " reqid 7 mode tunnel aead 'rfc4106(gcm(aes))' "
    "0x000102030405060708090a0b0c0d0e0f10111213 128";

// A request that has no encoder of ours.
RequestBuffer request(uint16_t type, const Payload& payload, uint32_t sequence) {
    nlmsghdr header{};
    header.nlmsg_len = static_cast<uint32_t>(sizeof header + payload.bytes().size());
    header.nlmsg_type = type;
    header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    header.nlmsg_seq = sequence;
    const Buffer bytes = join(bytes_of(header), payload.bytes());
    RequestBuffer out;
    std::memcpy(out.extend(bytes.size()), bytes.data(), bytes.size());
    return out;
}

class XfrmRegisterFeedback : public testing::Test {
  protected:
    // In a network namespace of its own, where `ip xfrm state add` works.
    static void with_states(const std::function<void(RegisterSocket&, RegisterMirror&)>& body) {
        if (geteuid() != 0) GTEST_SKIP() << "needs root: network namespaces and xfrm";
        bool has_esp = false;
        sallyport::test::in_new_namespace([&] {
            has_esp =
                succeeds("ip xfrm state add " + kName + kKeys) && succeeds("ip xfrm state flush");
            if (!has_esp) return;
            auto socket = RegisterSocket::open();
            ASSERT_TRUE(socket) << socket.error();
            RegisterMirror mirror(socket->own_port());
            body(*socket, mirror);
        });
        if (!has_esp) GTEST_SKIP() << "the kernel has no ESP with AES-GCM";
    }
    static RegisterChanges receive(RegisterSocket& socket, RegisterMirror& mirror) {
        RegisterChanges changes;
        const auto result = socket.receive(mirror, changes);
        EXPECT_TRUE(result) << result.error();
        EXPECT_EQ(mirror.counters().malformed, 0u);
        return changes;
    }
    static RegisterChanges dump(RegisterSocket& socket, RegisterMirror& mirror) {
        RegisterChanges changes;
        const auto result = socket.dump(mirror, changes);
        EXPECT_TRUE(result) << result.error();
        return changes;
    }
};

TEST_F(XfrmRegisterFeedback, CountersAreWrittenInEveryForm) {
    with_states([](RegisterSocket& socket, RegisterMirror& mirror) {
        struct Row {
            const char* options;
            bool esn;
            bool esn_form;
            uint32_t words;
            uint32_t window;
        };
        for (const Row& row :
             std::initializer_list<Row>{{" replay-window 32", false, false, 0, 32},
                                        {" replay-window 0", false, false, 0, 0},
                                        {" replay-window 64", false, true, 2, 64},
                                        {" replay-window 32 flag esn", true, true, 1, 32},
                                        {" replay-window 4096 flag esn", true, true, 128, 4096}}) {
            SCOPED_TRACE(row.options);
            ASSERT_TRUE(succeeds("ip xfrm state add " + kName + kKeys + row.options));
            RegisterChanges changes = receive(socket, mirror);
            ASSERT_EQ(changes.added.size(), 1u);
            const KernelSa* known = mirror.find(name(0x1001));
            ASSERT_NE(known, nullptr);
            EXPECT_EQ(known->key.size(), 20u);
            EXPECT_EQ(known->key.bytes()[19], std::byte{0x13});
            EXPECT_EQ(known->esn, row.esn);
            EXPECT_EQ(known->replay, (Replay{row.esn_form, row.words, row.window, 0, 0}));

            const uint64_t high = row.esn ? uint64_t{5} << 32 : 0;
            const CounterUpdate update = {.replay = Replay{.sent = high + 1000, .top = high + 2000},
                                          .usage = Usage{.bytes = 123456789, .packets = 4242}};
            const auto written = socket.write_counters(*known, update);
            ASSERT_TRUE(written) << written.error().text;
            EXPECT_TRUE(receive(socket, mirror).empty()) << "our own";
            EXPECT_EQ(mirror.counters().own, 1u);

            const auto now = socket.get(known->name);
            ASSERT_TRUE(now) << now.error().text;
            EXPECT_EQ(now->replay.sent, update.replay->sent);
            EXPECT_EQ(now->replay.top, update.replay->top);
            EXPECT_EQ(now->usage.bytes, 123456789u);
            EXPECT_EQ(now->usage.packets, 4242u);
            EXPECT_EQ(now->usage.add_time, known->usage.add_time);
            // Usage alone leaves the numbers where they are.
            ASSERT_TRUE(socket.write_counters(*known, {.usage = Usage{.bytes = 5, .packets = 6}}));
            const auto later = socket.get(known->name);
            ASSERT_TRUE(later) << later.error().text;
            EXPECT_EQ(later->replay, now->replay);
            EXPECT_EQ(later->usage.bytes, 5u);
            EXPECT_EQ(later->usage.packets, 6u);
            // And numbers alone the usage.
            ASSERT_TRUE(socket.write_counters(*known, {.replay = now->replay}));
            const auto last = socket.get(known->name);
            ASSERT_TRUE(last) << last.error().text;
            EXPECT_EQ(last->usage, later->usage);
            receive(socket, mirror);
            mirror.refresh(*now);
            EXPECT_TRUE(dump(socket, mirror).empty());

            ASSERT_TRUE(succeeds("ip xfrm state delete " + kName));
            EXPECT_EQ(receive(socket, mirror).removed.size(), 1u);
            mirror = RegisterMirror(socket.own_port());
        }
    });
}

// As daemons register them with kernels that know directions: no bitmap on outbound states.
TEST_F(XfrmRegisterFeedback, CountersOfStatesWithADirectionAreWritten) {
    bool knows_direction = true;
    with_states([&](RegisterSocket& socket, RegisterMirror& mirror) {
        auto daemon = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(daemon);
        for (const bool esn : {false, true}) {
            for (const bool inbound : {false, true}) {
                xfrm_usersa_info body = state_body(0x2001);
                body.flags = esn ? XFRM_STATE_ESN : 0;
                Payload state(body);
                state.add(XFRMA_ALG_AEAD, aead(0x42))
                    .add(XFRMA_REPLAY_ESN_VAL,
                         esn_replay({.words = inbound ? 4u : 0u, .window = inbound ? 128u : 0u}))
                    .add(kSaDirection, static_cast<uint8_t>(inbound ? 1 : 2));
                const auto made =
                    daemon->exchange(request(XFRM_MSG_NEWSA, state, daemon->next_sequence()));
                ASSERT_TRUE(made) << made.error().text;
                EXPECT_EQ(receive(socket, mirror).added.size(), 1u);
                const KernelSa* known = mirror.find(name(0x2001));
                ASSERT_NE(known, nullptr);
                knows_direction = known->direction.has_value();
                if (!knows_direction) return;  // older kernels leave unknown attributes out
                EXPECT_EQ(known->direction,
                          inbound ? StateDirection::inbound : StateDirection::outbound);
                EXPECT_EQ(known->replay.bitmap_words, inbound ? 4u : 0u);

                const uint64_t number = (esn ? uint64_t{7} << 32 : 0) + 123;
                Replay replay;
                (inbound ? replay.top : replay.sent) = number;
                const auto written = socket.write_counters(*known, {.replay = replay});
                ASSERT_TRUE(written) << written.error().text;
                EXPECT_TRUE(receive(socket, mirror).empty());
                const auto now = socket.get(name(0x2001));
                ASSERT_TRUE(now) << now.error().text;
                EXPECT_EQ(inbound ? now->replay.top : now->replay.sent, number);
                EXPECT_EQ(inbound ? now->replay.sent : now->replay.top, 0u);
                ASSERT_TRUE(socket.expire(*now, true));
                EXPECT_EQ(receive(socket, mirror).removed.size(), 1u);
            }
        }
    });
    if (!knows_direction) GTEST_SKIP() << "the kernel does not know XFRMA_SA_DIR";
}

// Only the limits are others, whatever the state has counted; and the kernel asks when they come
// up.
TEST_F(XfrmRegisterFeedback, LimitsAreWrittenIntoStatesInUse) {
    with_states([](RegisterSocket& socket, RegisterMirror& mirror) {
        for (const char* options :
             {" replay-window 32", " replay-window 0", " replay-window 64 flag af-unspec",
              " replay-window 4096 flag esn", " replay-window 32 flag esn mark 5 mask 0xff",
              " replay-window 64 limit time-hard 3600 limit time-soft 3000 if_id 9"}) {
            SCOPED_TRACE(options);
            ASSERT_TRUE(succeeds("ip xfrm state add " + kName + kKeys + options));
            receive(socket, mirror);
            ASSERT_EQ(mirror.states().size(), 1u);
            const KernelSa& known = mirror.states().begin()->second;
            ASSERT_TRUE(socket.write_counters(
                known, {.replay = Replay{.sent = 1000, .top = 2000},
                        .usage = Usage{.bytes = 12345, .packets = 42, .use_time = 77}}));
            const auto before = socket.get(known.name);
            ASSERT_TRUE(before);
            Limits limits = known.limits;
            limits.soft_add_s = 1;
            const LimitWrite write{.state = &known, .limits = limits};
            const auto done = socket.limit_all({&write, 1});
            ASSERT_TRUE(done.front()) << done.front().error().text;
            const auto now = socket.get(known.name);
            ASSERT_TRUE(now);
            EXPECT_EQ(now->limits, limits);
            EXPECT_EQ(now->replay, before->replay);
            EXPECT_EQ(now->usage.bytes, before->usage.bytes);
            EXPECT_EQ(now->usage.packets, before->usage.packets);
            EXPECT_TRUE(std::ranges::equal(now->key.bytes(), before->key.bytes()));
            EXPECT_EQ(now->flags, before->flags);
            EXPECT_EQ(now->if_id, before->if_id);
            EXPECT_EQ(now->reqid, before->reqid);
            const uint64_t expiries = mirror.counters().soft_expiries;
            for (int i = 0; i < 1000 && mirror.counters().soft_expiries == expiries; ++i) {
                usleep(10'000);
                receive(socket, mirror);
            }
            EXPECT_EQ(mirror.counters().soft_expiries, expiries + 1) << "the kernel asks";
            ASSERT_TRUE(succeeds("ip xfrm state flush"));
            mirror = RegisterMirror(socket.own_port());
            dump(socket, mirror);
        }
    });
}

TEST_F(XfrmRegisterFeedback, WhatOthersDoIsSeen) {
    with_states([](RegisterSocket& socket, RegisterMirror& mirror) {
        ASSERT_TRUE(succeeds("ip xfrm state add " + kName + kKeys + " replay-window 64"));
        receive(socket, mirror);
        const KernelSa& known = *mirror.find(name(0x1001));
        auto other = netlink::Socket::open(netlink::Protocol::xfrm);
        ASSERT_TRUE(other);
        ASSERT_TRUE(other->exchange(
            encode_counters(known, {.replay = Replay{.sent = 77}, .usage = Usage{.bytes = 5}},
                            other->next_sequence())));
        EXPECT_EQ(receive(socket, mirror).used.size(), 1u);
        EXPECT_EQ(known.replay.sent, 77u);
        EXPECT_EQ(known.usage.bytes, 5u);
        ASSERT_TRUE(other->exchange(encode_expire(known, false, other->next_sequence())));
        EXPECT_TRUE(receive(socket, mirror).empty());
        EXPECT_EQ(mirror.counters().soft_expiries, 1u);
        EXPECT_EQ(mirror.counters().own, 0u);
        ASSERT_TRUE(other->exchange(encode_expire(known, true, other->next_sequence())));
        EXPECT_EQ(receive(socket, mirror).removed.size(), 1u);
        EXPECT_TRUE(dump(socket, mirror).empty());
    });
}

TEST_F(XfrmRegisterFeedback, OurExpiriesComeBackAsOurOwn) {
    with_states([](RegisterSocket& socket, RegisterMirror& mirror) {
        ASSERT_TRUE(succeeds("ip xfrm state add " + kName + kKeys));
        receive(socket, mirror);
        ASSERT_TRUE(socket.expire(*mirror.find(name(0x1001)), false));
        EXPECT_TRUE(receive(socket, mirror).empty());
        EXPECT_EQ(mirror.counters().own, 1u);
        ASSERT_TRUE(socket.expire(*mirror.find(name(0x1001)), true));
        EXPECT_EQ(receive(socket, mirror).removed.size(), 1u) << "it has gone all the same";
        EXPECT_TRUE(dump(socket, mirror).empty());
        const auto gone = socket.get(name(0x1001));
        ASSERT_FALSE(gone);
        EXPECT_EQ(gone.error().number, ESRCH);
    });
}

TEST_F(XfrmRegisterFeedback, StatesAreReplacedAsADaemonDoesIt) {
    with_states([](RegisterSocket& socket, RegisterMirror& mirror) {
        // Reserved, then with keys.
        ASSERT_TRUE(
            succeeds("ip xfrm state allocspi src 192.0.2.9 dst 192.0.2.1 proto esp reqid 7 "
                     "mode tunnel min 0x1001 max 0x1001"));
        EXPECT_TRUE(receive(socket, mirror).empty()) << "not announced";
        EXPECT_EQ(dump(socket, mirror).added.size(), 1u);
        EXPECT_TRUE(mirror.find(name(0x1001))->larval);
        ASSERT_TRUE(succeeds("ip xfrm state update " + kName + kKeys));
        EXPECT_EQ(receive(socket, mirror).added.size(), 1u);
        EXPECT_FALSE(mirror.find(name(0x1001))->larval);
        EXPECT_TRUE(dump(socket, mirror).empty());
        // An address update of MOBIKE: the same again.
        ASSERT_TRUE(succeeds("ip xfrm state delete " + kName));
        ASSERT_TRUE(succeeds("ip xfrm state add " + kName + kKeys));
        RegisterChanges changes = receive(socket, mirror);
        EXPECT_EQ(changes.added.size(), 1u);
        EXPECT_EQ(changes.removed.size(), 1u);
        // New limits for a state in use; the kernel keeps its counters.
        ASSERT_TRUE(
            socket.write_counters(*mirror.find(name(0x1001)), {.replay = Replay{.sent = 9}}));
        ASSERT_TRUE(succeeds("ip xfrm state update " + kName + kKeys + " limit byte-soft 1000000"));
        EXPECT_TRUE(receive(socket, mirror).resync);
        EXPECT_EQ(dump(socket, mirror).added.size(), 1u);
        EXPECT_EQ(mirror.find(name(0x1001))->limits.soft_bytes, 1000000u);
        EXPECT_EQ(mirror.find(name(0x1001))->replay.sent, 9u);
    });
}

}  // namespace
}  // namespace sallyport::xfrm
