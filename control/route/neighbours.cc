// SPDX-License-Identifier: Apache-2.0
#include "control/route/neighbours.h"

#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <map>

namespace sallyport::route {

namespace {

using netlink::bytes_of;
using netlink::number_of;

netlink::RequestBuffer encode_neighbour(uint16_t type, unsigned flags, uint8_t neighbour_flags,
                                        const NeighbourName& name, uint32_t sequence) {
    netlink::Writer writer(type, NLM_F_ACK | flags, sequence);
    ndmsg body{};
    body.ndm_family = number_of(name.address.family);
    body.ndm_ifindex = static_cast<int>(name.ifindex);
    body.ndm_flags = neighbour_flags;
    writer.put(body);
    writer.bytes(NDA_DST, bytes_of(name.address));
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

netlink::RequestBuffer encode_dump(uint32_t ifindex, uint32_t sequence) {
    netlink::Writer writer(RTM_GETNEIGH, NLM_F_DUMP, sequence);
    writer.put(ndmsg{});
    writer.attribute(NDA_IFINDEX, ifindex);
    return writer.take();
}

netlink::RequestBuffer encode_route_question(const IpAddress& destination, uint32_t sequence) {
    netlink::Writer writer(RTM_GETROUTE, NLM_F_ACK, sequence);
    rtmsg body{};
    body.rtm_family = number_of(destination.family);
    body.rtm_dst_len = static_cast<uint8_t>(destination.bit_count());
    writer.put(body);
    writer.bytes(RTA_DST, bytes_of(destination));
    return writer.take();
}

}  // namespace

std::vector<NeighbourName> to_ask(std::span<const Neighbour> known,
                                  const std::set<NeighbourName>& needed, size_t most,
                                  std::optional<NeighbourName>& asked_last) {
    std::map<NeighbourName, const Neighbour*> entries;
    std::vector<NeighbourName> stale;
    for (const Neighbour& each : known) {
        entries[{each.ifindex, each.address}] = &each;
        if (each.stale && each.may_be_refreshed()) stale.push_back({each.ifindex, each.address});
    }
    std::vector<NeighbourName> missing;
    for (const NeighbourName& name : needed) {
        const auto at = entries.find(name);
        if (at == entries.end() || (!at->second->usable && at->second->may_be_refreshed())) {
            missing.push_back(name);
        }
    }
    if (asked_last) {
        std::ranges::rotate(missing, std::ranges::upper_bound(missing, *asked_last));
    }
    // What does not answer is asked for ever: it has half, so that the others have their turn.
    missing.resize(
        std::min(missing.size(), std::max(most / 2, most - std::min(most, stale.size()))));
    if (!missing.empty()) asked_last = missing.back();
    stale.resize(std::min(stale.size(), most - missing.size()));
    missing.insert(missing.end(), stale.begin(), stale.end());
    return missing;
}

std::expected<NeighbourSocket, std::string> NeighbourSocket::open() {
    auto requests = netlink::Socket::open(netlink::Protocol::route);
    if (!requests) return std::unexpected(requests.error());
    return NeighbourSocket(std::move(*requests));
}

std::expected<std::vector<Neighbour>, std::string> NeighbourSocket::dump(
    std::span<const uint32_t> ifindexes) {
    std::vector<Neighbour> found;
    for (const uint32_t ifindex : ifindexes) {
        std::string malformed;
        const auto done = requests_.exchange(
            encode_dump(ifindex, requests_.next_sequence()), [&](const netlink::Message& each) {
                const auto message = parse_message(each);
                if (!message) malformed = message.error();
                const auto* now = message ? std::get_if<NeighbourChange>(&*message) : nullptr;
                if (now != nullptr && now->neighbour.ifindex == ifindex) {
                    found.push_back(now->neighbour);
                }
            });
        if (!malformed.empty()) return std::unexpected(malformed);
        // EAGAIN: what is missing is there the next time. ENODEV: the device has gone.
        if (!done && done.error().number != EAGAIN && done.error().number != ENODEV) {
            return std::unexpected(done.error().text);
        }
    }
    return found;
}

std::expected<std::optional<NeighbourName>, std::string> NeighbourSocket::next_hop(
    const IpAddress& destination) {
    std::expected<std::optional<NeighbourName>, std::string> found;
    const auto asked = requests_.exchange(
        encode_route_question(destination, requests_.next_sequence()),
        [&](const netlink::Message& each) { found = parse_next_hop(each, destination); });
    // Any other error says that no route leads there.
    if (!asked && asked.error().number == ETIMEDOUT) return std::unexpected(asked.error().text);
    return found;
}

std::expected<void, std::string> NeighbourSocket::ask(std::span<const NeighbourName> names) {
    for (const NeighbourName& name : names) {
        // Looked at again: since the dump somebody may have made it his own.
        bool may_be_refreshed = false;
        const auto asked = requests_.exchange(
            encode_get(name, requests_.next_sequence()), [&](const netlink::Message& each) {
                const auto message = parse_message(each);
                const auto* now = message ? std::get_if<NeighbourChange>(&*message) : nullptr;
                may_be_refreshed = now != nullptr && now->neighbour.may_be_refreshed();
            });
        // One that cannot be asked for, because its device went, is not there the next time.
        if (!asked && asked.error().number == ETIMEDOUT) return std::unexpected(asked.error().text);
        const bool absent = !asked && asked.error().number == ENOENT;
        if (!may_be_refreshed && !absent) continue;
        const auto used = requests_.exchange(encode_use(name, !absent, requests_.next_sequence()));
        if (!used && used.error().number == ETIMEDOUT) return std::unexpected(used.error().text);
    }
    return {};
}

}  // namespace sallyport::route
