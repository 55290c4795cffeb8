// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expected>
#include <memory>
#include <string>

#include "dataplane/egress/egress.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/tap.h"

namespace sallyport::egress {

// Writes finished frames to a TAP queue (io/tap_writer.h). On the way it fills in the Ethernet
// addresses: destination sp0's own MAC, source that of a worker, with the frame's kind
// (bpf/abi.h, sp_write_worker_mac).
//
// in_flight() is 0 after flush(). One system call carries a batch, but XDP still runs once per
// frame. Drop reason: injector_full (the kernel refused the write: no memory, or sp0 is down).
std::expected<std::unique_ptr<Egress>, std::string> make_tap_egress(io::TapQueue& queue,
                                                                    io::MacAddress mac,
                                                                    io::PacketMemory& memory);

}  // namespace sallyport::egress
