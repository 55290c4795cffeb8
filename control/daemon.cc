// SPDX-License-Identifier: Apache-2.0
#include "control/daemon.h"

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <utility>

#include "control/sa/audit.h"
#include "control/startup/confinement.h"
#include "control/startup/deadline.h"
#include "control/startup/service_manager.h"

namespace sallyport::control {

namespace {

using ErrorCode = boost::system::error_code;
using Descriptor = boost::asio::posix::stream_descriptor;

// Sources try again what has failed this often.
constexpr std::chrono::seconds kTick{1};
// Every so many ticks the log gets what XDP programs dropped. More often, and an attacker fills the
// log with it; less often, and the record is late.
constexpr uint32_t kAuditTicks = 10;
// From the signal to the end. Longer, and the service manager kills us first (TimeoutStopSec);
// shorter, and a hundred thousand SAs are not back with the kernel by then.
constexpr std::chrono::seconds kStopMax{50};

std::expected<std::vector<EgressFilter>, std::string> egress_filters(
    const std::vector<RunningPort>& ports) {
    std::vector<EgressFilter> filters;
    for (const RunningPort& port : ports) {
        EgressFilter filter;
        for (const config::EgressRule& rule : port.config->egress_deny) {
            auto row = bpf_objects::egress_rule_row(rule);
            if (!row) return std::unexpected(row.error());
            filter.rules.push_back(*row);
        }
        filters.push_back(std::move(filter));
    }
    return filters;
}

}  // namespace

Daemon::Daemon(config::Config config, Log& log) : log_(log), config_(std::move(config)) {}

Daemon::~Daemon() {
    // After a start that failed half way: workers must not outlive what they were given.
    if (appliance_) appliance_->stop();
}

std::expected<bool, std::string> Daemon::run() {
    // First, so that a signal during the start ends the daemon in good order after it.
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) signals_.add(number);
    wait_for_signal();
    if (auto started = start(); !started) return std::unexpected(started.error());
    if (const auto dropped = confinement::drop_capabilities(); !dropped) {
        log_.note(dropped.error());
    }
    // From here on only a signal opens the kernel path again.
    appliance_->ends(Appliance::End::unasked);

    appliance_->source().start();
    // SAs whose commands found a ring full are with their workers first.
    appliance_->commands().when_taken([this] {
        log_.info("ready: " + std::to_string(appliance_->workers().size()) + " workers, " +
                  std::to_string(appliance_->ports().size()) + " ports, " +
                  appliance_->source().inventory() + ", control socket " +
                  config_.control_socket.string());
        tell_service_manager("READY=1");
    });
    context_.run();

    log_.info("stopping");
    appliance_->ends(Appliance::End::asked);
    if (config_.closes_at_stop()) {
        log_.info(
            "the ports stay closed (gateway.at_stop): the host forwards nothing that comes in by "
            "them, until the next start or 'sallyportd -c FILE --open'");
    }
    tell_service_manager("STOPPING=1");
    rpc_.reset();
    if (next_hops_) next_hops_->stop();
    if (neighbours_) neighbours_->stop();
    // Descriptors live until the workers have stopped.
    return appliance_->stop();
}

std::expected<void, std::string> Daemon::start() {
    auto appliance = Appliance::start(config_, log_, context_);
    if (!appliance) return std::unexpected(appliance.error());
    appliance_ = std::move(*appliance);
    audits_.emplace(*appliance_, log_);
    for (const auto& worker : appliance_->workers()) {
        worker_events_.emplace_back(context_, dup(worker->event_fd()));
    }
    for (size_t i = 0; i < worker_events_.size(); ++i) watch_worker(i);

    if (config_.egress == config::EgressMode::direct) {
        if (auto followed = follow_routes(); !followed) return followed;
    }
    if (auto kept = keep_neighbours(); !kept) return kept;
    report_.emplace(*appliance_, log_);
    auto server = rpc::Server::listen(
        context_, config_.control_socket,
        [this](const rpc::Request& request) { return report_->show(request.show); });
    if (!server) return std::unexpected(server.error());
    rpc_.emplace(std::move(*server));
    tick();
    return {};
}

std::expected<void, std::string> Daemon::follow_routes() {
    std::vector<uint32_t> ifindexes;
    for (const RunningPort& port : appliance_->ports()) ifindexes.push_back(port.ifindex);
    auto filters = egress_filters(appliance_->ports());
    if (!filters) return std::unexpected(filters.error());
    auto next_hops = NextHopControl::start(
        context_, log_, std::move(ifindexes), std::move(*filters),
        [commands = &appliance_->commands()](std::unique_ptr<const NextHops> latest) {
            commands->publish(std::move(latest));
        });
    if (!next_hops) return std::unexpected(next_hops.error());
    next_hops_ = std::move(*next_hops);
    return {};
}

std::expected<void, std::string> Daemon::keep_neighbours() {
    std::vector<uint32_t> ifindexes;
    for (const RunningPort& port : appliance_->ports()) ifindexes.push_back(port.ifindex);
    NeighbourKeeper::Traffic traffic;
    traffic.far_end_after = [source = &appliance_->source()](const auto& last) {
        return source->far_end_after(last);
    };
    const bpf_objects::BpfObjects* bpf = &appliance_->bpf();
    traffic.unresolved = [bpf] {
        std::vector<NeighbourKeeper::Unresolved> out;
        for (const auto& hop : bpf->unresolved_hops()) {
            out.push_back({.name = {.ifindex = hop.ifindex, .address = hop.address},
                           .waited_for = hop.waited_for});
        }
        return out;
    };
    traffic.forget = [bpf](const route::NeighbourName& name) {
        bpf->forget_unresolved(name.ifindex, name.address);
    };
    auto keeper = NeighbourKeeper::start(context_, log_, std::move(ifindexes), std::move(traffic));
    if (!keeper) return std::unexpected(keeper.error());
    neighbours_ = std::move(*keeper);
    return {};
}

void Daemon::wait_for_signal() {
    signals_.async_wait([this](ErrorCode error, int number) {
        if (error) return;
        if (number == SIGHUP) {
            log_.warning(
                "SIGHUP is ignored: the configuration is read at start only, restart "
                "sallyportd to apply a new one");
            wait_for_signal();
            return;
        }
        log_.info(number == SIGINT ? "SIGINT received" : "SIGTERM received");
        if (std::exchange(ending_, true)) return context_.stop();  // the second one: at once
        end_at_latest_in(kStopMax);
        appliance_->source().wind_down([this] { context_.stop(); });
        wait_for_signal();
    });
}

void Daemon::watch_worker(size_t index) {
    worker_events_[index].async_wait(Descriptor::wait_read, [this, index](ErrorCode error) {
        if (error) return;
        take_events(*appliance_->workers()[index]);
        watch_worker(index);
    });
}

void Daemon::take_events(Worker& worker) {
    Event event;
    while (worker.next_event(event)) handle(event);
}

void Daemon::handle(const Event& event) {
    WorkerCommands& commands = appliance_->commands();
    if (const auto* record = std::get_if<event::Audit>(&event)) {
        if (!appliance_->source().is_on_its_way(*record)) log_.audit(audit_text(*record));
    } else if (const auto* spd = std::get_if<event::SpdReleased>(&event)) {
        commands.released(spd->spd);
    } else if (const auto* routes = std::get_if<event::NextHopsReleased>(&event)) {
        commands.released(routes->next_hops);
    } else {
        appliance_->source().handle(event);
    }
}

void Daemon::tick() {
    appliance_->source().tick();
    appliance_->follow_forward_to();
    if (++ticks_ % kAuditTicks == 0) audits_->look();
    look_after_workers();
    log_.flush();
    timer_.expires_after(kTick);
    timer_.async_wait([this](ErrorCode error) {
        if (!error) tick();
    });
}

void Daemon::look_after_workers() {
    std::vector<uint64_t> loops;
    for (const auto& worker : appliance_->workers()) {
        loops.push_back(worker->counters().loops.read());
    }
    const auto look = watchdog_.look(loops, std::chrono::steady_clock::now());
    for (const size_t worker : look.hung) {
        log_.error("worker " + std::to_string(worker) + " hangs: nothing has moved there for " +
                   std::to_string(Watchdog::kHungAfter.count()) +
                   " s, and what it owns is not forwarded. Under systemd sallyportd is restarted "
                   "(WatchdogSec); else restart it");
    }
    for (const size_t worker : look.moved) {
        log_.note("worker " + std::to_string(worker) + " moves again");
    }
    if (look.all_move) tell_service_manager("WATCHDOG=1");
}

}  // namespace sallyport::control
