// SPDX-License-Identifier: Apache-2.0
#include "control/startup/workers.h"

#include <utility>

#include "dataplane/egress/direct_egress.h"
#include "dataplane/egress/tap_egress.h"

namespace sallyport::control {

namespace {

std::expected<std::unique_ptr<egress::Egress>, std::string> make_egress(const WorkerParts& parts,
                                                                        WorkerId worker) {
    auto tap =
        egress::make_tap_egress(parts.tap.queue(to_index(worker)), io::Tap::kMac, parts.memory);
    if (!tap || parts.config.egress == config::EgressMode::devmap) return tap;
    egress::DirectEgressSetup setup;
    setup.worker = worker;
    setup.memory = &parts.memory;
    for (const RunningPort& port : parts.ports) {
        setup.ports.push_back(port.sockets.get());
        setup.protected_side.push_back(!port.is_unprotected());
    }
    setup.fallback = std::move(*tap);
    setup.wake = [board = &parts.wake_board](WorkerId other) { board->wake(other); };
    return egress::make_direct_egress(std::move(setup));
}

std::expected<std::unique_ptr<Worker>, std::string> make_worker(const WorkerParts& parts,
                                                                WorkerId id) {
    WorkerSetup setup;
    setup.id = id;
    setup.cpu = parts.cpus[to_index(id)];
    setup.spin_us = parts.config.workers.spin_us;
    setup.max_sas = parts.config.max_sas;
    setup.max_policies = parts.needs.policies;
    setup.hold_frames = parts.needs.hold_frames;
    setup.hold_ms = parts.needs.hold_ms;
    setup.outer_mtu = static_cast<uint16_t>(outer_mtu(parts.ports));
    setup.wake_board = &parts.wake_board;
    setup.memory = &parts.memory;
    for (const RunningPort& port : parts.ports) {
        setup.ports.push_back(
            {.sockets = port.sockets.get(), .unprotected_side = port.is_unprotected()});
    }
    setup.tap = &parts.tap.queue(to_index(id));
    auto egress = make_egress(parts, id);
    if (!egress) return std::unexpected(egress.error());
    setup.egress = std::move(*egress);
    setup.confine = [lists = parts.lists] { return confinement::confine_worker(lists); };
    return Worker::create(std::move(setup));
}

}  // namespace

std::expected<std::vector<std::unique_ptr<Worker>>, std::string> start_workers(
    const WorkerParts& parts) {
    std::vector<std::unique_ptr<Worker>> workers;
    for (uint16_t w = 0; w < parts.cpus.size(); ++w) {
        auto worker = make_worker(parts, WorkerId{w});
        if (!worker) return std::unexpected(worker.error());
        workers.push_back(std::move(*worker));
    }
    for (const auto& worker : workers) {
        if (auto started = worker->start(); !started) return std::unexpected(started.error());
    }
    return workers;
}

}  // namespace sallyport::control
