// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where a gateway's SAs and policies come from: the configuration (StaticSas) or the kernel's
// xfrm, where an IKE daemon puts them (KernelSas). Appliance, Daemon and Report know this much.
//
//   needs()      before there are maps and workers: how large they must be
//   open()       workers run, programs are not attached: SAs and the SPD to where they belong
//   start()      frames reach the workers
//   handle(), tick()
//   wind_down()  the end was asked for while all runs: what can be put in order before the workers
//                stop
//   stop()       no more changes
//   give_back()  the workers have stopped, the programs still stand: the last sequence numbers to
//                the kernel or to disk, before either sees another packet or another run
//
// The workers hold pointers into a source until they have stopped. Owner: control thread.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "control/bpf_objects/bpf_objects.h"
#include "control/xfrm/values.h"
#include "dataplane/base/drop_reason.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/exchange/events.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control {

// What a source asks of maps, programs and workers.
struct SourceNeeds {
    bpf_objects::Limits maps;
    bool register_mode = false;  // what no worker serves is the kernel's (bpf/abi.h)
    uint32_t policies = 0;       // PolicyIds are below it
    uint32_t hold_frames = 0;    // WorkerSetup's
    uint32_t hold_ms = 0;
};

// One SA, as `show sa` tells of it (docs/rpc.md).
struct SaRow {
    enum class State : uint8_t { active, refused, with_kernel };

    // Of SAs in xfrm: limits and times.
    struct Life {
        xfrm::Limits limits;
        std::optional<uint64_t> age_s;
        std::optional<uint64_t> idle_s;  // nullopt: never used
    };

    std::string name;
    std::optional<xfrm::StateDirection> direction;  // nullopt: not known
    Spi spi{};
    IpAddress source;
    IpAddress destination;
    std::string suite;
    bool esn = false;
    std::string policy;
    std::optional<WorkerId> worker;
    State state = State::active;
    std::string reason;  // why it is not active
    uint64_t packets = 0;
    uint64_t bytes = 0;
    uint64_t sequence = 0;           // last sent, or top of the replay window
    uint64_t sequence_reserved = 0;  // outbound: last that the worker may use
    std::array<uint64_t, kDropReasonCount> drops{};
    uint32_t replay_window = 0;  // inbound
    std::optional<Life> life;
};

// One policy that stands before those of the configuration, as `show policy` tells of it.
struct PolicyRow {
    struct Ports {
        uint16_t value = 0;
        uint16_t mask = 0;  // 0: any
    };

    std::string name;
    xfrm::PolicyDirection direction{};
    uint32_t priority = 0;
    SpdAction action = SpdAction::discard;
    IpPrefix local;
    IpPrefix remote;
    std::optional<uint8_t> protocol;
    Ports local_ports;
    Ports remote_ports;
    uint32_t if_id = 0;
    std::string reason;  // why its traffic is left to the kernel, if it is
};

struct SourceCounts {
    size_t policies = 0;  // beside those of the configuration
    size_t sas = 0;
    size_t sas_with_kernel = 0;  // of them: no worker serves them
    std::string not_published;   // why earlier policies are in force than xfrm has; empty: are not
    uint64_t bypass_lapses = 0;  // how often BYPASS was left to the kernel for want of our time
};

class SaSource {
  public:
    SaSource() = default;
    SaSource(const SaSource&) = delete;
    SaSource& operator=(const SaSource&) = delete;
    virtual ~SaSource() = default;

    [[nodiscard]] virtual SourceNeeds needs() const = 0;
    // `bpf` outlives the use of this object, which ends with give_back().
    virtual std::expected<void, std::string> open(bpf_objects::BpfObjects& bpf) = 0;
    virtual void start() = 0;
    // Of a worker. Those that are not about SAs are none of its business.
    virtual void handle(const Event& event) = 0;
    // What a worker had no SA for has one, which is on its way to a worker or back: counted as
    // dropped, and no event that RFC 4303 4 wants on record.
    [[nodiscard]] virtual bool is_on_its_way(const event::Audit&) const { return false; }
    // About once a second.
    virtual void tick() = 0;
    // Calls `then` when it is done, at once or later, but within bounded time.
    virtual void wind_down(std::function<void()> then) = 0;
    virtual void stop() = 0;
    virtual void give_back() = 0;

    [[nodiscard]] virtual std::vector<SaRow> sas() const = 0;
    [[nodiscard]] virtual std::vector<PolicyRow> policies() const = 0;
    [[nodiscard]] virtual SourceCounts counts() const = 0;
    [[nodiscard]] virtual size_t served_by(WorkerId worker) const = 0;
    // "2 policies, 4 SAs", for the log.
    [[nodiscard]] virtual std::string inventory() const = 0;
    // Outer destinations of outbound SAs that workers have, each once, in order: the one after
    // `last`, or the first of all. None: `last` was the last.
    [[nodiscard]] virtual std::optional<IpAddress> far_end_after(
        const std::optional<IpAddress>& last) const = 0;
};

}  // namespace sallyport::control
