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

netlink::RequestBuffer encode_neighbour(uint16_t type, unsigned flags, uint8_t neighbour_flags,
                                        const NeighbourName& name, uint32_t sequence) {
    netlink::Writer writer(type, NLM_F_ACK | flags, sequence);
    ndmsg body{};
    body.ndm_family = name.address.family == Family::v4 ? AF_INET : AF_INET6;
    body.ndm_ifindex = static_cast<int>(name.ifindex);
    body.ndm_flags = neighbour_flags;
    writer.put(body);
    const auto address = std::as_bytes(std::span(name.address.bytes));
    writer.bytes(NDA_DST, address.first(name.address.bit_count() / 8));
    return writer.take();
}

netlink::RequestBuffer encode_get(const NeighbourName& name, uint32_t sequence) {
    return encode_neighbour(RTM_GETNEIGH, 0, 0, name, sequence);
}

// Makes the kernel look after an entry as if it had sent to it. One that is not there is made, but
// not if somebody else was faster.
netlink::RequestBuffer encode_use(const NeighbourName& name, bool exists, uint32_t sequence) {
    const unsigned flags = exists ? 0 : NLM_F_CREATE | NLM_F_EXCL;
    return encode_neighbour(RTM_NEWNEIGH, flags, NTF_USE, name, sequence);
}

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

std::expected<void, std::string> RouteSocket::refresh_used(const RouteMirror& mirror) {
    const auto failed = [](const netlink::Error& error) {
        return std::unexpected("cannot refresh neighbours: " + error.text);
    };
    for (const NeighbourName& name : mirror.to_refresh()) {
        // Asked again, because the mirror may not know that another control plane has the entry:
        // the notification still waits, or there was none (for one that is made without a MAC).
        bool may_be_refreshed = false;
        const auto asked = requests_.exchange(
            encode_get(name, requests_.next_sequence()), [&](const netlink::Message& each) {
                const auto message = parse_message(each);
                const auto* now = message ? std::get_if<NeighbourChange>(&*message) : nullptr;
                may_be_refreshed = now != nullptr && now->neighbour.may_be_refreshed();
            });
        // An entry that cannot be refreshed (its device went) is reported as a change.
        if (!asked && asked.error().number == ETIMEDOUT) return failed(asked.error());
        const bool absent = !asked && asked.error().number == ENOENT;
        if (!may_be_refreshed && !absent) continue;
        const auto used = requests_.exchange(encode_use(name, !absent, requests_.next_sequence()));
        if (!used && used.error().number == ETIMEDOUT) return failed(used.error());
    }
    return {};
}

}  // namespace sallyport::route
