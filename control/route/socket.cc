// SPDX-License-Identifier: Apache-2.0
#include "control/route/socket.h"

#include <linux/fib_rules.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace sallyport::route {

namespace {

constexpr size_t kReceiveBytes = 256 * 1024;  // the kernel fills at most 32 KB at once
constexpr int kReceiveBuffer = 8 << 20;
constexpr int kDumpAttempts = 5;
constexpr timeval kAnswerTimeout{.tv_sec = 10, .tv_usec = 0};

std::unexpected<std::string> failed(const std::string& what, int error) {
    return std::unexpected(what + ": " + std::strerror(error));
}

struct Received {
    int error = 0;  // errno; 0: a datagram from the kernel, perhaps empty
    Datagram datagram;
    std::string malformed;
};

Received receive_datagram(int fd, std::vector<std::byte>& buffer) {
    Received received;
    sockaddr_nl from{};
    socklen_t from_bytes = sizeof from;
    const ssize_t bytes = recvfrom(fd, buffer.data(), buffer.size(), MSG_TRUNC,
                                   reinterpret_cast<sockaddr*>(&from), &from_bytes);
    if (bytes < 0) {
        received.error = errno;
    } else if (static_cast<size_t>(bytes) > buffer.size()) {
        received.error = EMSGSIZE;
    } else if (from.nl_pid == 0) {  // anybody may send to us; only the kernel is believed
        auto parsed = parse_datagram(std::span(buffer).first(static_cast<size_t>(bytes)));
        if (parsed) {
            received.datagram = std::move(*parsed);
        } else {
            received.malformed = parsed.error();
        }
    }
    return received;
}

template <typename Header>
bool send_dump_request(int fd, uint16_t type, const Header& header) {
    struct {
        nlmsghdr netlink;
        Header header;
    } request{};
    request.netlink.nlmsg_len = sizeof request;
    request.netlink.nlmsg_type = type;
    request.netlink.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.header = header;
    return send(fd, &request, sizeof request, 0) == static_cast<ssize_t>(sizeof request);
}

// One dump, to its end. True: complete; false: the tables changed meanwhile.
template <typename Header>
std::expected<bool, std::string> dump_one(const char* what, uint16_t type, const Header& header,
                                          RouteMirror& mirror) {
    const std::string text = std::string("cannot read the kernel's ") + what;
    const UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    if (!fd) return failed(text, errno);
    setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kAnswerTimeout, sizeof kAnswerTimeout);
    if (!send_dump_request(fd.get(), type, header)) return failed(text, errno);

    std::vector<std::byte> buffer(kReceiveBytes);
    bool interrupted = false;
    for (;;) {
        const Received received = receive_datagram(fd.get(), buffer);
        if (received.error == EINTR) continue;
        if (received.error != 0) return failed(text, received.error);
        if (!received.malformed.empty()) {
            return std::unexpected(text + ": " + received.malformed);
        }
        if (received.datagram.error != 0) return failed(text, received.datagram.error);
        for (const Message& message : received.datagram.messages) mirror.load(message);
        interrupted |= received.datagram.interrupted;
        if (received.datagram.done) return !interrupted;
    }
}

std::expected<bool, std::string> dump_all(RouteMirror& mirror) {
    bool complete = true;
    const auto add = [&complete](const std::expected<bool, std::string>& result) {
        complete = complete && result.value_or(false);
        return result.has_value();
    };
    if (const auto links = dump_one("links", RTM_GETLINK, ifinfomsg{}, mirror); !add(links)) {
        return links;
    }
    if (const auto all = dump_one("neighbours", RTM_GETNEIGH, ndmsg{}, mirror); !add(all)) {
        return all;
    }
    for (const uint8_t family : {uint8_t{AF_INET}, uint8_t{AF_INET6}}) {
        fib_rule_hdr rule{};
        rule.family = family;
        const auto rules = dump_one("routing rules", RTM_GETRULE, rule, mirror);
        if (!add(rules)) return rules;
        rtmsg route{};
        route.rtm_family = family;
        const auto routes = dump_one("routes", RTM_GETROUTE, route, mirror);
        if (!add(routes)) return routes;
    }
    return complete;
}

}  // namespace

std::expected<RouteSocket, std::string> RouteSocket::open() {
    RouteSocket routes;
    routes.notifications_ =
        UniqueFd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
    const int fd = routes.notifications_.get();
    if (fd < 0) return failed("cannot open a netlink socket", errno);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer);
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        return failed("cannot bind a netlink socket", errno);
    }
    for (const int group :
         {RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE,
          RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE}) {
        if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0) {
            return failed("cannot subscribe to the kernel's routes", errno);
        }
    }
    return routes;
}

std::expected<void, std::string> RouteSocket::dump(RouteMirror& mirror) {
    for (int attempt = 0; attempt < kDumpAttempts; ++attempt) {
        mirror.clear();
        const auto complete = dump_all(mirror);
        if (!complete) return std::unexpected(complete.error());
        if (*complete) return {};
    }
    // Each dump was overtaken by changes: those are waiting as notifications.
    return {};
}

std::expected<Effect, std::string> RouteSocket::receive(RouteMirror& mirror) {
    Effect strongest = Effect::none;
    std::vector<std::byte> buffer(kReceiveBytes);
    for (;;) {
        const Received received = receive_datagram(fd(), buffer);
        if (received.error == EAGAIN) return strongest;
        if (received.error == EINTR) continue;
        if (received.error == ENOBUFS || !received.malformed.empty()) {
            strongest = Effect::resync;
            continue;
        }
        if (received.error != 0) return failed("cannot read route changes", received.error);
        for (const Message& message : received.datagram.messages) {
            strongest = std::max(strongest, mirror.apply(message));
        }
    }
}

std::expected<void, std::string> RouteSocket::refresh_used(const RouteMirror& mirror) {
    const UniqueFd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    if (!netlink) return failed("cannot open a netlink socket", errno);
    for (const NeighbourName& name : mirror.to_refresh()) {
        struct {
            nlmsghdr netlink;
            ndmsg neighbour;
            rtattr attribute;
            std::array<uint8_t, 16> address;
        } request{};
        const size_t address_bytes = name.address.bit_count() / 8;
        request.netlink.nlmsg_len =
            static_cast<uint32_t>(sizeof request - sizeof request.address + address_bytes);
        request.netlink.nlmsg_type = RTM_NEWNEIGH;
        // No acknowledgement: an entry that cannot be refreshed will be reported as a change.
        request.netlink.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE;
        request.neighbour.ndm_family = name.address.family == Family::v4 ? AF_INET : AF_INET6;
        request.neighbour.ndm_ifindex = static_cast<int>(name.ifindex);
        request.neighbour.ndm_flags = NTF_USE;
        request.attribute.rta_type = NDA_DST;
        request.attribute.rta_len = static_cast<uint16_t>(RTA_LENGTH(address_bytes));
        request.address = name.address.bytes;
        if (send(netlink.get(), &request, request.netlink.nlmsg_len, 0) < 0) {
            return failed("cannot refresh neighbours", errno);
        }
    }
    return {};
}

}  // namespace sallyport::route
