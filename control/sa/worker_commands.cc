// SPDX-License-Identifier: Apache-2.0
#include "control/sa/worker_commands.h"

#include <utility>

namespace sallyport::control {

void WorkerCommands::send(WorkerId worker, const Command& command) {
    const size_t index = to_index(worker);
    waiting_[index].push_back(command);
    flush(index);
}

bool WorkerCommands::flush(size_t worker) {
    std::deque<Command>& waiting = waiting_[worker];
    while (!waiting.empty() && workers_[worker]->submit(waiting.front())) waiting.pop_front();
    return waiting.empty();
}

bool WorkerCommands::flush() {
    bool done = true;
    for (size_t i = 0; i < waiting_.size(); ++i) done = flush(i) && done;
    return done;
}

void WorkerCommands::publish(std::unique_ptr<const Spd> spd) {
    const command::PublishSpd command{spd.get()};
    const Spd* const key = spd.get();
    spds_.emplace(key, Held{.spd = std::move(spd), .holders = workers_.size()});
    for (size_t i = 0; i < workers_.size(); ++i) send(WorkerId{static_cast<uint16_t>(i)}, command);
}

void WorkerCommands::released(const Spd* spd) {
    const auto found = spds_.find(spd);
    if (found != spds_.end() && --found->second.holders == 0) spds_.erase(found);
}

}  // namespace sallyport::control
