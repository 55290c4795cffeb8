// SPDX-License-Identifier: Apache-2.0
#include "control/route/keeper.h"

#include <algorithm>
#include <utility>

namespace sallyport::control {

std::expected<std::unique_ptr<NeighbourKeeper>, std::string> NeighbourKeeper::start(
    boost::asio::io_context& context, Log& log, std::vector<uint32_t> port_ifindexes,
    Traffic traffic) {
    auto socket = route::NeighbourSocket::open();
    if (!socket) return std::unexpected(socket.error());
    std::unique_ptr<NeighbourKeeper> keeper(new NeighbourKeeper(
        context, log, std::move(*socket), std::move(port_ifindexes), std::move(traffic)));
    keeper->look_again();
    keeper->hear_again();
    return keeper;
}

NeighbourKeeper::NeighbourKeeper(boost::asio::io_context& context, Log& log,
                                 route::NeighbourSocket socket,
                                 std::vector<uint32_t> port_ifindexes, Traffic traffic)
    : log_(log),
      socket_(std::move(socket)),
      ports_(std::move(port_ifindexes)),
      traffic_(std::move(traffic)),
      next_look_(context),
      next_hearing_(context) {}

void NeighbourKeeper::stop() {
    next_look_.cancel();
    next_hearing_.cancel();
}

std::expected<void, std::string> NeighbourKeeper::find_next_hops() {
    for (size_t i = 0; i < kLookedUpAtOnce; ++i) {
        looked_up_last_ = traffic_.far_end_after(looked_up_last_);
        if (!looked_up_last_) {
            next_hops_ = std::exchange(of_this_tour_, {});
            return {};
        }
        const auto hop = socket_.next_hop(*looked_up_last_);
        if (!hop) return std::unexpected(hop.error());
        if (*hop && std::ranges::find(ports_, (*hop)->ifindex) != ports_.end()) {
            of_this_tour_.insert(**hop);
        }
    }
    return {};
}

std::expected<void, std::string> NeighbourKeeper::look() {
    if (auto found = find_next_hops(); !found) return found;
    const auto known = socket_.dump(ports_);
    if (!known) return std::unexpected(known.error());
    for (const Unresolved& each : traffic_.unresolved()) {
        const auto is_resolved = [&](const route::Neighbour& neighbour) {
            return neighbour.usable && neighbour.ifindex == each.name.ifindex &&
                   neighbour.address == each.name.address;
        };
        if (std::ranges::any_of(*known, is_resolved)) traffic_.forget(each.name);
    }
    std::set<route::NeighbourName> needed = next_hops_;
    needed.insert(of_this_tour_.begin(), of_this_tour_.end());
    return socket_.ask(route::to_ask(*known, needed, kAskedAtOnce, asked_last_));
}

// Asks for what packets alone do not make the kernel ask for.
std::expected<void, std::string> NeighbourKeeper::hear() {
    std::vector<route::NeighbourName> names;
    for (const Unresolved& each : traffic_.unresolved()) {
        if (each.waited_for || names.size() == kAskedAtOnce) continue;
        names.push_back(each.name);
        traffic_.forget(each.name);  // the next packet says it again
    }
    return socket_.ask(names);
}

void NeighbourKeeper::look_again() {
    tried(look(), look_failed_);
    next_look_.expires_after(kPeriod);
    next_look_.async_wait([this](boost::system::error_code error) {
        if (!error) look_again();
    });
}

void NeighbourKeeper::hear_again() {
    tried(hear(), hearing_failed_);
    next_hearing_.expires_after(kHeardAfter);
    next_hearing_.async_wait([this](boost::system::error_code error) {
        if (!error) hear_again();
    });
}

void NeighbourKeeper::tried(const std::expected<void, std::string>& result, bool& failed) {
    if (!result && !failed) {
        log_.warning("neighbours are not refreshed, which is tried again: " + result.error());
    } else if (result && failed) {
        log_.info("neighbours are refreshed again");
    }
    failed = !result.has_value();
}

}  // namespace sallyport::control
