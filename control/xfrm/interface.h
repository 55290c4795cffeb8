// SPDX-License-Identifier: Apache-2.0
#pragma once

// The xfrm interface of the kernel's IPsec connections: `ip link add NAME type xfrm external`.
//
// In external mode one device carries every connection; which one, TC programs say packet by packet
// (bpf/xfrm_interface.h). A network namespace has at most one such device.
//
// Who made it decides who removes it. One that we made bears our mark (the device's alias) and goes
// when the daemon ends; one with our mark that is there at start is what a killed run left, with
// its routes, and is taken over. One without it belongs to the operator, stays, and keeps its MTU.
//
// Owner: control thread. The functions above the class are pure.

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "control/xfrm/netlink_socket.h"

namespace sallyport::xfrm {

struct LinkInfo {
    uint32_t ifindex = 0;
    uint32_t mtu = 0;
    std::string kind;  // "xfrm", "veth", ...; empty: a real device
    bool external = false;
    std::string alias;

    friend bool operator==(const LinkInfo&, const LinkInfo&) = default;
};

RequestBuffer encode_get_link(const std::string& name, uint32_t sequence);
RequestBuffer encode_new_interface(const std::string& name, uint32_t mtu, uint32_t sequence);
// Sets the device up and gives it our mark; mtu 0 leaves the MTU alone.
RequestBuffer encode_take_interface(uint32_t ifindex, uint32_t mtu, bool mark, uint32_t sequence);
RequestBuffer encode_delete_link(uint32_t ifindex, uint32_t sequence);
// Payload of RTM_NEWLINK.
std::expected<LinkInfo, std::string> decode_link(std::span<const std::byte> payload);

class Interface {
  public:
    struct Error {
        bool unsupported = false;  // the kernel has no such interfaces
        std::string text;
    };
    // Makes or takes over the device and sets it up. `mtu`: for one that is ours.
    static std::expected<Interface, Error> open(const std::string& name, uint32_t mtu);
    Interface(Interface&& other) noexcept;
    Interface& operator=(Interface&&) = delete;
    ~Interface();  // removes it, if it is ours and shall not be kept

    enum class Origin : uint8_t { made, left_by_killed_run, of_the_operator };
    [[nodiscard]] Origin origin() const { return origin_; }
    [[nodiscard]] uint32_t ifindex() const { return ifindex_; }
    [[nodiscard]] uint32_t mtu() const { return mtu_; }
    // What a killed run left is kept until keep(false): a start that fails takes nothing away.
    void keep(bool keep) { keep_ = keep; }

  private:
    Interface(NetlinkSocket socket, const LinkInfo& link, Origin origin);

    NetlinkSocket socket_;
    uint32_t ifindex_ = 0;  // 0: moved from
    uint32_t mtu_ = 0;
    Origin origin_ = Origin::made;
    bool keep_ = false;
};

}  // namespace sallyport::xfrm
