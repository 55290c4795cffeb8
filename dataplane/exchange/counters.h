// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "dataplane/base/drop_reason.h"
#include "dataplane/base/single_writer.h"

namespace sallyport {

// writer: worker; reader: anyone.
struct DirectionCounters {
    Counter frames;     // entered the pipeline
    Counter bytes;      // with Ethernet header
    Counter delivered;  // left it towards the egress
    Counter bursts;
    Counter held;     // put on hold for want of an SA, once each; dropped or delivered later
    Counter on_hold;  // right now: frames = delivered + dropped + on_hold, between bursts
};

struct alignas(64) WorkerCounters {
    DirectionCounters inbound;
    DirectionCounters outbound;
    std::array<Counter, kDropReasonCount> drops;
    Counter egress_frames;        // handed to the egress, which counts its own drops
    Counter from_kernel;          // frames read from sp0
    Counter checksums_completed;  // of TCP and UDP, which the sender had left to a device
    Counter loops;
    Counter sleeps;
    Counter busy_cycles;        // TSC cycles in loops that moved at least one frame
    Counter events_lost;        // audits, event ring full
    Counter audits_suppressed;  // beyond the rate that is reported
};

}  // namespace sallyport
