// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keeps the workers' picture of routes and neighbours up to date (egress = "direct" only).
//
// rtnetlink changes come in bunches, so a new snapshot is built kCoalesceMs after the first of
// them. A snapshot is freed when every worker has taken a later one.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <expected>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "control/log.h"
#include "control/route/mirror.h"
#include "control/route/socket.h"
#include "dataplane/egress/next_hops.h"
#include "dataplane/worker/worker.h"

namespace sallyport::control {

class NextHopControl {
  public:
    static constexpr int kCoalesceMs = 50;
    static constexpr int kRefreshSeconds = 5;

    // Reads the kernel's tables and publishes a first snapshot. `port_ifindexes` and `filters` by
    // PortId. `workers` outlive the object's use of them: stop() it, then them.
    static std::expected<std::unique_ptr<NextHopControl>, std::string> start(
        boost::asio::io_context& context, Log& log, std::vector<uint32_t> port_ifindexes,
        std::vector<EgressFilter> filters, std::span<const std::unique_ptr<Worker>> workers);

    // A worker has taken a later snapshot than this one.
    void released(const NextHops* next_hops);
    // No more snapshots. Those that workers hold live as long as the object.
    void stop();

  private:
    NextHopControl(boost::asio::io_context& context, Log& log, route::RouteSocket socket,
                   route::RouteMirror mirror, std::vector<EgressFilter> filters,
                   std::span<const std::unique_ptr<Worker>> workers);

    void wait_for_changes();
    void on_readable();
    void read_again();
    void publish_soon();
    void publish();
    void refresh_later();

    struct Snapshot {
        std::unique_ptr<const NextHops> next_hops;
        size_t holders = 0;
    };

    Log& log_;
    route::RouteSocket socket_;
    route::RouteMirror mirror_;
    std::vector<EgressFilter> filters_;
    std::span<const std::unique_ptr<Worker>> workers_;
    std::map<const NextHops*, Snapshot> snapshots_;
    boost::asio::posix::stream_descriptor readable_;
    boost::asio::steady_timer coalesce_;
    boost::asio::steady_timer refresh_;
    bool publish_due_ = false;
    bool read_again_due_ = false;  // the picture has a hole until a dump succeeds
};

}  // namespace sallyport::control
