// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/interface.h"

#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

namespace sallyport::xfrm {

namespace {

using Bytes = std::span<const std::byte>;

constexpr std::string_view kKind = "xfrm";
constexpr std::string_view kMark = "sallyport";

constexpr size_t aligned(size_t bytes) {
    return (bytes + 3) & ~size_t{3};
}

// One request: the header's length, and those of attributes that hold others, are put right when
// what they hold is complete.
class LinkRequest {
  public:
    LinkRequest(uint16_t type, unsigned flags, uint32_t ifindex, uint32_t sequence) {
        const nlmsghdr header{
            .nlmsg_len = 0,
            .nlmsg_type = type,
            .nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags),
            .nlmsg_seq = sequence,
            .nlmsg_pid = 0};
        append(&header, sizeof header);
        link_.ifi_index = static_cast<int>(ifindex);
        append(&link_, sizeof link_);
    }
    void set_up() {
        link_.ifi_flags = IFF_UP;
        link_.ifi_change = IFF_UP;
        std::memcpy(buffer_.data() + sizeof(nlmsghdr), &link_, sizeof link_);
    }
    void number(uint16_t type, uint32_t value) { attribute(type, &value, sizeof value); }
    void text(uint16_t type, std::string_view value) {
        attribute(type, value.data(), value.size());
    }
    void name(uint16_t type, const std::string& value) {
        attribute(type, value.c_str(), value.size() + 1);
    }
    void flag(uint16_t type) { attribute(type, nullptr, 0); }
    size_t begin(uint16_t type) {
        const size_t at = buffer_.size();
        flag(type);
        return at;
    }
    void end(size_t at) {
        const auto bytes = static_cast<uint16_t>(buffer_.size() - at);
        std::memcpy(buffer_.data() + at, &bytes, sizeof bytes);
    }
    RequestBuffer take() {
        const auto bytes = static_cast<uint32_t>(buffer_.size());
        std::memcpy(buffer_.data(), &bytes, sizeof bytes);
        return std::move(buffer_);
    }

  private:
    void append(const void* from, size_t bytes) {
        std::byte* out = buffer_.extend(aligned(bytes));
        if (bytes > 0) std::memcpy(out, from, bytes);
    }
    void attribute(uint16_t type, const void* value, size_t bytes) {
        const rtattr header{.rta_len = static_cast<uint16_t>(sizeof(rtattr) + bytes),
                            .rta_type = type};
        append(&header, sizeof header);
        append(value, bytes);
    }

    RequestBuffer buffer_;
    ifinfomsg link_{};
};

// Calls `visit(type, value)` for each attribute; false if one does not fit.
template <typename Visit>
bool for_each_attribute(Bytes bytes, Visit visit) {
    while (!bytes.empty()) {
        rtattr header{};
        if (bytes.size() < sizeof header) return false;
        std::memcpy(&header, bytes.data(), sizeof header);
        if (header.rta_len < sizeof header || header.rta_len > bytes.size()) return false;
        const auto type = static_cast<uint16_t>(header.rta_type & 0x3fffu);  // without NLA_F_ flags
        visit(type, bytes.subspan(sizeof header, header.rta_len - sizeof header));
        bytes = bytes.subspan(std::min(aligned(header.rta_len), bytes.size()));
    }
    return true;
}

std::string text_of(Bytes value) {
    std::string out;
    for (const std::byte b : value) {
        if (b == std::byte{0}) break;
        out += static_cast<char>(b);
    }
    return out;
}

bool read_kind(Bytes value, LinkInfo& link) {
    bool whole = true;
    Bytes data;
    whole = for_each_attribute(value, [&](uint16_t type, Bytes part) {
        if (type == IFLA_INFO_KIND) link.kind = text_of(part);
        if (type == IFLA_INFO_DATA) data = part;
    });
    if (link.kind != kKind) return whole;
    return whole && for_each_attribute(data, [&](uint16_t type, Bytes) {
               if (type == IFLA_XFRM_COLLECT_METADATA) link.external = true;
           });
}

std::expected<LinkInfo, NetlinkError> find_link(NetlinkSocket& socket, const std::string& name) {
    std::expected<LinkInfo, std::string> link = std::unexpected("the kernel does not describe it");
    const auto done =
        socket.exchange(encode_get_link(name, socket.next_sequence()), [&](const Message& message) {
            if (message.type == RTM_NEWLINK) link = decode_link(message.payload);
        });
    if (!done) return std::unexpected(done.error());
    if (!link) return std::unexpected(NetlinkError{EPROTO, link.error()});
    return *link;
}

// Why the kernel makes no such device.
Interface::Error explain(const std::string& name, const NetlinkError& error) {
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

RequestBuffer encode_get_link(const std::string& name, uint32_t sequence) {
    LinkRequest request(RTM_GETLINK, 0, 0, sequence);
    request.name(IFLA_IFNAME, name);
    return request.take();
}

RequestBuffer encode_new_interface(const std::string& name, uint32_t mtu, uint32_t sequence) {
    LinkRequest request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, 0, sequence);
    request.name(IFLA_IFNAME, name);
    request.number(IFLA_MTU, mtu);
    const size_t info = request.begin(IFLA_LINKINFO);
    request.text(IFLA_INFO_KIND, kKind);
    const size_t data = request.begin(IFLA_INFO_DATA);
    request.flag(IFLA_XFRM_COLLECT_METADATA);
    request.end(data);
    request.end(info);
    return request.take();
}

RequestBuffer encode_take_interface(uint32_t ifindex, uint32_t mtu, bool mark, uint32_t sequence) {
    LinkRequest request(RTM_NEWLINK, 0, ifindex, sequence);
    request.set_up();
    if (mtu != 0) request.number(IFLA_MTU, mtu);
    if (mark) request.text(IFLA_IFALIAS, kMark);
    return request.take();
}

RequestBuffer encode_delete_link(uint32_t ifindex, uint32_t sequence) {
    return LinkRequest(RTM_DELLINK, 0, ifindex, sequence).take();
}

std::expected<LinkInfo, std::string> decode_link(Bytes payload) {
    ifinfomsg header{};
    if (payload.size() < sizeof header) return std::unexpected("a link is shorter than its header");
    std::memcpy(&header, payload.data(), sizeof header);
    if (header.ifi_index <= 0) return std::unexpected("a link has no index");
    LinkInfo link{.ifindex = static_cast<uint32_t>(header.ifi_index)};
    bool well_formed = true;
    const bool whole =
        for_each_attribute(payload.subspan(sizeof header), [&](uint16_t type, Bytes value) {
            if (type == IFLA_MTU && value.size() == sizeof link.mtu) {
                std::memcpy(&link.mtu, value.data(), sizeof link.mtu);
            }
            if (type == IFLA_IFALIAS) link.alias = text_of(value);
            if (type == IFLA_LINKINFO) well_formed = well_formed && read_kind(value, link);
        });
    if (!whole || !well_formed) return std::unexpected("an attribute of a link is too long");
    return link;
}

std::expected<Interface, Interface::Error> Interface::open(const std::string& name, uint32_t mtu) {
    const auto failed = [&](const NetlinkError& error) {
        return std::unexpected(Error{false, "xfrm interface " + name + ": " + error.text});
    };
    auto socket = NetlinkSocket::open(NetlinkSocket::Protocol::route);
    if (!socket) return std::unexpected(Error{false, socket.error()});
    Origin origin = Origin::made;
    auto link = find_link(*socket, name);
    if (!link && link.error().number == ENODEV) {
        const auto made =
            socket->exchange(encode_new_interface(name, mtu, socket->next_sequence()));
        if (!made) return std::unexpected(explain(name, made.error()));
        link = find_link(*socket, name);
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
    const auto taken = out.socket_.exchange(
        encode_take_interface(link->ifindex, ours ? mtu : 0, ours, out.socket_.next_sequence()));
    if (!taken) return failed(taken.error());
    return out;
}

Interface::Interface(NetlinkSocket socket, const LinkInfo& link, Origin origin)
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
    const auto removed = socket_.exchange(encode_delete_link(ifindex_, socket_.next_sequence()));
    static_cast<void>(removed);  // gone already: that is as good
}

}  // namespace sallyport::xfrm
