// SPDX-License-Identifier: Apache-2.0
#pragma once

// The XDP programs of the ports: what they are told, and how they are attached.

#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "config/config.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/log.h"
#include "control/startup/ports.h"

namespace sallyport::control {

// What the configuration wants to know of the kernel's connections; the error says that this
// kernel cannot tell.
std::expected<bpf_objects::Connections, std::string> connections_for(const config::Config& config);

struct ProgramSetup {
    bool use_kfunc = true;       // false: the owner map alone says which SAs there are
    bool register_mode = false;  // what no worker serves is the kernel's
};
// Programs with their maps filled, not attached yet. `cpus`: of the workers.
std::expected<void, std::string> load_ports(bpf_objects::BpfObjects& bpf,
                                            std::span<const RunningPort> ports,
                                            const config::Config& config,
                                            std::span<const uint16_t> cpus, ProgramSetup setup);

// From here on frames reach the workers.
std::expected<void, std::string> attach_ports(bpf_objects::BpfObjects& bpf,
                                              std::span<RunningPort> ports);
void report_ports(std::span<const RunningPort> ports, Log& log);
std::expected<void, std::string> attach_interface(bpf_objects::BpfObjects& bpf,
                                                  const std::string& device, Log& log);

}  // namespace sallyport::control
