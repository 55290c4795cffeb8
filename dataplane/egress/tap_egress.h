// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expected>
#include <memory>
#include <string>

#include "dataplane/egress/egress.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/tap.h"

namespace sallyport::io {

// Writes finished frames to a TAP queue in io_uring batches of up to 64. On the way it fills in the
// Ethernet addresses: destination sp0's own MAC, source 02:53:50:00:00:KIND.
//
// A write to a TAP never waits, so each batch is complete when its submission returns: in_flight()
// is 0 after flush(). One system call carries a batch, but XDP still runs once per frame.
// Drop reason: injector_full (the kernel refused the write: no memory, or sp0 is down).
std::expected<std::unique_ptr<Egress>, std::string> make_tap_egress(TapQueue& queue, MacAddress mac,
                                                                    PacketMemory& memory);

}  // namespace sallyport::io
