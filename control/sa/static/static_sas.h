// SPDX-License-Identifier: Apache-2.0
#pragma once

// The static SAs of the configuration, from their keys to the worker that owns them.
//
//   configured -> sequence numbers reserved (outbound) -> built -> registered in xfrm and in the
//   owner map (inbound) -> installed in its worker
//
// Where a step fails the SA is *refused*: it is shown with the reason and the way out, and traffic
// of its policy is dropped (no_sa, unknown_spi), while everything else runs.
//
// Sequence numbers are reserved in blocks (sa/sequence_block.h), on disk (sequence_store.h). What
// is left of them at a clean stop is given back.
//
// Owner: control thread.

#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/log.h"
#include "control/policy/compile.h"
#include "control/sa/source.h"
#include "control/sa/static/replay_tops.h"
#include "control/sa/static/sequence_store.h"
#include "control/sa/worker_commands.h"
#include "control/xfrm/announcer.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/sa/sa.h"

namespace sallyport::control {

struct ManagedSa {
    SaId id{};  // index in StaticSas
    const config::StaticSa* config = nullptr;
    PolicyId policy{};
    WorkerId owner{};
    std::string refusal;  // empty: active
    OutboundSaPtr outbound;
    InboundSaPtr inbound;
    KeyDigest key;
    // Outbound: first numbers that are not reserved on disk, and that the worker does not know of.
    uint64_t sequence_reserved = 0;
    uint64_t sequence_told = 0;
    bool extension_due = false;   // asked for by the worker, which does not have it yet
    std::string extension_error;  // why it does not: said once, not at every attempt

    [[nodiscard]] bool active() const { return refusal.empty(); }
    [[nodiscard]] bool is_outbound() const {
        return config->direction == config::SaDirection::outbound;
    }
};

class StaticSas final : public SaSource {
  public:
    struct Setup {
        std::vector<uint16_t> cpus;       // of the workers
        uint32_t mtu_max = 1500;          // of any unprotected port
        bool kernel_connections = false;  // policies with an if_id have the xfrm interface
    };
    // Everything named here outlives the object. SA i belongs to its configured worker or to one by
    // hash. The error says what is wrong with the policies.
    static std::expected<std::unique_ptr<StaticSas>, std::string> make(
        Log& log, const config::Config& config, Setup setup, const crypto::Aead& aead,
        SequenceStore& store, xfrm::SaRegistry& registry, WorkerCommands& commands);

    [[nodiscard]] SourceNeeds needs() const override;
    std::expected<void, std::string> open(bpf_objects::BpfObjects& bpf) override;
    void start() override {}
    void handle(const Event& event) override;
    // Tries again what could not be extended, also where the worker's event was lost, and writes
    // down what was received. Each second.
    void tick() override;
    void wind_down(std::function<void()> then) override { then(); }
    void stop() override {}
    // Writes the exact next numbers, and the last that were received.
    void give_back() override;

    [[nodiscard]] std::optional<IpAddress> far_end_after(
        const std::optional<IpAddress>& last) const override;
    [[nodiscard]] std::vector<SaRow> sas() const override;
    [[nodiscard]] std::vector<PolicyRow> policies() const override { return {}; }
    [[nodiscard]] SourceCounts counts() const override { return {.sas = sas_.size()}; }
    [[nodiscard]] size_t served_by(WorkerId worker) const override;
    [[nodiscard]] std::string inventory() const override;

  private:
    StaticSas(Log& log, const config::Config& config, Setup setup, const crypto::Aead& aead,
              SequenceStore& store, xfrm::SaRegistry& registry, WorkerCommands& commands,
              PublishedSpd spd);

    // --- the steps of open()
    void note_unserved();
    void refuse_shared_keys();
    void reserve_first();
    void build_one(ManagedSa& sa);
    void build_outbound(ManagedSa& sa);
    void announce(bpf_objects::BpfObjects& bpf);
    void install();
    std::expected<void, std::string> publish(bpf_objects::BpfObjects& bpf);

    void refuse(ManagedSa& sa, const std::string& reason);
    void no_room_for(SaId id);
    void exhausted(const event::SequenceExhausted& news);
    // By PolicyId: workers with an active outbound SA.
    [[nodiscard]] std::vector<std::vector<WorkerId>> owners_by_policy() const;
    void extend(ManagedSa& sa);
    bool reserve_more(ManagedSa& sa);
    void save_tops(ReplayTops::Sync sync);

    Log& log_;
    const config::Config& config_;
    const Setup setup_;
    const crypto::Aead& aead_;
    SequenceStore& store_;
    xfrm::SaRegistry& registry_;
    WorkerCommands& commands_;
    PublishedSpd spd_;  // the part of the workers goes to `commands_`
    std::vector<ManagedSa> sas_;
    ReplayTops tops_;
    std::string tops_error_;  // why they are not written: said once
    std::set<IpAddress> far_ends_;
};

}  // namespace sallyport::control
