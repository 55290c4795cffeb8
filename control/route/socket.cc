// SPDX-License-Identifier: Apache-2.0
#include "control/route/socket.h"

#include <linux/fib_rules.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace sallyport::route {

namespace {

constexpr int kDumpAttempts = 5;
constexpr std::array<int, 8> kGroups = {
    RTNLGRP_LINK,       RTNLGRP_NEIGH,      RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_RULE,   RTNLGRP_IPV6_RULE};

}  // namespace

std::expected<RouteSocket, std::string> RouteSocket::open() {
    auto notifications = netlink::Notifications::open(netlink::Protocol::route, kGroups);
    if (!notifications) return std::unexpected(notifications.error());
    auto requests = netlink::Socket::open(netlink::Protocol::route);
    if (!requests) return std::unexpected(requests.error());
    return RouteSocket(std::move(*notifications), std::move(*requests));
}

template <typename Header>
std::expected<bool, std::string> RouteSocket::dump_one(const char* what, uint16_t type,
                                                       const Header& header, RouteMirror& mirror) {
    netlink::Writer writer(type, NLM_F_DUMP, requests_.next_sequence());
    writer.put(header);
    std::string malformed;
    const auto done = requests_.exchange(writer.take(), [&](const netlink::Message& each) {
        const auto message = parse_message(each);
        if (message) {
            mirror.load(*message);
        } else {
            malformed = message.error();
        }
    });
    const std::string text = std::string("cannot read the kernel's ") + what + ": ";
    if (!malformed.empty()) return std::unexpected(text + malformed);
    if (!done && done.error().number == EAGAIN) return false;
    if (!done) return std::unexpected(text + done.error().text);
    return true;
}

std::expected<bool, std::string> RouteSocket::dump_all(RouteMirror& mirror) {
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
    const auto received = notifications_.receive(
        [&](const netlink::Message& each) {
            const auto message = parse_message(each);
            strongest = std::max(strongest, message ? mirror.apply(*message) : Effect::resync);
        },
        [&] { strongest = Effect::resync; });
    if (!received) return std::unexpected(received.error());
    return strongest;
}

}  // namespace sallyport::route
