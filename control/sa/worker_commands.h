// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one way to tell a worker something: commands, in order, that wait here while its ring is
// full; and the SPDs and next hops that workers still read.
//
//   send(), publish() -> waiting, of each worker -> submit (the worker's ring) -> worker
//   released()        <- event channel           <--------------------------------+
//
// A full ring empties within microseconds, unless the worker has no CPU: what waits is tried again
// every kRetryMs on the control thread's io_context, and nothing is ever given up. Of next hops
// that wait only the latest is kept, since routes may change faster than a worker without a CPU
// takes commands; everything else is what the worker must see.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "dataplane/base/ids.h"
#include "dataplane/egress/next_hops.h"
#include "dataplane/exchange/commands.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control {

class WorkerCommands {
  public:
    static constexpr int kRetryMs = 1;

    // A worker's ring. False: it is full.
    using Submit = std::function<bool(WorkerId worker, const Command& command)>;

    WorkerCommands(boost::asio::io_context& context, size_t worker_count, Submit submit);
    WorkerCommands(const WorkerCommands&) = delete;

    // Hands the command over, or keeps it until there is room. What it points to must live until
    // the worker has answered, or has stopped.
    void send(WorkerId worker, const Command& command);
    // To every worker. The object lives until each has taken a later one, or as long as this.
    void publish(std::unique_ptr<const Spd> spd);
    void publish(std::unique_ptr<const NextHops> next_hops);
    // Of one worker: it has taken a later one.
    void released(const Spd* spd);
    void released(const NextHops* next_hops);

    // Tries again now. True: nothing waits any more.
    bool flush();
    // How many commands wait for this worker.
    [[nodiscard]] size_t waiting(WorkerId worker) const;
    // Calls `then` once nothing waits: now, or when it has become so. One at a time.
    void when_taken(std::function<void()> then);
    // How many SPDs and next hops are here because workers read them, or will.
    [[nodiscard]] size_t held() const { return spds_.size() + next_hops_.size(); }
    // Some worker reads an SPD that is not the latest, or has not said yet that it does not.
    [[nodiscard]] bool some_read_earlier_spds() const { return spds_.size() > 1; }
    [[nodiscard]] size_t worker_count() const { return waiting_.size(); }

  private:
    // What workers still read, and how many of them.
    template <typename T>
    struct Held {
        std::unique_ptr<const T> object;
        size_t holders = 0;
    };
    template <typename T>
    using HeldBy = std::map<const T*, Held<T>>;

    bool flush(size_t worker);
    void retry_later();
    bool replace_waiting(size_t worker, const NextHops* next_hops);

    std::vector<std::deque<Command>> waiting_;  // by worker
    Submit submit_;
    HeldBy<Spd> spds_;
    HeldBy<NextHops> next_hops_;
    std::function<void()> when_taken_;
    boost::asio::steady_timer retry_;
    bool retry_due_ = false;
};

}  // namespace sallyport::control
