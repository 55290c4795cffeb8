// SPDX-License-Identifier: Apache-2.0
#include "control/operator/audits.h"

#include <string>

namespace sallyport::control {

Audits::Audits(const Appliance& appliance, Log& log)
    : appliance_(appliance), log_(log), stuck_(appliance.workers().size()) {
    for (const DropReason reason :
         {DropReason::unknown_spi, DropReason::outer_fragment, DropReason::cleartext_for_protect}) {
        seen_.push_back(
            {.reason = reason, .by_port = std::vector<uint64_t>(appliance.ports().size())});
    }
}

void Audits::look() {
    look_at_programs();
    look_at_workers();
    look_at_checksums();
    look_at_commands();
}

void Audits::look_at_programs() {
    by_bypass_ = 0;
    for (size_t port = 0; port < appliance_.ports().size(); ++port) {
        const auto counters = appliance_.bpf().counters(PortId{static_cast<uint16_t>(port)});
        if (!counters) continue;
        // One right checksum of 65536 looks like one that is not complete.
        const uint64_t partial = counters->partial_checksums;
        if (partial >= 100 && partial > counters->totals.rx_frames / 1000) by_bypass_ += partial;
        for (Seen& audited : seen_) {
            const uint64_t now = counters->drops[static_cast<size_t>(audited.reason)];
            uint64_t& seen = audited.by_port[port];
            if (now != seen) {
                log_.audit(std::string(label(audited.reason)) +
                           " port=" + appliance_.ports()[port].config->name +
                           " packets=" + std::to_string(now - seen));
            }
            seen = now;
        }
    }
}

void Audits::look_at_workers() {
    uint64_t suppressed = 0;
    uint64_t lost = 0;
    for (const auto& worker : appliance_.workers()) {
        suppressed += worker->counters().audits_suppressed.read();
        lost += worker->counters().events_lost.read();
    }
    if (lost != events_lost_) {
        log_.warning(
            std::to_string(lost - events_lost_) +
            " events of workers were lost: the control thread could not keep up (a stalled "
            "disk or log, or no CPU left for it)");
    }
    events_lost_ = lost;
    if (suppressed != suppressed_) {
        log_.audit("suppressed events=" + std::to_string(suppressed - suppressed_));
    }
    suppressed_ = suppressed;
}

// Once: it is how a host is set up, and works, but slowly where policies say BYPASS.
void Audits::look_at_checksums() {
    if (partial_checksums_seen_) return;
    uint64_t count = by_bypass_;
    for (const auto& worker : appliance_.workers()) {
        count += worker->counters().checksums_completed.read();
    }
    if (count == 0) return;
    partial_checksums_seen_ = true;
    log_.warning(
        "a host on this machine leaves the checksums of TCP and UDP to its device (a container or "
        "virtual machine behind a veth or TAP): workers complete them, what BYPASS covers goes by "
        "the kernel. There, 'ethtool -K DEVICE tx off' makes both quicker");
}

void Audits::look_at_commands() {
    for (const auto& worker : appliance_.workers()) {
        const size_t index = to_index(worker->id());
        const size_t waiting = appliance_.commands().waiting(worker->id());
        if (waiting > 0 && stuck_[index]) {
            log_.warning("worker " + std::to_string(index) + " does not take commands, " +
                         std::to_string(waiting) + " wait: its CPU is starved");
        }
        stuck_[index] = waiting > 0;
    }
}

}  // namespace sallyport::control
