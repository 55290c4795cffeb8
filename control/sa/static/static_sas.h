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
// Sequence numbers are reserved in blocks, see sequence_store.h. A larger block means fewer fsyncs
// (one per half block), but a crash wastes up to one block of the range: with 2^20 of 2^32 numbers
// that is 1/4096 of a key's life, and at 1 Mpps one fsync in half a second; ESN has no such worry,
// so its blocks are 2^24.
//
// Owner: control thread.

#include <expected>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/log.h"
#include "control/sa/static/sequence_store.h"
#include "control/xfrm/announcer.h"
#include "dataplane/crypto/aead.h"
#include "dataplane/sa/sa.h"
#include "dataplane/worker/worker.h"

namespace sallyport::control {

inline constexpr uint64_t kSequenceBlock32 = uint64_t{1} << 20;
inline constexpr uint64_t kSequenceBlockEsn = uint64_t{1} << 24;
struct ManagedSa {
    SaId id{};  // index in SaControl::sas()
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
};

// How many numbers are asked for at once, and when the next are: half way. Behind the last block
// there is nothing to ask for, so the low water is its end, where the worker stops.
uint64_t sequence_end(bool esn);  // past the last number
uint64_t sequence_block(bool esn);
// The next block, cut where the protocol ends.
SequenceStore::Range next_block(uint64_t first, bool esn);
uint64_t low_water(const SequenceStore::Range& range, uint64_t end);

class SaControl {
  public:
    // `config` outlives the object. SA i belongs to its configured worker or to one by hash.
    SaControl(Log& log, const config::Config& config, uint16_t worker_count);

    // Reserves numbers and builds the SAs. `mtu`: largest outer packet where an SA does not say.
    void build(const crypto::Aead& aead, SequenceStore& store, uint16_t mtu);
    // xfrm and the owner map. `cpus`: CPU of each worker.
    void announce(xfrm::SaRegistry& registry, bpf_objects::BpfObjects& bpf,
                  std::span<const uint16_t> cpus);
    // Hands the SAs to their workers, which are running.
    void install(std::span<const std::unique_ptr<Worker>> workers);

    // Events about SAs. Others are none of its business.
    void handle(const Event& event, SequenceStore& store,
                std::span<const std::unique_ptr<Worker>> workers);
    // Tries again what could not be extended, also where the worker's event was lost. Call about
    // once a second.
    void retry_extensions(SequenceStore& store, std::span<const std::unique_ptr<Worker>> workers);

    // After the workers have stopped: writes the exact next numbers.
    std::expected<void, std::string> give_back(SequenceStore& store);

    [[nodiscard]] std::span<const ManagedSa> sas() const { return sas_; }
    // By PolicyId: workers with an active outbound SA.
    [[nodiscard]] std::vector<std::vector<WorkerId>> owners_by_policy() const;

  private:
    void refuse(ManagedSa& sa, const std::string& reason);
    void no_room_for(SaId id);
    void reserve_first(SequenceStore& store);
    void build_one(ManagedSa& sa, const crypto::Aead& aead, uint16_t mtu);
    void extend(ManagedSa& sa, SequenceStore& store,
                std::span<const std::unique_ptr<Worker>> workers);

    Log& log_;
    const config::Config& config_;
    std::vector<ManagedSa> sas_;
};

}  // namespace sallyport::control
