// SPDX-License-Identifier: Apache-2.0
#pragma once

// SAs that live in the kernel's xfrm: an IKE daemon writes them there, workers serve them.
//
//   xfrm -> KernelRegister -> decide_adoption() -> Reconciler -> Handover  -> workers, owner map
//     ^     (a copy of it)                            |             |
//     |                                               +-> SlotTable + Publication -> SPD
//     +---- Handover: reservations; Feedback: counters, limits, requests to rekey
//
// Here are the timers, the readiness of the socket, and the order of a round; what an SA goes
// through is in handover.h, and how what was decided comes into force in rounds.h.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/adoption/running.h"
#include "control/host_traffic/host_traffic.h"
#include "control/sa/kernel/feedback.h"
#include "control/sa/kernel/handover.h"
#include "control/sa/kernel/kernel_surroundings.h"
#include "control/sa/kernel/later.h"
#include "control/sa/kernel/publication.h"
#include "control/sa/kernel/reconcile.h"
#include "control/sa/kernel/rounds.h"
#include "control/sa/kernel/tour.h"
#include "control/sa/kernel/way_back.h"
#include "control/sa/source.h"

namespace sallyport::control {

class KernelSas final : public SaSource {
  public:
    // From the first message of a change until it is looked at. An IKE daemon writes a pair of SAs
    // and its policies one after another: shorter, and a child costs several rounds; longer, and
    // its first packets wait that much longer.
    static constexpr std::chrono::milliseconds kCoalesce{2};
    // While something uncommon is in the register (control/adoption/running.h), all is decided in
    // each round: after one that took so long the next is not before this many times as much has
    // passed. Fewer, and the tick, answers and events of workers wait behind rounds; more, and new
    // SAs are the kernel's for that much longer.
    static constexpr int kPause = 4;
    // Limits in bytes and packets, and the numbers that are left, are looked at this often, and the
    // lease of BYPASS is extended. Longer, and an SA carries that much more than its limit; shorter
    // costs a look at every SA each time.
    static constexpr std::chrono::milliseconds kTick{100};
    // Every so many ticks, about a second, requests to rekey are sent.
    static constexpr uint32_t kTicksOfSecond = 10;
    // For how long frames wait in a worker for an SA that is being taken over. It must be longer
    // than a batch takes (Reconciler::kBatch), and what control does at one time, else they are
    // lost; longer, and packet memory is kept for nothing where none comes.
    static constexpr uint32_t kHoldMs = 200;

    // A worker that gives nothing back for so long will not: it is stopped as it is.
    static constexpr std::chrono::seconds kWayBackMax{2};

    struct Setup {
        std::vector<uint16_t> cpus;  // of the workers
    };
    // Everything named here outlives the object.
    KernelSas(boost::asio::io_context& context, Log& log, const config::Config& config, Setup setup,
              const crypto::Aead& aead, xfrm::PolicyGuard& guard, WorkerCommands& commands,
              HostTraffic& host_traffic);
    ~KernelSas() override;

    [[nodiscard]] SourceNeeds needs() const override;
    // Reads the register and publishes its policies, still without any owner: attached now, the
    // programs leave all that is protected to the kernel.
    std::expected<void, std::string> open(bpf_objects::BpfObjects& bpf) override;
    // The programs are attached: takes SAs over, and follows the register from now on.
    void start() override;
    void handle(const Event& event) override;
    [[nodiscard]] bool is_on_its_way(const event::Audit& record) const override;
    void tick() override {}  // it has a timer of its own
    // SAs go back to the kernel.
    void wind_down(std::function<void()> then) override;
    void stop() override;
    // Exact counters to the kernel, which goes on with the SAs.
    void give_back() override;

    [[nodiscard]] std::optional<IpAddress> far_end_after(
        const std::optional<IpAddress>& last) const override;
    [[nodiscard]] std::vector<SaRow> sas() const override;
    [[nodiscard]] std::vector<PolicyRow> policies() const override;
    [[nodiscard]] SourceCounts counts() const override;
    [[nodiscard]] size_t served_by(WorkerId worker) const override;
    [[nodiscard]] std::string inventory() const override;

  private:
    void wait_for_changes();
    void on_readable();
    void listen_to_the_end();
    void read_again();
    void on_overheard();
    void note_acquires();
    void look_at_used(const std::set<xfrm::SaName>& names);
    void round();
    void round_in(std::chrono::milliseconds delay);
    void go_on();
    void go_back();
    void on_tick();
    void tour();
    void extend_some();
    void decide(const xfrm::RegisterChanges& changes, size_t entries_max);
    void run_round();
    void lead_host_traffic(const GroupOwners& owners, const OwnerChanges& changed, bool other_spd);
    [[nodiscard]] bool has_other_ends() const;
    bool concerns_host();
    [[nodiscard]] SaRow row_of_one(const xfrm::KernelSa& state) const;

    Log& log_;
    HostTraffic& host_traffic_;
    const config::Config& config_;
    Setup setup_;
    boost::asio::io_context& context_;
    bool stopped_ = false;
    bool read_again_due_ = false;
    uint32_t ticks_ = 0;
    std::chrono::steady_clock::time_point next_round_not_before_;
    Later next_round_;
    Later next_step_;
    Later next_tick_;
    Later next_slice_;
    Later next_numbers_;
    std::optional<boost::asio::posix::stream_descriptor> readable_;

    // outside
    xfrm::RegisterChanges changes_;
    KernelRegister register_;
    OwnerSteering steering_;
    BpfPrograms programs_;
    GuardedPath kernel_path_;
    WorkersByCommand workers_;
    SystemClock clock_;
    KernelRandom random_;
    LogNotices notices_;
    Surroundings around_;

    // what is known of SAs, and who works on it
    std::vector<IpAddress> local_addresses_;
    std::set<IpAddress> near_ends_;  // of tunnels, as host_traffic_ knows them
    std::set<IpAddress> far_ends_;
    bool ends_unchecked_ = false;  // of what was decided last
    std::set<SpdPlace> of_host_;   // outbound entries that an address of the host is inside of
    GroupNumbers groups_;
    RunningAdoption adoption_;
    SlotTable slots_;
    SequenceMemory memory_;
    RekeyPacer pacer_;
    Feedback feedback_;
    Handover handover_;
    Reconciler reconciler_;
    Publication publication_;
    BypassLease lease_;
    Rounds rounds_;

    Tour tour_;

    // the way back
    WayBack way_back_;
    std::function<void()> when_back_;
    size_t left_ = 0;  // and since when
    std::chrono::steady_clock::time_point left_since_;
};

}  // namespace sallyport::control
