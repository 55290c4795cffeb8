// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/sa/source.h"
#include "control/startup/confinement.h"
#include "control/startup/ports.h"
#include "dataplane/exchange/wake_board.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/tap.h"
#include "dataplane/worker/worker.h"

namespace sallyport::control {

// What workers are made of; all of it outlives them.
struct WorkerParts {
    const config::Config& config;
    std::span<const uint16_t> cpus;  // one for each worker
    SourceNeeds needs;
    std::span<const RunningPort> ports;
    io::Tap& tap;
    io::PacketMemory& memory;
    WakeBoard& wake_board;
    confinement::Lists lists = confinement::Lists::loaded;  // of system calls
};

// Workers by WorkerId, all running.
std::expected<std::vector<std::unique_ptr<Worker>>, std::string> start_workers(
    const WorkerParts& parts);

}  // namespace sallyport::control
