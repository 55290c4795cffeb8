// SPDX-License-Identifier: Apache-2.0
//
// What notifications and dumps make of the mirror. A row: what is known, a burst of messages, the
// changes they report and what is known afterwards.

#include "control/xfrm/mirror.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "control/xfrm/messages.h"
#include "tests/control/xfrm/builder.h"

namespace sallyport::xfrm {
namespace {

using namespace test;

constexpr uint32_t kOwnPort = 4711;

struct Step {
    uint16_t type;
    Payload payload;
    uint32_t port = 0;
};
using Steps = std::vector<Step>;
using Spis = std::vector<uint32_t>;

void apply(RegisterMirror& mirror, RegisterChanges& changes, const Steps& steps) {
    for (const Step& step : steps)
        mirror.apply(step.payload.message(step.type, step.port), changes);
}

void dump(RegisterMirror& mirror, RegisterChanges& changes, const Steps& steps) {
    mirror.begin_dump();
    for (const Step& step : steps) mirror.load(step.payload.message(step.type));
    mirror.end_dump(changes);
}

template <typename Names>
Spis spis(const Names& names) {
    Spis out;
    for (const SaName& name : names) out.push_back(to_index(name.spi));
    return out;
}
Spis known_spis(const RegisterMirror& mirror) {
    Spis out;
    for (const auto& entry : mirror.states()) out.push_back(to_index(entry.first.spi));
    return out;
}

bool add_up(const RegisterMirror::Counters& c) {
    return c.messages == c.applied + c.own + c.malformed + c.ignored;
}

Payload with_counters(uint32_t spi, uint32_t sent, uint64_t bytes) {
    xfrm_usersa_info body = state_body(spi);
    body.curlft.bytes = bytes;
    return Payload(body)
        .add(XFRMA_ALG_AEAD, aead(0x5a))
        .add(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 2, .oseq = sent, .window = 64}));
}

Payload changed_state(uint32_t spi, const std::function<void(xfrm_usersa_info&)>& change) {
    xfrm_usersa_info body = state_body(spi);
    change(body);
    return Payload(body)
        .add(XFRMA_ALG_AEAD, aead(0x5a))
        .add(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 2, .window = 64}));
}

Payload own_state(uint32_t spi) {
    return changed_state(spi, [](auto& body) { body.reqid = 0x53500003; });
}
Payload larval(uint32_t spi) {
    return Payload(state_body(spi)).add(XFRMA_REPLAY_VAL, xfrm_replay_state{});
}
Payload flush(uint8_t protocol) {
    return Payload(xfrm_usersa_flush{.proto = protocol});
}

constexpr uint16_t kNew = XFRM_MSG_NEWSA, kUpdate = XFRM_MSG_UPDSA, kDelete = XFRM_MSG_DELSA,
                   kExpire = XFRM_MSG_EXPIRE, kFlush = XFRM_MSG_FLUSHSA, kEvent = XFRM_MSG_NEWAE;

TEST(XfrmRegisterMirror, StatesFollowNotifications) {
    struct Row {
        const char* what;
        Steps known;
        Steps burst;
        Spis added, removed, used, left;
        bool resync = false;
    };
    const Step a{kNew, full_state(0xa)};
    const Step b{kNew, full_state(0xb)};
    const std::vector<Row> rows = {
        {"a new state", {}, {a}, {0xa}, {}, {}, {0xa}},
        {"UPDSA counts as new", {}, {{kUpdate, full_state(0xa)}}, {0xa}, {}, {}, {0xa}},
        {"a larval state gets its keys",
         {{kNew, larval(0xa)}},
         {{kUpdate, full_state(0xa)}},
         {0xa},
         {},
         {},
         {0xa}},
        {"the same again", {a}, {a, a}, {}, {}, {}, {0xa}},
        {"an update that changes nothing", {a}, {{kUpdate, full_state(0xa)}}, {}, {}, {}, {0xa}},
        {"other keys by NEWSA", {a}, {{kNew, full_state(0xa, 1)}}, {0xa}, {}, {}, {0xa}},
        {"other keys by UPDSA, which the kernel does not take",
         {a},
         {{kUpdate, full_state(0xa, 1)}},
         {},
         {},
         {},
         {0xa},
         true},
        {"deleted", {a, b}, {{kDelete, deletion(0xa)}}, {}, {0xa}, {}, {0xb}},
        {"deleted, but not known", {b}, {{kDelete, deletion(0xa)}}, {}, {}, {}, {0xb}},
        {"went and came again", {a}, {{kDelete, deletion(0xa)}, a}, {0xa}, {0xa}, {}, {0xa}},
        {"came and went", {}, {a, {kDelete, deletion(0xa)}}, {}, {0xa}, {}, {}},
        {"same SPI, other destination",
         {a},
         {{kDelete, deletion(0xa, "192.0.2.2")}},
         {},
         {},
         {},
         {0xa}},
        {"same SPI, other mark",
         {a},
         {{kDelete, deletion(0xa).add(XFRMA_MARK, xfrm_mark{.v = 1, .m = 1})}},
         {},
         {},
         {},
         {0xa}},
        {"soft expiry", {a}, {{kExpire, expiry(0xa, false)}}, {}, {}, {}, {0xa}},
        {"hard expiry", {a}, {{kExpire, expiry(0xa, true)}}, {}, {0xa}, {}, {}},
        {"our own soft expiry", {a}, {{kExpire, expiry(0xa, false), kOwnPort}}, {}, {}, {}, {0xa}},
        {"our own hard expiry deletes too",
         {a},
         {{kExpire, expiry(0xa, true), kOwnPort}},
         {},
         {0xa},
         {},
         {}},
        {"the kernel used it",
         {a},
         {{kEvent, counter_event(0xa, 1, 2, 3, XFRM_AE_CR)}},
         {},
         {},
         {0xa},
         {0xa}},
        {"another program wrote its counters",
         {a},
         {{kEvent, counter_event(0xa, 1, 2, 3, XFRM_AE_CU), 99}},
         {},
         {},
         {0xa},
         {0xa}},
        {"our own counters come back",
         {a},
         {{kEvent, counter_event(0xa, 1, 2, 3, XFRM_AE_CU), kOwnPort}},
         {},
         {},
         {},
         {0xa}},
        {"an event of the kernel whose port is garbage",
         {a},
         {{kEvent, counter_event(0xa, 1, 2, 3, XFRM_AE_CE), kOwnPort}},
         {},
         {},
         {0xa},
         {0xa}},
        {"used, then gone",
         {a},
         {{kEvent, counter_event(0xa, 1, 2, 3, XFRM_AE_CR)}, {kDelete, deletion(0xa)}},
         {},
         {0xa},
         {},
         {}},
        {"new and used at once is new",
         {},
         {a, {kEvent, counter_event(0xa, 1, 2, 3, XFRM_AE_CR)}},
         {0xa},
         {},
         {},
         {0xa}},
        {"event of an unknown state",
         {b},
         {{kEvent, counter_event(0xa, 1, 2, 3, XFRM_AE_CR)}},
         {},
         {},
         {},
         {0xb}},
        {"flush of ESP", {a, b}, {{kFlush, flush(50)}}, {}, {0xa, 0xb}, {}, {}},
        {"flush of all", {a, b}, {{kFlush, flush(0)}}, {}, {0xa, 0xb}, {}, {}},
        {"flush of all of IPsec", {a, b}, {{kFlush, flush(255)}}, {}, {0xa, 0xb}, {}, {}},
        {"flush of AH", {a}, {{kFlush, flush(51)}}, {}, {}, {}, {0xa}},
        {"our own states are left out", {}, {{kNew, own_state(0xa)}}, {}, {}, {}, {}},
        {"without SPI", {}, {{kNew, larval(0)}}, {}, {}, {}, {}},
        {"MIGRATE", {a}, {{XFRM_MSG_MIGRATE, Payload()}}, {}, {}, {}, {0xa}, true},
        {"a message of a newer kernel", {a}, {{0x29, Payload()}}, {}, {}, {}, {0xa}, true},
        {"overrun", {a}, {{NLMSG_OVERRUN, Payload()}}, {}, {}, {}, {0xa}, true},
        {"of no interest",
         {a},
         {{XFRM_MSG_REPORT, Payload()}, {XFRM_MSG_GETDEFAULT, Payload()}, {NLMSG_NOOP, Payload()}},
         {},
         {},
         {},
         {0xa}},
        {"malformed",
         {a},
         {{kNew, Payload()},
          {kDelete, Payload()},
          {kExpire, Payload()},
          {kFlush, Payload()},
          {kEvent, Payload()},
          {XFRM_MSG_ACQUIRE, Payload()},
          {XFRM_MSG_NEWPOLICY, Payload()},
          {XFRM_MSG_DELPOLICY, Payload()},
          {XFRM_MSG_POLEXPIRE, Payload()}},
         {},
         {},
         {},
         {0xa}},
    };
    for (const Row& row : rows) {
        SCOPED_TRACE(row.what);
        RegisterMirror mirror(kOwnPort);
        RegisterChanges before;
        apply(mirror, before, row.known);
        RegisterChanges changes;
        apply(mirror, changes, row.burst);
        EXPECT_EQ(spis(changes.added), row.added);
        EXPECT_EQ(spis(changes.removed), row.removed);
        EXPECT_EQ(spis(changes.used), row.used);
        EXPECT_EQ(known_spis(mirror), row.left);
        EXPECT_EQ(changes.resync, row.resync);
        EXPECT_TRUE(changes.policies.empty());
        EXPECT_EQ(changes.empty(),
                  row.added.empty() && row.removed.empty() && row.used.empty() && !row.resync);
        EXPECT_EQ(mirror.counters().messages, row.known.size() + row.burst.size());
        EXPECT_TRUE(add_up(mirror.counters()));
        EXPECT_EQ(mirror.counters().resyncs, row.resync ? 1u : 0u);
    }
}

TEST(XfrmRegisterMirror, EveryDifferenceMakesANewState) {
    using Body = xfrm_usersa_info;
    const std::vector<Payload> others = {
        full_state(0xa, 1),
        changed_state(0xa, [](Body& b) { b.saddr = linux_ip("192.0.2.8"); }),
        changed_state(0xa, [](Body& b) { b.reqid = 8; }),
        changed_state(0xa, [](Body& b) { b.mode = XFRM_MODE_TRANSPORT; }),
        changed_state(0xa, [](Body& b) { b.flags = XFRM_STATE_ESN; }),
        changed_state(0xa, [](Body& b) { b.flags = XFRM_STATE_NOECN; }),
        changed_state(0xa, [](Body& b) { b.lft.soft_byte_limit = 5; }),
        changed_state(0xa, [](Body& b) { b.lft.hard_use_expires_seconds = 5; }),
        changed_state(0xa, [](Body& b) { b.sel.proto = 6; }),
        full_state(0xa).add(XFRMA_ENCAP, Buffer(24)),
        full_state(0xa).add(XFRMA_OFFLOAD_DEV, Buffer(8)),
        full_state(0xa).add(XFRMA_SEC_CTX, Buffer(8)),
        full_state(0xa).add(XFRMA_COADDR, Buffer(16)),
        full_state(0xa).add(XFRMA_IF_ID, uint32_t{1}),
        full_state(0xa).add(XFRMA_SET_MARK, uint32_t{1}),
        full_state(0xa).add(XFRMA_TFCPAD, uint32_t{1}),
        full_state(0xa).add(XFRMA_SA_EXTRA_FLAGS, uint32_t{1}),
        full_state(0xa).add(kSaDirection, uint8_t{1}),
        full_state(0xa).add(kSaPcpu, uint32_t{0}),
        full_state(0xa).add(XFRMA_ALG_AEAD, aead(0x5a, 20, 64)),
        full_state(0xa).add(XFRMA_ALG_AEAD, aead(0x5a, 20, 128, "rfc4543(gcm(aes))")),
        full_state(0xa).add(XFRMA_ALG_AEAD, aead(0)),
        full_state(0xa).add(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 1, .window = 32})),
    };
    for (size_t i = 0; i < others.size(); ++i) {
        RegisterMirror mirror;
        RegisterChanges changes;
        apply(mirror, changes, {{kNew, full_state(0xa)}});
        const uint64_t arrival = mirror.find(name(0xa))->arrival;
        changes = {};
        apply(mirror, changes, {{kNew, others[i]}});
        EXPECT_EQ(spis(changes.added), Spis{0xa}) << i;
        EXPECT_GT(mirror.find(name(0xa))->arrival, arrival) << i;
        changes = {};
        dump(mirror, changes, {{kNew, full_state(0xa)}});
        EXPECT_EQ(spis(changes.added), Spis{0xa}) << i;
        EXPECT_TRUE(changes.removed.empty()) << i;
    }
}

TEST(XfrmRegisterMirror, CountersOfMessagesOnlyMoveUp) {
    RegisterMirror mirror(kOwnPort);
    RegisterChanges changes;
    apply(mirror, changes, {{kNew, with_counters(0xa, 100, 5000)}});
    const KernelSa& sa = *mirror.find(name(0xa));
    EXPECT_EQ(sa.replay.sent, 100u);
    apply(mirror, changes, {{kNew, with_counters(0xa, 90, 6000)}});
    EXPECT_EQ(sa.replay.sent, 100u);
    EXPECT_EQ(sa.usage.bytes, 6000u);
    apply(mirror, changes, {{kUpdate, with_counters(0xa, 200, 9000)}});
    EXPECT_EQ(sa.replay.sent, 100u) << "counters of an UPDSA are those of the request";
    apply(mirror, changes, {{kEvent, counter_event(0xa, 150, 7, 4000, XFRM_AE_CR)}});
    EXPECT_EQ(sa.replay.sent, 150u);
    EXPECT_EQ(sa.replay.top, 7u);
    EXPECT_EQ(sa.usage.bytes, 6000u);
    apply(mirror, changes, {{kEvent, counter_event(0xa, 151, 8, 7000, XFRM_AE_CU), kOwnPort}});
    EXPECT_EQ(sa.replay.sent, 150u) << "our own";

    // What was asked for after the event is the truth.
    auto said = decode_kernel_sa(with_counters(0xa, 3, 10).bytes());
    mirror.refresh(*said);
    EXPECT_EQ(sa.replay.sent, 3u);
    EXPECT_EQ(sa.usage.bytes, 10u);
    EXPECT_EQ(sa.replay.window, 64u);
    changes = {};
    dump(mirror, changes, {{kNew, with_counters(0xa, 3, 10)}});
    EXPECT_TRUE(changes.empty());
    dump(mirror, changes, {{kNew, with_counters(0xa, 2, 9)}});
    EXPECT_EQ(changes.moved, std::set{name(0xa)}) << "it went and came again within a second";
    EXPECT_TRUE(changes.added.empty());
    EXPECT_EQ(mirror.find(name(0xa))->replay.sent, 2u);
    said->name = name(0xb);
    mirror.refresh(*said);
    EXPECT_EQ(known_spis(mirror), Spis{0xa});
}

// What a state has used must outlive it: its key may come back with less.
TEST(XfrmRegisterMirror, CountersAreToldBeforeTheyAreForgotten) {
    const auto gone_with = [](uint32_t spi, uint32_t sent) {
        return deletion(spi).add(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 2, .oseq = sent}));
    };
    struct Row {
        const char* what;
        Steps steps;
        std::vector<uint64_t> told;  // last numbers sent
    };
    const std::vector<Row> rows = {
        {"a deletion tells more than was known", {{kDelete, gone_with(0xa, 106)}}, {106, 100}},
        {"of a state that was never heard of", {{kDelete, gone_with(0xb, 6)}}, {6}},
        {"without the state, what was known", {{kDelete, Payload(deletion_id(0xa))}}, {100}},
        {"hard expiry", {{kExpire, expiry(0xa, true)}}, {100}},
        {"flush", {{kFlush, flush(0)}}, {100}},
        {"replaced",
         {{kNew, changed_state(0xa, [](auto& body) { body.mode = XFRM_MODE_TRANSPORT; })}},
         {100}},
        {"our own",
         {{kDelete, Payload(deletion_id(0xb))
                        .add(XFRMA_SA,
                             [] {
                                 auto body = state_body(0xb);
                                 body.reqid = 0x53500003;
                                 return body;
                             }())}},
         {}},
        {"it goes on", {{kNew, with_counters(0xa, 110, 1)}}, {}},
    };
    for (const Row& row : rows) {
        RegisterMirror mirror(kOwnPort);
        RegisterChanges changes;
        std::vector<uint64_t> told;
        mirror.when_forgotten([&told](const KernelSa& last) {
            EXPECT_FALSE(last.key.bytes().empty());
            told.push_back(last.replay.sent);
        });
        apply(mirror, changes, {{kNew, with_counters(0xa, 100, 5000)}});
        apply(mirror, changes, row.steps);
        EXPECT_EQ(told, row.told) << row.what;
    }

    RegisterMirror mirror(kOwnPort);
    RegisterChanges changes;
    std::vector<uint64_t> told;
    mirror.when_forgotten([&told](const KernelSa& last) { told.push_back(last.replay.sent); });
    apply(mirror, changes, {{kNew, with_counters(0xa, 100, 5000)}});
    dump(mirror, changes, {{kNew, with_counters(0xa, 101, 1)}});
    EXPECT_TRUE(told.empty());
    dump(mirror, changes, {{kNew, with_counters(0xa, 40, 1)}});
    mirror.refresh(*decode_kernel_sa(with_counters(0xa, 30, 1).bytes()));
    mirror.refresh(*decode_kernel_sa(with_counters(0xa, 31, 1).bytes()));
    dump(mirror, changes, {});
    EXPECT_EQ(told, (std::vector<uint64_t>{101, 40, 31}));
}

TEST(XfrmRegisterMirror, WithoutEsnHighWordsDoNotCount) {
    RegisterMirror mirror;
    RegisterChanges changes;
    apply(mirror, changes, {{kNew, full_state(0xa)}});
    xfrm_aevent_id body{};
    body.sa_id = {.daddr = linux_ip("192.0.2.1"),
                  .spi = Be32(0xa).raw(),
                  .family = AF_INET,
                  .proto = kProtocolEsp};
    apply(mirror, changes,
          {{kEvent, Payload(body).add(XFRMA_REPLAY_ESN_VAL,
                                      esn_replay({.words = 2, .oseq = 5, .oseq_hi = 1}))}});
    EXPECT_EQ(mirror.find(name(0xa))->replay.sent, 5u);
}

TEST(XfrmRegisterMirror, ADumpIsCompared) {
    RegisterMirror mirror;
    RegisterChanges changes;
    dump(mirror, changes,
         {{kNew, full_state(0xb)}, {kNew, full_state(0xa)}, {XFRM_MSG_NEWPOLICY, full_policy(9)}});
    EXPECT_EQ(spis(changes.added), (Spis{0xa, 0xb}));
    EXPECT_EQ(changes.policies, std::set<uint32_t>{9});
    EXPECT_LT(mirror.find(name(0xa))->arrival, mirror.find(name(0xb))->arrival)
        << "the kernel shows the newest first";
    const uint64_t arrival_b = mirror.find(name(0xb))->arrival;

    changes = {.resync = true};
    dump(mirror, changes,
         {{kNew, full_state(0xb)}, {kNew, full_state(0xa)}, {XFRM_MSG_NEWPOLICY, full_policy(9)}});
    EXPECT_TRUE(changes.empty()) << "nothing changed, and the resync is made good";
    EXPECT_EQ(mirror.find(name(0xb))->arrival, arrival_b);

    changes = {};
    changes.added.insert(name(0xa));  // came in the same burst, and went before the dump
    dump(mirror, changes,
         {{kNew, full_state(0xd)},
          {kNew, full_state(0xc)},
          {kNew, full_state(0xb, 1)},
          {kNew, own_state(0xe)},
          {kNew, larval(0)},
          {XFRM_MSG_NEWPOLICY, full_policy(17)}});
    EXPECT_EQ(spis(changes.added), (Spis{0xb, 0xc, 0xd}));
    EXPECT_EQ(spis(changes.removed), Spis{0xa});
    EXPECT_EQ(changes.policies, (std::set<uint32_t>{9, 17}));
    EXPECT_EQ(known_spis(mirror), (Spis{0xb, 0xc, 0xd}));
    EXPECT_EQ(mirror.policies().size(), 1u);
    EXPECT_GT(mirror.find(name(0xb))->arrival, arrival_b);
    EXPECT_TRUE(add_up(mirror.counters()));

    changes = {};
    dump(mirror, changes, {});
    EXPECT_EQ(spis(changes.removed), (Spis{0xb, 0xc, 0xd}));
    EXPECT_TRUE(mirror.policies().empty());
}

TEST(XfrmRegisterMirror, OfTwoWithOneNameInADumpTheFirstIsNewer) {
    RegisterMirror mirror;
    RegisterChanges changes;
    dump(mirror, changes, {{kNew, full_state(0xa, 7)}, {kNew, larval(0xa)}});
    EXPECT_FALSE(mirror.find(name(0xa))->larval);
}

TEST(XfrmRegisterMirror, PoliciesFollowNotifications) {
    constexpr uint16_t kAdd = XFRM_MSG_NEWPOLICY, kChange = XFRM_MSG_UPDPOLICY,
                       kRemove = XFRM_MSG_DELPOLICY, kEnd = XFRM_MSG_POLEXPIRE,
                       kClear = XFRM_MSG_FLUSHPOLICY;
    const auto ending = [](uint32_t index, uint8_t hard) {
        xfrm_user_polexpire body{};
        body.pol = policy_body(index);
        body.hard = hard;
        return Payload(body);
    };
    const auto of_socket = [] {
        xfrm_userpolicy_info body = policy_body(9);
        body.dir = XFRM_POLICY_MAX;
        return Payload(body);
    };
    const auto sub = xfrm_userpolicy_type{.type = XFRM_POLICY_TYPE_SUB};
    struct Row {
        const char* what;
        Steps burst;
        std::set<uint32_t> changed;
        std::vector<uint32_t> left;
    };
    for (const Row& row : std::vector<Row>{
             {"new", {{kAdd, full_policy(17)}}, {17}, {9, 17}},
             {"update of what is not known", {{kChange, full_policy(17)}}, {17}, {9, 17}},
             {"update", {{kChange, full_policy(9, 5)}}, {9}, {9}},
             {"update without a difference", {{kChange, full_policy(9)}}, {}, {9}},
             {"deleted by index", {{kRemove, policy_deletion(9, false)}}, {9}, {}},
             {"deleted by selector", {{kRemove, policy_deletion(9, true)}}, {9}, {}},
             {"deleted, not known", {{kRemove, policy_deletion(17, true)}}, {}, {9}},
             {"soft expiry", {{kEnd, ending(9, 0)}}, {}, {9}},
             {"hard expiry", {{kEnd, ending(9, 1)}}, {9}, {}},
             {"flush", {{kClear, Payload()}}, {9}, {}},
             {"flush of the other type",
              {{kClear, Payload().add(XFRMA_POLICY_TYPE, sub)}},
              {},
              {9}},
             {"of a socket", {{kAdd, of_socket()}}, {}, {9}},
             {"our own", {{kAdd, full_policy(0x53000001)}}, {}, {9}},
             {"our own deleted", {{kRemove, policy_deletion(0x53000001, false)}}, {}, {9}},
         }) {
        SCOPED_TRACE(row.what);
        RegisterMirror mirror(kOwnPort);
        RegisterChanges before;
        apply(mirror, before, {{kAdd, full_policy(9)}});
        RegisterChanges changes;
        apply(mirror, changes, row.burst);
        EXPECT_EQ(changes.policies, row.changed);
        std::vector<uint32_t> left;
        for (const auto& entry : mirror.policies()) left.push_back(entry.first);
        EXPECT_EQ(left, row.left);
        EXPECT_TRUE(add_up(mirror.counters()));
    }
}

TEST(XfrmRegisterMirror, TheOrderOfPoliciesSaysNothing) {
    constexpr uint16_t kAdd = XFRM_MSG_NEWPOLICY;
    RegisterMirror mirror;
    RegisterChanges changes;
    apply(mirror, changes,
          {{kAdd, full_policy(9)}, {kAdd, full_policy(17)}, {kAdd, full_policy(25)}});
    changes = {};
    dump(mirror, changes,
         {{kAdd, full_policy(9)}, {kAdd, full_policy(25)}, {kAdd, full_policy(17)}});
    EXPECT_TRUE(changes.policies.empty());
}

TEST(XfrmRegisterMirror, ADumpTellsThatStatesCameInAnotherOrder) {
    RegisterMirror mirror;
    RegisterChanges changes;
    dump(mirror, changes, {{kNew, full_state(0xb)}, {kNew, full_state(0xa)}});
    changes = {};
    dump(mirror, changes, {{kNew, full_state(0xa)}, {kNew, full_state(0xb)}});
    EXPECT_TRUE(changes.added.empty());
    EXPECT_EQ(spis(changes.moved), Spis{0xa}) << "deleted, and added with the same keys";
    EXPECT_GT(mirror.find(name(0xa))->arrival, mirror.find(name(0xb))->arrival);
}

TEST(XfrmRegisterMirror, AcquiresAreShownUpToALimit) {
    xfrm_user_acquire body{};
    body.id.daddr = linux_ip("192.0.2.1");
    body.saddr = linux_ip("192.0.2.9");
    body.policy = policy_body(9);
    RegisterMirror mirror;
    RegisterChanges changes;
    for (int i = 0; i < 1000; ++i) apply(mirror, changes, {{XFRM_MSG_ACQUIRE, Payload(body)}});
    EXPECT_EQ(mirror.counters().acquires, 1000u);
    EXPECT_EQ(changes.acquires.size(), RegisterChanges::kAcquiresMax);
    EXPECT_EQ(changes.acquires[0].destination, ip("192.0.2.1"));
    EXPECT_TRUE(mirror.states().empty());
    apply(mirror, changes, {{XFRM_MSG_MAPPING, Payload()}});
    EXPECT_EQ(mirror.counters().mappings, 1u);
}

}  // namespace
}  // namespace sallyport::xfrm
