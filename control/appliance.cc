// SPDX-License-Identifier: Apache-2.0
#include "control/appliance.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "config/system.h"
#include "control/netlink/addresses.h"
#include "control/netlink/link.h"
#include "control/policy/compile.h"
#include "control/sa/kernel/kernel_sas.h"
#include "control/sa/static/static_sas.h"
#include "control/startup/confinement.h"
#include "control/startup/interface.h"
#include "control/startup/kernel_settings.h"
#include "control/startup/port_modes.h"
#include "control/startup/programs.h"
#include "control/startup/workers.h"
#include "control/watch/look.h"

namespace sallyport::control {

namespace {

bool protects_ipv6(const config::Policy& policy) {
    return policy.action == SpdAction::protect && policy.local.front().address.family == Family::v6;
}

}  // namespace

std::expected<std::unique_ptr<Appliance>, std::string> Appliance::start(
    config::Config& config, Log& log, boost::asio::io_context& context) {
    std::unique_ptr<Appliance> appliance(new Appliance(config, log, context));
    constexpr Step (Appliance::* kSteps[])() = {
        &Appliance::choose_cpus,       &Appliance::find_connections, &Appliance::find_devices,
        &Appliance::lock_state,        &Appliance::prepare_memory,   &Appliance::make_interface,
        &Appliance::guard_kernel_path, &Appliance::make_source,      &Appliance::set_up_host,
        &Appliance::create_tap,        &Appliance::open_sockets,     &Appliance::load_programs,
        &Appliance::start_workers,     &Appliance::open_source,      &Appliance::attach_all,
        &Appliance::enable_forwarding, &Appliance::start_watch};
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
    auto connections = connections_for(config_);
    if (!connections) return std::unexpected(connections.error());
    connections_ = *connections;
    return {};
}

Appliance::Step Appliance::find_devices() {
    auto ports = find_ports(config_);
    if (!ports) return std::unexpected(ports.error());
    ports_ = std::move(*ports);
    auto redirection = choose_modes(ports_);
    if (!redirection) return std::unexpected(redirection.error());
    redirection_ = std::move(*redirection);
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
    if (auto done = close_unseen_ports(); !done) return done;
    if (stays_closed_) {
        log_.info(
            "an earlier sallyportd was killed, or has closed the ports at its stop: what it blocks "
            "stays blocked until this one has started");
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

Appliance::Step Appliance::close_unseen_ports() {
    auto gate = watch::Gate::make();
    if (!gate) return std::unexpected(gate.error());
    gate_.emplace(std::move(*gate));
    const auto closed = gate_->closed();
    if (!closed) return std::unexpected(closed.error());
    std::vector<bpf_objects::Leftover> leftovers;
    for (const RunningPort& port : ports_) {
        leftovers.push_back(bpf_objects::leftover_on(port.ifindex, port.xdp_mode));
    }
    // Without PROTECT in the file a killed run leaves no policies of xfrm, but its programs.
    const bool has_programs = std::ranges::any_of(leftovers, [](bpf_objects::Leftover leftover) {
        return leftover != bpf_objects::Leftover::none;
    });
    stays_closed_ =
        guard_->at_end() == xfrm::PolicyGuard::AtEnd::keep || !closed->empty() || has_programs;
    gate_->at_end(stays_closed_ ? watch::Gate::AtEnd::keep : watch::Gate::AtEnd::open);
    // Where no gateway ran before, the kernel carries the tunnels of an IKE daemon until now.
    if (!stays_closed_ && config_.follows_xfrm()) return {};
    for (size_t i = 0; i < ports_.size(); ++i) {
        if (leftovers[i] == bpf_objects::Leftover::replaceable) continue;
        if (auto done = gate_->close(ports_[i].config->device); !done) return done;
    }
    return close_same_wire();
}

// What is for them comes by no program of ours, and the kernel would forward it.
Appliance::Step Appliance::close_same_wire() {
    for (const RunningPort& port : ports_) {
        for (const netlink::LinkInfo& device : same_wire(ports_, port)) {
            if (auto done = gate_->close(device.name); !done) return done;
        }
    }
    return {};
}

void Appliance::ends(End how) {
    stays_closed_ = how == End::unasked || config_.closes_at_stop();
    guard_->at_end(stays_closed_ ? xfrm::PolicyGuard::AtEnd::keep
                                 : xfrm::PolicyGuard::AtEnd::remove);
    gate_->at_end(stays_closed_ ? watch::Gate::AtEnd::keep : watch::Gate::AtEnd::open);
    if (interface_) interface_->keep(how == End::unasked);
}

Appliance::Step Appliance::make_source() {
    auto aead = crypto::Aead::create();
    if (!aead) return std::unexpected(aead.error());
    aead_.emplace(std::move(*aead));
    commands_.emplace(context_, cpus_.size(), [this](WorkerId worker, const Command& command) {
        return workers_[to_index(worker)]->submit(command);
    });
    if (config_.follows_xfrm()) {
        log_.note("SAs and policies come from the kernel's xfrm, where an IKE daemon puts them");
        source_ =
            std::make_unique<KernelSas>(context_, log_, config_, KernelSas::Setup{.cpus = cpus_},
                                        *aead_, *guard_, *commands_, host_traffic_);
        return {};
    }
    auto sas = StaticSas::make(log_, config_,
                               {.cpus = cpus_,
                                .mtu_max = largest_outer_mtu(ports_),
                                .kernel_connections = interface_.has_value()},
                               *aead_, *sequences_, *registry_, *commands_);
    if (!sas) return std::unexpected(sas.error());
    source_ = std::move(*sas);
    return {};
}

Appliance::Step Appliance::set_up_host() {
    if (auto done = apply(host_settings(config_, connections_.lookups), sysctls_, log_); !done) {
        return done;
    }
    note_obstacles(log_);
    if (!forwards_ipv6(config_)) {
        // A killed run had IPv6: what it has switched on would stay on until the end of this one.
        sysctls_.take_over();
        for (const std::string& name : ipv6_forwarding(config_)) sysctls_.put_back(name);
    }
    const std::vector<Setting> routers = router_settings(config_);
    if (!routers.empty()) {
        log_.note(
            "net/ipv6/conf/*/accept_ra was 1 and is 2 while sallyportd runs: the host forwards "
            "IPv6 and goes on to believe its routers");
    }
    return apply(routers, sysctls_, log_);
}

Appliance::Step Appliance::create_tap() {
    tap_mtu_ = tunnel_mtu(ports_);
    auto tap =
        io::Tap::create(config_.device, static_cast<uint16_t>(cpus_.size()), netlink::move_link);
    if (!tap) return std::unexpected(tap.error());
    tap_.emplace(std::move(*tap));
    if (auto up = set_up_tap(); !up) return up;
    if (auto done = apply(tap_settings(config_), sysctls_, log_); !done) return done;
    if (auto done = host_traffic_.open(tap_->ifindex()); !done) return done;
    if (!interface_) return {};
    return apply(interface_settings(config_), sysctls_, log_);
}

Appliance::Step Appliance::set_up_tap() {
    return netlink::set_up_tap(config_.device, tap_->ifindex(), io::Tap::kMac, tap_mtu_);
}

Appliance::Step Appliance::open_sockets() {
    for (const RunningPort& port : ports_) {
        const auto change = features_.switch_off(port.config->device);
        if (!change) return std::unexpected("port " + port.config->name + ": " + change.error());
        if (*change == LinkFeatures::Change::changed && !loses_tags_below(port.kind)) {
            log_.note("port " + port.config->name +
                      ": VLAN tags stay in its frames while sallyportd runs (rxvlan was on)");
        }
    }
    if (auto done = stop_merging(); !done) return done;
    return control::open_sockets(ports_, config_, static_cast<uint16_t>(cpus_.size()), *memory_,
                                 log_);
}

// What merges below one port merges for another too: each device is named once.
Appliance::Step Appliance::stop_merging() {
    std::set<std::string> done;
    for (const RunningPort& port : ports_) {
        for (const netlink::LinkInfo& link : port.below) {
            const std::string& device = link.name;
            if (!done.insert(device).second) continue;
            const auto merging = features_.stop_merging(device);
            if (!merging)
                return std::unexpected("port " + port.config->name + ": " + merging.error());
            const std::string about = "port " + port.config->name + ": " + device + " below it ";
            switch (*merging) {
                case LinkFeatures::Merging::none:
                    break;
                case LinkFeatures::Merging::stopped:
                    log_.note(about + "merges no frames while sallyportd runs (GRO or LRO was on)");
                    break;
                case LinkFeatures::Merging::goes_on:
                    log_.note(about +
                              "merges frames (GRO, LRO) and cannot be told not to: those that "
                              "are larger than the MTU then are dropped (too_big)");
                    break;
            }
        }
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
    if (auto told = follow_addresses(); !told) return told;

    auto loaded = load_ports(*bpf_, ports_, config_, cpus_,
                             {.use_kfunc = sa_lookup_.kfunc, .register_mode = needs.register_mode});
    if (!loaded) return loaded;
    if (const auto watched = bpf_->watch_redirects(); !watched) {
        log_.note("frames that were redirected and did not arrive are not counted: " +
                  watched.error());
    }
    auto injector = bpf_->add_injector(
        {.device = config_.device,
         .ifindex = tap_->ifindex(),
         .mode = redirection_.generic ? config::XdpMode::generic : config::XdpMode::native,
         .mode_reason = redirection_.generic ? "generic because " + redirection_.reason : ""});
    if (!injector) return std::unexpected(injector.error());
    injector_ = *injector;
    if (auto set = bpf_->set_forward_to(ifindexes_of(config_.forward_to)); !set) return set;
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

Appliance::Step Appliance::start_workers() {
    try {
        wake_board_.emplace(static_cast<uint16_t>(cpus_.size()));
    } catch (const std::system_error& error) {
        return std::unexpected(std::string("cannot make an event descriptor: ") + error.what());
    }
    const auto listed = confinement::confine_calls();
    if (!listed) log_.note("system calls are not limited: " + listed.error());
    auto workers = control::start_workers(
        {.config = config_,
         .cpus = cpus_,
         .needs = source_->needs(),
         .ports = ports_,
         .tap = *tap_,
         .memory = *memory_,
         .wake_board = *wake_board_,
         .lists = listed ? confinement::Lists::loaded : confinement::Lists::none});
    if (!workers) return std::unexpected(workers.error());
    workers_ = std::move(*workers);
    return {};
}

Appliance::Step Appliance::open_source() {
    auto opened = source_->open(*bpf_);
    for (config::StaticSa& sa : config_.sas) sa.key.clear();
    return opened;
}

Appliance::Step Appliance::attach_all() {
    if (interface_) {
        auto attached = attach_interface(*bpf_, config_.xfrm_interface, log_);
        if (!attached) return attached;
    }
    if (auto attached = attach_ports(*bpf_, ports_); !attached) return attached;
    const auto close = [this](const std::string& device) { return gate_->close(device); };
    if (auto proved = prove_modes(*bpf_, ports_, injector_, close); !proved) return proved;
    report_ports(ports_, log_);
    if (const auto counts = bpf_->count_kernel_losses(); !counts) {
        log_.note("what the kernel drops of packets that were passed to it is not counted: " +
                  counts.error());
    }
    return {};
}

Appliance::Step Appliance::enable_forwarding() {
    if (auto done = apply(forwarding_settings(config_), sysctls_, log_); !done) return done;
    std::set<std::string> closed;
    for (const RunningPort& port : ports_) {
        for (const netlink::LinkInfo& device : same_wire(ports_, port)) {
            if (!closed.insert(device.name).second) continue;
            if (auto done = gate_->close(device.name); !done) return done;
            log_.note("port " + port.config->name + ": what comes in by " + device.name +
                      " itself, below it, is not forwarded");
            if (!config_.follows_xfrm()) continue;
            log_.note("port " + port.config->name + ": ESP that comes in by " + device.name +
                      " itself goes to the kernel, which may accept what a worker has received "
                      "already: drop it in the host's firewall (docs/ports.md)");
        }
    }
    return gate_->open_all(closed);
}

Appliance::Step Appliance::start_watch() {
    std::vector<watch::PortShould> ports;
    for (const RunningPort& port : ports_) {
        ports.push_back({.port = port.config->name,
                         .device = port.config->device,
                         .ifindex = port.ifindex,
                         .mac = port.mac,
                         .mtu = port.mtu,
                         .queues = port.queues,
                         .below = same_wire(ports_, port)});
    }
    std::optional<watch::InnerShould> interface;
    if (interface_) {
        interface = {.device = config_.xfrm_interface,
                     .ifindex = interface_->ifindex(),
                     .needed_by = "what the kernel's IPsec connections carry"};
    }
    const char* of_workers = config_.egress == config::EgressMode::direct
                                 ? "what the kernel routes into tunnels"
                                 : "what workers send, all their tunnels";
    watch_.emplace(context_, log_, static_cast<watch::Host&>(*this), *gate_, *guard_);
    return watch_->start(
        std::move(ports),
        {.device = config_.device, .ifindex = tap_->ifindex(), .needed_by = of_workers}, interface);
}

bool Appliance::is_attached(size_t port, Hook hook) const {
    const confinement::AsAdministrator administrator;  // programs are known by their ids
    const PortId id{static_cast<uint16_t>(port)};
    return hook == Hook::in ? bpf_->is_port_attached(id) : bpf_->is_kernel_out_attached(id);
}

Appliance::Step Appliance::attach(size_t port, Hook hook) {
    const confinement::AsAdministrator administrator;
    if (hook == Hook::out) return bpf_->attach_kernel_out(PortId{static_cast<uint16_t>(port)});
    auto attachment = bpf_->attach_port(PortId{static_cast<uint16_t>(port)});
    if (!attachment) return std::unexpected(attachment.error());
    ports_[port].attachment = *attachment;
    return {};
}

bool Appliance::keeps_tags(const std::string& device) const {
    const auto beside = tags_beside_frames(device);
    return !beside || beside->empty();
}

bool Appliance::set_mtu(size_t port, uint32_t mtu) {
    const std::string about = "port " + ports_[port].config->name + ": the MTU is " +
                              std::to_string(mtu) + " now and was " +
                              std::to_string(ports_[port].mtu);
    if (auto set = bpf_->set_mtu(PortId{static_cast<uint16_t>(port)}, mtu); !set) {
        log_.error(about + ": " + set.error());
        return false;
    }
    ports_[port].mtu = mtu;
    log_.note(about + "; packets above it are dropped there (too_big)");
    if (ports_[port].is_unprotected()) follow_outer_mtu();
    return true;
}

// SAs carry what the unprotected ports do, and the devices in front of them that much less.
void Appliance::follow_outer_mtu() {
    const command::SetOuterMtu order{.bytes = static_cast<uint16_t>(outer_mtu(ports_))};
    for (size_t i = 0; i < workers_.size(); ++i) {
        commands_->send(WorkerId{static_cast<uint16_t>(i)}, order);
    }
    const uint32_t inner = tunnel_mtu(ports_);
    if (inner == tap_mtu_) return;
    tap_mtu_ = inner;
    Step done = set_up_tap();
    if (done && interface_) done = interface_->set_mtu(inner);
    if (done && interface_) done = bpf_->set_interface_mtu(interface_->mtu());
    if (!done) log_.error("the MTU in front of tunnels stays as it was: " + done.error());
}

bool Appliance::set_mac(size_t port, const netlink::MacAddress& mac) {
    const std::string about = "port " + ports_[port].config->name + " has another MAC: ";
    if (auto set = bpf_->set_mac(PortId{static_cast<uint16_t>(port)}, mac); !set) {
        log_.error(about + set.error());
        return false;
    }
    ports_[port].mac = mac;
    log_.note(about + "frames to the one before are dropped from now on (other_station)");
    return true;
}

bool Appliance::is_attached(Inner device) const {
    const confinement::AsAdministrator administrator;
    return device == Inner::tap ? bpf_->is_injector_attached() : bpf_->is_interface_attached();
}

Appliance::Step Appliance::attach(Inner device) {
    const confinement::AsAdministrator administrator;
    if (device == Inner::tap) {
        const auto injector = bpf_->attach_injector();
        if (!injector) return std::unexpected(injector.error());
        injector_ = *injector;
        return {};
    }
    const auto attached = bpf_->attach_interface();
    if (!attached) return std::unexpected(attached.error());
    return {};
}

Appliance::Step Appliance::set_up(Inner device) {
    return device == Inner::tap ? set_up_tap() : netlink::bring_up(interface_->ifindex());
}

Appliance::Step Appliance::follow_addresses() {
    const auto addresses = netlink::local_and_broadcast_addresses();
    if (!addresses) return std::unexpected(addresses.error());
    return bpf_->set_own_addresses(*addresses);
}

std::vector<watch::Host::ChangedSetting> Appliance::mend_settings() {
    std::vector<ChangedSetting> out;
    for (Sysctls::Changed& each : sysctls_.mend()) {
        out.push_back({.name = std::move(each.name),
                       .found = std::move(each.found),
                       .error = std::move(each.error)});
    }
    return out;
}

void Appliance::follow_forward_to() {
    if (auto set = bpf_->set_forward_to(ifindexes_of(config_.forward_to)); !set) {
        log_.error("forward_to: " + set.error());
    }
}

bool Appliance::stop() {
    if (stopped_) return true;
    stopped_ = true;
    const confinement::AsAdministrator administrator;  // programs are taken off
    if (watch_) watch_->stop();
    // The last numbers are written when nobody uses them any more, and before the kernel, which may
    // go on with the SAs, sees a packet. Until the programs are detached, what they steer to a
    // worker that has ended is dropped, and what workers have sent last meets the program on sp0
    // and the egress filters. Then frames take the kernel path, if the host forwards at all and the
    // gate is open; the policy guard stands there.
    if (source_) source_->stop();
    for (const auto& worker : workers_) worker->stop();
    if (source_) source_->give_back();
    host_traffic_.close();
    for (const Setting& setting : forwarding_settings(config_)) {
        sysctls_.put_back(setting.name);
    }
    if (stays_closed_) {
        for (const RunningPort& port : ports_) {
            // Somebody may have renamed it.
            std::set<std::string> names{port.config->device};
            if (auto now = watch::look_at(port.ifindex); now.ifindex != 0) names.insert(now.name);
            for (const std::string& name : names) {
                if (auto closed = gate_->close(name); !closed) log_.error(closed.error());
            }
        }
        // What comes in by devices that are no ports has no gate.
        if (bpf_) bpf_->leave_kernel_out();
    }
    if (bpf_) bpf_->detach_ports();
    bpf_.reset();
    return workers_.empty() || check_census();
}

bool Appliance::check_census() {
    const FrameCensus frames = census();
    const std::string numbers = std::to_string(frames.total) +
                                " frames = " + std::to_string(frames.pool) + " in the pool + " +
                                std::to_string(frames.in_kernel) + " in kernel rings";
    if (frames.conserved()) {
        log_.info("frames are conserved: " + numbers);
    } else {
        log_.error("frames are not conserved: " + numbers + " does not add up");
    }
    return frames.conserved();
}

}  // namespace sallyport::control
