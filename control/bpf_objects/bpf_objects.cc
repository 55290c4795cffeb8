// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/bpf_objects.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <map>
#include <set>

#include "bpf/next_hop.h"
#include "control/bpf_objects/attachment.h"
#include "control/bpf_objects/interface_programs.h"
#include "control/bpf_objects/kernel_losses.h"
#include "control/bpf_objects/library_log.h"
#include "control/bpf_objects/program_object.h"
#include "control/bpf_objects/redirect_watch.h"
#include "control/bpf_objects/spd_writer.h"
#include "control/bpf_objects/tc_attachment.h"

namespace sallyport::bpf_objects {
namespace {

std::unexpected<std::string> failure(std::string text) {
    return std::unexpected(std::move(text));
}

std::unexpected<std::string> map_failure(const std::string& what) {
    return failure(what + ": " + std::strerror(errno));
}

uint32_t role_number(config::PortRole role) {
    return role == config::PortRole::protected_side ? SP_ROLE_PROTECTED : SP_ROLE_UNPROTECTED;
}

uint8_t number_of(Family family) {
    return family == Family::v4 ? AF_INET : AF_INET6;
}

sp_owner_key owner_key(Spi spi, const IpAddress& destination) {
    sp_owner_key key{};
    key.spi = htonl(to_index(spi));
    key.family = number_of(destination.family);
    key.protocol = IPPROTO_ESP;
    std::ranges::copy(destination.bytes, key.daddr);
    return key;
}

sp_own_address own_address_key(const IpAddress& address) {
    sp_own_address key{};
    key.family = number_of(address.family);
    std::ranges::copy(address.bytes, key.address);
    return key;
}

// Jiffies in which a connection's life is short enough for the kernel to see its packets again.
uint32_t refresh_jiffies() {
    constexpr uint64_t kSeconds = 20;  // within the 30 that the kernel gives to new UDP connections
    timespec tick{};
    // The coarse clocks count ticks.
    if (clock_getres(CLOCK_MONOTONIC_COARSE, &tick) != 0 || tick.tv_nsec <= 0)
        tick.tv_nsec = 1'000'000;
    return static_cast<uint32_t>(kSeconds * 1'000'000'000 / static_cast<uint64_t>(tick.tv_nsec));
}

uint8_t conntrack_number(config::Conntrack conntrack) {
    switch (conntrack) {
        case config::Conntrack::off:
            return SP_CONNTRACK_OFF;
        case config::Conntrack::punt:
            return SP_CONNTRACK_PUNT;
        case config::Conntrack::drop:
            return SP_CONNTRACK_DROP;
    }
    return SP_CONNTRACK_DROP;
}

// Frames that may wait for a CPU: some milliseconds of a fast port. The kernel takes up to 16384.
constexpr uint32_t kBypassQueueFrames = 2048;

void add_reason(Attachment& report, const std::string& reason) {
    if (reason.empty()) return;
    if (!report.reason.empty()) report.reason += "; ";
    report.reason += reason;
}

// The queues to the other CPUs of one port, and the program that forwards there.
struct Spread {
    FileDescriptor queues;
    std::optional<ProgramObject> program;
};

struct Port {
    PortSetup setup;
    DeviceLock lock;
    FileDescriptor xsks;
    ProgramObject egress;
    Spread spread;
    std::optional<ProgramObject> kernel_out;         // of unprotected ports
    std::optional<TcAttachment> kernel_out_on_port;  // goes before the program and the lock
    std::unique_ptr<XdpAttachment> attachment;
};

struct Injector {
    InjectorSetup setup;
    DeviceLock lock;
    ProgramObject to_neighbour;
    std::optional<TcAttachment> to_neighbour_on_it;  // goes before the program
    std::unique_ptr<XdpAttachment> attachment;

    [[nodiscard]] bool has_route() const { return attachment && attachment->is_there(); }
    [[nodiscard]] bool has_neighbour() const {
        return to_neighbour_on_it && to_neighbour_on_it->is_there();
    }
};

}  // namespace

std::expected<sp_egress_rule, std::string> egress_rule_row(const config::EgressRule& rule) {
    sp_egress_rule row{};
    row.protocol = rule.protocol.value_or(0);
    row.dst_port_lo = rule.port_lo;
    row.dst_port_hi = rule.port_hi;
    if (rule.source && rule.destination &&
        rule.source->address.family != rule.destination->address.family) {
        return failure("an egress rule has source " + to_string(*rule.source) +
                       " and destination " + to_string(*rule.destination) +
                       ": both must be of one IP version");
    }
    for (const auto& [prefix, bits, bytes] :
         {std::tuple{&rule.source, &row.src_bits, row.src},
          std::tuple{&rule.destination, &row.dst_bits, row.dst}}) {
        if (!prefix->has_value()) continue;
        row.family = number_of((*prefix)->address.family);
        *bits = (*prefix)->bits;
        std::ranges::copy((*prefix)->address.bytes, bytes);
    }
    return row;
}

struct BpfObjects::Impl {
    Limits limits;
    SharedMaps maps;
    SpdWriter spd;
    std::map<uint16_t, Port> ports;
    std::unique_ptr<Injector> injector;
    std::unique_ptr<InterfacePrograms> interface;
    IfIdCounters if_id_counters;
    std::optional<ProgramObject> injector_queue;
    std::optional<KernelLosses> losses;
    std::set<uint32_t> forward_to;  // of the configuration, no ports
    std::set<IpAddress> own_addresses;
    std::optional<RedirectWatch> redirect_watch;

    Connections connections;

    Impl(const Limits& room, SharedMaps shared, const Connections& wanted)
        : limits(room),
          maps(std::move(shared)),
          spd(maps, limits),
          if_id_counters(maps),
          connections(wanted) {}

    [[nodiscard]] sp_tunables tunables(PortId port) const {
        sp_tunables tunables{};
        tunables.port = to_index(port);
        tunables.workers = 1;
        tunables.conntrack = connections.lookups ? 1 : 0;
        tunables.ct_marks = connections.marks ? 1 : 0;
        tunables.ct_refresh = refresh_jiffies();
        return tunables;
    }

    [[nodiscard]] sp_tunables tunables(const PortSetup& setup) const {
        sp_tunables tunables = this->tunables(setup.id);
        tunables.queues = setup.queues;
        tunables.workers = setup.workers;
        tunables.use_kfunc = setup.use_kfunc ? 1 : 0;
        tunables.punt_unknown_spi = setup.punt_unknown_spi ? 1 : 0;
        tunables.register_mode = setup.register_mode ? 1 : 0;
        tunables.bypass_cpu_count = static_cast<uint32_t>(setup.bypass_cpus.size());
        std::ranges::copy(setup.bypass_cpus, tunables.bypass_cpus);
        return tunables;
    }

    // Nothing for a port without bypass_cpus.
    [[nodiscard]] std::expected<Spread, std::string> make_spread(const PortSetup& setup) const {
        Spread spread;
        if (setup.bypass_cpus.empty()) return spread;
        if (setup.bypass_cpus.size() > SP_BYPASS_CPUS_MAX) {
            return failure("BYPASS traffic can be shared by at most " +
                           std::to_string(SP_BYPASS_CPUS_MAX) + " CPUs");
        }
        auto queues = create_bypass_queues();
        if (!queues) return std::unexpected(queues.error());
        auto program = ProgramObject::open(Program::bypass_cpu, tunables(setup), maps);
        if (!program) return std::unexpected(program.error());
        if (auto loaded = program->load(); !loaded) return std::unexpected(loaded.error());
        for (const uint16_t number : setup.bypass_cpus) {
            const uint32_t cpu = number;
            bpf_cpumap_val value{};
            value.qsize = kBypassQueueFrames;
            value.bpf_prog.fd = program->fd();
            if (bpf_map_update_elem(queues->get(), &cpu, &value, BPF_ANY) != 0) {
                return map_failure("cannot make a queue to CPU " + std::to_string(cpu));
            }
        }
        spread.queues = std::move(*queues);
        spread.program.emplace(std::move(*program));
        return spread;
    }

    ~Impl() {
        // Nothing comes in any more before anything that forwards is taken apart.
        detach_ports();
        injector.reset();
        interface.reset();
        // With `ports` goes kernel_out: until here the kernel may have had to tell of packets that
        // workers wrote.
    }
    void detach_ports() {
        for (auto& [id, port] : ports) port.attachment.reset();
    }

    std::expected<Port*, std::string> find(PortId id) {
        const auto found = ports.find(to_index(id));
        if (found == ports.end()) {
            return failure("no port with id " + std::to_string(to_index(id)));
        }
        return &found->second;
    }

    // Packets may be routed to this device, which is no port.
    [[nodiscard]] std::expected<void, std::string> let_forward_to(uint32_t ifindex) const {
        const uint32_t none = SP_PORT_NONE;
        if (bpf_map_update_elem(maps.fd("port_by_ifindex"), &ifindex, &none, BPF_NOEXIST) != 0) {
            return map_failure("cannot write port_by_ifindex");
        }
        return {};
    }

    [[nodiscard]] sp_port_info read_info(uint32_t port) const {
        sp_port_info info{};
        bpf_map_lookup_elem(maps.fd("port_info"), &port, &info);
        return info;
    }

    [[nodiscard]] std::expected<void, std::string> write_info(uint32_t port,
                                                              const sp_port_info& info) const {
        if (bpf_map_update_elem(maps.fd("port_info"), &port, &info, BPF_ANY) != 0) {
            return map_failure("cannot write port_info");
        }
        return {};
    }

    [[nodiscard]] std::expected<void, std::string> write_rule(uint32_t port, uint32_t index,
                                                              const sp_egress_rule& rule) const {
        const uint32_t key = port * SP_EGRESS_RULES_MAX + index;
        if (bpf_map_update_elem(maps.fd("egress_rules"), &key, &rule, BPF_ANY) != 0) {
            return map_failure("cannot write egress_rules");
        }
        return {};
    }

    // The list is replaced behind a first rule that denies everything, so that at no moment less is
    // denied than by the old list or by the new one. Programs may see a rule half written: each
    // step only widens or only narrows rule 0, and addresses change while no bit of them counts.
    [[nodiscard]] std::expected<void, std::string> write_rules(
        uint32_t port, std::span<const sp_egress_rule> rules) const {
        sp_port_info info = read_info(port);
        if (info.rule_count > 0 && !rules.empty()) {
            const uint32_t key = port * SP_EGRESS_RULES_MAX;
            sp_egress_rule first{};
            if (bpf_map_lookup_elem(maps.fd("egress_rules"), &key, &first) != 0) {
                return map_failure("cannot read egress_rules");
            }
            sp_egress_rule all{};
            all.dst_port_hi = 65535;
            for (const sp_egress_rule* addresses : {&std::as_const(first), &rules[0]}) {
                std::ranges::copy(addresses->src, all.src);
                std::ranges::copy(addresses->dst, all.dst);
                if (auto written = write_rule(port, 0, all); !written) return written;
            }
        }
        const auto count = static_cast<uint32_t>(rules.size());
        for (uint32_t i = 1; i < count; ++i) {
            if (auto written = write_rule(port, i, rules[i]); !written) return written;
        }
        if (info.rule_count == 0 && count > 0) {
            if (auto written = write_rule(port, 0, rules[0]); !written) return written;
        }
        const bool first_denies_all = info.rule_count > 0 && count > 0;
        info.rule_count = count;
        if (auto written = write_info(port, info); !written) return written;
        if (first_denies_all) return write_rule(port, 0, rules[0]);
        return {};
    }
};

BpfObjects::BpfObjects(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
BpfObjects::BpfObjects(BpfObjects&&) noexcept = default;
BpfObjects& BpfObjects::operator=(BpfObjects&&) noexcept = default;
BpfObjects::~BpfObjects() = default;

std::expected<BpfObjects, std::string> BpfObjects::create(const Limits& limits,
                                                          const Connections& connections) {
    auto maps = SharedMaps::create(limits);
    if (!maps) return std::unexpected(maps.error());
    auto impl = std::make_unique<Impl>(limits, std::move(*maps), connections);
    for (uint32_t cpu = 0; cpu < SP_CPUS_MAX; ++cpu) {
        const uint32_t none = SP_OWNER_NONE;
        if (bpf_map_update_elem(impl->maps.fd("cpu_worker"), &cpu, &none, BPF_ANY) != 0) {
            return map_failure("cannot write cpu_worker");
        }
    }
    return BpfObjects(std::move(impl));
}

std::expected<void, std::string> BpfObjects::add_port(const PortSetup& setup) {
    const uint16_t id = to_index(setup.id);
    if (id >= kPortsMax) {
        return failure("at most " + std::to_string(kPortsMax) + " ports are supported");
    }
    if (impl_->ports.contains(id)) {
        return failure(setup.device + ": port id " + std::to_string(id) + " is taken");
    }
    if (setup.queues == 0 || setup.queues > SP_QUEUES_MAX) {
        return failure(setup.device + ": 1 to " + std::to_string(SP_QUEUES_MAX) +
                       " receive queues are supported, not " + std::to_string(setup.queues) +
                       ": change it with ethtool -L");
    }
    if (setup.workers == 0 || setup.workers > SP_WORKERS_MAX) {
        return failure("1 to " + std::to_string(SP_WORKERS_MAX) + " workers are supported, not " +
                       std::to_string(setup.workers));
    }

    auto lock = DeviceLock::take(setup.device, setup.ifindex);
    if (!lock) return std::unexpected(lock.error());
    auto xsks = create_xsks(setup.queues, setup.workers);
    if (!xsks) return std::unexpected(xsks.error());

    sp_port_info info{
        .ifindex = setup.ifindex,
        .mtu = setup.mtu,
        .role = role_number(setup.role),
        .rule_count = 0,
        .conntrack_in = conntrack_number(setup.conntrack_in),
        .conntrack_out = conntrack_number(setup.conntrack_out),
        .mac = {},
    };
    std::ranges::copy(setup.mac, info.mac);
    if (auto written = impl_->write_info(id, info); !written) return written;

    auto egress = ProgramObject::open(Program::egress_port, impl_->tunables(setup), impl_->maps);
    if (!egress) return std::unexpected(egress.error());
    if (auto loaded = egress->load(); !loaded) return loaded;
    auto spread = impl_->make_spread(setup);
    if (!spread) return failure(setup.device + ": " + spread.error());
    std::optional<ProgramObject> kernel_out;
    if (setup.role == config::PortRole::unprotected_side) {
        auto program =
            ProgramObject::open(Program::kernel_out, impl_->tunables(setup), impl_->maps);
        if (!program) return std::unexpected(program.error());
        if (auto loaded = program->load(); !loaded) return loaded;
        kernel_out.emplace(std::move(*program));
    }

    impl_->ports.emplace(id, Port{.setup = setup,
                                  .lock = std::move(*lock),
                                  .xsks = std::move(*xsks),
                                  .egress = std::move(*egress),
                                  .spread = std::move(*spread),
                                  .kernel_out = std::move(kernel_out),
                                  .kernel_out_on_port = std::nullopt,
                                  .attachment = nullptr});
    // The filter stands before anything can be sent.
    if (auto filtered = set_egress_deny(setup.id, setup.egress_deny); !filtered) {
        impl_->ports.erase(id);
        return std::unexpected(setup.device + ": " + filtered.error());
    }
    const uint32_t key = id;
    bpf_devmap_val value{};
    value.ifindex = setup.ifindex;
    value.bpf_prog.fd = impl_->ports.at(id).egress.fd();
    if (bpf_map_update_elem(impl_->maps.fd("tx_ports"), &key, &value, BPF_ANY) != 0 ||
        bpf_map_update_elem(impl_->maps.fd("port_by_ifindex"), &setup.ifindex, &key, BPF_ANY) !=
            0) {
        const int error = errno;
        impl_->ports.erase(id);
        return failure(setup.device + ": cannot add it to the devmap: " + std::strerror(error));
    }
    return {};
}

std::expected<void, std::string> BpfObjects::set_socket(PortId id, QueueId queue, WorkerId worker,
                                                        int socket_fd) {
    const auto port = impl_->find(id);
    if (!port) return std::unexpected(port.error());
    const PortSetup& setup = (*port)->setup;
    if (to_index(queue) >= setup.queues || to_index(worker) >= setup.workers) {
        return failure(setup.device + ": no socket slot for queue " +
                       std::to_string(to_index(queue)) + " and worker " +
                       std::to_string(to_index(worker)));
    }
    const uint32_t key = uint32_t{to_index(queue)} * setup.workers + to_index(worker);
    if (bpf_map_update_elem((*port)->xsks.get(), &key, &socket_fd, BPF_ANY) != 0) {
        return map_failure(setup.device + ": cannot put the AF_XDP socket into the XSKMAP");
    }
    return {};
}

std::expected<Attachment, std::string> BpfObjects::attach_port(PortId id) {
    const auto found = impl_->find(id);
    if (!found) return std::unexpected(found.error());
    Port& port = **found;
    const Program program = port.setup.role == config::PortRole::protected_side
                                ? Program::steer_protected
                                : Program::steer_unprotected;
    auto attachment =
        XdpAttachment::attach(port.setup.device, port.setup.ifindex, port.setup.mode, [&] {
            return ProgramObject::open(
                program, impl_->tunables(port.setup), impl_->maps,
                {.xsks = port.xsks.get(), .bypass_queues = port.spread.queues.get()});
        });
    if (!attachment) return std::unexpected(attachment.error());
    port.attachment = std::make_unique<XdpAttachment>(std::move(*attachment));
    Attachment report = port.attachment->report();
    add_reason(report, port.setup.mode_reason);
    if (port.setup.register_mode && program == Program::steer_unprotected &&
        report.mode == config::XdpMode::generic) {
        add_reason(report,
                   "generic XDP sees what the kernel has decrypted as cleartext and drops it: SAs "
                   "that stay with the kernel do not receive on this port");
    }
    return report;
}

std::expected<Attachment, std::string> BpfObjects::change_mode(PortId id, config::XdpMode mode,
                                                               const std::string& reason) {
    const auto found = impl_->find(id);
    if (!found) return std::unexpected(found.error());
    Port& port = **found;
    port.setup.mode = mode;
    port.setup.mode_reason = reason;
    port.attachment.reset();
    return attach_port(id);
}

std::expected<Attachment, std::string> BpfObjects::change_injector_mode(config::XdpMode mode,
                                                                        const std::string& reason) {
    impl_->injector->setup.mode = mode;
    impl_->injector->setup.mode_reason = reason;
    impl_->injector->attachment.reset();
    return attach_injector();
}

std::expected<void, std::string> BpfObjects::watch_redirects() {
    auto watch = RedirectWatch::attach(impl_->maps);
    if (!watch) return std::unexpected(watch.error());
    impl_->redirect_watch.emplace(std::move(*watch));
    return {};
}

std::expected<void, std::string> BpfObjects::attach_kernel_out(PortId id) {
    const auto found = impl_->find(id);
    if (!found) return std::unexpected(found.error());
    Port& port = **found;
    if (!port.kernel_out) {
        TcAttachment::remove_leftovers(port.setup.ifindex);
        return {};
    }
    auto attachment = TcAttachment::attach(port.setup.device, port.setup.ifindex,
                                           {.egress_fd = port.kernel_out->fd()});
    if (!attachment) return std::unexpected(attachment.error());
    if (port.kernel_out_on_port) port.kernel_out_on_port->release();  // what it had is replaced
    port.kernel_out_on_port.emplace(std::move(*attachment));
    return {};
}

bool BpfObjects::is_kernel_out_attached(PortId id) const {
    const auto port = impl_->find(id);
    if (!port) return false;
    return !(*port)->kernel_out ||
           ((*port)->kernel_out_on_port && (*port)->kernel_out_on_port->is_there());
}

void BpfObjects::detach_ports() {
    impl_->detach_ports();
}

void BpfObjects::leave_kernel_out() {
    for (auto& [id, port] : impl_->ports) {
        if (port.kernel_out_on_port) port.kernel_out_on_port->release();
    }
}

std::expected<Attachment, std::string> BpfObjects::add_injector(const InjectorSetup& setup) {
    auto lock = DeviceLock::take(setup.device, setup.ifindex);
    if (!lock) return std::unexpected(lock.error());
    sp_port_info info{};
    info.ifindex = setup.ifindex;
    info.role = SP_ROLE_INJECTOR;
    if (auto written = impl_->write_info(to_index(kInjectorPort), info); !written) {
        return std::unexpected(written.error());
    }
    if (auto let = impl_->let_forward_to(setup.ifindex); !let) {
        return std::unexpected(let.error());
    }
    auto to_neighbour =
        ProgramObject::open(Program::to_neighbour, impl_->tunables(kInjectorPort), impl_->maps);
    if (!to_neighbour) return std::unexpected(to_neighbour.error());
    if (auto loaded = to_neighbour->load(); !loaded) return std::unexpected(loaded.error());
    impl_->injector = std::make_unique<Injector>(setup, std::move(*lock), std::move(*to_neighbour),
                                                 std::nullopt, nullptr);
    auto attached = attach_injector();
    if (!attached) impl_->injector.reset();
    return attached;
}

std::expected<Attachment, std::string> BpfObjects::attach_injector() {
    Injector& injector = *impl_->injector;
    const InjectorSetup& setup = injector.setup;
    if (!injector.has_neighbour()) {
        auto behind = TcAttachment::attach(setup.device, setup.ifindex,
                                           {.ingress_fd = injector.to_neighbour.fd()});
        if (!behind) return std::unexpected(behind.error());
        if (injector.to_neighbour_on_it) injector.to_neighbour_on_it->release();
        injector.to_neighbour_on_it.emplace(std::move(*behind));
    }
    if (!injector.has_route()) {
        auto attachment = XdpAttachment::attach(setup.device, setup.ifindex, setup.mode, [&] {
            return ProgramObject::open(Program::egress_route, impl_->tunables(kInjectorPort),
                                       impl_->maps);
        });
        if (!attachment) return std::unexpected(attachment.error());
        injector.attachment = std::make_unique<XdpAttachment>(std::move(*attachment));
    }
    Attachment report = injector.attachment->report();
    add_reason(report, setup.mode_reason);
    return report;
}

bool BpfObjects::is_port_attached(PortId id) const {
    const auto port = impl_->find(id);
    return port && (*port)->attachment && (*port)->attachment->is_there();
}

bool BpfObjects::is_injector_attached() const {
    return impl_->injector && impl_->injector->has_route() && impl_->injector->has_neighbour();
}

bool BpfObjects::is_interface_attached() const {
    return impl_->interface && impl_->interface->is_attached();
}

std::expected<void, std::string> BpfObjects::add_interface(const InterfaceSetup& setup) {
    auto programs = InterfacePrograms::load(setup, impl_->maps);
    if (!programs) return std::unexpected(programs.error());
    impl_->interface = std::make_unique<InterfacePrograms>(std::move(*programs));
    sp_port_info info{};
    info.ifindex = setup.ifindex;
    info.mtu = setup.mtu;
    info.role = SP_ROLE_INTERFACE;
    if (auto let = impl_->let_forward_to(setup.ifindex); !let) return let;
    return impl_->write_info(to_index(kInterfacePort), info);
}

std::expected<bool, std::string> BpfObjects::attach_interface() {
    if (!impl_->interface) return failure("there is no xfrm interface");
    return impl_->interface->attach();
}

std::expected<int, std::string> BpfObjects::load_injector_queue() {
    auto program = ProgramObject::open(Program::injector_queue, sp_tunables{}, impl_->maps);
    if (!program) return std::unexpected(program.error());
    if (auto loaded = program->load(); !loaded) return std::unexpected(loaded.error());
    impl_->injector_queue = std::move(*program);
    return impl_->injector_queue->fd();
}

std::expected<void, std::string> BpfObjects::set_mtu(PortId id, uint32_t mtu) {
    if (const auto port = impl_->find(id); !port) return std::unexpected(port.error());
    sp_port_info info = impl_->read_info(to_index(id));
    info.mtu = mtu;
    return impl_->write_info(to_index(id), info);
}

std::expected<void, std::string> BpfObjects::set_interface_mtu(uint32_t mtu) {
    sp_port_info info = impl_->read_info(to_index(kInterfacePort));
    info.mtu = mtu;
    return impl_->write_info(to_index(kInterfacePort), info);
}

std::expected<void, std::string> BpfObjects::set_mac(PortId id, const MacAddress& mac) {
    if (const auto port = impl_->find(id); !port) return std::unexpected(port.error());
    sp_port_info info = impl_->read_info(to_index(id));
    std::ranges::copy(mac, info.mac);
    return impl_->write_info(to_index(id), info);
}

std::expected<void, std::string> BpfObjects::set_forward_to(std::span<const uint32_t> ifindexes) {
    const std::set<uint32_t> wanted(ifindexes.begin(), ifindexes.end());
    std::set<uint32_t>& known = impl_->forward_to;
    for (auto it = known.begin(); it != known.end();) {
        const uint32_t ifindex = *it;
        if (wanted.contains(ifindex)) {
            ++it;
            continue;
        }
        bpf_map_delete_elem(impl_->maps.fd("port_by_ifindex"), &ifindex);
        it = known.erase(it);
    }
    for (const uint32_t ifindex : wanted) {
        uint32_t port = 0;
        // Known, or a port or sp0 by another name.
        if (bpf_map_lookup_elem(impl_->maps.fd("port_by_ifindex"), &ifindex, &port) == 0) continue;
        if (auto let = impl_->let_forward_to(ifindex); !let) return let;
        known.insert(ifindex);
    }
    return {};
}

std::expected<void, std::string> BpfObjects::set_own_addresses(
    std::span<const IpAddress> addresses) {
    const int fd = impl_->maps.fd("own_addresses");
    const std::set<IpAddress> wanted(addresses.begin(), addresses.end());
    std::set<IpAddress>& known = impl_->own_addresses;
    std::erase_if(known, [&](const IpAddress& address) {
        if (wanted.contains(address)) return false;
        const sp_own_address key = own_address_key(address);
        return bpf_map_delete_elem(fd, &key) == 0 || errno == ENOENT;
    });
    for (const IpAddress& address : wanted) {
        if (known.contains(address)) continue;
        const sp_own_address key = own_address_key(address);
        const uint8_t one = 1;
        if (bpf_map_update_elem(fd, &key, &one, BPF_ANY) != 0) {
            if (errno == E2BIG) {
                return failure("there is room for " + std::to_string(SP_OWN_ADDRESSES_MAX) +
                               " addresses of this host, and it has more");
            }
            return map_failure("cannot write own_addresses");
        }
        known.insert(address);
    }
    return {};
}

std::expected<void, std::string> BpfObjects::set_egress_deny(
    PortId id, std::span<const config::EgressRule> rules) {
    if (const auto port = impl_->find(id); !port) return std::unexpected(port.error());
    if (rules.size() > SP_EGRESS_RULES_MAX) {
        return failure("the egress filter has " + std::to_string(rules.size()) +
                       " rules, at most " + std::to_string(SP_EGRESS_RULES_MAX) + " are supported");
    }
    std::vector<sp_egress_rule> rows;
    for (const config::EgressRule& rule : rules) {
        auto row = egress_rule_row(rule);
        if (!row) return std::unexpected(row.error());
        rows.push_back(*row);
    }
    return impl_->write_rules(to_index(id), rows);
}

std::vector<UnresolvedHop> BpfObjects::unresolved_hops() const {
    const int fd = impl_->maps.fd("unresolved_hops");
    std::vector<UnresolvedHop> found;
    sp_next_hop key{};
    // A key that goes meanwhile makes it begin again: then no more than there is room for.
    for (const void* last = nullptr;
         found.size() < SP_UNRESOLVED_MAX && bpf_map_get_next_key(fd, last, &key) == 0;
         last = &key) {
        sp_unresolved value{};
        if (bpf_map_lookup_elem(fd, &key, &value) != 0) continue;
        UnresolvedHop hop{.ifindex = key.ifindex, .waited_for = value.waiting != 0};
        hop.address.family = key.family == AF_INET ? Family::v4 : Family::v6;
        std::ranges::copy(key.address, hop.address.bytes.begin());
        found.push_back(hop);
    }
    return found;
}

void BpfObjects::forget_unresolved(uint32_t ifindex, const IpAddress& address) const {
    sp_next_hop key{};
    key.ifindex = ifindex;
    key.family = number_of(address.family);
    std::ranges::copy(address.bytes, key.address);
    bpf_map_delete_elem(impl_->maps.fd("unresolved_hops"), &key);
}

std::expected<void, std::string> BpfObjects::set_cpu_worker(uint32_t cpu,
                                                            std::optional<WorkerId> worker) {
    const uint32_t value = worker ? to_index(*worker) : SP_OWNER_NONE;
    if (bpf_map_update_elem(impl_->maps.fd("cpu_worker"), &cpu, &value, BPF_ANY) != 0) {
        return map_failure("cannot note the worker of CPU " + std::to_string(cpu));
    }
    return {};
}

std::expected<void, std::string> BpfObjects::insert_owner(Spi spi,
                                                          const IpAddress& outer_destination,
                                                          std::optional<WorkerId> worker) {
    const sp_owner_key key = owner_key(spi, outer_destination);
    const sp_owner owner{.worker = worker ? to_index(*worker) : SP_OWNER_KERNEL, .pad = 0};
    if (bpf_map_update_elem(impl_->maps.fd("owner_map"), &key, &owner, BPF_ANY) != 0) {
        if (errno == E2BIG) {
            return failure("the owner map has room for " +
                           std::to_string(impl_->limits.inbound_sas) +
                           " inbound SAs and is full: raise max_sas");
        }
        return map_failure("cannot write owner_map");
    }
    return {};
}

std::expected<void, std::string> BpfObjects::remove_owner(Spi spi,
                                                          const IpAddress& outer_destination) {
    const sp_owner_key key = owner_key(spi, outer_destination);
    if (bpf_map_delete_elem(impl_->maps.fd("owner_map"), &key) != 0 && errno != ENOENT) {
        return map_failure("cannot delete from owner_map");
    }
    return {};
}

std::expected<void, std::string> BpfObjects::publish_spd(
    const CompiledSpd& outbound, const CompiledSpd& inbound,
    std::span<const std::vector<WorkerId>> owners_by_policy,
    std::span<const uint32_t> if_id_by_policy, const std::function<void()>& switched) {
    // Without our interface nobody counts: in register mode if_ids are those of others, and many.
    const auto counted = impl_->interface ? if_id_by_policy : std::span<const uint32_t>{};
    if (auto added = impl_->if_id_counters.add(counted); !added) return added;
    auto published =
        impl_->spd.publish(outbound, inbound, owners_by_policy, if_id_by_policy, switched);
    if (published) impl_->if_id_counters.keep_only(counted);
    return published;
}

std::expected<void, std::string> BpfObjects::set_bypass_until(uint64_t monotonic_ns) {
    return impl_->spd.set_bypass_until(monotonic_ns);
}

std::expected<void, std::string> BpfObjects::publish_spd_rows(
    const SpdRowChanges& changes, std::span<const std::vector<WorkerId>> owners_by_policy,
    std::span<const PolicyId> changed_owners, std::span<const uint32_t> if_id_by_policy,
    const std::function<void()>& switched) {
    const auto counted = impl_->interface ? if_id_by_policy : std::span<const uint32_t>{};
    if (auto added = impl_->if_id_counters.add(counted); !added) return added;
    auto published = impl_->spd.publish_rows(changes, owners_by_policy, changed_owners,
                                             if_id_by_policy, switched);
    if (published) impl_->if_id_counters.keep_only(counted);
    return published;
}

const Limits& BpfObjects::limits() const {
    return impl_->limits;
}

std::vector<IfIdTraffic> BpfObjects::if_id_traffic() const {
    return impl_->if_id_counters.read();
}

std::expected<size_t, std::string> BpfObjects::update_owners(
    std::span<const std::vector<WorkerId>> owners_by_policy) {
    return impl_->spd.update_owners(owners_by_policy);
}

std::expected<size_t, std::string> BpfObjects::update_owners(
    std::span<const std::vector<WorkerId>> owners_by_policy, std::span<const PolicyId> changed) {
    return impl_->spd.update_owners(owners_by_policy, changed);
}

std::expected<PortCounters, std::string> BpfObjects::counters(PortId id) const {
    const uint32_t port = to_index(id);
    const int cpus = libbpf_num_possible_cpus();
    if (cpus <= 0) return failure("cannot learn the number of CPUs");

    PortCounters result;
    std::vector<sp_port_counters> totals(static_cast<size_t>(cpus));
    if (bpf_map_lookup_elem(impl_->maps.fd("port_counters"), &port, totals.data()) != 0) {
        return map_failure("cannot read port_counters");
    }
    for (const sp_port_counters& cpu : totals) {
#define SP_ADD(name) result.totals.name += cpu.name;
        SP_PORT_COUNTERS(SP_ADD)
#undef SP_ADD
    }

    std::vector<sp_conntrack_counters> conntrack(static_cast<size_t>(cpus));
    std::vector<sp_spread_counters> spread(static_cast<size_t>(cpus));
    if (bpf_map_lookup_elem(impl_->maps.fd("conntrack_counters"), &port, conntrack.data()) != 0 ||
        bpf_map_lookup_elem(impl_->maps.fd("spread_counters"), &port, spread.data()) != 0) {
        return map_failure("cannot read the counters of connections and CPUs");
    }
    for (const sp_conntrack_counters& cpu : conntrack) {
        result.conntrack.established += cpu.established;
        result.conntrack.to_kernel += cpu.to_kernel;
        result.conntrack.refused += cpu.refused;
    }
    for (const sp_spread_counters& cpu : spread) {
        result.spread.handed_over += cpu.handed_over;
        result.spread.taken += cpu.taken;
    }

    std::vector<uint64_t> values(static_cast<size_t>(cpus));
    const auto sum = [&values](int map_fd, uint32_t key) -> uint64_t {
        if (bpf_map_lookup_elem(map_fd, &key, values.data()) != 0) return 0;
        uint64_t total = 0;
        for (const uint64_t value : values) total += value;
        return total;
    };
    result.partial_checksums = sum(impl_->maps.fd("partial_checksums"), port);
    for (uint32_t reason = 0; reason < SP_DROP_COUNT; ++reason) {
        result.drops[reason] = sum(impl_->maps.fd("drop_counters"), port * SP_DROP_COUNT + reason);
    }
    const auto found = impl_->ports.find(to_index(id));
    if (found == impl_->ports.end()) return result;
    const PortSetup& setup = found->second.setup;
    for (const uint16_t cpu : setup.bypass_cpus) {
        result.taken_by_cpu.push_back(cpu < spread.size() ? spread[cpu].taken : 0);
    }
    result.steered.assign(setup.queues, std::vector<uint64_t>(setup.workers));
    for (uint32_t queue = 0; queue < setup.queues; ++queue) {
        for (uint32_t worker = 0; worker < setup.workers; ++worker) {
            result.steered[queue][worker] =
                sum(impl_->maps.fd("steer_counters"),
                    (port * SP_QUEUES_MAX + queue) * SP_WORKERS_MAX + worker);
        }
    }
    return result;
}

std::expected<void, std::string> BpfObjects::count_kernel_losses() {
    auto losses = KernelLosses::attach(impl_->maps);
    if (!losses) return std::unexpected(losses.error());
    for (const auto& [id, port] : impl_->ports) {
        const auto mode =
            port.attachment ? port.attachment->report().mode : config::XdpMode::native;
        auto added = losses->add(PortId{id}, port.setup.ifindex, mode);
        if (!added) return added;
    }
    if (impl_->injector) {
        const auto mode = impl_->injector->attachment ? impl_->injector->attachment->report().mode
                                                      : config::XdpMode::native;
        auto added = losses->add(kInjectorPort, impl_->injector->setup.ifindex, mode);
        if (!added) return added;
    }
    if (impl_->interface) {
        auto added =
            losses->add(kInterfacePort, impl_->interface->ifindex(), config::XdpMode::native);
        if (!added) return added;
    }
    impl_->losses.emplace(std::move(*losses));
    return {};
}

std::vector<KernelLoss> BpfObjects::kernel_losses() const {
    return impl_->losses ? impl_->losses->read() : std::vector<KernelLoss>{};
}

}  // namespace sallyport::bpf_objects
