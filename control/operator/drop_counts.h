// SPDX-License-Identifier: Apache-2.0
#pragma once

// Drops by reason, of whoever dropped. Owner: control thread.

#include <array>
#include <cstdint>

#include "dataplane/base/drop_reason.h"
#include "dataplane/io/port_sockets.h"
#include "dataplane/worker/worker.h"

namespace sallyport::control {

using Drops = std::array<uint64_t, kDropReasonCount>;

uint64_t sum(const Drops& drops);
// A worker's own drops and those of its egress.
Drops drops_of(const Worker& worker);
// Of all queues of a port.
io::QueueStatistics statistics_of(const io::PortSockets& sockets);

}  // namespace sallyport::control
