// SPDX-License-Identifier: Apache-2.0
#pragma once

// The SPD on the kernel's own forwarding path: nothing that a PROTECT policy covers leaves or
// enters in clear while the daemon starts, after it was killed, or wherever a packet takes the
// kernel path past the XDP programs.
//
// xfrm policies without templates are a filter: BLOCK drops what they match, ALLOW lets it pass.
// The ordered SPD is mirrored up to its last PROTECT entry; what follows that is none of IPsec's
// business and stays with the host's routes and firewall. Per entry and prefix pair:
//   out      local -> remote   what the host sends or forwards towards the unprotected side
//   in, fwd  remote -> local   cleartext that comes from there, for the host or to be forwarded
// PROTECT and DISCARD become BLOCK, BYPASS becomes ALLOW. A BLOCK of direction out also holds back
// what the kernel itself says about a packet that came out of a tunnel (time exceeded, unreachable,
// too big): such an ICMP error has the address of the device it leaves by, which no policy names,
// and would carry up to 504 bytes of that packet in clear. Where that packet was for this host
// itself the kernel asks for the error's own policy alone, so a PROTECT of another protocol than
// ICMP also blocks ICMP errors between its prefixes. A PROTECT with ports also blocks later
// fragments, whose ports the kernel reads as 0. In front of all stand ALLOWs for the outer ESP
// packets of our own SAs and for neighbour discovery, which a wide PROTECT entry would cover.
// Forwarded, the latter is blocked.
//
// What workers exchange with the kernel through sp0 is already checked by them: control sets
// disable_policy and disable_xfrm on sp0 (IPv4) and disable_policy (IPv6). IPv6 has no
// disable_xfrm, and its disable_policy does not cover packets to the host itself. So IPv6 traffic
// between the gateway's own addresses and a protected remote network is blocked, never sent in
// clear; IPv6 in transit is not affected.
//
// The kernel's own IPsec connections (policies with an if_id) are not hindered: on the xfrm
// interface the kernel looks for policies with that if_id, and ours have none. On the way to the
// interface it looks for policies without: there disable_xfrm exempts IPv4, and for IPv6 an ALLOW
// for the route's device stands in front.
//
// Policies are known by index 0x53xxxxxx. They are removed last at an exit that was asked for, and
// stay after a kill and after any other end of a gateway that ran: also when the next start fails.

#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "control/netlink/socket.h"
#include "control/xfrm/values.h"

namespace sallyport::xfrm {

// Policies of IKE daemons have much larger numbers, so ours decide first.
inline constexpr uint32_t kGuardPriorityFirst = 20000;
// And much smaller ones than this, from where on ours decide last (left_open_rows()).
inline constexpr uint32_t kGuardPriorityLast = 0xfff00000;
// More than that is refused at the start: the kernel walks its policies one by one where they do
// not fit its tables.
inline constexpr size_t kGuardRowsMax = 200000;

// One xfrm port match. A range of ports becomes at most 30 of them.
struct PortMask {
    uint16_t value = 0;
    uint16_t mask = 0;  // 0: any

    friend bool operator==(const PortMask&, const PortMask&) = default;
};
std::vector<PortMask> cover_port_range(uint16_t lo, uint16_t hi);

// The rows to install, in order, index still 0. Fails when there would be too many.
std::expected<std::vector<PolicyRow>, std::string> guard_rows(
    std::span<const config::Policy> policies, std::span<const config::StaticSa> sas,
    uint32_t interface_ifindex = 0);  // of the xfrm interface, if there is one

// For a gateway whose policies come from xfrm, where nothing has to be blocked: lets the outer ESP
// packets of workers' SAs (source, destination) pass where they take the kernel path and a wide
// policy of the IKE daemon would cover them too.
std::vector<PolicyRow> outer_esp_rows(std::span<const std::pair<IpAddress, IpAddress>> tunnels);

// Addresses whose packets XDP leaves to the kernel as a whole, outbound.
struct LeftOpen {
    IpPrefix source;
    IpPrefix destination;
};

// For the same gateway, where nothing has to be blocked but this: what none of the IKE daemon's
// policies covers of the packets that are left to the kernel as a whole meets here what the SPD
// would have said, the policies of the configuration and the end of the list. Behind all others,
// and different from all that others may install. Fails when there would be too many.
std::expected<std::vector<PolicyRow>, std::string> left_open_rows(
    std::span<const LeftOpen> left_open, std::span<const config::Policy> policies);

class PolicyGuard {
  public:
    // Installs `rows` over whatever a killed run left, then removes what is left over of that, so
    // that there is no moment without protection. Refuses to touch another program's policies.
    // Until at_end() says otherwise they go with the object, unless a killed run left some.
    static std::expected<PolicyGuard, std::string> install(std::vector<PolicyRow> rows);
    PolicyGuard(PolicyGuard&& other) noexcept;
    PolicyGuard& operator=(PolicyGuard&&) = delete;
    ~PolicyGuard();  // removes all, or keeps them

    // The rows that hold from now on, in place of the earlier ones; no moment without any.
    std::expected<void, std::string> replace(std::vector<PolicyRow> rows);
    // Writes again what others have removed or changed of the rows that hold. How many those were.
    std::expected<size_t, std::string> restore();
    // Whether somebody else's doing that the kernel tells (group XFRMNLGRP_POLICY) may be about
    // rows of ours.
    [[nodiscard]] bool concerns(const netlink::Message& message) const;

    enum class AtEnd : uint8_t { remove, keep };
    void at_end(AtEnd what) { at_end_ = what; }
    [[nodiscard]] AtEnd at_end() const { return at_end_; }
    [[nodiscard]] size_t row_count() const { return wanted_.size(); }

  private:
    explicit PolicyGuard(netlink::Socket socket) : socket_(std::move(socket)) {}
    // Where a row of others has the place of one of ours: nothing is written, or all but that one.
    enum class Beside : uint8_t { nothing_foreign, what_is_there };
    std::expected<void, std::string> write(std::span<const PolicyRow> before, Beside beside);

    netlink::Socket socket_;
    std::vector<PolicyRow> wanted_;
    AtEnd at_end_ = AtEnd::remove;
};

}  // namespace sallyport::xfrm
