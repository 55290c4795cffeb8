// SPDX-License-Identifier: Apache-2.0
#pragma once

// The NETLINK_XFRM sockets behind a RegisterMirror. No event loop here: the owner watches fd() and
// calls receive() when it is readable; when the changes say resync it calls dump().
//
// Notifications can be lost when they come faster than they are read (ENOBUFS): the kernel says so,
// receive() asks for a resync, and a dump makes it good. Requests and dumps run on a socket of
// their own, after the notifications were subscribed, so that nothing falls between.
//
// Owner: control thread.

#include <expected>
#include <span>
#include <string>
#include <vector>

#include "control/netlink/socket.h"
#include "control/xfrm/messages.h"
#include "control/xfrm/mirror.h"

namespace sallyport::xfrm {

// `state`: as it was read last; lives until it is written.
struct CounterWrite {
    const KernelSa* state = nullptr;
    CounterUpdate update;
};
// The same, with its key: see encode_limits().
struct LimitWrite {
    const KernelSa* state = nullptr;
    Limits limits;
};

class RegisterSocket {
  public:
    // Subscribes to states, policies, expiries, acquires, mappings, migrations and counter events
    // of the calling thread's network namespace, with a receive buffer for bursts.
    static std::expected<RegisterSocket, std::string> open();

    [[nodiscard]] int fd() const { return notifications_.fd(); }
    // Netlink port of the requests below: what comes back with it is our own doing.
    [[nodiscard]] uint32_t own_port() const { return requests_.port(); }

    // Brings `mirror` to what the kernel has now. Blocks while the kernel answers.
    std::expected<void, std::string> dump(RegisterMirror& mirror, RegisterChanges& changes);
    // Takes all notifications that wait. Never blocks. What was received is wiped.
    std::expected<void, std::string> receive(RegisterMirror& mirror, RegisterChanges& changes);

    // One state as it is now; an error with number ESRCH when it has gone.
    std::expected<KernelSa, netlink::Error> get(const SaName& name);
    std::expected<void, netlink::Error> write_counters(const KernelSa& state,
                                                       const CounterUpdate& update);
    // The same of many, in their order, with few system calls.
    std::vector<std::expected<KernelSa, netlink::Error>> get_all(std::span<const SaName> names);
    std::vector<std::expected<void, netlink::Error>> write_all(
        std::span<const CounterWrite> writes);
    std::vector<std::expected<void, netlink::Error>> limit_all(std::span<const LimitWrite> writes);
    std::expected<void, netlink::Error> expire(const KernelSa& state, bool hard);

  private:
    RegisterSocket(netlink::Notifications notifications, netlink::Socket requests)
        : notifications_(std::move(notifications)), requests_(std::move(requests)) {}
    template <typename Write, typename Encode>
    std::vector<std::expected<void, netlink::Error>> send_all(std::span<const Write> writes,
                                                              Encode encode);
    void get_some(std::span<const SaName> names,
                  std::vector<std::expected<KernelSa, netlink::Error>>& out);

    netlink::Notifications notifications_;
    netlink::Socket requests_;
};

}  // namespace sallyport::xfrm
