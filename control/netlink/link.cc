// SPDX-License-Identifier: Apache-2.0
#include "control/netlink/link.h"

#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <cerrno>

namespace sallyport::netlink {

namespace {

Writer link_writer(uint16_t type, uint32_t ifindex, unsigned flags, uint32_t sequence) {
    Writer writer(type, NLM_F_ACK, sequence);
    ifinfomsg body{};
    body.ifi_index = static_cast<int>(ifindex);
    body.ifi_flags = flags;
    body.ifi_change = flags;
    writer.put(body);
    return writer;
}

bool read_kind(Bytes bytes, LinkInfo& link) {
    Attributes info;
    if (!info.parse(bytes)) return false;
    link.kind = text_of(info.value(IFLA_INFO_KIND));
    link.slave_kind = text_of(info.value(IFLA_INFO_SLAVE_KIND));
    if (link.kind != "xfrm") return true;
    Attributes data;
    if (!data.parse(info.value(IFLA_INFO_DATA))) return false;
    link.external = data.has(IFLA_XFRM_COLLECT_METADATA);
    return true;
}

}  // namespace

RequestBuffer encode_get_link(const std::string& name, uint32_t sequence) {
    Writer writer = link_writer(RTM_GETLINK, 0, 0, sequence);
    writer.name(IFLA_IFNAME, name);
    return writer.take();
}

RequestBuffer encode_set_link(uint32_t ifindex, const LinkSettings& settings, uint32_t sequence) {
    unsigned flags = 0;
    if (settings.up) flags |= IFF_UP;
    if (settings.noarp) flags |= IFF_NOARP;
    Writer writer = link_writer(RTM_NEWLINK, ifindex, flags, sequence);
    if (settings.mac) writer.attribute(IFLA_ADDRESS, *settings.mac);
    if (settings.mtu != 0) writer.attribute(IFLA_MTU, settings.mtu);
    if (!settings.alias.empty()) writer.text(IFLA_IFALIAS, settings.alias);
    return writer.take();
}

RequestBuffer encode_no_ipv6_addresses(uint32_t ifindex, uint32_t sequence) {
    Writer writer = link_writer(RTM_NEWLINK, ifindex, 0, sequence);
    const size_t per_family = writer.begin(IFLA_AF_SPEC);
    const size_t v6 = writer.begin(AF_INET6);
    writer.attribute(IFLA_INET6_ADDR_GEN_MODE, uint8_t{IN6_ADDR_GEN_MODE_NONE});
    writer.end(v6);
    writer.end(per_family);
    return writer.take();
}

RequestBuffer encode_move_link(uint32_t ifindex, int netns_fd, uint32_t sequence) {
    Writer writer = link_writer(RTM_NEWLINK, ifindex, 0, sequence);
    writer.attribute(IFLA_NET_NS_FD, static_cast<uint32_t>(netns_fd));
    return writer.take();
}

RequestBuffer encode_delete_link(uint32_t ifindex, uint32_t sequence) {
    return link_writer(RTM_DELLINK, ifindex, 0, sequence).take();
}

std::expected<LinkInfo, std::string> decode_link(Bytes payload) {
    const auto header = peek<ifinfomsg>(payload);
    if (!header) return std::unexpected("a link is shorter than its header");
    if (header->ifi_index <= 0) return std::unexpected("a link has no index");
    Attributes attributes;
    if (!attributes.parse(behind<ifinfomsg>(payload))) {
        return std::unexpected("an attribute of a link is too long");
    }
    constexpr unsigned kRunning = IFF_UP | IFF_RUNNING;
    LinkInfo link{.ifindex = static_cast<uint32_t>(header->ifi_index),
                  .family = header->ifi_family,
                  .running = (header->ifi_flags & kRunning) == kRunning,
                  .alias = text_of(attributes.value(IFLA_IFALIAS)),
                  .name = text_of(attributes.value(IFLA_IFNAME)),
                  .slave_kind = {}};
    if (!attributes.exact(IFLA_MTU, link.mtu)) return std::unexpected("a link's MTU is malformed");
    if (!attributes.exact(IFLA_MASTER, link.master)) {
        return std::unexpected("a link's master is malformed");
    }
    if (!attributes.has(IFLA_LINK_NETNSID) && !attributes.exact(IFLA_LINK, link.below)) {
        return std::unexpected("a link's lower device is malformed");
    }
    if (const Bytes mac = attributes.value(IFLA_ADDRESS); mac.size() == link.mac.size()) {
        static_cast<void>(read(mac, link.mac));
    }
    if (!read_kind(attributes.value(IFLA_LINKINFO), link)) {
        return std::unexpected("the kind of a link is malformed");
    }
    // The other end of a veth or netkit is beside it. That of a device on nothing is itself.
    const bool is_pair = link.kind == "veth" || link.kind == "netkit";
    if (link.below == link.ifindex || is_pair) link.below = 0;
    return link;
}

std::expected<LinkInfo, Error> find_link(Socket& socket, const std::string& name) {
    std::expected<LinkInfo, std::string> link = std::unexpected("the kernel does not describe it");
    const auto done =
        socket.exchange(encode_get_link(name, socket.next_sequence()), [&](const Message& message) {
            if (message.type == RTM_NEWLINK) link = decode_link(message.payload);
        });
    if (!done) return std::unexpected(done.error());
    if (!link) return std::unexpected(Error{EPROTO, link.error()});
    return *link;
}

std::expected<std::vector<LinkInfo>, Error> list_links(Socket& socket) {
    Writer writer(RTM_GETLINK, NLM_F_DUMP, socket.next_sequence());
    writer.put(ifinfomsg{});
    std::vector<LinkInfo> links;
    const auto done = socket.exchange(writer.take(), [&](const Message& message) {
        if (message.type != RTM_NEWLINK) return;
        if (auto link = decode_link(message.payload)) links.push_back(std::move(*link));
    });
    if (!done) return std::unexpected(done.error());
    return links;
}

std::vector<LinkInfo> devices_below(const std::vector<LinkInfo>& links, uint32_t ifindex) {
    std::vector<LinkInfo> found;
    std::vector<uint32_t> above = {ifindex};
    // The kernel has no rings of them, but may have changed during the dump.
    for (size_t i = 0; i < above.size() && above.size() <= links.size(); ++i) {
        uint32_t below = 0;
        for (const LinkInfo& link : links) {
            if (link.ifindex == above[i]) below = link.below;
        }
        for (const LinkInfo& link : links) {
            if (link.master != above[i] && link.ifindex != below) continue;
            above.push_back(link.ifindex);
            found.push_back(link);
        }
    }
    return found;
}

std::expected<void, std::string> move_link(const std::string& name, int netns_fd) {
    auto socket = Socket::open(Protocol::route);
    if (!socket) return std::unexpected(socket.error());
    const auto link = find_link(*socket, name);
    if (!link) return std::unexpected(link.error().text);
    const auto moved =
        socket->exchange(encode_move_link(link->ifindex, netns_fd, socket->next_sequence()));
    if (!moved) return std::unexpected(moved.error().text);
    return {};
}

std::expected<void, std::string> bring_up(uint32_t ifindex) {
    auto socket = Socket::open(Protocol::route);
    if (!socket) return std::unexpected(socket.error());
    const auto set = socket->exchange(
        encode_set_link(ifindex, {.up = true, .alias = {}}, socket->next_sequence()));
    if (!set) return std::unexpected("cannot set it up: " + set.error().text);
    return {};
}

std::expected<void, std::string> set_up_tap(const std::string& name, uint32_t ifindex,
                                            const MacAddress& mac, uint32_t mtu) {
    auto socket = Socket::open(Protocol::route);
    if (!socket) return std::unexpected(socket.error());
    const auto quiet = socket->exchange(encode_no_ipv6_addresses(ifindex, socket->next_sequence()));
    // A kernel without IPv6 has nothing to switch off.
    if (!quiet && quiet.error().number != EAFNOSUPPORT) {
        return std::unexpected("cannot switch off IPv6 addresses on " + name + ": " +
                               quiet.error().text);
    }
    const LinkSettings settings{.up = true, .noarp = true, .mtu = mtu, .mac = mac, .alias = {}};
    const auto set = socket->exchange(encode_set_link(ifindex, settings, socket->next_sequence()));
    if (!set) {
        return std::unexpected("cannot set address and MTU of " + name + ": " + set.error().text);
    }
    return {};
}

}  // namespace sallyport::netlink
