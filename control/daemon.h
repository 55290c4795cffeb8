// SPDX-License-Identifier: Apache-2.0
#pragma once

// The control thread: one io_context with signals, worker events, the control socket and timers
// around an Appliance.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <expected>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/appliance.h"
#include "control/log.h"
#include "control/operator/audits.h"
#include "control/operator/report.h"
#include "control/operator/server.h"
#include "control/route/keeper.h"
#include "control/route/publisher.h"
#include "control/startup/watchdog.h"

namespace sallyport::control {

class Daemon {
  public:
    Daemon(config::Config config, Log& log);
    ~Daemon();
    Daemon(const Daemon&) = delete;

    // Starts everything and runs until SIGINT or SIGTERM. The error says why it could not start;
    // false: it ended, and something was wrong on the way out (see the log).
    std::expected<bool, std::string> run();

  private:
    std::expected<void, std::string> start();
    std::expected<void, std::string> follow_routes();
    std::expected<void, std::string> keep_neighbours();
    void wait_for_signal();
    void watch_worker(size_t index);
    void take_events(Worker& worker);
    void handle(const Event& event);
    void tick();
    void look_after_workers();

    Log& log_;
    config::Config config_;
    boost::asio::io_context context_{1};
    boost::asio::signal_set signals_{context_};
    boost::asio::steady_timer timer_{context_};
    std::unique_ptr<Appliance> appliance_;
    std::optional<Report> report_;
    std::vector<boost::asio::posix::stream_descriptor> worker_events_;
    std::unique_ptr<NextHopControl> next_hops_;
    std::unique_ptr<NeighbourKeeper> neighbours_;
    std::optional<rpc::Server> rpc_;
    std::optional<Audits> audits_;
    Watchdog watchdog_;
    uint32_t ticks_ = 0;
    bool ending_ = false;
};

}  // namespace sallyport::control
