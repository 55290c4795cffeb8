// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keeps the way of this host's own packets into sp0 (plan.h says which, and why): rules for packets
// that the host sends itself (`iif lo`), and the routes in tables of ours that they lead to.
//
//   210: from 10.1.0.1 iif lo lookup T         T: 10.2.0.0/24 dev sp0 src 10.1.0.1
//
// What is forwarded (also what comes out of sp0, and the outer packets of workers) does not come in
// by `lo` and never meets them. The host's addresses are found before, in the local table.
//
// The routes go with sp0, so after a crash the kernel sends again by itself, as it does for
// transit; what stays then are the rules, and the routes that refuse IPv6, and the next start
// removes both. What others remove meanwhile (or what goes with an address, or while sp0 is down)
// is put back. No other table, and no rule of another priority, is touched.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "control/host_traffic/plan.h"
#include "control/log.h"
#include "control/netlink/socket.h"

namespace sallyport::control {

class HostTraffic {
  public:
    // After news from the kernel, or a request that it refused, ways are put right this much later.
    // Shorter, and whoever removes them all the time keeps control busy; longer, and the kernel
    // sends by a worker's SA that much longer.
    static constexpr std::chrono::milliseconds kRepair{100};
    // What is refused again and again is tried ever later, but not later than this.
    static constexpr std::chrono::milliseconds kRetryMax{5000};

    HostTraffic(boost::asio::io_context& context, Log& log);
    HostTraffic(const HostTraffic&) = delete;
    ~HostTraffic();

    // sp0 is up. Removes what a killed run left. Errors: sentences for the operator.
    std::expected<void, std::string> open(uint32_t ifindex);
    // From now on these hold. What the kernel refuses is in the log, and tried again.
    void follow(host_traffic::Policies now);
    // Of what holds: does a worker send for a group. Costs what their policies cover.
    void serve(std::span<const std::pair<PolicyId, bool>> groups);
    // `told`: called when an address of the host came or went: more of the SPD may be about it than
    // was followed. Empty: nobody is told.
    void when_addresses_change(std::function<void()> told) { told_ = std::move(told); }
    // Removes all.
    void close();

    // Routes into sp0, routes that refuse, and destinations that are left to the kernel
    // (Plan::left).
    [[nodiscard]] size_t route_count() const { return count(host_traffic::Leads::into_tunnel); }
    [[nodiscard]] size_t refused_count() const { return count(host_traffic::Leads::refused); }
    [[nodiscard]] size_t left_count() const { return ways_.plan().left.size(); }

  private:
    using WayName = host_traffic::WayName;
    using Way = host_traffic::Way;
    [[nodiscard]] size_t count(host_traffic::Leads leads) const;
    std::expected<void, std::string> remove_leftovers(Family family);
    void wait();
    void take(const netlink::Message& message);
    void take_removed_route(const netlink::Message& message);
    void doubt_all();
    void repair_later(std::chrono::milliseconds in = kRepair);
    void plan(host_traffic::Policies policies);
    void put_right();
    void put_right(const std::set<WayName>& names);
    [[nodiscard]] uint32_t table_of(const IpAddress& source);
    void add(const WayName& name, const Way& way);
    void remove(const WayName& name, const Way& way);
    void add_rule(const IpAddress& source);
    void remove_rule(const IpAddress& source);
    void refused(const std::string& what, const netlink::Error& error);

    Log& log_;
    boost::asio::steady_timer timer_;
    boost::asio::io_context& context_;
    std::optional<netlink::Socket> requests_;
    std::optional<netlink::Notifications> news_;
    std::optional<boost::asio::posix::stream_descriptor> readable_;
    uint32_t ifindex_ = 0;
    std::optional<std::chrono::steady_clock::time_point> repair_due_;
    bool failed_ = false;       // in this round
    bool said_failed_ = false;  // since all was right last
    std::chrono::milliseconds retry_ = kRepair;
    std::function<void()> told_;
    std::vector<IpAddress> own_;  // addresses of the host
    host_traffic::Ways ways_{{}, {}};
    struct Installed {
        Way way;
        bool sure = true;  // false: may have gone meanwhile
    };
    std::map<WayName, Installed> installed_;
    std::map<IpAddress, uint32_t> tables_;  // by source
    std::map<IpAddress, uint32_t> rules_;   // installed; their tables
    bool said_refused_ = false;
};

}  // namespace sallyport::control
