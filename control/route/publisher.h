// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keeps the workers' picture of routes and neighbours up to date (egress = "direct" only).
//
// rtnetlink changes come in bunches, so a new snapshot is built kCoalesceMs after the first of
// them and handed to whoever brings it to the workers.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <expected>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "control/log.h"
#include "control/route/mirror.h"
#include "control/route/socket.h"
#include "dataplane/egress/next_hops.h"

namespace sallyport::control {

class NextHopControl {
  public:
    // From the first message of a change until workers get new next hops. A routing daemon writes
    // many at once: shorter, and each makes a snapshot of all; longer, and packets take the old
    // way (or the kernel's) that much longer.
    static constexpr int kCoalesceMs = 50;
    // After this the tables are read again where that has failed.
    static constexpr int kReadAgainSeconds = 5;

    // Called with each new snapshot, the last until the next.
    using Publish = std::function<void(std::unique_ptr<const NextHops>)>;

    // Reads the kernel's tables and publishes a first snapshot. `port_ifindexes` and `filters` by
    // PortId.
    static std::expected<std::unique_ptr<NextHopControl>, std::string> start(
        boost::asio::io_context& context, Log& log, std::vector<uint32_t> port_ifindexes,
        std::vector<EgressFilter> filters, Publish publish);

    // No more snapshots.
    void stop();

  private:
    NextHopControl(boost::asio::io_context& context, Log& log, route::RouteSocket socket,
                   route::RouteMirror mirror, std::vector<EgressFilter> filters, Publish publish);

    void wait_for_changes();
    void on_readable();
    void read_again();
    void publish_soon();

    Log& log_;
    route::RouteSocket socket_;
    route::RouteMirror mirror_;
    std::vector<EgressFilter> filters_;
    Publish publish_;
    boost::asio::posix::stream_descriptor readable_;
    boost::asio::steady_timer coalesce_;
    boost::asio::steady_timer read_again_;
    bool publish_due_ = false;
};

}  // namespace sallyport::control
