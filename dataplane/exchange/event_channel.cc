// SPDX-License-Identifier: Apache-2.0
#include "dataplane/exchange/event_channel.h"

#include <unistd.h>

#include <ctime>
#include <variant>

#include "dataplane/exchange/event_fd.h"

namespace sallyport {

EventChannel::EventChannel(WorkerCounters& counters)
    : counters_(counters), ring_(kRingSize), fd_(make_event_fd()) {}

EventChannel::~EventChannel() {
    close(fd_);
}

void EventChannel::post(const Event& event) {
    const bool record = is_record(event);
    if (record && !may_report(event)) {
        counters_.audits_suppressed.add(1);
        return;
    }
    if (unsent_.empty() && ring_.push(event)) {
        posted_ = true;
        return;
    }
    if (record) {
        counters_.events_lost.add(1);
        return;
    }
    // Without it control would keep an SA for ever. Each answers a command or happens once per SA
    // and block of numbers, so they are not many.
    unsent_.push_back(event);
}

void EventChannel::notify() {
    while (!unsent_.empty() && ring_.push(unsent_.front())) {
        unsent_.pop_front();
        posted_ = true;
    }
    if (!posted_) return;
    posted_ = false;
    signal_event_fd(fd_);
}

bool EventChannel::pop(Event& event) {
    if (ring_.pop(event)) return true;
    drain_event_fd(fd_);
    // What came between the look and the draining would wait for the next signal.
    return ring_.pop(event);
}

bool EventChannel::may_report(const Event& record) {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    const auto second = static_cast<uint64_t>(now.tv_sec);
    if (second != second_) {
        second_ = second;
        records_ = {};
    }
    const auto* audit = std::get_if<event::Audit>(&record);
    const size_t kind = audit == nullptr ? kDropReasonCount : static_cast<size_t>(audit->reason);
    return records_[kind]++ < kRecordsPerSecond;
}

}  // namespace sallyport
