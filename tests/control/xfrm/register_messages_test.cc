// SPDX-License-Identifier: Apache-2.0
//
// Messages about the kernel's register of SAs without a kernel: every attribute, every truncation,
// and the requests that write back.

#include "control/xfrm/messages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>

#include "tests/control/xfrm/builder.h"

namespace sallyport::xfrm {
namespace {

using namespace test;

Payload state_with_everything() {
    xfrm_usersa_info body = state_body(0x12345678, "2001:db8::2", "2001:db8::1");
    body.lft = {1, 2, 3, 4, 5, 6, 7, 8};
    body.curlft = {.bytes = 11, .packets = 12, .add_time = 13, .use_time = 14};
    body.reqid = 42;
    body.flags = XFRM_STATE_ESN | XFRM_STATE_AF_UNSPEC;
    return Payload(body)
        .add(XFRMA_ALG_AEAD, aead(0x5a, 36))
        .add(XFRMA_ENCAP, Buffer(24))
        .add(XFRMA_TFCPAD, uint32_t{99})
        .add(XFRMA_COADDR, Buffer(16))
        .add(XFRMA_SA_EXTRA_FLAGS, uint32_t{XFRM_SA_XFLAG_DONT_ENCAP_DSCP})
        .add(XFRMA_LASTUSED, uint64_t{1700000000})
        .add(XFRMA_MARK, xfrm_mark{.v = 0x10, .m = 0xff})
        .add(XFRMA_SET_MARK, uint32_t{0x20})
        .add(XFRMA_SET_MARK_MASK, uint32_t{0xf0})
        .add(XFRMA_IF_ID, uint32_t{77})
        .add(XFRMA_SEC_CTX, Buffer(8))
        .add(XFRMA_OFFLOAD_DEV, Buffer(8))
        .add(kSaDirection, uint8_t{2})
        .add(kSaPcpu, uint32_t{3})
        .add(XFRMA_REPLAY_ESN_VAL,
             esn_replay(
                 {.words = 4, .oseq = 5, .seq = 6, .oseq_hi = 1, .seq_hi = 2, .window = 128}));
}

TEST(XfrmRegisterMessages, AStateIsReadWithAllThatItSays) {
    const auto sa = decode_kernel_sa(state_with_everything().bytes());
    ASSERT_TRUE(sa) << sa.error();
    EXPECT_EQ(sa->name, name(0x12345678, "2001:db8::2", {0x10, 0xff}));
    EXPECT_EQ(sa->source, ip("2001:db8::1"));
    EXPECT_EQ(sa->reqid, 42u);
    EXPECT_EQ(sa->family, Family::v6);
    EXPECT_EQ(sa->mode, Mode::tunnel);
    EXPECT_TRUE(sa->esn);
    EXPECT_FALSE(sa->larval);
    EXPECT_EQ(sa->flags, XFRM_STATE_ESN | XFRM_STATE_AF_UNSPEC);
    EXPECT_EQ(sa->extra_flags, 1u);
    EXPECT_TRUE(sa->aead);
    EXPECT_EQ(sa->algorithm, "rfc4106(gcm(aes))");
    EXPECT_EQ(sa->icv_bits, 128u);
    EXPECT_EQ(sa->key, SecretBytes(Buffer(36, std::byte{0x5a})));
    EXPECT_FALSE(sa->keys_hidden);
    EXPECT_TRUE(sa->encapsulated && sa->offloaded && sa->has_security_context);
    EXPECT_TRUE(sa->has_care_of_address);
    EXPECT_FALSE(sa->has_selector);
    EXPECT_EQ(sa->if_id, 77u);
    EXPECT_EQ(sa->output_mark, (Mark{0x20, 0xf0}));
    EXPECT_EQ(sa->tfc_pad, 99u);
    EXPECT_EQ(sa->direction, StateDirection::outbound);
    EXPECT_EQ(sa->pcpu, 3u);
    EXPECT_EQ(sa->limits, (Limits{1, 2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(sa->usage, (Usage{11, 12, 13, 14}));
    EXPECT_EQ(sa->last_used, 1700000000u);
    EXPECT_EQ(sa->replay, (Replay{true, 4, 128, (1ull << 32) + 5, (2ull << 32) + 6}));
}

TEST(XfrmRegisterMessages, AStateByItsParts) {
    using Body = xfrm_usersa_info;
    struct Row {
        const char* what;
        std::function<void(Body&)> change;
        std::function<void(Payload&)> attributes;
        std::function<bool(const KernelSa&)> holds;
    };
    const auto no_change = [](Body&) {};
    const auto gcm = [](Payload& p) { p.add(XFRMA_ALG_AEAD, aead(1)); };
    const std::vector<Row> rows = {
        {"no algorithm: larval", no_change, [](Payload&) {},
         [](const KernelSa& sa) { return sa.larval && sa.key.empty() && !sa.aead; }},
        {"IPComp needs no key", [](Body& b) { b.id.proto = kProtocolIpcomp; },
         [](Payload& p) { p.add(XFRMA_ALG_COMP, algorithm("deflate", 0)); },
         [](const KernelSa& sa) { return !sa.larval && sa.algorithm == "deflate"; }},
        {"AH", [](Body& b) { b.id.proto = kProtocolAh; },
         [](Payload& p) {
             p.add(XFRMA_ALG_AUTH, algorithm("hmac(sha256)", 32));
             p.add(XFRMA_ALG_AUTH_TRUNC, algorithm("hmac(sha256)", 32, 128));
         },
         [](const KernelSa& sa) {
             return !sa.larval && sa.algorithm == "hmac(sha256)" && sa.icv_bits == 128;
         }},
        {"cipher and integrity", no_change,
         [](Payload& p) {
             p.add(XFRMA_ALG_AUTH, algorithm("hmac(sha1)", 20));
             p.add(XFRMA_ALG_AUTH_TRUNC, algorithm("hmac(sha1)", 20, 96));
             p.add(XFRMA_ALG_CRYPT, algorithm("cbc(aes)", 16));
         },
         [](const KernelSa& sa) {
             return sa.algorithm == "cbc(aes) + hmac(sha1)" && sa.icv_bits == 96 && !sa.aead &&
                    sa.key.empty() && !sa.keys_hidden && !sa.larval;
         }},
        {"integrity as old kernels show it", no_change,
         [](Payload& p) {
             p.add(XFRMA_ALG_AUTH, algorithm("hmac(md5)", 16));
             p.add(XFRMA_ALG_CRYPT, algorithm("ecb(cipher_null)", 0));
         },
         [](const KernelSa& sa) {
             return sa.algorithm == "ecb(cipher_null) + hmac(md5)" && !sa.keys_hidden;
         }},
        {"AEAD key of zeros: lockdown", no_change,
         [](Payload& p) { p.add(XFRMA_ALG_AEAD, aead(0)); },
         [](const KernelSa& sa) { return sa.keys_hidden && sa.key.empty() && sa.aead; }},
        {"other keys of zeros: lockdown", no_change,
         [](Payload& p) { p.add(XFRMA_ALG_CRYPT, algorithm("cbc(aes)", 16, {}, 0)); },
         [](const KernelSa& sa) { return sa.keys_hidden && sa.key.empty(); }},
        {"AEAD key longer than any of ours", no_change,
         [](Payload& p) { p.add(XFRMA_ALG_AEAD, aead(1, SecretBytes::kCapacity + 1)); },
         [](const KernelSa& sa) { return sa.key.empty() && sa.aead && !sa.keys_hidden; }},
        {"name of an algorithm that fills its field", no_change,
         [](Payload& p) {
             Buffer whole = aead(1);
             std::fill(whole.begin(), whole.begin() + 64, std::byte{'\n'});
             p.add(XFRMA_ALG_AEAD, whole);
         },
         [](const KernelSa& sa) { return sa.algorithm == std::string(64, '?'); }},
        {"legacy replay", [](Body& b) { b.replay_window = 32; },
         [&](Payload& p) {
             gcm(p);
             p.add(XFRMA_REPLAY_VAL, xfrm_replay_state{.oseq = 8, .seq = 9, .bitmap = 1});
         },
         [](const KernelSa& sa) { return sa.replay == Replay{false, 0, 32, 8, 9}; }},
        {"ESN form without ESN: high words do not count", no_change,
         [&](Payload& p) {
             gcm(p);
             p.add(XFRMA_REPLAY_ESN_VAL,
                   esn_replay({.words = 0, .oseq = 8, .seq = 9, .oseq_hi = 1, .seq_hi = 1}));
         },
         [](const KernelSa& sa) { return sa.replay == Replay{true, 0, 0, 8, 9}; }},
        {"transport", [](Body& b) { b.mode = XFRM_MODE_TRANSPORT; }, gcm,
         [](const KernelSa& sa) { return sa.mode == Mode::transport; }},
        {"BEET", [](Body& b) { b.mode = XFRM_MODE_BEET; }, gcm,
         [](const KernelSa& sa) { return sa.mode == Mode::other; }},
        {"selector: prefix", [](Body& b) { b.sel.prefixlen_d = 1; }, gcm,
         [](const KernelSa& sa) { return sa.has_selector; }},
        {"selector: protocol", [](Body& b) { b.sel.proto = 6; }, gcm,
         [](const KernelSa& sa) { return sa.has_selector; }},
        {"selector: device", [](Body& b) { b.sel.ifindex = 6; }, gcm,
         [](const KernelSa& sa) { return sa.has_selector; }},
        {"selector: family alone says nothing", [](Body& b) { b.sel.family = AF_INET; }, gcm,
         [](const KernelSa& sa) { return !sa.has_selector; }},
        {"inbound", no_change,
         [&](Payload& p) {
             gcm(p);
             p.add(kSaDirection, uint8_t{1});
         },
         [](const KernelSa& sa) { return sa.direction == StateDirection::inbound; }},
        {"a direction from the future", no_change,
         [&](Payload& p) {
             gcm(p);
             p.add(kSaDirection, uint8_t{3});
         },
         [](const KernelSa& sa) { return !sa.direction && !sa.pcpu; }},
        {"attributes from the future", no_change,
         [&](Payload& p) {
             gcm(p);
             p.add(60, Buffer(3)).add(64, Buffer(3)).add(0x3fff, Buffer(3));
         },
         [](const KernelSa& sa) { return sa.aead; }},
        {"the last of two counts", no_change,
         [&](Payload& p) {
             gcm(p);
             p.add(XFRMA_IF_ID, uint32_t{1}).add(XFRMA_IF_ID, uint32_t{2});
         },
         [](const KernelSa& sa) { return sa.if_id == 2; }},
    };
    for (const Row& row : rows) {
        Body body = state_body(1);
        row.change(body);
        Payload payload(body);
        row.attributes(payload);
        const auto sa = decode_kernel_sa(payload.bytes());
        ASSERT_TRUE(sa) << row.what << ": " << sa.error();
        EXPECT_TRUE(row.holds(*sa)) << row.what;
    }
}

// Every shorter message, in memory of exactly that size. `fixed`: bytes of the fixed part.
template <typename Decode>
void sweep_truncations(const char* what, const Buffer& whole, size_t fixed, Decode decode) {
    ASSERT_TRUE(decode(whole)) << what;
    std::vector<size_t> boundaries = {(fixed + 3) & ~size_t{3}};
    while (boundaries.back() < whole.size()) {
        nlattr header;
        std::memcpy(&header, whole.data() + boundaries.back(), sizeof header);
        boundaries.push_back(boundaries.back() + ((header.nla_len + 3u) & ~3u));
    }
    for (size_t size = 0; size < whole.size(); ++size) {
        const bool accepted =
            decode(Buffer(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size)));
        if (size < fixed) {
            ASSERT_FALSE(accepted) << what << " of " << size;
        }
        // Without what follows a complete attribute or its padding; all else is cut off.
        const bool complete = std::ranges::any_of(
            boundaries, [size](size_t end) { return size <= end && size + 3 >= end; });
        if (size > boundaries.front() && !complete) {
            ASSERT_FALSE(accepted) << what << " of " << size;
        }
    }
}

template <auto decode>
bool accepts(const Buffer& bytes) {
    return decode(bytes).has_value();
}

Payload whole_acquire() {
    xfrm_user_acquire body{};
    body.id.daddr = linux_ip("2001:db8::2");
    body.saddr = linux_ip("2001:db8::1");
    body.policy = policy_body(9);
    return Payload(body)
        .add(XFRMA_TMPL, template_body("2001:db8::1", "2001:db8::2"))
        .add(XFRMA_MARK, xfrm_mark{.v = 1, .m = 3});
}

TEST(XfrmRegisterMessages, EveryTruncationIsRefused) {
    sweep_truncations("state", state_with_everything().bytes(), sizeof(xfrm_usersa_info),
                      accepts<decode_kernel_sa>);
    sweep_truncations("deletion", deletion(1).add(XFRMA_MARK, xfrm_mark{}).bytes(),
                      sizeof(xfrm_usersa_id), accepts<decode_deleted_sa>);
    sweep_truncations("expiry", expiry(1, true).add(XFRMA_MARK, xfrm_mark{}).bytes(),
                      sizeof(xfrm_user_expire), accepts<decode_expire>);
    sweep_truncations("event", counter_event(1, 2, 3, 4, 0).add(XFRMA_MARK, xfrm_mark{}).bytes(),
                      sizeof(xfrm_aevent_id), accepts<decode_counter_event>);
    sweep_truncations("policy",
                      full_policy(9)
                          .add(XFRMA_MARK, xfrm_mark{})
                          .add(XFRMA_IF_ID, uint32_t{1})
                          .add(XFRMA_POLICY_TYPE, xfrm_userpolicy_type{})
                          .bytes(),
                      sizeof(xfrm_userpolicy_info), accepts<decode_kernel_policy>);
    sweep_truncations("policy deletion", policy_deletion(9, true).bytes(),
                      sizeof(xfrm_userpolicy_id), [](const Buffer& bytes) {
                          const auto index = decode_deleted_policy(bytes);
                          return index && *index == 9;
                      });
    xfrm_user_polexpire policy_expiry{};
    policy_expiry.pol = policy_body(9);
    sweep_truncations("policy expiry", Payload(policy_expiry).bytes(), sizeof policy_expiry,
                      accepts<decode_policy_expire>);
    sweep_truncations("acquire", whole_acquire().bytes(), sizeof(xfrm_user_acquire),
                      accepts<decode_acquire>);
    sweep_truncations("flush", Payload(xfrm_usersa_flush{.proto = 50}).bytes(), 1,
                      accepts<decode_flush_states>);
}

// Each attribute with a size of its own, shorter and longer than it should be.
TEST(XfrmRegisterMessages, AttributesOfTheWrongSizeAreRefused) {
    struct Row {
        uint16_t type;
        size_t bytes;  // the least that is right
    };
    for (const Row& row : std::initializer_list<Row>{{XFRMA_ALG_AEAD, 72},
                                                     {XFRMA_ALG_CRYPT, 68},
                                                     {XFRMA_ALG_AUTH, 68},
                                                     {XFRMA_ALG_AUTH_TRUNC, 72},
                                                     {XFRMA_ALG_COMP, 68},
                                                     {XFRMA_REPLAY_ESN_VAL, 24},
                                                     {XFRMA_REPLAY_VAL, 12},
                                                     {XFRMA_MARK, 8},
                                                     {XFRMA_SET_MARK, 4},
                                                     {XFRMA_SET_MARK_MASK, 4},
                                                     {XFRMA_IF_ID, 4},
                                                     {XFRMA_TFCPAD, 4},
                                                     {XFRMA_SA_EXTRA_FLAGS, 4},
                                                     {XFRMA_LASTUSED, 8},
                                                     {kSaDirection, 1},
                                                     {kSaPcpu, 4}}) {
        for (size_t bytes = 0; bytes < row.bytes + 8; ++bytes) {
            const Payload payload = Payload(state_body(1)).add(row.type, Buffer(bytes));
            EXPECT_EQ(decode_kernel_sa(payload.bytes()).has_value(), bytes >= row.bytes)
                << "attribute " << row.type << " of " << bytes;
        }
    }
}

TEST(XfrmRegisterMessages, LengthsInsideAttributesAreNotBelieved) {
    const auto refused = [](uint16_t type, Buffer value, size_t at, uint32_t length) {
        std::memcpy(value.data() + at, &length, sizeof length);
        return !decode_kernel_sa(Payload(state_body(1)).add(type, value).bytes());
    };
    for (const uint32_t bits : {161u, 168u, 0xfffffff8u, 0xffffffffu}) {
        EXPECT_TRUE(refused(XFRMA_ALG_AEAD, aead(1, 20), 64, bits)) << bits;
        EXPECT_TRUE(refused(XFRMA_ALG_CRYPT, algorithm("cbc(aes)", 20), 64, bits)) << bits;
        EXPECT_TRUE(refused(XFRMA_ALG_AUTH_TRUNC, algorithm("hmac(sha1)", 20, 96), 64, bits));
    }
    EXPECT_FALSE(refused(XFRMA_ALG_AEAD, aead(1, 20), 64, 160));
    for (const uint32_t words : {3u, 129u, 0x40000000u, 0xffffffffu}) {
        EXPECT_TRUE(refused(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 2}), 0, words)) << words;
    }
    EXPECT_TRUE(refused(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 129}), 0, 129));
    EXPECT_FALSE(refused(XFRMA_REPLAY_ESN_VAL, esn_replay({.words = 128}), 0, 128));
}

TEST(XfrmRegisterMessages, UnknownFamiliesAreRefused) {
    for (const uint16_t family : {uint16_t{AF_UNSPEC}, uint16_t{1}, uint16_t{0xffff}}) {
        xfrm_usersa_info state = state_body(1);
        state.family = family;
        EXPECT_FALSE(decode_kernel_sa(Payload(state).bytes()));
        xfrm_userpolicy_info policy = policy_body(9);
        policy.sel.family = family;
        EXPECT_FALSE(decode_kernel_policy(Payload(policy).bytes()));
        EXPECT_FALSE(decode_expire(Payload(xfrm_user_expire{.state = state}).bytes()));
        xfrm_usersa_id id{};
        id.family = family;
        EXPECT_FALSE(decode_deleted_sa(Payload(id).bytes()));
        EXPECT_FALSE(decode_counter_event(Payload(xfrm_aevent_id{.sa_id = id}).bytes()));
    }
}

// Nothing else tells what the kernel has used last.
TEST(XfrmRegisterMessages, ADeletionHasTheLastCountersOfTheState) {
    const auto esn = decode_deleted_sa(
        Payload(deletion_id(5))
            .add(XFRMA_SA,
                 [] {
                     xfrm_usersa_info body = state_body(5);
                     body.flags = XFRM_STATE_ESN;
                     body.curlft.packets = 3;
                     return body;
                 }())
            .add(XFRMA_ALG_AEAD, aead(0x5a))
            .add(XFRMA_REPLAY_ESN_VAL,
                 esn_replay({.words = 2, .oseq = 10, .seq = 20, .oseq_hi = 1, .seq_hi = 2}))
            .bytes());
    ASSERT_TRUE(esn && esn->last);
    EXPECT_EQ(esn->last->name, name(5));
    EXPECT_EQ(esn->last->key.bytes().size(), 20u);
    EXPECT_EQ(esn->last->replay.sent, (uint64_t{1} << 32) + 10);
    EXPECT_EQ(esn->last->replay.top, (uint64_t{2} << 32) + 20);
    EXPECT_EQ(esn->last->usage.packets, 3u);

    const auto old_form = decode_deleted_sa(
        deletion(5).add(XFRMA_REPLAY_VAL, xfrm_replay_state{.oseq = 6, .seq = 7}).bytes());
    ASSERT_TRUE(old_form && old_form->last);
    EXPECT_EQ(old_form->last->replay.sent, 6u);
    EXPECT_EQ(old_form->last->replay.top, 7u);
}

// It has gone, whatever else the message says.
TEST(XfrmRegisterMessages, ADeletionIsOneWithoutTheStateToo) {
    xfrm_usersa_info of_no_family = state_body(5);
    of_no_family.family = 0xffff;
    for (const Payload& payload :
         {Payload(deletion_id(5)), Payload(deletion_id(5)).add(XFRMA_SA, uint32_t{0}),
          Payload(deletion_id(5)).add(XFRMA_SA, of_no_family),
          Payload(deletion_id(5)).add(XFRMA_SA, state_body(6)),
          deletion(5).add(XFRMA_REPLAY_ESN_VAL, uint32_t{0})}) {
        const auto deleted = decode_deleted_sa(payload.bytes());
        ASSERT_TRUE(deleted);
        EXPECT_EQ(deleted->name, name(5));
        EXPECT_FALSE(deleted->last);
    }
}

TEST(XfrmRegisterMessages, OtherNotificationsAreRead) {
    const auto deleted = decode_deleted_sa(
        deletion(0x99, "2001:db8::2").add(XFRMA_MARK, xfrm_mark{.v = 1, .m = 2}).bytes());
    EXPECT_EQ(deleted->name, name(0x99, "2001:db8::2", {1, 2}));

    const auto soft = decode_expire(expiry(5, false).bytes());
    EXPECT_EQ(soft->name, name(5));
    EXPECT_EQ(soft->reqid, 7u);
    EXPECT_FALSE(soft->hard);
    EXPECT_TRUE(decode_expire(expiry(5, true).bytes())->hard);

    const auto event = decode_counter_event(counter_event(5, 10, 20, 3000, XFRM_AE_CU).bytes());
    EXPECT_EQ(event->name, name(5));
    EXPECT_TRUE(event->by_program);
    EXPECT_EQ(event->replay, (Replay{true, 2, 64, 10, 20}));
    EXPECT_EQ(event->usage, (Usage{3000, 30, 0, 0}));
    EXPECT_FALSE(decode_counter_event(counter_event(5, 1, 2, 3, XFRM_AE_CR).bytes())->by_program);

    EXPECT_EQ(decode_deleted_policy(policy_deletion(9, true).bytes()), 9u);
    EXPECT_EQ(decode_deleted_policy(policy_deletion(9, false).bytes()), 9u);
    EXPECT_FALSE(decode_deleted_policy(Payload(xfrm_userpolicy_id{}).bytes()));

    EXPECT_TRUE(decode_flush_policies({}).value());
    const auto flush = [](uint8_t type) {
        return decode_flush_policies(
            Payload().add(XFRMA_POLICY_TYPE, xfrm_userpolicy_type{.type = type}).bytes());
    };
    EXPECT_TRUE(flush(XFRM_POLICY_TYPE_MAIN).value());
    EXPECT_FALSE(flush(XFRM_POLICY_TYPE_SUB).value());

    const auto acquire = decode_acquire(whole_acquire().bytes());
    ASSERT_TRUE(acquire) << acquire.error();
    EXPECT_EQ(acquire->source, ip("2001:db8::1")) << "family of the tunnel, not of its traffic";
    EXPECT_EQ(acquire->destination, ip("2001:db8::2"));
    EXPECT_EQ(acquire->policy.row.index, 9u);
    EXPECT_EQ(acquire->policy.mark, (Mark{1, 3}));
}

TEST(XfrmRegisterMessages, APolicyIsReadWithAllThatItSays) {
    xfrm_userpolicy_info body = policy_body(17, 3000);
    body.sel.saddr = linux_ip("10.1.2.3");  // host bits behind the prefix
    body.sel.proto = 17;
    body.sel.sport = Be16(53).raw();
    body.sel.sport_mask = 0xffff;
    body.sel.ifindex = 4;
    body.action = XFRM_POLICY_BLOCK;
    xfrm_user_tmpl second = template_body("2001:db8::1", "2001:db8::2", 8);
    second.mode = XFRM_MODE_TRANSPORT;
    second.optional = 1;
    second.id.spi = Be32(0x77).raw();
    xfrm_user_tmpl first = template_body("192.0.2.9", "192.0.2.1");
    first.family = AF_UNSPEC;  // as old programs do
    const Payload payload =
        Payload(body)
            .add(XFRMA_TMPL, join(bytes_of(first), bytes_of(second)))
            .add(XFRMA_POLICY_TYPE, xfrm_userpolicy_type{.type = XFRM_POLICY_TYPE_SUB})
            .add(XFRMA_MARK, xfrm_mark{.v = 5, .m = 6})
            .add(XFRMA_IF_ID, uint32_t{7})
            .add(XFRMA_SEC_CTX, Buffer(8))
            .add(XFRMA_OFFLOAD_DEV, Buffer(8));
    const auto policy = decode_kernel_policy(payload.bytes());
    ASSERT_TRUE(policy && *policy);
    const KernelPolicy& got = **policy;
    EXPECT_EQ(got.row.selector.source, *parse_ip_prefix("10.1.0.0/16"));
    EXPECT_EQ(got.row.selector.protocol, 17);
    EXPECT_EQ(got.row.selector.source_port, 53);
    EXPECT_EQ(got.row.selector.source_port_mask, 0xffff);
    EXPECT_EQ(got.row.direction, PolicyDirection::out);
    EXPECT_EQ(got.row.action, PolicyAction::block);
    EXPECT_EQ(got.row.priority, 3000u);
    EXPECT_EQ(got.row.index, 17u);
    EXPECT_FALSE(got.main_type);
    EXPECT_EQ(got.if_id, 7u);
    EXPECT_EQ(got.mark, (Mark{5, 6}));
    EXPECT_EQ(got.selector_ifindex, 4u);
    EXPECT_TRUE(got.offloaded && got.has_security_context);
    ASSERT_EQ(got.templates.size(), 2u);
    EXPECT_EQ(got.templates[0],
              (Template{ip("192.0.2.9"), ip("192.0.2.1"), Spi{0}, 50, Mode::tunnel, 7, false}));
    EXPECT_EQ(got.templates[1], (Template{ip("2001:db8::1"), ip("2001:db8::2"), Spi{0x77}, 50,
                                          Mode::transport, 8, true}));

    body.dir = XFRM_POLICY_MAX;  // of a socket
    EXPECT_EQ(decode_kernel_policy(Payload(body).bytes()).value(), std::nullopt);
    body.dir = XFRM_POLICY_OUT;
    for (const auto& [bytes, good] : {std::pair{0, true},
                                      {64, true},
                                      {63, false},
                                      {65, false},
                                      {6 * 64, true},
                                      {7 * 64, false}}) {
        const Buffer templates(static_cast<size_t>(bytes));
        EXPECT_EQ(
            decode_kernel_policy(Payload(body).add(XFRMA_TMPL, templates).bytes()).has_value(),
            good)
            << bytes;
    }
    body.sel.prefixlen_d = 33;
    EXPECT_FALSE(decode_kernel_policy(Payload(body).bytes()));
}

}  // namespace
}  // namespace sallyport::xfrm
