// SPDX-License-Identifier: Apache-2.0
#pragma once

// From the policies of the configuration to the SPD that XDP programs and workers look up.
// Both get the same compiled rows (dataplane/spd/spd.h). Owner: control thread.

#include <expected>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "dataplane/sa/sa.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control {

// The entries of one direction, in SPD order: one for each pair of local and remote prefix.
std::vector<SpdEntry> spd_entries(std::span<const config::Policy> policies, SpdDirection direction);

// What an inbound SA of `policy` may carry: inner packets from remote to local.
std::vector<Selector> inbound_selectors(const config::Policy& policy);

struct PublishedSpd {
    CompiledSpd outbound;
    CompiledSpd inbound;
    std::unique_ptr<const Spd> spd;  // workers read it until they have stopped
};
std::expected<PublishedSpd, std::string> compile_entries(std::span<const SpdEntry> outbound,
                                                         std::span<const SpdEntry> inbound);
std::expected<PublishedSpd, std::string> compile_policies(std::span<const config::Policy> policies);

}  // namespace sallyport::control
