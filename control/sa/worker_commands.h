// SPDX-License-Identifier: Apache-2.0
#pragma once

// Commands on their way to workers, in order, when their rings are full; and the SPDs that workers
// still read. Owner: control thread.

#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "dataplane/spd/spd.h"
#include "dataplane/worker/worker.h"

namespace sallyport::control {

class WorkerCommands {
  public:
    // `workers` outlive the use of this object.
    explicit WorkerCommands(std::span<const std::unique_ptr<Worker>> workers)
        : workers_(workers), waiting_(workers.size()) {}

    // Hands the command over, or keeps it until flush() finds room.
    void send(WorkerId worker, const Command& command);
    // True: nothing waits any more.
    bool flush();
    [[nodiscard]] size_t worker_count() const { return workers_.size(); }

    // Publishes to every worker. The object lives until each has taken a later one.
    void publish(std::unique_ptr<const Spd> spd);
    // Event::spd_released of one worker.
    void released(const Spd* spd);

  private:
    struct Held {
        std::unique_ptr<const Spd> spd;
        size_t holders = 0;
    };
    bool flush(size_t worker);

    std::span<const std::unique_ptr<Worker>> workers_;
    std::vector<std::deque<Command>> waiting_;
    std::map<const Spd*, Held> spds_;
};

}  // namespace sallyport::control
