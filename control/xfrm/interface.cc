// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/interface.h"

#include <linux/if_link.h>
#include <linux/rtnetlink.h>

#include <cerrno>

namespace sallyport::xfrm {

namespace {

constexpr const char* kKind = "xfrm";
constexpr const char* kMark = "sallyport";

// Why the kernel makes no such device.
Interface::Error explain(const std::string& name, const netlink::Error& error) {
    switch (error.number) {
        case EOPNOTSUPP:
            return {true, "the kernel has no xfrm interfaces (CONFIG_XFRM_INTERFACE)"};
        case EINVAL:
            return {true, "the kernel has no xfrm interfaces in external mode (Linux 6.1 has)"};
        case EEXIST:
            return {false,
                    "cannot make " + name +
                        ": another xfrm interface in external mode is there, and a network "
                        "namespace has one: name it in xfrm_interface, or remove it (ip -d link "
                        "show type xfrm)"};
        default:
            return {false, "cannot make the xfrm interface " + name + ": " + error.text};
    }
}

}  // namespace

netlink::RequestBuffer encode_new_interface(const std::string& name, uint32_t mtu,
                                            uint32_t sequence) {
    netlink::Writer writer(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sequence);
    writer.put(ifinfomsg{});
    writer.name(IFLA_IFNAME, name);
    writer.attribute(IFLA_MTU, mtu);
    const size_t info = writer.begin(IFLA_LINKINFO);
    writer.text(IFLA_INFO_KIND, kKind);
    const size_t data = writer.begin(IFLA_INFO_DATA);
    writer.flag(IFLA_XFRM_COLLECT_METADATA);
    writer.end(data);
    writer.end(info);
    return writer.take();
}

std::expected<Interface, Interface::Error> Interface::open(const std::string& name, uint32_t mtu) {
    const auto failed = [&](const netlink::Error& error) {
        return std::unexpected(Error{false, "xfrm interface " + name + ": " + error.text});
    };
    auto socket = netlink::Socket::open(netlink::Protocol::route);
    if (!socket) return std::unexpected(Error{false, socket.error()});
    Origin origin = Origin::made;
    auto link = netlink::find_link(*socket, name);
    if (!link && link.error().number == ENODEV) {
        const auto made =
            socket->exchange(encode_new_interface(name, mtu, socket->next_sequence()));
        if (!made) return std::unexpected(explain(name, made.error()));
        link = netlink::find_link(*socket, name);
    } else if (link) {
        if (link->kind != kKind || !link->external) {
            return std::unexpected(Error{
                false, "xfrm_interface: the device " + name +
                           " is there and is no xfrm interface in external mode: give another "
                           "name, or remove it, and it is made"});
        }
        origin = link->alias == kMark ? Origin::left_by_killed_run : Origin::of_the_operator;
    }
    if (!link) return failed(link.error());
    const bool ours = origin != Origin::of_the_operator;
    if (ours) link->mtu = mtu;
    Interface out(std::move(*socket), *link, origin);
    const netlink::LinkSettings settings{
        .up = true, .noarp = false, .mtu = ours ? mtu : 0, .mac = {}, .alias = ours ? kMark : ""};
    const auto taken = out.socket_.exchange(
        netlink::encode_set_link(link->ifindex, settings, out.socket_.next_sequence()));
    if (!taken) return failed(taken.error());
    return out;
}

std::expected<void, std::string> Interface::set_mtu(uint32_t mtu) {
    if (origin_ == Origin::of_the_operator) return {};
    const auto set = socket_.exchange(netlink::encode_set_link(
        ifindex_, {.up = true, .noarp = false, .mtu = mtu, .mac = {}, .alias = kMark},
        socket_.next_sequence()));
    if (!set)
        return std::unexpected("cannot set the MTU of the xfrm interface: " + set.error().text);
    mtu_ = mtu;
    return {};
}

std::expected<void, std::string> Interface::remove_leftover(const std::string& name) {
    if (name.empty()) return {};
    auto socket = netlink::Socket::open(netlink::Protocol::route);
    if (!socket) return std::unexpected(socket.error());
    const auto link = netlink::find_link(*socket, name);
    if (!link || link->kind != kKind || link->alias != kMark) return {};
    const auto removed =
        socket->exchange(netlink::encode_delete_link(link->ifindex, socket->next_sequence()));
    if (removed || removed.error().number == ENODEV) return {};
    return std::unexpected("cannot remove the xfrm interface " + name + ": " +
                           removed.error().text);
}

Interface::Interface(netlink::Socket socket, const netlink::LinkInfo& link, Origin origin)
    : socket_(std::move(socket)),
      ifindex_(link.ifindex),
      mtu_(link.mtu),
      origin_(origin),
      keep_(origin == Origin::left_by_killed_run) {}

Interface::Interface(Interface&& other) noexcept
    : socket_(std::move(other.socket_)),
      ifindex_(std::exchange(other.ifindex_, 0)),
      mtu_(other.mtu_),
      origin_(other.origin_),
      keep_(other.keep_) {}

Interface::~Interface() {
    if (ifindex_ == 0 || keep_ || origin_ == Origin::of_the_operator) return;
    const auto removed =
        socket_.exchange(netlink::encode_delete_link(ifindex_, socket_.next_sequence()));
    static_cast<void>(removed);  // gone already: that is as good
}

}  // namespace sallyport::xfrm
