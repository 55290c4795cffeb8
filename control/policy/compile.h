// SPDX-License-Identifier: Apache-2.0
#pragma once

// From the policies of the configuration to the SPD that XDP programs and workers look up.
// Both get the same compiled rows (dataplane/spd/spd.h), but for policies that select by the mark
// of a connection: only XDP sees connections. It takes such a policy for the packets whose
// connection has the mark and goes on in the list with the others; it is BYPASS or DISCARD, so what
// reaches a worker was never its. The kernel's own path does not know them either: there the list
// without them holds. Owner: control thread.

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

// The list that holds where connections are not seen.
std::vector<config::Policy> policies_without_marks(std::span<const config::Policy> policies);

// What an inbound SA of `policy` may carry: inner packets from remote to local.
std::vector<Selector> inbound_selectors(const config::Policy& policy);

struct PublishedSpd {
    CompiledSpd outbound;
    CompiledSpd inbound;
    std::unique_ptr<const Spd> spd;  // without marks; workers read it until they have stopped
};
std::expected<PublishedSpd, std::string> compile_entries(std::span<const SpdEntry> outbound,
                                                         std::span<const SpdEntry> inbound);
std::expected<PublishedSpd, std::string> compile_policies(std::span<const config::Policy> policies);

}  // namespace sallyport::control
