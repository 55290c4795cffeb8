// SPDX-License-Identifier: Apache-2.0
//
// The receive loop: against a pair of datagram sockets whose other end plays the kernel, and
// against the kernel itself.

#include "control/netlink/socket.h"

#include <gtest/gtest.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <vector>

#include "control/netlink/link.h"
#include "tests/dataplane/io/support.h"

namespace sallyport::netlink {
namespace {

using Buffer = std::vector<std::byte>;
constexpr uint32_t kPort = 4711;

// One message; its payload is one number.
Buffer message(uint16_t type, uint32_t sequence, int32_t number, uint16_t flags = 0) {
    Writer writer(type, flags, sequence);
    writer.put(number);
    const RequestBuffer request = writer.take();
    return {request.bytes().begin(), request.bytes().end()};
}

Buffer acknowledgement(uint32_t sequence, int error) {
    Writer writer(NLMSG_ERROR, 0, sequence);
    writer.put(nlmsgerr{.error = -error, .msg = {}});
    const RequestBuffer request = writer.take();
    return {request.bytes().begin(), request.bytes().end()};
}

Buffer operator+(Buffer first, const Buffer& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
}

class NetlinkSocketTest : public testing::Test {
  protected:
    void SetUp() override {
        std::array<int, 2> ends{};
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends.data()), 0);
        ours_ = UniqueFd(ends[0]);
        kernel_ = UniqueFd(ends[1]);
        const timeval patience{.tv_sec = 0, .tv_usec = 100'000};
        setsockopt(ours_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    }
    void say(const Buffer& datagram) {
        ASSERT_EQ(send(kernel_.get(), datagram.data(), datagram.size(), 0),
                  static_cast<ssize_t>(datagram.size()));
    }
    // Asks once, after the answers were said; what came is in seen_.
    std::expected<void, Error> ask() {
        Socket socket(std::move(ours_), Protocol::route, kPort);
        Writer writer(99, NLM_F_DUMP, socket.next_sequence());
        return socket.exchange(writer.take(), [this](const Message& each) {
            seen_.push_back(peek<int32_t>(each.payload).value_or(-1));
        });
    }

    UniqueFd ours_;
    UniqueFd kernel_;
    std::vector<int32_t> seen_;
};

TEST_F(NetlinkSocketTest, AnswerOfSeveralDatagrams) {
    say(message(20, 1, 1) + message(20, 1, 2));
    say(message(20, 1, 3));
    say(message(20, 1, 4) + message(NLMSG_DONE, 1, 0) + message(20, 1, 5));
    ASSERT_TRUE(ask());
    EXPECT_EQ(seen_, (std::vector{1, 2, 3, 4})) << "what stands behind the end is none of it";
    // The request as it was sent: with our port in it.
    Buffer request(100);
    const ssize_t bytes = recv(kernel_.get(), request.data(), request.size(), 0);
    ASSERT_EQ(bytes, static_cast<ssize_t>(sizeof(nlmsghdr)));
    EXPECT_EQ(peek<nlmsghdr>(request)->nlmsg_pid, kPort);
}

TEST_F(NetlinkSocketTest, MessagesOfAnEarlierExchangeAreLeftOut) {
    say(message(20, 7, 1) + acknowledgement(7, ENOENT));
    say(message(20, 1, 2) + acknowledgement(1, 0));
    ASSERT_TRUE(ask());
    EXPECT_EQ(seen_, std::vector{2});
}

TEST_F(NetlinkSocketTest, ErrorsEndTheAnswer) {
    say(message(20, 1, 1) + acknowledgement(1, ENODEV));
    const auto done = ask();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().number, ENODEV);
}

TEST_F(NetlinkSocketTest, ADumpThatEndsEarlyOrWasOvertakenIsAnError) {
    say(message(20, 1, 1) + message(NLMSG_DONE, 1, -ENOMEM));
    auto done = ask();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().number, ENOMEM);

    SetUp();
    say(message(20, 1, 1, NLM_F_DUMP_INTR) + message(20, 1, 2));
    say(message(NLMSG_DONE, 1, 0));
    seen_.clear();
    done = ask();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().number, EAGAIN);
    EXPECT_EQ(seen_, (std::vector{1, 2})) << "told, but nobody should trust it";
}

TEST_F(NetlinkSocketTest, CutOffAndMissingAnswersAreErrors) {
    say(Buffer(40 * 1024));
    auto done = ask();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().number, EMSGSIZE);

    SetUp();
    Buffer part = message(20, 1, 1);
    part.pop_back();
    say(part);
    done = ask();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().number, EPROTO);

    SetUp();
    done = ask();
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().number, ETIMEDOUT);
}

// Three at once: an answer, an error, an acknowledgement; mixed with what belongs to none.
TEST_F(NetlinkSocketTest, EachOfManyHasItsOwnAnswer) {
    say(message(20, 1, 11) + acknowledgement(1, 0) + message(20, 9, 99));
    say(acknowledgement(2, ESRCH) + acknowledgement(2, 0));
    say(acknowledgement(3, 0));
    Socket socket(std::move(ours_), Protocol::route, kPort);
    std::vector<RequestBuffer> requests;
    for (int i = 0; i < 3; ++i) {
        requests.push_back(Writer(99, NLM_F_ACK, socket.next_sequence()).take());
    }
    std::vector<std::pair<size_t, int32_t>> seen;
    const auto done =
        socket.exchange_all(std::move(requests), [&seen](size_t request, const Message& each) {
            seen.emplace_back(request, peek<int32_t>(each.payload).value_or(-1));
        });
    ASSERT_EQ(done.size(), 3u);
    EXPECT_TRUE(done[0]);
    ASSERT_FALSE(done[1]);
    EXPECT_EQ(done[1].error().number, ESRCH);
    EXPECT_TRUE(done[2]);
    EXPECT_EQ(seen, (std::vector<std::pair<size_t, int32_t>>{{0, 11}}));
    // In one datagram, each with our port.
    Buffer request(100);
    const ssize_t bytes = recv(kernel_.get(), request.data(), request.size(), 0);
    ASSERT_EQ(bytes, static_cast<ssize_t>(3 * sizeof(nlmsghdr)));
    Bytes rest{request.data(), static_cast<size_t>(bytes)};
    for (uint32_t i = 1; i <= 3; ++i) {
        const auto each = next_message(rest);
        ASSERT_TRUE(each && *each);
        EXPECT_EQ((*each)->sequence, i);
        EXPECT_EQ((*each)->port, kPort);
    }
}

TEST_F(NetlinkSocketTest, ThoseOfManyWithoutAnAnswerHaveFailed) {
    say(acknowledgement(1, 0));
    Socket socket(std::move(ours_), Protocol::route, kPort);
    std::vector<RequestBuffer> requests;
    for (int i = 0; i < 2; ++i) {
        requests.push_back(Writer(99, NLM_F_ACK, socket.next_sequence()).take());
    }
    const auto done = socket.exchange_all(std::move(requests));
    ASSERT_EQ(done.size(), 2u);
    EXPECT_TRUE(done[0]);
    ASSERT_FALSE(done[1]);
    EXPECT_EQ(done[1].error().number, ETIMEDOUT);
    EXPECT_TRUE(socket.exchange_all({}).empty());
}

TEST_F(NetlinkSocketTest, NotificationsAreTakenInOrderAndLossIsSaidInItsPlace) {
    Buffer part = message(20, 0, 3);
    part.pop_back();
    Buffer long_one = message(20, 0, 4);
    long_one.resize(40 * 1024);
    say(message(20, 0, 1) + message(20, 0, 2));
    say(message(20, 0, 5) + part);
    say(long_one);
    std::vector<int32_t> expected = {1, 2, 5, -2, -2};
    for (int32_t i = 6; i < 40; ++i) {  // more than one call takes
        say(message(20, 0, i));
        expected.push_back(i);
    }
    Notifications notifications(std::move(ours_));
    const auto done = notifications.receive(
        [this](const Message& each) { seen_.push_back(peek<int32_t>(each.payload).value_or(-1)); },
        [this] { seen_.push_back(-2); });
    ASSERT_TRUE(done) << done.error();
    EXPECT_EQ(seen_, expected);
}

// ---- the kernel --------------------------------------------------------------------------------

class NetlinkKernelTest : public test::NamespaceTest {};

constexpr std::array<int, 1> kLinks = {RTNLGRP_LINK};

// The port of a socket of ours, so that somebody else can send to it.
uint32_t port_of(int fd) {
    sockaddr_nl address{};
    socklen_t bytes = sizeof address;
    EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &bytes), 0);
    return address.nl_pid;
}

TEST_F(NetlinkKernelTest, OnlyTheKernelIsBelieved) {
    auto notifications = Notifications::open(Protocol::route, kLinks);
    ASSERT_TRUE(notifications) << notifications.error();
    const UniqueFd other(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    sockaddr_nl to{};
    to.nl_family = AF_NETLINK;
    to.nl_pid = port_of(notifications->fd());
    for (const Buffer& forged : {message(RTM_NEWLINK, 0, 1), Buffer(40 * 1024), Buffer(3)}) {
        ASSERT_EQ(sendto(other.get(), forged.data(), forged.size(), 0,
                         reinterpret_cast<const sockaddr*>(&to), sizeof to),
                  static_cast<ssize_t>(forged.size()));
    }
    test::run("ip link add va type veth peer name vb");
    size_t links = 0;
    size_t lost = 0;
    const auto done = notifications->receive(
        [&](const Message& each) {
            EXPECT_TRUE(decode_link(each.payload));
            ++links;
        },
        [&] { ++lost; });
    ASSERT_TRUE(done) << done.error();
    EXPECT_GE(links, 2u);
    EXPECT_EQ(lost, 0u);
}

TEST_F(NetlinkKernelTest, AnOverrunIsSaid) {
    auto notifications = Notifications::open(Protocol::route, kLinks);
    ASSERT_TRUE(notifications) << notifications.error();
    const int small = 4096;
    setsockopt(notifications->fd(), SOL_SOCKET, SO_RCVBUFFORCE, &small, sizeof small);
    test::run("ip link add va type veth peer name vb");
    for (int i = 0; i < 20; ++i) test::run("ip link set va up; ip link set va down");
    size_t lost = 0;
    const auto nothing = [](const Message&) {};
    ASSERT_TRUE(notifications->receive(nothing, [&] { ++lost; }));
    EXPECT_GE(lost, 1u);
    lost = 0;
    test::run("ip link set va up");
    ASSERT_TRUE(notifications->receive(nothing, [&] { ++lost; }));
    EXPECT_EQ(lost, 0u) << "all was read";
}

TEST_F(NetlinkKernelTest, LinksAreFoundAndSet) {
    auto socket = Socket::open(Protocol::route);
    ASSERT_TRUE(socket) << socket.error();
    EXPECT_EQ(find_link(*socket, "va").error().number, ENODEV);
    test::run("ip link add va type veth peer name vb");
    const auto before = find_link(*socket, "va");
    ASSERT_TRUE(before) << before.error().text;
    EXPECT_EQ(before->ifindex, if_nametoindex("va"));
    EXPECT_EQ(before->kind, "veth");
    const MacAddress mac = {2, 0, 0, 0, 0, 9};
    const LinkSettings settings{
        .up = true, .noarp = true, .mtu = 1400, .mac = mac, .alias = "sallyport"};
    const auto set =
        socket->exchange(encode_set_link(before->ifindex, settings, socket->next_sequence()));
    ASSERT_TRUE(set) << set.error().text;
    const auto after = find_link(*socket, "va");
    ASSERT_TRUE(after) << after.error().text;
    EXPECT_EQ(after->mtu, 1400u);
    EXPECT_EQ(after->mac, mac);
    EXPECT_EQ(after->alias, "sallyport");
    test::run("ip link show va | grep -q 'NOARP.*UP'");
    EXPECT_TRUE(
        socket->exchange(encode_delete_link(before->ifindex, socket->next_sequence())).has_value());
    EXPECT_EQ(if_nametoindex("va"), 0u);
}

}  // namespace
}  // namespace sallyport::netlink
