// SPDX-License-Identifier: Apache-2.0
#pragma once

// Everything that makes the gateway run, in the order in which it is built and, reversed, taken
// down. Members hold handles that clean up after themselves, so a failure half way, or an
// exception, undoes exactly what was done.
//
//   sequence store   lock of the state directory; numbers of the keys
//   namespace lock   one daemon per network namespace
//   packet memory    DPDK's EAL and the pool
//   xfrm interface   for the kernel's IPsec connections; without programs it lets nothing pass
//   policy guard     from here on the kernel path lets nothing pass that PROTECT covers, and, with
//                    static SAs, the gate nothing that comes in by a port without a program of
//                    ours. Both go when the end was asked for (or stay, as at_stop says), or when
//                    the start failed and no gateway ran before
//   SA registry      what a killed run left in xfrm goes
//   SA source        the policies compiled, without SAs yet
//   sysctls          settings of the host, but for forwarding
//   sp0              the TAP, and its own settings; the host's own packets have no way there yet
//   sockets          AF_XDP, for each port, queue and worker
//   BPF              maps, egress programs, egress_route on sp0
//   workers          running, without SAs yet
//   SAs, SPD         in workers, xfrm and maps; or, where they come from xfrm, only the SPD, and
//                    SAs are taken over once frames reach the workers
//   attach           the steering programs: from here on frames reach the workers
//   forwarding       on, and the gate opens: the kernel forwards only where programs see it first
//   watch            what others change of all this is said and mended from here on
//
// At a stop forwarding goes off first, and the gate closes where at_stop says so.
//
// How each is done stands in startup/. Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "config/config.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/host_traffic/host_traffic.h"
#include "control/log.h"
#include "control/sa/source.h"
#include "control/sa/static/sequence_store.h"
#include "control/sa/worker_commands.h"
#include "control/startup/link_features.h"
#include "control/startup/port_modes.h"
#include "control/startup/ports.h"
#include "control/startup/sysctls.h"
#include "control/watch/gate.h"
#include "control/watch/watch.h"
#include "control/xfrm/announcer.h"
#include "control/xfrm/guard.h"
#include "control/xfrm/interface.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/tap.h"
#include "dataplane/worker/worker.h"

namespace sallyport::control {

class Appliance : private watch::Host {
  public:
    // `config` and `log` outlive the object. Keys in `config` are wiped once they are in place.
    // What runs by itself runs on `context`.
    static std::expected<std::unique_ptr<Appliance>, std::string> start(
        config::Config& config, Log& log, boost::asio::io_context& context);
    ~Appliance() override;
    Appliance(const Appliance&) = delete;

    // What the kernel path lets pass when the object has gone: as after a kill, which keeps
    // everything closed, or as the configuration wants it after a stop.
    enum class End : uint8_t { unasked, asked };
    void ends(End how);
    // Stops the workers, checks that no frame was lost and writes the sequence numbers back. False:
    // something was wrong and is in the log. The rest is taken down by the destructor.
    bool stop();

    // Programs forward to the devices that have the names of `forward_to` now. Call every second or
    // so: until then packets to a new one are dropped.
    void follow_forward_to();

    [[nodiscard]] const config::Config& config() const { return config_; }
    [[nodiscard]] const std::vector<RunningPort>& ports() const { return ports_; }
    [[nodiscard]] const bpf_objects::BpfObjects& bpf() const { return *bpf_; }
    [[nodiscard]] const bpf_objects::SaLookup& sa_lookup() const { return sa_lookup_; }
    [[nodiscard]] const bpf_objects::Attachment& injector() const { return injector_; }
    [[nodiscard]] const xfrm::SaRegistry& registry() const { return *registry_; }
    [[nodiscard]] const std::vector<std::unique_ptr<Worker>>& workers() const { return workers_; }
    [[nodiscard]] const io::PacketMemory& memory() const { return *memory_; }
    [[nodiscard]] uint32_t tap_ifindex() const { return tap_->ifindex(); }
    [[nodiscard]] uint32_t tap_mtu() const { return tap_mtu_; }
    // The xfrm interface for the kernel's IPsec connections; null: none configured or possible.
    [[nodiscard]] const xfrm::Interface* interface() const {
        return interface_ ? &*interface_ : nullptr;
    }
    [[nodiscard]] const watch::Watch& watch() const { return *watch_; }
    [[nodiscard]] const HostTraffic& host_traffic() const { return host_traffic_; }
    [[nodiscard]] std::string crypto() const { return aead_->description(); }
    [[nodiscard]] SaSource& source() { return *source_; }
    [[nodiscard]] const SaSource& source() const { return *source_; }
    [[nodiscard]] WorkerCommands& commands() { return *commands_; }
    [[nodiscard]] const WorkerCommands& commands() const { return *commands_; }
    [[nodiscard]] FrameCensus census() const { return census_of(*memory_, ports_); }

  private:
    Appliance(config::Config& config, Log& log, boost::asio::io_context& context)
        : config_(config), log_(log), context_(context), host_traffic_(context, log) {}

    using Step = std::expected<void, std::string>;
    Step choose_cpus();
    Step find_connections();
    Step lock_state();
    Step prepare_memory();
    Step make_interface();
    Step guard_kernel_path();
    Step make_source();
    Step find_devices();
    Step set_up_host();
    Step create_tap();
    Step open_sockets();
    Step stop_merging();
    Step load_programs();
    Step start_workers();
    Step open_source();
    Step attach_all();
    Step enable_forwarding();
    Step start_watch();
    Step close_unseen_ports();
    Step close_same_wire();
    Step set_up_tap();
    void follow_outer_mtu();

    // ---- watch::Host
    [[nodiscard]] bool is_attached(size_t port, Hook hook) const override;
    std::expected<void, std::string> attach(size_t port, Hook hook) override;
    [[nodiscard]] bool keeps_tags(const std::string& device) const override;
    bool set_mtu(size_t port, uint32_t mtu) override;
    bool set_mac(size_t port, const netlink::MacAddress& mac) override;
    [[nodiscard]] bool is_attached(Inner device) const override;
    std::expected<void, std::string> attach(Inner device) override;
    std::expected<void, std::string> set_up(Inner device) override;
    std::expected<void, std::string> follow_addresses() override;
    std::vector<ChangedSetting> mend_settings() override;
    [[nodiscard]] bool check_census();

    config::Config& config_;
    Log& log_;
    boost::asio::io_context& context_;
    std::vector<uint16_t> cpus_;  // of the workers
    bpf_objects::Connections connections_;
    std::optional<SequenceStore> sequences_;
    std::optional<xfrm::NamespaceLock> namespace_lock_;
    std::optional<io::PacketMemory> memory_;
    std::optional<watch::Gate> gate_;
    bool stays_closed_ = false;  // at the end
    std::optional<xfrm::PolicyGuard> guard_;
    std::optional<xfrm::Interface> interface_;  // made before the guard, removed before it
    std::optional<xfrm::SaRegistry> registry_;
    Sysctls sysctls_{config_.state_dir / "sysctls"};
    LinkFeatures features_{config_.state_dir / "link_features"};
    uint32_t tap_mtu_ = 1500;
    std::optional<io::Tap> tap_;
    HostTraffic host_traffic_;
    std::vector<RunningPort> ports_;
    Redirection redirection_;
    std::optional<crypto::Aead> aead_;
    // What workers read outlives them.
    std::optional<WorkerCommands> commands_;
    std::unique_ptr<SaSource> source_;
    std::optional<WakeBoard> wake_board_;
    std::vector<std::unique_ptr<Worker>> workers_;
    bpf_objects::SaLookup sa_lookup_;
    bpf_objects::Attachment injector_;
    std::optional<bpf_objects::BpfObjects> bpf_;  // detached first
    std::optional<watch::Watch> watch_;
    bool stopped_ = false;
};

}  // namespace sallyport::control
