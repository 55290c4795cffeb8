// SPDX-License-Identifier: Apache-2.0
#pragma once

// What stands behind the interfaces of surroundings.h in the daemon.
//
// Owner: control thread.

#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "control/bpf_objects/bpf_objects.h"
#include "control/log.h"
#include "control/sa/kernel/publication.h"
#include "control/sa/kernel/surroundings.h"
#include "control/sa/worker_commands.h"
#include "control/xfrm/mirror.h"
#include "control/xfrm/mirror_socket.h"

namespace sallyport::control {

// xfrm, and the copy of it that follows its messages.
class KernelRegister final : public Register {
  public:
    struct Listener {
        // Of a state that is forgotten, or whose counters are: see RegisterMirror.
        std::function<void(const xfrm::KernelSa& last)> forgotten;
        // get() has heard something, which stands in the changes now.
        std::function<void()> overheard;
    };
    // `changes`: where all goes that is heard; outlives the object.
    KernelRegister(xfrm::RegisterChanges& changes, Listener listener);
    // Subscribes to its messages.
    std::expected<void, std::string> open();
    [[nodiscard]] bool is_open() const { return socket_.has_value(); }
    [[nodiscard]] int fd() const { return socket_->fd(); }

    // Takes all messages that wait. On error, or where the changes say so, read it again.
    std::expected<void, std::string> receive();
    std::expected<void, std::string> read_again();
    [[nodiscard]] const xfrm::RegisterMirror& mirror() const { return mirror_; }

    [[nodiscard]] const xfrm::KernelSa* find(const xfrm::SaName& name) const override;
    std::expected<xfrm::KernelSa, netlink::Error> get(const xfrm::SaName& name) override;
    void note(const xfrm::KernelSa& state) override;
    std::expected<void, netlink::Error> write_counters(const xfrm::KernelSa& state,
                                                       const xfrm::CounterUpdate& update) override;
    std::vector<std::expected<xfrm::KernelSa, netlink::Error>> get_all(
        std::span<const xfrm::SaName> names) override;
    std::vector<std::expected<void, netlink::Error>> write_all(
        std::span<const xfrm::CounterWrite> writes) override;
    std::vector<std::expected<void, netlink::Error>> limit_all(
        std::span<const xfrm::LimitWrite> writes) override;
    std::expected<void, netlink::Error> expire(const xfrm::KernelSa& state, bool hard) override;

  private:
    xfrm::RegisterChanges& changes_;
    Listener listener_;
    std::optional<xfrm::RegisterSocket> socket_;
    xfrm::RegisterMirror mirror_;
};

// The owner map of the BPF programs.
class OwnerSteering final : public Steering {
  public:
    explicit OwnerSteering(Log& log) : log_(log) {}
    // `bpf` outlives the use of this object.
    void open(bpf_objects::BpfObjects& bpf) { bpf_ = &bpf; }

    std::expected<void, std::string> insert(const xfrm::SaName& name, WorkerId worker) override;
    void remove(const xfrm::SaName& name) override;

    // XDP asks the kernel for states without a mark. One with a mark would not be found, so the
    // map says that it is the kernel's.
    void name_marked(const xfrm::RegisterChanges& changes,
                     const std::map<xfrm::SaName, xfrm::KernelSa>& states);

  private:
    void set_marked(Spi spi, const IpAddress& destination, bool marked);

    Log& log_;
    bpf_objects::BpfObjects* bpf_ = nullptr;
    std::set<std::pair<Spi, IpAddress>> marked_;
};

// The BPF maps.
class BpfPrograms final : public Programs {
  public:
    // `bpf` outlives the use of this object.
    void open(bpf_objects::BpfObjects& bpf) { bpf_ = &bpf; }

    [[nodiscard]] SpdRoom room() const override;
    std::expected<void, std::string> publish(const SpdUpdate& spd, const GroupOwners& owners,
                                             std::span<const PolicyId> changed,
                                             std::span<const uint32_t> if_ids,
                                             const std::function<void()>& switched) override;
    std::expected<void, std::string> update_owners(const GroupOwners& owners,
                                                   std::span<const PolicyId> changed) override;
    std::expected<void, std::string> set_bypass_until(
        std::chrono::steady_clock::time_point until) override;

  private:
    bpf_objects::BpfObjects* bpf_ = nullptr;
};

class GuardedPath final : public KernelPath {
  public:
    explicit GuardedPath(xfrm::PolicyGuard& guard) : guard_(guard) {}
    std::expected<void, std::string> replace(std::vector<xfrm::PolicyRow> rows) override {
        return guard_.replace(std::move(rows));
    }

  private:
    xfrm::PolicyGuard& guard_;
};

class WorkersByCommand final : public Commands {
  public:
    explicit WorkersByCommand(WorkerCommands& commands) : commands_(commands) {}
    void send(WorkerId worker, const Command& command) override { commands_.send(worker, command); }

  private:
    WorkerCommands& commands_;
};

class SystemClock final : public Clock {
  public:
    [[nodiscard]] std::chrono::steady_clock::time_point now() const override;
    [[nodiscard]] uint64_t seconds() const override;
};

class KernelRandom final : public Random {
  public:
    std::expected<uint64_t, std::string> bits() override;
};

class LogNotices final : public Notices {
  public:
    explicit LogNotices(Log& log) : log_(log) {}
    void warning(const std::string& text) override { log_.warning(text); }
    void error(const std::string& text) override { log_.error(text); }

  private:
    Log& log_;
};

}  // namespace sallyport::control
