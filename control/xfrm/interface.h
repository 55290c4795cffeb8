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
// Owner: control thread.

#include <cstdint>
#include <expected>
#include <string>
#include <utility>

#include "control/netlink/link.h"

namespace sallyport::xfrm {

// Asks for a device of the kind in external mode.
netlink::RequestBuffer encode_new_interface(const std::string& name, uint32_t mtu,
                                            uint32_t sequence);

class Interface {
  public:
    struct Error {
        bool unsupported = false;  // the kernel has no such interfaces
        std::string text;
    };
    // Makes or takes over the device and sets it up. `mtu`: for one that is ours.
    static std::expected<Interface, Error> open(const std::string& name, uint32_t mtu);
    // Removes the device of that name if a killed run has left it. None, or "": nothing to do.
    static std::expected<void, std::string> remove_leftover(const std::string& name);
    Interface(Interface&& other) noexcept;
    Interface& operator=(Interface&&) = delete;
    ~Interface();  // removes it, if it is ours and shall not be kept

    enum class Origin : uint8_t { made, left_by_killed_run, of_the_operator };
    [[nodiscard]] Origin origin() const { return origin_; }
    [[nodiscard]] uint32_t ifindex() const { return ifindex_; }
    [[nodiscard]] uint32_t mtu() const { return mtu_; }
    // Of one that is ours; an operator's keeps its own.
    std::expected<void, std::string> set_mtu(uint32_t mtu);
    // What a killed run left is kept until keep(false): a start that fails takes nothing away.
    void keep(bool keep) { keep_ = keep; }

  private:
    Interface(netlink::Socket socket, const netlink::LinkInfo& link, Origin origin);

    netlink::Socket socket_;
    uint32_t ifindex_ = 0;  // 0: moved from
    uint32_t mtu_ = 0;
    Origin origin_ = Origin::made;
    bool keep_ = false;
};

}  // namespace sallyport::xfrm
