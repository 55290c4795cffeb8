// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keeps the neighbours that traffic goes to fresh and resolved, in both egress modes
// (route/neighbours.h says why nobody else does): those on the ports' links that are stale, the
// next hops towards the far ends of tunnels before the first packet needs them, and those that a
// packet has found unresolved.
//
// The kernel is looked at once a second instead of listening to it: what is missed by a second is
// made good by the next, and a route, a gateway or a link that changes needs no case of its own.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "control/log.h"
#include "control/route/neighbours.h"

namespace sallyport::control {

class NeighbourKeeper {
  public:
    // From one look to the next. It is what a silent change of a MAC costs beyond the kernel's own
    // time; more often costs a dump of the ports' neighbours each time.
    static constexpr std::chrono::milliseconds kPeriod{1000};
    // Requests of one look, some 20 us each. The kernel lets an entry go stale after 15 to 45 s, so
    // this keeps up with two thousand busy neighbours; of more, each waits longer for its turn.
    static constexpr size_t kAskedAtOnce = 128;
    // Far ends whose route is looked up in one look, some 10 us each. Their next hops are few, and
    // what a packet finds unresolved meanwhile the kernel is left to resolve.
    static constexpr size_t kLookedUpAtOnce = 256;

    // From a packet that finds its next hop unresolved until the kernel is asked, where no chain of
    // its firewall has let it see the packet. Shorter costs wake-ups, longer more packets.
    static constexpr std::chrono::milliseconds kHeardAfter{50};

    // The outer destinations of tunnels in order: the one after this, or the first; none: no more.
    using FarEndAfter = std::function<std::optional<IpAddress>(const std::optional<IpAddress>&)>;

    // Next hops that packets have found unresolved.
    struct Unresolved {
        route::NeighbourName name;
        bool waited_for = false;  // packets wait in the kernel, which asks for it by itself
    };
    struct Traffic {
        FarEndAfter far_end_after;
        std::function<std::vector<Unresolved>()> unresolved;
        std::function<void(const route::NeighbourName&)> forget;
    };

    // Has looked once when it returns.
    static std::expected<std::unique_ptr<NeighbourKeeper>, std::string> start(
        boost::asio::io_context& context, Log& log, std::vector<uint32_t> port_ifindexes,
        Traffic traffic);

    void stop();

  private:
    NeighbourKeeper(boost::asio::io_context& context, Log& log, route::NeighbourSocket socket,
                    std::vector<uint32_t> port_ifindexes, Traffic traffic);

    std::expected<void, std::string> find_next_hops();
    std::expected<void, std::string> look();
    void look_again();
    std::expected<void, std::string> hear();
    void hear_again();
    void tried(const std::expected<void, std::string>& result, bool& failed);

    Log& log_;
    route::NeighbourSocket socket_;
    std::vector<uint32_t> ports_;
    Traffic traffic_;
    boost::asio::steady_timer next_look_;
    boost::asio::steady_timer next_hearing_;
    // Of far ends: by the last tour through all of them, and by this one so far.
    std::set<route::NeighbourName> next_hops_;
    std::set<route::NeighbourName> of_this_tour_;
    std::optional<IpAddress> looked_up_last_;
    std::optional<route::NeighbourName> asked_last_;
    bool look_failed_ = false;
    bool hearing_failed_ = false;
};

}  // namespace sallyport::control
