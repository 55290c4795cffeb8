// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the hand-over of SAs touches outside itself. Small interfaces, so that all of it also runs
// against models: of the kernel, of workers that are late, of time
// (tests/control/sa/kernel/handover_simulation_test.cc). What stands behind them in the daemon is
// in kernel_surroundings.h.

#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "control/xfrm/mirror_socket.h"
#include "control/xfrm/values.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/exchange/commands.h"

namespace sallyport::control {

// The kernel's xfrm.
class Register {
  public:
    // As last heard of, which may be late. Null: there is none. Valid until the next message or
    // get().
    [[nodiscard]] virtual const xfrm::KernelSa* find(const xfrm::SaName& name) const = 0;
    // As it is now, and all that the kernel has told before this is heard: what one of the same key
    // had used that was deleted is known. An error with number ESRCH: it has gone.
    virtual std::expected<xfrm::KernelSa, netlink::Error> get(const xfrm::SaName& name) = 0;
    // The counters of `state` are what was heard of last.
    virtual void note(const xfrm::KernelSa& state) = 0;
    virtual std::expected<void, netlink::Error> write_counters(
        const xfrm::KernelSa& state, const xfrm::CounterUpdate& update) = 0;
    // The same of many, one after another, in their order. What is heard with get_all() has been
    // told before the last of them.
    virtual std::vector<std::expected<xfrm::KernelSa, netlink::Error>> get_all(
        std::span<const xfrm::SaName> names) = 0;
    virtual std::vector<std::expected<void, netlink::Error>> write_all(
        std::span<const xfrm::CounterWrite> writes) = 0;
    virtual std::vector<std::expected<void, netlink::Error>> limit_all(
        std::span<const xfrm::LimitWrite> writes) = 0;
    virtual std::expected<void, netlink::Error> expire(const xfrm::KernelSa& state, bool hard) = 0;

  protected:
    ~Register() = default;
};

// Who gets inbound frames of an SA.
class Steering {
  public:
    virtual std::expected<void, std::string> insert(const xfrm::SaName& name, WorkerId worker) = 0;
    // The kernel, if it has the state.
    virtual void remove(const xfrm::SaName& name) = 0;

  protected:
    ~Steering() = default;
};

// To workers, each in order; never refused, but maybe late.
class Commands {
  public:
    virtual void send(WorkerId worker, const Command& command) = 0;

  protected:
    ~Commands() = default;
};

class Clock {
  public:
    [[nodiscard]] virtual std::chrono::steady_clock::time_point now() const = 0;
    // Since the epoch, as xfrm counts time.
    [[nodiscard]] virtual uint64_t seconds() const = 0;

  protected:
    ~Clock() = default;
};

class Random {
  public:
    virtual std::expected<uint64_t, std::string> bits() = 0;

  protected:
    ~Random() = default;
};

// What an operator should read.
class Notices {
  public:
    virtual void warning(const std::string& text) = 0;
    virtual void error(const std::string& text) = 0;

  protected:
    ~Notices() = default;
};

struct Surroundings {
    Register& kernel;
    Steering& steering;
    Commands& workers;
    const Clock& clock;
    Random& random;
    Notices& notices;
    // Something changed that the next round must look at; it need not come sooner than this.
    std::function<void(std::chrono::milliseconds)> another_round;
};

}  // namespace sallyport::control
