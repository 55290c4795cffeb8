// SPDX-License-Identifier: Apache-2.0
#include "control/sa/worker_commands.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <variant>

namespace sallyport::control {

namespace {

template <typename Held, typename T>
void let_go(Held& held, const T* object) {
    const auto found = held.find(object);
    if (found != held.end() && --found->second.holders == 0) held.erase(found);
}

}  // namespace

WorkerCommands::WorkerCommands(boost::asio::io_context& context, size_t worker_count, Submit submit)
    : waiting_(worker_count), submit_(std::move(submit)), retry_(context) {}

void WorkerCommands::send(WorkerId worker, const Command& command) {
    const size_t index = to_index(worker);
    waiting_[index].push_back(command);
    if (!flush(index)) retry_later();
}

bool WorkerCommands::flush(size_t worker) {
    std::deque<Command>& waiting = waiting_[worker];
    const WorkerId id{static_cast<uint16_t>(worker)};
    while (!waiting.empty() && submit_(id, waiting.front())) waiting.pop_front();
    return waiting.empty();
}

bool WorkerCommands::flush() {
    bool done = true;
    for (size_t i = 0; i < waiting_.size(); ++i) done = flush(i) && done;
    if (done && when_taken_) std::exchange(when_taken_, {})();
    return done;
}

void WorkerCommands::retry_later() {
    if (std::exchange(retry_due_, true)) return;
    retry_.expires_after(std::chrono::milliseconds(kRetryMs));
    retry_.async_wait([this](boost::system::error_code error) {
        if (error) return;
        retry_due_ = false;
        if (!flush()) retry_later();
    });
}

size_t WorkerCommands::waiting(WorkerId worker) const {
    return waiting_[to_index(worker)].size();
}

void WorkerCommands::when_taken(std::function<void()> then) {
    when_taken_ = std::move(then);
    flush();
}

void WorkerCommands::publish(std::unique_ptr<const Spd> spd) {
    const Spd* const latest = spd.get();
    spds_.emplace(latest, Held<Spd>{.object = std::move(spd), .holders = waiting_.size()});
    for (size_t i = 0; i < waiting_.size(); ++i) {
        send(WorkerId{static_cast<uint16_t>(i)}, command::PublishSpd{latest});
    }
}

void WorkerCommands::publish(std::unique_ptr<const NextHops> next_hops) {
    const NextHops* const latest = next_hops.get();
    next_hops_.emplace(latest,
                       Held<NextHops>{.object = std::move(next_hops), .holders = waiting_.size()});
    for (size_t i = 0; i < waiting_.size(); ++i) {
        if (replace_waiting(i, latest)) continue;
        send(WorkerId{static_cast<uint16_t>(i)}, command::PublishNextHops{latest});
    }
}

// True: earlier ones waited for the worker, which now gets the latest in their place.
bool WorkerCommands::replace_waiting(size_t worker, const NextHops* next_hops) {
    for (Command& command : waiting_[worker]) {
        auto* earlier = std::get_if<command::PublishNextHops>(&command);
        if (earlier == nullptr) continue;
        released(std::exchange(earlier->next_hops, next_hops));
        return true;
    }
    return false;
}

void WorkerCommands::released(const Spd* spd) {
    let_go(spds_, spd);
}

void WorkerCommands::released(const NextHops* next_hops) {
    let_go(next_hops_, next_hops);
}

}  // namespace sallyport::control
