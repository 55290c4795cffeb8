// SPDX-License-Identifier: Apache-2.0
#include "control/appliance.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "config/system.h"
#include "control/sa/kernel/kernel_sas.h"
#include "control/sa/static/static_sas.h"
#include "control/startup/interface.h"
#include "dataplane/base/unique_fd.h"
#include "dataplane/egress/direct_egress.h"
#include "dataplane/egress/tap_egress.h"
#include "dataplane/esp/overhead.h"

namespace sallyport::control {

namespace {

constexpr uint32_t kTapMtuMin = 1280;  // IPv6 needs that much
constexpr uint32_t kTapMtuMax = 3698;  // beyond it writes leave the fast path (dataplane/io/tap.h)

std::expected<uint32_t, std::string> device_mtu(const std::string& device) {
    ifreq request{};
    std::strncpy(request.ifr_name, device.c_str(), sizeof request.ifr_name - 1);
    const UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd || ioctl(fd.get(), SIOCGIFMTU, &request) != 0) {
        return std::unexpected("cannot read the MTU of " + device + ": " + std::strerror(errno));
    }
    return static_cast<uint32_t>(request.ifr_mtu);
}

io::Bind bind_of(config::BindMode mode) {
    switch (mode) {
        case config::BindMode::automatic:
            return io::Bind::automatic;
        case config::BindMode::copy:
            return io::Bind::copy;
        case config::BindMode::zero_copy:
            return io::Bind::zero_copy;
    }
    return io::Bind::automatic;
}

bool is_unprotected(const RunningPort& port) {
    return port.config->role == config::PortRole::unprotected_side;
}

bool protects_ipv6(const config::Policy& policy) {
    return policy.action == config::SpdAction::protect &&
           policy.local.front().address.family == Family::v6;
}

// The largest packet every port of the unprotected side carries.
uint32_t outer_mtu(const std::vector<RunningPort>& ports) {
    uint32_t mtu = UINT16_MAX;
    for (const RunningPort& port : ports) {
        if (is_unprotected(port)) mtu = std::min(mtu, port.mtu);
    }
    return mtu;
}

// Room for the tunnel, so that the kernel fragments (or refuses) what it routes into one.
uint32_t tunnel_mtu(const std::vector<RunningPort>& ports) {
    const uint32_t outer = outer_mtu(ports);
    return std::clamp(outer - std::min(outer, esp::kTunnelOverheadMax), kTapMtuMin, kTapMtuMax);
}

}  // namespace

std::expected<std::unique_ptr<Appliance>, std::string> Appliance::start(
    config::Config& config, Log& log, boost::asio::io_context& context) {
    std::unique_ptr<Appliance> appliance(new Appliance(config, log, context));
    constexpr Step (Appliance::* kSteps[])() = {
        &Appliance::choose_cpus,       &Appliance::find_connections, &Appliance::find_devices,
        &Appliance::lock_state,        &Appliance::prepare_memory,   &Appliance::make_interface,
        &Appliance::guard_kernel_path, &Appliance::make_source,      &Appliance::enable_forwarding,
        &Appliance::create_tap,        &Appliance::open_sockets,     &Appliance::load_programs,
        &Appliance::start_workers,     &Appliance::open_source,      &Appliance::attach};
    for (const auto step : kSteps) {
        if (auto done = (appliance.get()->*step)(); !done) {
            appliance->stop();
            return std::unexpected(done.error());
        }
    }
    return appliance;
}

Appliance::~Appliance() {
    stop();
}

Appliance::Step Appliance::choose_cpus() {
    // Before DPDK starts, which pins the calling thread for a while.
    cpus_ = config_.workers.cpus.empty() ? config::usable_cpus() : config_.workers.cpus;
    cpus_.resize(std::min<size_t>(cpus_.size(), SP_WORKERS_MAX));
    if (cpus_.empty()) return std::unexpected("this process may use no CPU at all");
    return {};
}

Appliance::Step Appliance::find_connections() {
    std::string who;
    for (const config::Port& port : config_.ports) {
        if (port.conntrack_in != config::Conntrack::off)
            who = "[port." + port.name + "] conntrack_in";
    }
    for (const config::Policy& policy : config_.policies) {
        if (!policy.ct_mark) continue;
        connections_.marks = true;
        who = "[[policy]] " + policy.name + ": ct_mark";
    }
    if (who.empty()) return {};
    const bpf_objects::ConnectionLookup lookup = bpf_objects::probe_connection_lookup();
    if (!lookup.possible) {
        return std::unexpected(who +
                               " needs the kernel's connection tracking in XDP: " + lookup.reason);
    }
    connections_.lookups = true;
    return {};
}

Appliance::Step Appliance::find_devices() {
    for (const config::Port& port : config_.ports) {
        RunningPort running;
        running.config = &port;
        running.ifindex = if_nametoindex(port.device.c_str());
        if (running.ifindex == 0) {
            return std::unexpected("there is no network device '" + port.device + "'");
        }
        const auto mtu = device_mtu(port.device);
        if (!mtu) return std::unexpected(mtu.error());
        running.mtu = *mtu;
        const auto queues = config::device_queue_count(port.device);
        if (!queues) return std::unexpected(queues.error());
        running.queues = port.queues.value_or(*queues);
        ports_.push_back(std::move(running));
    }
    return {};
}

Appliance::Step Appliance::lock_state() {
    auto store = SequenceStore::open(config_.state_dir);
    if (!store) return std::unexpected(store.error());
    sequences_.emplace(std::move(*store));
    auto lock = xfrm::NamespaceLock::acquire();
    if (!lock) return std::unexpected(lock.error());
    namespace_lock_.emplace(std::move(*lock));
    return {};
}

Appliance::Step Appliance::prepare_memory() {
    const config::Memory& wanted = config_.memory;
    if (auto started = io::start_eal(wanted.frames, wanted.hugepages); !started) return started;
    auto memory = io::PacketMemory::create(wanted.frames, wanted.hugepages);
    if (!memory) return std::unexpected(memory.error());
    memory_.emplace(std::move(*memory));
    if (wanted.hugepages && !memory_->on_hugepages()) {
        log_.note(
            "packet memory is not on hugepages, because too few are free "
            "(/proc/sys/vm/nr_hugepages): it costs some speed");
    }
    return {};
}

Appliance::Step Appliance::make_interface() {
    auto interface = open_interface(config_, tunnel_mtu(ports_), log_);
    if (!interface) return std::unexpected(interface.error());
    if (*interface) interface_.emplace(std::move(**interface));
    return {};
}

Appliance::Step Appliance::guard_kernel_path() {
    auto rows = xfrm::guard_rows(policies_without_marks(config_.policies), config_.sas,
                                 interface_ ? interface_->ifindex() : 0);
    if (!rows) return std::unexpected(rows.error());
    auto guard = xfrm::PolicyGuard::install(std::move(*rows));
    if (!guard) return std::unexpected(guard.error());
    guard_.emplace(std::move(*guard));
    if (guard_->at_end() == xfrm::PolicyGuard::AtEnd::keep) {
        log_.info(
            "an earlier sallyportd was killed: its xfrm policies stay in place until this one has "
            "started and is stopped by a signal");
    }
    auto registry = xfrm::SaRegistry::open(config_.state_dir);
    if (!registry) return std::unexpected(registry.error());
    registry_.emplace(std::move(*registry));
    if (std::ranges::any_of(config_.policies, protects_ipv6)) {
        log_.note(
            "IPv6 between this host's own addresses and protected remote networks is "
            "blocked (the kernel cannot exempt it per device); IPv6 in transit is not "
            "affected");
    }
    return {};
}

Appliance::Step Appliance::make_source() {
    auto aead = crypto::Aead::create();
    if (!aead) return std::unexpected(aead.error());
    aead_.emplace(std::move(*aead));
    commands_.emplace(context_, cpus_.size(), [this](WorkerId worker, const Command& command) {
        return workers_[to_index(worker)]->submit(command);
    });
    const auto mtu = static_cast<uint16_t>(outer_mtu(ports_));
    if (config_.follows_xfrm()) {
        log_.note("SAs and policies come from the kernel's xfrm, where an IKE daemon puts them");
        source_ = std::make_unique<KernelSas>(context_, log_, config_,
                                              KernelSas::Setup{.cpus = cpus_, .mtu = mtu}, *aead_,
                                              *guard_, *commands_);
        return {};
    }
    auto sas = StaticSas::make(
        log_, config_, {.cpus = cpus_, .mtu = mtu, .kernel_connections = interface_.has_value()},
        *aead_, *sequences_, *registry_, *commands_);
    if (!sas) return std::unexpected(sas.error());
    source_ = std::move(*sas);
    return {};
}

Appliance::Step Appliance::enable_forwarding() {
    for (const char* name : {"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}) {
        if (Sysctls::get(name).empty()) continue;  // a kernel without IPv6
        const auto change = sysctls_.set(name, "1");
        if (!change) return std::unexpected(change.error());
        if (*change == Sysctls::Change::changed) {
            log_.note(std::string(name) + " was off and is on while sallyportd runs");
        }
    }
    // Packets that make the kernel ask the IKE daemon for an SA (acquire) wait for it in the
    // kernel's own queue, one for each policy and bounded, instead of being dropped.
    if (config_.follows_xfrm() && !Sysctls::get("net/core/xfrm_larval_drop").empty()) {
        const auto change = sysctls_.set("net/core/xfrm_larval_drop", "0");
        if (!change) return std::unexpected(change.error());
    }
    // Most segments of a connection go past the kernel, which would take what follows for out of
    // its window, and the end of the connection with it.
    const std::string liberal = "net/netfilter/nf_conntrack_tcp_be_liberal";
    if (connections_.lookups && !Sysctls::get(liberal).empty()) {
        const auto change = sysctls_.set(liberal, "1");
        if (!change) return std::unexpected(change.error());
        if (*change == Sysctls::Change::changed) {
            log_.note(liberal + " was off and is on while sallyportd runs");
        }
    }
    // The stricter of `all` and the device's own counts, and workers' frames come in on sp0
    // whatever route leads back to their source.
    if (Sysctls::get("net/ipv4/conf/all/rp_filter") == "1") {
        log_.note(
            "net/ipv4/conf/all/rp_filter is 1: the kernel drops decrypted packets that it "
            "has to forward itself; set it to 0 or 2 and set strict filtering per device");
    }
    return {};
}

Appliance::Step Appliance::create_tap() {
    tap_mtu_ = tunnel_mtu(ports_);
    auto tap = io::Tap::create(config_.device, static_cast<uint16_t>(cpus_.size()), tap_mtu_);
    if (!tap) return std::unexpected(tap.error());
    tap_.emplace(std::move(*tap));
    const std::string v4 = "net/ipv4/conf/" + config_.device + "/";
    const std::string v6 = "net/ipv6/conf/" + config_.device + "/";
    const std::pair<std::string, const char*> settings[] = {
        {v4 + "forwarding", "1"},    // also where the default for new devices is off
        {v4 + "rp_filter", "0"},     // decrypted packets come from remote networks
        {v4 + "accept_local", "1"},  // outer packets have a source address of this host
        {v4 + "send_redirects", "0"},
        {v4 + "disable_policy", "1"},  // checked by workers: not again by the policy guard,
        {v4 + "disable_xfrm", "1"},    // in neither direction
        {v6 + "forwarding", "1"},
        {v6 + "disable_policy", "1"},
    };
    std::vector<std::pair<std::string, const char*>> all(std::begin(settings), std::end(settings));
    if (interface_) {
        const std::string own = "net/ipv4/conf/" + config_.xfrm_interface + "/";
        // The interface itself looks for policies, by if_id, in both directions: disable_policy
        // stays off, and disable_xfrm is about the way towards the interface only.
        all.insert(all.end(), {{own + "forwarding", "1"},
                               {own + "rp_filter", "0"},
                               {own + "send_redirects", "0"},
                               {own + "disable_xfrm", "1"},
                               {"net/ipv6/conf/" + config_.xfrm_interface + "/forwarding", "1"}});
    }
    for (const auto& [name, value] : all) {
        if (Sysctls::get(name).empty()) continue;
        if (auto change = sysctls_.set(name, value); !change) {
            return std::unexpected(change.error());
        }
    }
    return {};
}

Appliance::Step Appliance::open_sockets() {
    for (RunningPort& port : ports_) {
        // Generic XDP takes its frames after the driver has made packets of them.
        const config::BindMode mode = port.config->xdp_mode == config::XdpMode::generic
                                          ? config::BindMode::copy
                                          : port.config->bind_mode;
        auto sockets =
            io::PortSockets::create({.device = port.config->device,
                                     .ifindex = port.ifindex,
                                     .queues = port.queues,
                                     .workers = static_cast<uint16_t>(cpus_.size()),
                                     .bind = bind_of(mode),
                                     .tx_entries = config_.egress == config::EgressMode::direct
                                                       ? io::PortSocketsSetup{}.tx_entries
                                                       : 0},
                                    *memory_);
        if (!sockets) return std::unexpected(sockets.error());
        port.sockets = std::move(*sockets);
    }
    return {};
}

Appliance::Step Appliance::load_programs() {
    const SourceNeeds needs = source_->needs();
    sa_lookup_ = bpf_objects::probe_sa_lookup();
    if (!sa_lookup_.kfunc) {
        log_.note("SA lookup in XDP is by our own owner map: " + sa_lookup_.reason);
    }

    auto bpf = bpf_objects::BpfObjects::create(needs.maps, connections_);
    if (!bpf) return std::unexpected(bpf.error());
    bpf_.emplace(std::move(*bpf));

    for (size_t i = 0; i < ports_.size(); ++i) {
        const RunningPort& port = ports_[i];
        const PortId id{static_cast<uint16_t>(i)};
        auto added =
            bpf_->add_port({.id = id,
                            .device = port.config->device,
                            .ifindex = port.ifindex,
                            .role = port.config->role,
                            .queues = port.queues,
                            .workers = static_cast<uint16_t>(cpus_.size()),
                            .mtu = port.mtu,
                            .mode = port.config->xdp_mode,
                            .use_kfunc = sa_lookup_.kfunc,
                            .punt_unknown_spi = config_.unknown_spi == config::UnknownSpi::punt,
                            .register_mode = needs.register_mode,
                            .conntrack_in = port.config->conntrack_in,
                            .conntrack_out = port.config->conntrack_out,
                            .bypass_cpus = port.config->bypass_cpus,
                            .egress_deny = port.config->egress_deny});
        if (!added) return added;
        for (uint16_t q = 0; q < port.queues; ++q) {
            for (uint16_t w = 0; w < cpus_.size(); ++w) {
                auto set = bpf_->set_socket(id, QueueId{q}, WorkerId{w},
                                            port.sockets->fd(QueueId{q}, WorkerId{w}));
                if (!set) return set;
            }
        }
    }
    for (uint16_t w = 0; w < cpus_.size(); ++w) {
        if (auto set = bpf_->set_cpu_worker(cpus_[w], WorkerId{w}); !set) return set;
    }
    auto injector = bpf_->add_injector({.device = config_.device, .ifindex = tap_->ifindex()});
    if (!injector) return std::unexpected(injector.error());
    injector_ = *injector;
    if (interface_) {
        auto added = bpf_->add_interface({.device = config_.xfrm_interface,
                                          .ifindex = interface_->ifindex(),
                                          .mtu = interface_->mtu()});
        if (!added) return added;
    }
    // What the kernel routes into sp0 is read by the worker that may encrypt it.
    auto queue_program = bpf_->load_injector_queue();
    if (!queue_program) return std::unexpected(queue_program.error());
    return tap_->choose_queues_by(*queue_program);
}

std::expected<std::unique_ptr<io::Egress>, std::string> Appliance::make_egress(uint16_t worker) {
    auto tap = io::make_tap_egress(tap_->queue(worker), tap_->mac(), *memory_);
    if (!tap || config_.egress == config::EgressMode::devmap) return tap;
    io::DirectEgressSetup setup;
    setup.worker = WorkerId{worker};
    setup.memory = &*memory_;
    for (const RunningPort& port : ports_) {
        setup.ports.push_back(port.sockets.get());
        setup.protected_side.push_back(!is_unprotected(port));
    }
    setup.fallback = std::move(*tap);
    setup.wake = [board = &*wake_board_](WorkerId other) { board->wake(other); };
    return io::make_direct_egress(std::move(setup));
}

Appliance::Step Appliance::start_workers() {
    try {
        wake_board_.emplace(static_cast<uint16_t>(cpus_.size()));
    } catch (const std::system_error& error) {
        return std::unexpected(std::string("cannot make an event descriptor: ") + error.what());
    }
    const SourceNeeds needs = source_->needs();
    for (uint16_t w = 0; w < cpus_.size(); ++w) {
        WorkerSetup setup;
        setup.id = WorkerId{w};
        setup.cpu = cpus_[w];
        setup.spin_us = config_.workers.spin_us;
        setup.max_sas = config_.max_sas;
        setup.max_policies = needs.policies;
        setup.hold_frames = needs.hold_frames;
        setup.hold_ms = needs.hold_ms;
        setup.wake_board = &*wake_board_;
        setup.memory = &*memory_;
        for (const RunningPort& port : ports_) {
            setup.ports.push_back(
                {.sockets = port.sockets.get(), .unprotected_side = is_unprotected(port)});
        }
        setup.tap = &tap_->queue(w);
        auto egress = make_egress(w);
        if (!egress) return std::unexpected(egress.error());
        setup.egress = std::move(*egress);
        auto worker = Worker::create(std::move(setup));
        if (!worker) return std::unexpected(worker.error());
        workers_.push_back(std::move(*worker));
    }
    for (const auto& worker : workers_) {
        if (auto started = worker->start(); !started) return started;
    }
    return {};
}

Appliance::Step Appliance::open_source() {
    auto opened = source_->open(*bpf_);
    for (config::StaticSa& sa : config_.sas) sa.key.clear();
    return opened;
}

Appliance::Step Appliance::attach() {
    if (interface_) {
        const auto replaced = bpf_->attach_interface();
        if (!replaced) return std::unexpected(replaced.error());
        if (*replaced) {
            log_.info("xfrm interface " + config_.xfrm_interface +
                      ": replaced the programs of a killed run");
        }
        log_.info("xfrm interface " + config_.xfrm_interface + ": " +
                  std::to_string(bpf_->connections().size()) +
                  " IPsec connections of the kernel's");
    }
    for (size_t i = 0; i < ports_.size(); ++i) {
        RunningPort& port = ports_[i];
        auto attachment = bpf_->attach_port(PortId{static_cast<uint16_t>(i)});
        if (!attachment) return std::unexpected(attachment.error());
        port.attachment = *attachment;
        if (attachment->replaced_stale) {
            log_.info("port " + port.config->name + ": replaced the program of a killed run");
        }
        const char* mode = attachment->mode == config::XdpMode::generic ? "generic" : "native";
        log_.note("port " + port.config->name + ": " + mode + " XDP, " + attachment->attached() +
                  (attachment->reason.empty() ? "" : " (" + attachment->reason + ")") + ", " +
                  (port.sockets->zero_copy() ? "zero-copy" : "copy mode") + " (" +
                  port.sockets->mode_reason() + "), " + std::to_string(port.queues) + " queues");
    }
    return {};
}

FrameCensus Appliance::census() const {
    FrameCensus census;
    census.total = memory_->frame_count();
    census.pool = memory_->available();
    for (const RunningPort& port : ports_) {
        if (port.sockets) census.in_kernel += port.sockets->frames_in_kernel();
    }
    return census;
}

bool Appliance::stop() {
    if (stopped_) return true;
    stopped_ = true;
    bool ok = true;
    // The last numbers are written when nobody uses them any more, and before the kernel, which may
    // go on with the SAs, sees a packet. Until the programs are detached, what they steer to a
    // worker that has ended is dropped, and what workers have sent last meets the program on sp0
    // and the egress filters. Then frames take the kernel path, where the policy guard stands.
    if (source_) source_->stop();
    for (const auto& worker : workers_) worker->stop();
    if (source_) source_->give_back();
    if (bpf_) bpf_->detach_ports();
    bpf_.reset();
    if (!workers_.empty()) {
        const FrameCensus frames = census();
        const std::string numbers = std::to_string(frames.total) +
                                    " frames = " + std::to_string(frames.pool) + " in the pool + " +
                                    std::to_string(frames.in_kernel) + " in kernel rings";
        if (frames.conserved()) {
            log_.info("frames are conserved: " + numbers);
        } else {
            log_.error("frames are not conserved: " + numbers + " does not add up");
            ok = false;
        }
    }
    return ok;
}

}  // namespace sallyport::control
