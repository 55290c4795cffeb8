// SPDX-License-Identifier: Apache-2.0
#pragma once

// One run of the hand-over against models, in an order that dice choose.
//
// The parts under test are the real ones: SlotTable, Handover, Reconciler, Feedback, RekeyPacer,
// SequenceMemory, and of the workers the tables, the replay windows and the SAs. Around them
// (handover_models.h): a kernel, an IKE daemon that adds, rekeys, deletes and moves SAs (deletes
// and adds them again with the counters of the moment it asked, or without any), workers that take
// their commands and give their events late, batches of any size, requests that fail or whose
// answer is lost, notices that are late or lost, traffic of peer and host, crashes, restarts.
//
// A *schedule* is kSteps such events in a row, then a time without faults in which all SAs go. What
// must hold in each (Judge keeps the first broken promise):
//   - no number of a key is sent twice, whoever sends
//   - the number in the kernel's state never goes down
//   - each inbound number is accepted once; after a crash, or where writing it back failed, once
//     more those that a worker accepted since the last feedback
//   - no worker uses an SA that was freed; at the end no slot and no SA is left
//
// Time is real in one respect: what is on its way through the kernel when traffic is steered away
// from it arrives within Handover::kSettle. And once a second (feedback) workers have had their
// turn, and control has read what waited.

#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "control/sa/kernel/feedback.h"
#include "control/sa/kernel/handover.h"
#include "control/sa/kernel/reconcile.h"
#include "control/sa/kernel/rekey_pacer.h"
#include "control/sa/kernel/sequence_memory.h"
#include "control/sa/kernel/slot_table.h"
#include "control/sa/kernel/tour.h"
#include "control/sa/kernel/way_back.h"
#include "tests/control/sa/kernel/handover_models.h"

namespace sallyport::control::model {

// What the protocol with the kernel does not prevent today. Left out unless a test asks for it.
enum class KnownGap : uint8_t {
    none,
    // An SA was added again with older counters, and the kernel serves it before they are raised.
    kernel_serves_before_counters_are_raised,
    // An SA was added again with older counters, and the message that told the last numbers of the
    // one before, which the kernel itself had used, is lost: the socket was full.
    deletion_is_missed,
    // Packets of an SA that a worker serves also come in by a device that is no port.
    device_that_is_no_port,
};

// A part of the order taken out: the simulation must notice.
enum class Mistake : uint8_t {
    none,
    no_reservation,             // the kernel's number stays where it was
    reservation_after_install,  // it is raised when the worker sends already
    written_back_too_early,     // before the worker has let go
    steered_back_too_early,     // the same, on the way back: the kernel has inbound frames at once
    last_counters_forgotten,    // of a state that goes
    kernel_left_behind,         // a state that no worker takes keeps its old counters
    replaced_unnoticed,         // a state added again whose messages were lost
    kernel_looks_quiet,         // what it sends between a look and a reservation is not seen
};

struct Options {
    KnownGap gap = KnownGap::none;
    Mistake mistake = Mistake::none;
    // Of the host only what waited in the kernel for an SA: then no SA is left to the kernel for
    // it.
    bool quiet_host = false;
    bool tell = false;  // print each step
};

class Simulation {
  public:
    static constexpr int kSteps = 40;
    static constexpr size_t kWorkers = 2;

    Simulation(uint64_t seed, const crypto::Aead& aead, Options options);
    ~Simulation();
    // What was broken, if something was.
    std::optional<std::string> run();

  private:
    struct Daemon;  // the parts under test in one life, and their interfaces to the models
    static const Steps<Simulation>& steps();
    static const Steps<Simulation>& steps_of_the_way_back();

    // --- the IKE daemon
    void ike_adds();
    void ike_deletes();
    void ike_looks();
    void ike_moves();
    // --- traffic
    void worker_sends();
    void worker_sends_much();
    void kernel_forwards();
    void host_sends();
    void queue_comes_out();
    void peer_sends();
    // --- workers
    void worker_takes_command();
    void worker_receives();
    void worker_tells();
    // --- control
    void control_hears();
    void control_misses();
    void control_round();
    void control_goes_on();
    void control_ticks();
    void a_second_passes();
    void time_passes();
    void owners_move();
    void policies_change();
    void kernel_keeps_some();
    // --- life and death
    void crash();
    void stop_cleanly();
    void wind_down();
    void start();

    void calm_down();
    void hear(size_t at_most);
    void tick();
    void go_on();
    void name_owners(const Reconciler::Plan& plan);
    void nobody_is_there();
    [[nodiscard]] Reconciler::Decisions decide() const;
    [[nodiscard]] bool kernel_may_serve(const State& state) const;
    [[nodiscard]] bool is_behind(const State& gone) const;
    [[nodiscard]] bool is_known(const State& gone) const;
    [[nodiscard]] bool some_are_behind() const;
    State* some_state(bool outbound);
    State* newest_outbound();
    [[nodiscard]] bool on_its_way(std::chrono::steady_clock::time_point steered) const;
    void deliver(State& state, uint64_t number);
    bool tell_one(WorkerModel& worker);
    void everybody_has_a_turn();
    void tell(std::string_view text) const;
    void tell(const State& state) const;

    Options options_;
    Dice dice_;
    Judge judge_;
    Wire wire_{judge_};
    Kernel kernel_{judge_, wire_};
    const crypto::Aead& aead_;
    std::vector<std::unique_ptr<WorkerModel>> workers_;
    std::unique_ptr<Daemon> daemon_;  // null: not running
    std::chrono::steady_clock::time_point now_{std::chrono::hours(1)};

    // outside the daemon
    std::map<xfrm::SaName, std::pair<WorkerId, std::chrono::steady_clock::time_point>> steered_;
    std::vector<WorkerId> owners_;  // of the one policy
    std::chrono::steady_clock::time_point owners_since_{};
    std::map<KeyNumber, uint64_t> peer_next_;
    std::map<KeyNumber, uint64_t> looked_at_;  // what the IKE daemon knows of counters
    std::set<KeyNumber> let_out_;              // of which SAs' queues have come out
    KeyNumber keys_ = 0;
    uint32_t owner_turn_ = 0;
    bool wide_selectors_ = false;
    bool kernel_keeps_some_ = false;
    bool faulty_ = false;  // requests fail now and then
};

}  // namespace sallyport::control::model
