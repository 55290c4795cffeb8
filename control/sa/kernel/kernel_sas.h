// SPDX-License-Identifier: Apache-2.0
#pragma once

// SAs that live in the kernel's xfrm: an IKE daemon writes them there, workers serve them.
//
//   register -> RegisterMirror -> decide_adoption() -> slots -> workers, owner map, SPD
//                      ^                                  |
//                      +---- counters, limits, requests to rekey (feedback.cc)
//
// Taking an SA over
// -----------------
// The kernel serves every SA that no worker has. The order makes sure that two never serve one SA
// at a time:
//   1. steer    owner map (inbound) or owners of the policy (outbound): frames now reach the
//               worker, which holds those without an SA for a moment (dataplane/pipeline/hold.h)
//   2. read     XFRM_MSG_GETSA: the counters where the kernel has stopped. An SA that the kernel
//               has used is read kSettleMs later, when what was on its way has passed.
//   3. reserve  outbound: XFRM_MSG_NEWAE puts the kernel's counter *above* the numbers that the
//               worker may use, so that the kernel can go on at once, by itself, if we die
//   4. install  the worker runs what it holds
// Back to the kernel it goes the other way round: the worker gives it up, its counters are written,
// inbound frames are steered to the kernel. The kernel's counter is never put down again: only a
// reservation writes it, after a look at what the kernel has sent; the rest is usage alone.
//
// Never a nonce twice (RFC 4106 3)
// --------------------------------
// Sequence numbers of one key only move up, in the kernel's state, here (SequenceMemory, also when
// the state is deleted and added again) and in the worker. So no two packets under one key, whoever
// sends them, have the same number, as long as at most one sends at a time, see above. The IV is
// not the number itself: the kernel's (seqiv) is the number XOR 64 random bits of its own, drawn
// per state and not known to us; ours is the number XOR 64 random bits, drawn for each SA that is
// built. Two numbers under *different* masks can make the same IV: s XOR a = t XOR b exactly when
// s XOR t = a XOR b. With numbers below 2^32 the upper halves of both masks must agree for that to
// be possible at all, which happens with a chance of 2^-32 per pair of masks: the bound that NIST
// SP 800-38D 8 sets. With ESN, where n bits of the number are in use, it is 2^-(64 - n). Because a
// key that has had two senders has used up that chance once, every SA that is taken over from
// another sender is asked to be rekeyed at once (XFRM_MSG_EXPIRE, soft), at most
// kRekeysPerSecond, and all those at a clean stop, when the kernel becomes the second sender. Where
// the kernel keeps sending beside the worker each successor has two senders again: a group is asked
// for a few within kRekeyPause, not for ever.
//
// Replay (RFC 4303 3.4.3)
// -----------------------
// The window starts with everything up to the kernel's top counted as seen; the top that is written
// back was authenticated by the worker. Between two writings (a second at most) a crash leaves the
// kernel with an older top: packets that arrived in that second could then be replayed, once.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <expected>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/adoption/decide.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/log.h"
#include "control/sa/kernel/sequence_memory.h"
#include "control/sa/sequence_block.h"
#include "control/sa/source.h"
#include "control/sa/worker_commands.h"
#include "control/xfrm/guard.h"
#include "control/xfrm/mirror.h"
#include "control/xfrm/mirror_socket.h"
#include "dataplane/crypto/aead.h"
#include "dataplane/sa/sa.h"

namespace sallyport::control {

class KernelSas final : public SaSource {
  public:
    static constexpr int kCoalesceMs = 2;
    static constexpr int kSettleMs = 3;
    static constexpr int kTickMs = 100;
    static constexpr int kFeedbackTicks = 10;
    // For how long frames wait in a worker for an SA that is being taken over.
    static constexpr uint32_t kHoldMs = 200;
    static constexpr size_t kRekeysPerSecond = 100;
    static constexpr std::chrono::minutes kRekeyPause{10};

    struct Setup {
        std::vector<uint16_t> cpus;  // of the workers
        uint16_t mtu = 1500;         // largest outer packet
    };
    // Everything named here outlives the object.
    KernelSas(boost::asio::io_context& context, Log& log, const config::Config& config, Setup setup,
              const crypto::Aead& aead, xfrm::PolicyGuard& guard, WorkerCommands& commands);
    ~KernelSas() override;

    [[nodiscard]] SourceNeeds needs() const override;
    // Reads the register and publishes its policies, still without any owner: attached now, the
    // programs leave all that is protected to the kernel.
    std::expected<void, std::string> open(bpf_objects::BpfObjects& bpf) override;
    // The programs are attached: takes SAs over, and follows the register from now on.
    void start() override;
    void handle(const Event& event) override;
    void tick() override {}  // it has a timer of its own
    void stop() override;
    // Exact counters to the kernel, which goes on with the SAs.
    void give_back() override;

    [[nodiscard]] std::vector<SaRow> sas() const override;
    [[nodiscard]] std::vector<PolicyRow> policies() const override;
    [[nodiscard]] SourceCounts counts() const override;
    [[nodiscard]] size_t served_by(WorkerId worker) const override;
    [[nodiscard]] std::string inventory() const override;

  private:
    enum class Phase : uint8_t { steered, installed, retiring };

    // One SA that a worker serves, from being steered to its end.
    struct Slot {
        SaId id{};
        xfrm::SaName name;
        xfrm::StateDirection direction{};
        WorkerId owner{};
        PolicyId group{};
        Phase phase = Phase::steered;
        SaDecision decision;
        SequenceMemory::Name memory_name;
        IpAddress source;
        xfrm::Replay replay;  // form of the kernel's state
        bool esn = false;
        bool settle_first = false;  // the kernel has used it: read it a moment later
        std::optional<std::chrono::steady_clock::time_point> steered_at;
        OutboundSaPtr outbound;
        InboundSaPtr inbound;
        InboundSaPtr old_inbound;  // being replaced
        // outbound
        uint64_t reserved = 1;  // first number that is not reserved in the kernel
        uint64_t told = 1;      // and what the worker knows of it
        bool extension_due = false;
        // feedback
        xfrm::Usage base;  // of the kernel, without what the worker did
        xfrm::Limits limits;
        uint64_t written_packets = 0;  // of the worker, in the kernel's counters
        uint64_t written_bytes = 0;
        uint64_t written_top = 0;
        uint64_t seen_packets = 0;
        uint64_t last_use = 0;  // seconds since the epoch; 0: not by a worker
        bool soft_reported = false;
        bool hard_reported = false;
        bool expiry_failed = false;  // said once, not at every attempt
        bool rekey_asked = false;
        bool used_warned = false;
    };

    // What a worker has done with an SA so far.
    struct Work {
        uint64_t packets = 0;
        uint64_t bytes = 0;
        uint64_t top = 0;  // inbound
    };
    enum class Rekey : uint8_t { paced, always };
    struct RekeyPace {
        std::chrono::steady_clock::time_point since;
        size_t asked = 0;
    };

    // --- following the register (kernel_sas.cc)
    void wait_for_changes();
    void on_readable();
    void read_again();
    void settle_soon(int ms = kCoalesceMs);
    void settle();
    std::vector<Slot*> departed(const Adoption& now, const xfrm::RegisterChanges& changes);
    void refresh_slots(const Adoption& now);
    void create_slots(const Adoption& now);
    void name_marked_states();
    std::expected<void, std::string> publish(Adoption now);
    void let_outer_packets_pass();
    void finish_later();
    void finish();
    void finish_one(Slot& slot);
    void install_inbound(Slot& slot, const xfrm::KernelSa& state);
    void install_outbound(Slot& slot, const xfrm::KernelSa& state);
    InboundSaParameters inbound_parameters(const Slot& slot, const xfrm::KernelSa& state) const;
    void replace_inbound(Slot& slot, const xfrm::KernelSa& state);
    void retire(Slot& slot);
    void steer_away(const Slot& slot);
    void remember(const Slot& slot);
    void take(const event::InboundRetired& news);
    void take(const event::OutboundRetired& news);
    void take(const event::SequenceLow& news);
    void take(const event::SequenceExhausted& news);
    void take(const event::SpdReleased& /*news*/) {}  // of others
    void take(const event::NextHopsReleased& /*news*/) {}
    void take(const event::Audit& /*news*/) {}
    void let_go(Slot& slot);
    void free_slot(Slot& slot);
    void keep_with_kernel(Slot& slot, const std::string& reason);
    [[nodiscard]] std::vector<std::vector<WorkerId>> owners() const;
    [[nodiscard]] Slot* slot_of(SaId id);
    [[nodiscard]] AdoptionSetup adoption_setup() const;
    void read_local_addresses();

    // --- counters, limits, reservations (feedback.cc)
    void on_tick();
    void check_limits(Slot& slot);
    void write_counters(Slot& slot);
    bool write(Slot& slot, const xfrm::KernelSa& state, const Work& work,
               const std::optional<xfrm::Replay>& replay);
    bool write_sent(Slot& slot, const xfrm::KernelSa& state, uint64_t sent);
    bool hand_back(Slot& slot);
    void extend(Slot& slot);
    void kernel_used(const xfrm::SaName& name);
    void go_on_above(Slot& slot, const xfrm::KernelSa& state);
    void ask_rekey(Slot& slot, Rekey when = Rekey::paced);
    void send_rekey_requests(size_t at_most);
    void note_use(Slot& slot);
    [[nodiscard]] static const InboundSa* counting(const Slot& slot);
    [[nodiscard]] static bool same_key(const Slot& slot, const xfrm::KernelSa& state);
    void tell_range(Slot& slot, const SequenceRange& range, uint64_t next_at_least);
    [[nodiscard]] static Work work_of(const Slot& slot);
    [[nodiscard]] static xfrm::Usage usage_of(const Slot& slot, const Work& work);
    [[nodiscard]] static xfrm::Usage without_ours(const Slot& slot, xfrm::Usage usage);

    Log& log_;
    const config::Config& config_;
    Setup setup_;
    const crypto::Aead& aead_;
    bpf_objects::BpfObjects* bpf_ = nullptr;
    xfrm::PolicyGuard& guard_;
    WorkerCommands& commands_;
    const Spd* spd_ = nullptr;                               // published last
    std::set<std::pair<IpAddress, IpAddress>> outer_pairs_;  // that `guard_` lets pass
    std::optional<xfrm::RegisterSocket> socket_;
    xfrm::RegisterMirror mirror_;
    xfrm::RegisterChanges changes_;
    GroupNumbers groups_;
    Adoption adoption_;
    std::vector<IpAddress> local_addresses_;
    SequenceMemory memory_;
    std::vector<std::unique_ptr<Slot>> slots_;  // by SaId; null: free
    std::vector<uint32_t> free_slots_;
    std::map<xfrm::SaName, Slot*> by_name_;       // steered or installed
    std::map<xfrm::SaName, size_t> retiring_;     // how many of that name are on their way out
    std::map<xfrm::SaName, std::string> kept_;    // tried, and left to the kernel: why
    std::set<std::pair<Spi, IpAddress>> marked_;  // in the owner map as the kernel's
    std::vector<std::vector<WorkerId>> published_owners_;
    bool policies_due_ = true;
    bool taking_over_ = false;  // start() was called
    bool stopped_ = false;
    std::deque<xfrm::SaName> rekey_queue_;
    std::map<PolicyId, RekeyPace> rekey_pace_;  // by group
    std::optional<boost::asio::posix::stream_descriptor> readable_;
    boost::asio::io_context& context_;
    boost::asio::steady_timer settle_timer_;
    boost::asio::steady_timer finish_timer_;
    boost::asio::steady_timer tick_timer_;
    bool settle_due_ = false;
    bool finish_due_ = false;
    bool read_again_due_ = false;
    uint32_t ticks_ = 0;
};

}  // namespace sallyport::control
