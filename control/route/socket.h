// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rtnetlink sockets behind a RouteMirror. No event loop here: the owner watches fd() and calls
// receive() when it is readable; after Effect::resync it calls dump().
//
// Notifications can be lost when they come faster than they are read (ENOBUFS); the kernel says so
// and a dump makes it good. A dump runs on a socket of its own, after the notifications were
// subscribed, so that nothing falls between: what arrives twice changes nothing.
//
// Owner: control thread.

#include <cstdint>
#include <expected>
#include <string>
#include <utility>

#include "control/netlink/socket.h"
#include "control/route/mirror.h"

namespace sallyport::route {

class RouteSocket {
  public:
    // Subscribes to the network namespace of the calling thread.
    static std::expected<RouteSocket, std::string> open();

    [[nodiscard]] int fd() const { return notifications_.fd(); }

    // Replaces what `mirror` holds by what the kernel has now. Blocks while the kernel answers.
    std::expected<void, std::string> dump(RouteMirror& mirror);

    // Takes all notifications that wait; the strongest effect counts. Never blocks.
    std::expected<Effect, std::string> receive(RouteMirror& mirror);

  private:
    RouteSocket(netlink::Notifications notifications, netlink::Socket requests)
        : notifications_(std::move(notifications)), requests_(std::move(requests)) {}

    // One dump, to its end. True: complete; false: the tables changed meanwhile.
    template <typename Header>
    std::expected<bool, std::string> dump_one(const char* what, uint16_t type, const Header& header,
                                              RouteMirror& mirror);
    std::expected<bool, std::string> dump_all(RouteMirror& mirror);

    netlink::Notifications notifications_;
    netlink::Socket requests_;
};

}  // namespace sallyport::route
