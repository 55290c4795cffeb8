// SPDX-License-Identifier: Apache-2.0
//
// Netlink messages without a kernel: what is written is read again, every truncation is noticed.

#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <vector>

#include "control/netlink/link.h"
#include "control/netlink/message.h"
#include "control/xfrm/interface.h"

namespace sallyport::netlink {
namespace {

using Buffer = std::vector<std::byte>;

template <typename T>
Buffer bytes_of(const T& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    return {bytes.begin(), bytes.end()};
}

Message only_message(Bytes bytes) {
    const auto message = next_message(bytes);
    EXPECT_TRUE(message && *message);
    EXPECT_TRUE(bytes.empty());
    return **message;
}

// A copy of the first bytes on the heap, so that a sanitizer sees any read behind them.
Buffer cut(Bytes bytes, size_t size) {
    return {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)};
}

// A fixed part of 6 bytes, values of every length up to 9, and one container.
RequestBuffer example() {
    Writer writer(77, NLM_F_ACK, 5);
    writer.put(std::array<uint8_t, 6>{1, 2, 3, 4, 5, 6});
    for (uint16_t size = 0; size < 10; ++size) {
        writer.bytes(size, std::as_bytes(std::span("abcdefghij", size)));
    }
    const size_t container = writer.begin(20);
    writer.attribute(1, uint32_t{0x12345678});
    writer.name(2, "lan0");
    writer.text(3, "xfrm");
    writer.end(container);
    writer.flag(21);
    return writer.take();
}

TEST(NetlinkMessages, WhatIsWrittenIsRead) {
    const RequestBuffer request = example();
    const Message message = only_message(request.bytes());
    EXPECT_EQ(message.type, 77);
    EXPECT_EQ(message.flags, NLM_F_REQUEST | NLM_F_ACK);
    EXPECT_EQ(message.sequence, 5u);
    EXPECT_EQ(message.port, 0u);
    Attributes attributes;
    ASSERT_TRUE(attributes.parse(message.payload.subspan(8)));
    for (uint16_t size = 0; size < 10; ++size) {
        ASSERT_TRUE(attributes.has(size));
        EXPECT_EQ(text_of(attributes.value(size)), std::string("abcdefghij").substr(0, size));
    }
    EXPECT_TRUE(attributes.has(21));
    EXPECT_FALSE(attributes.has(22));
    EXPECT_TRUE(attributes.value(22).empty());
    Attributes inner;
    ASSERT_TRUE(inner.parse(attributes.value(20)));
    uint32_t number = 0;
    EXPECT_TRUE(inner.number(1, number));
    EXPECT_EQ(number, 0x12345678u);
    EXPECT_EQ(inner.value(2).size(), 5u) << "a name has its 0";
    EXPECT_EQ(text_of(inner.value(2)), "lan0");
    EXPECT_EQ(inner.value(3).size(), 4u);
    EXPECT_TRUE(inner.only({1, 2, 3}));
    EXPECT_FALSE(inner.only({1, 3}));
}

TEST(NetlinkMessages, EveryTruncationIsNoticed) {
    const RequestBuffer request = example();
    Buffer two(request.bytes().begin(), request.bytes().end());
    two.insert(two.end(), request.bytes().begin(), request.bytes().end());
    for (size_t size = 0; size <= two.size(); ++size) {
        const Buffer part = cut(two, size);
        Bytes rest = part;
        size_t count = 0;
        bool whole = true;
        while (true) {
            const auto message = next_message(rest);
            whole = message.has_value();
            if (!message || !*message) break;
            ++count;
        }
        EXPECT_EQ(count, size / request.size()) << size;
        EXPECT_EQ(whole, size % request.size() == 0) << size;
    }
    // Lengths that lie: below the header, and beyond what is there.
    for (uint32_t length = 0; length <= request.size() + 8; ++length) {
        Buffer changed(request.bytes().begin(), request.bytes().end());
        std::memcpy(changed.data(), &length, sizeof length);
        Bytes rest = changed;
        EXPECT_EQ(next_message(rest).has_value(),
                  length >= sizeof(nlmsghdr) && length <= request.size())
            << length;
    }
}

TEST(NetlinkMessages, EveryTruncatedAttributeIsNoticed) {
    const RequestBuffer request = example();
    const Bytes all = only_message(request.bytes()).payload.subspan(8);
    std::vector<size_t> ends = {0};  // where it may end: behind an attribute, padded or not
    for (size_t at = 0; at < all.size();) {
        const auto header = *peek<nlattr>(all.subspan(at));
        ends.push_back(at + header.nla_len);
        at += align4(header.nla_len);
        ends.push_back(at);
    }
    for (size_t size = 0; size <= all.size(); ++size) {
        Attributes attributes;
        const Buffer part = cut(all, size);
        bool may_end = false;
        for (size_t i = 0; i < ends.size(); i += 2) {
            may_end |= size == ends[i] || (i > 0 && size >= ends[i - 1] && size <= ends[i]);
        }
        EXPECT_EQ(attributes.parse(part), may_end) << size;
    }
}

TEST(NetlinkMessages, NumbersOfTheWrongSize) {
    for (size_t size = 0; size < 8; ++size) {
        Writer writer(1, 0, 1);
        writer.bytes(9, Buffer(size, std::byte{0x11}));
        const RequestBuffer request = writer.take();
        Attributes attributes;
        ASSERT_TRUE(attributes.parse(only_message(request.bytes()).payload));
        uint32_t number = 7;
        EXPECT_EQ(attributes.exact(9, number), size == 4) << size;
        EXPECT_EQ(number, size == 4 ? 0x11111111u : 7u);
        EXPECT_EQ(attributes.number(9, number), size >= 4) << size;
        EXPECT_EQ(attributes.with<uint32_t>(9, [](uint32_t) {}), size >= 4) << size;
        EXPECT_TRUE(attributes.exact(10, number)) << "absent";
    }
}

TEST(NetlinkMessages, OfTwoAttributesTheLastCountsAndFlagsOfTypesDoNot) {
    Writer writer(1, 0, 1);
    writer.attribute(3, uint32_t{1});
    writer.attribute(3 | NLA_F_NESTED | NLA_F_NET_BYTEORDER, uint32_t{2});
    const RequestBuffer request = writer.take();
    Attributes attributes;
    ASSERT_TRUE(attributes.parse(only_message(request.bytes()).payload));
    uint32_t number = 0;
    EXPECT_TRUE(attributes.exact(3, number));
    EXPECT_EQ(number, 2u);
    EXPECT_TRUE(attributes.only({3}));

    Writer newer(1, 0, 1);
    newer.flag(Attributes::kTypes);
    const RequestBuffer unknown = newer.take();
    Attributes none;
    ASSERT_TRUE(none.parse(only_message(unknown.bytes()).payload));
    EXPECT_FALSE(none.only({})) << "one that is too new to be known";
}

TEST(NetlinkMessages, TextIsPrintableAndEndsAtItsZero) {
    EXPECT_EQ(text_of(std::as_bytes(std::span("a\nb\x7f\xff\0c", 7))), "a?b??");
    EXPECT_EQ(text_of({}), "");
}

TEST(NetlinkMessages, EndOfADump) {
    EXPECT_EQ(decode_dump_end({}), 0);
    EXPECT_EQ(decode_dump_end(bytes_of(int32_t{0})), 0);
    EXPECT_EQ(decode_dump_end(bytes_of(int32_t{7})), 0);
    EXPECT_EQ(decode_dump_end(bytes_of(int32_t{-ENOMEM})), ENOMEM);
    EXPECT_EQ(decode_dump_end(bytes_of(INT32_MIN)), EPROTO);
}

TEST(NetlinkMessages, AcknowledgementTellsErrorAndText) {
    std::vector<std::byte> bytes(sizeof(nlmsghdr) + sizeof(nlmsgerr) + 12);
    nlmsghdr header{};
    header.nlmsg_len = static_cast<uint32_t>(bytes.size());
    header.nlmsg_type = NLMSG_ERROR;
    header.nlmsg_flags = NLM_F_CAPPED | NLM_F_ACK_TLVS;
    nlmsgerr error{};
    error.error = -EINVAL;
    const nlattr attribute{.nla_len = 12, .nla_type = NLMSGERR_ATTR_MSG};
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + sizeof header, &error, sizeof error);
    std::memcpy(bytes.data() + sizeof header + sizeof error, &attribute, sizeof attribute);
    std::memcpy(bytes.data() + sizeof header + sizeof error + sizeof attribute, "no such", 8);
    const auto acknowledgement = decode_acknowledgement(only_message(bytes));
    ASSERT_TRUE(acknowledgement);
    EXPECT_EQ(acknowledgement->number, EINVAL);
    EXPECT_EQ(acknowledgement->text, "no such");
}

// ---- links -------------------------------------------------------------------------------------

// What the kernel would answer, made of what we ask for: the two have the same form.
TEST(NetlinkLink, LinkMessagesAreReadAsTheyAreWritten) {
    const RequestBuffer request = xfrm::encode_new_interface("ipsec0", 1423, 9);
    EXPECT_EQ(request.size() % 4, 0u);
    const std::vector<std::byte> payload(request.bytes().begin() + 16, request.bytes().end());
    EXPECT_FALSE(decode_link(payload)) << "it has no index yet";
    std::vector<std::byte> link = payload;
    link[4] = std::byte{42};
    const auto read = decode_link(link);
    ASSERT_TRUE(read) << read.error();
    EXPECT_EQ(
        *read,
        (LinkInfo{.ifindex = 42, .mtu = 1423, .kind = "xfrm", .external = true, .name = "ipsec0"}));

    const LinkSettings settings{
        .up = true, .noarp = false, .mtu = 1400, .mac = {}, .alias = "sallyport"};
    const RequestBuffer take = encode_set_link(42, settings, 10);
    const auto taken = decode_link(take.bytes().subspan(16));
    ASSERT_TRUE(taken) << taken.error();
    EXPECT_EQ(*taken, (LinkInfo{.ifindex = 42, .mtu = 1400, .alias = "sallyport"}));
}

TEST(NetlinkLink, DevicesBelowAStack) {
    const auto link = [](uint32_t ifindex, uint32_t master, uint32_t below) {
        LinkInfo info;
        info.ifindex = ifindex;
        info.master = master;
        info.below = below;
        return info;
    };
    // 7: a VLAN on bond 5, which has 2 and 3. 6: a macvlan on 3.
    const std::vector<LinkInfo> links = {link(1, 0, 0), link(2, 5, 0), link(3, 5, 0),
                                         link(5, 0, 0), link(6, 0, 3), link(7, 0, 5)};
    const auto below = [&](uint32_t ifindex) {
        std::vector<uint32_t> out;
        for (const LinkInfo& info : devices_below(links, ifindex)) out.push_back(info.ifindex);
        return out;
    };
    EXPECT_EQ(below(7), (std::vector<uint32_t>{5, 2, 3}));
    EXPECT_EQ(below(5), (std::vector<uint32_t>{2, 3}));
    EXPECT_EQ(below(6), (std::vector<uint32_t>{3}));
    EXPECT_TRUE(below(2).empty());
    EXPECT_TRUE(below(9).empty());
    const std::vector<LinkInfo> ring = {link(1, 0, 2), link(2, 0, 1)};
    EXPECT_LE(devices_below(ring, 1).size(), 4u) << "and it ends";
}

TEST(NetlinkLink, CutAndMalformedLinksAreRefused) {
    const RequestBuffer request = xfrm::encode_new_interface("ipsec0", 1423, 9);
    std::vector<std::byte> link(request.bytes().begin() + 16, request.bytes().end());
    link[4] = std::byte{42};
    size_t whole = 0;
    for (size_t bytes = 0; bytes < link.size(); ++bytes) {
        // An exact allocation, so that a sanitizer sees each byte too many.
        const std::vector<std::byte> cut(link.begin(),
                                         link.begin() + static_cast<std::ptrdiff_t>(bytes));
        if (decode_link(cut)) ++whole;
    }
    EXPECT_EQ(whole, 4u) << "behind the header, the name (padded or not) and the MTU it may end";
    for (size_t at = 16; at < link.size(); ++at) {
        for (const int value : {0, 1, 3, 5, 255}) {
            std::vector<std::byte> changed = link;
            changed[at] = static_cast<std::byte>(value);
            static_cast<void>(decode_link(changed));  // any answer, within the bytes
        }
    }
}

TEST(NetlinkLink, SettingsAreWhatTheTapNeeds) {
    const MacAddress mac = {2, 0x53, 0x50, 0, 1, 0};
    const LinkSettings settings{.up = true, .noarp = true, .mtu = 1400, .mac = mac, .alias = {}};
    const RequestBuffer request = encode_set_link(42, settings, 1);
    const Message message = only_message(request.bytes());
    EXPECT_EQ(message.type, RTM_NEWLINK);
    EXPECT_EQ(message.flags, NLM_F_REQUEST | NLM_F_ACK) << "of a link that is there";
    const auto header = *peek<ifinfomsg>(message.payload);
    EXPECT_EQ(header.ifi_index, 42);
    EXPECT_EQ(header.ifi_flags, 0x81u) << "IFF_UP and IFF_NOARP";
    EXPECT_EQ(header.ifi_change, 0x81u);
    EXPECT_EQ(decode_link(message.payload)->mac, mac);
    EXPECT_EQ(decode_link(message.payload)->mtu, 1400u);

    const RequestBuffer nothing = encode_set_link(42, {}, 1);
    EXPECT_EQ(only_message(nothing.bytes()).payload.size(), sizeof(ifinfomsg));
}

}  // namespace
}  // namespace sallyport::netlink
