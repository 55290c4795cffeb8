// SPDX-License-Identifier: Apache-2.0
#include "tests/bpf/packet_rig.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/support/own_address.h"

namespace sallyport::packet {
namespace {

using bpf_objects::FileDescriptor;
using bpf_objects::ProgramObject;
using bpf_objects::SharedMaps;

constexpr uint16_t kXfrmaSaPcpu = 35;  // XFRMA_SA_PCPU, newer than the headers of some systems

[[noreturn]] void give_up(const std::string& text) {
    std::fprintf(stderr, "FATAL: %s\n", text.c_str());
    std::exit(1);
}

class Namespace : public ::testing::Environment {
  public:
    void SetUp() override {
        if (geteuid() != 0) {
            std::printf("SKIP: BPF_PROG_TEST_RUN needs root\n");
            std::exit(77);
        }
        if (unshare(CLONE_NEWNET) != 0) give_up("cannot make a network namespace");
        run("ip link set lo up");
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 "
            "net.ipv6.conf.default.accept_dad=0 net.core.xfrm_acq_expires=86400");
        for (const char* name : {"wan", "lan", "other"}) {
            const std::string device = name;
            run("ip link add " + device + "0 numrxqueues 2 numtxqueues 2 type veth peer name " +
                device + "p numrxqueues 2 numtxqueues 2");
        }
        run("ip link set wan0 address 02:00:00:00:01:01");
        run("ip link set lan0 address 02:00:00:00:02:01");
        run("ip tuntap add sp0 mode tap");
        for (const char* device : {"wan0", "wanp", "lan0", "lanp", "other0", "otherp", "sp0"}) {
            run(std::string("ip link set ") + device + " up");
        }
        run("ip addr add 192.0.2.1/24 dev wan0");
        run("ip addr add 2001:db8:1::1/64 dev wan0 nodad");
        run("ip addr add 10.1.0.1/24 dev lan0");
        run("ip addr add 2001:db8:a::1/64 dev lan0 nodad");
        run("ip addr add 198.18.0.1/24 dev other0");
        run("ip addr add 2001:db8:c::1/64 dev other0 nodad");
        run("ip addr add 198.19.0.1/24 dev sp0");
        run("ip addr add 2001:db8:d::1/64 dev sp0 nodad");
        for (const char* address :
             {"2001:db8:1::1", "2001:db8:a::1", "2001:db8:c::1", "2001:db8:d::1"}) {
            run(test::until_own_address6(address));
        }
        for (const char* address : {"192.0.2.2", "192.0.2.50", "2001:db8:1::2", "2001:db8:1::50"}) {
            run(std::string("ip neigh add ") + address +
                " lladdr 02:00:00:00:01:02 dev wan0 nud permanent");
        }
        for (const char* address : {"10.1.0.10", "2001:db8:a::10"}) {
            run(std::string("ip neigh add ") + address +
                " lladdr 02:00:00:00:02:02 dev lan0 nud permanent");
        }
        for (const char* address : {"198.18.0.2", "2001:db8:c::2"}) {
            run(std::string("ip neigh add ") + address +
                " lladdr 02:00:00:00:03:02 dev other0 nud permanent");
        }
        // What the peer gateway stands in front of.
        run("ip route add 10.2.0.0/16 via 192.0.2.2 dev wan0");
        run("ip -6 route add 2001:db8:b::/48 via 2001:db8:1::2 dev wan0");
        // Narrow path, nothing there, and the three kinds of refusal.
        run("ip route add 10.3.0.0/24 via 192.0.2.2 dev wan0 mtu lock 600");
        run("ip -6 route add 2001:db8:b:3::/64 via 2001:db8:1::2 dev wan0 mtu lock 1280");
        run("ip route add 10.3.1.0/24 via 192.0.2.99 dev wan0 mtu lock 600");
        run("ip route add blackhole 10.66.0.0/24");
        run("ip route add unreachable 10.67.0.0/24");
        run("ip route add prohibit 10.68.0.0/24");
        run("ip -6 route add blackhole 2001:db8:b:66::/64");
        run("ip -6 route add unreachable 2001:db8:b:67::/64");
        run("ip -6 route add prohibit 2001:db8:b:68::/64");
    }
};

const auto* const kNamespace = ::testing::AddGlobalTestEnvironment(new Namespace);

std::string port_counter(uint32_t port, const char* name) {
    return "port " + std::to_string(port) + " " + name;
}

std::string drop_counter(uint32_t port, uint32_t reason) {
    static constexpr const char* kNames[] = {
#define SP_DROP_NAME(name, help) #name,
        SP_DROP_REASONS(SP_DROP_NAME)
#undef SP_DROP_NAME
    };
    return "port " + std::to_string(port) + " drop " + kNames[reason];
}

std::string steer_counter(uint32_t port, uint32_t queue, uint32_t worker) {
    return "port " + std::to_string(port) + " steered to " + std::to_string(queue) + "," +
           std::to_string(worker);
}

// The whole of a per-CPU array of u64 arrays, summed over CPUs.
std::vector<uint64_t> read_all(int fd, uint32_t entries, size_t words) {
    const auto cpus = static_cast<size_t>(libbpf_num_possible_cpus());
    std::vector<uint64_t> values(entries * words * cpus);
    std::vector<uint32_t> keys(entries);
    uint32_t count = entries;
    uint32_t batch = 0;
    if (bpf_map_lookup_batch(fd, nullptr, &batch, keys.data(), values.data(), &count, nullptr) !=
            0 &&
        errno != ENOENT) {
        give_up("cannot read counters");
    }
    std::vector<uint64_t> sums(entries * words);
    for (size_t entry = 0; entry < entries; ++entry) {
        for (size_t cpu = 0; cpu < cpus; ++cpu) {
            for (size_t word = 0; word < words; ++word) {
                sums[keys[entry] * words + word] += values[(entry * cpus + cpu) * words + word];
            }
        }
    }
    return sums;
}

std::string hex(const Bytes& bytes) {
    std::string text;
    for (const uint8_t byte : bytes) {
        char digits[3];
        std::snprintf(digits, sizeof digits, "%02x", byte);
        text += digits;
    }
    return text;
}

bool parse_address(const std::string& text, uint8_t* bytes) {
    if (inet_pton(AF_INET, text.c_str(), bytes) == 1) return true;
    inet_pton(AF_INET6, text.c_str(), bytes);
    return false;
}

}  // namespace

bool try_run(const std::string& command) {
    return std::system((command + " 2>/dev/null >/dev/null").c_str()) == 0;
}

void run(const std::string& command) {
    if (std::system(command.c_str()) != 0) give_up("failed: " + command);
}

uint32_t ifindex(const std::string& device) {
    const uint32_t index = if_nametoindex(device.c_str());
    if (index == 0) give_up("no device " + device);
    return index;
}

Outcome passed(uint32_t port, size_t bytes) {
    return {XDP_PASS,
            {{port_counter(port, "rx_frames"), 1},
             {port_counter(port, "rx_bytes"), bytes},
             {port_counter(port, "passed"), 1}},
            {}};
}
Outcome passed_esp(uint32_t port, size_t bytes) {
    Outcome outcome = passed(port, bytes);
    outcome.counters[port_counter(port, "passed_esp")] = 1;
    return outcome;
}
Outcome passed_protect(uint32_t port, size_t bytes) {
    Outcome outcome = passed(port, bytes);
    outcome.counters[port_counter(port, "passed_protect")] = 1;
    return outcome;
}
Outcome dropped(uint32_t port, size_t bytes, sp_drop_reason reason) {
    return {XDP_DROP,
            {{port_counter(port, "rx_frames"), 1},
             {port_counter(port, "rx_bytes"), bytes},
             {port_counter(port, "dropped"), 1},
             {drop_counter(port, reason), 1}},
            {}};
}
Outcome steered(uint32_t port, size_t bytes, uint32_t queue, uint32_t worker) {
    return {XDP_REDIRECT,
            {{port_counter(port, "rx_frames"), 1},
             {port_counter(port, "rx_bytes"), bytes},
             {port_counter(port, "steered"), 1},
             {steer_counter(port, queue, worker), 1}},
            {}};
}
Outcome redirected(uint32_t port, size_t bytes, Bytes out) {
    return {XDP_REDIRECT,
            {{port_counter(port, "rx_frames"), 1},
             {port_counter(port, "rx_bytes"), bytes},
             {port_counter(port, "redirected"), 1}},
            std::move(out)};
}
Outcome egress_sent(uint32_t port, size_t bytes) {
    return {XDP_PASS,
            {{port_counter(port, "egress_frames"), 1},
             {port_counter(port, "egress_bytes"), bytes},
             {port_counter(port, "egress_sent"), 1}},
            {}};
}
Outcome egress_dropped(uint32_t port, size_t bytes, sp_drop_reason reason) {
    return {XDP_DROP,
            {{port_counter(port, "egress_frames"), 1},
             {port_counter(port, "egress_bytes"), bytes},
             {drop_counter(port, reason), 1}},
            {}};
}

Outcome handed_over(uint32_t port, size_t bytes) {
    return {XDP_REDIRECT,
            {{port_counter(port, "rx_frames"), 1},
             {port_counter(port, "rx_bytes"), bytes},
             {port_counter(port, "handed_over"), 1}},
            {}};
}
Outcome with_connection(Outcome outcome, uint32_t port, const std::string& counted) {
    outcome.counters[port_counter(port, ("connection " + counted).c_str())] = 1;
    return outcome;
}
Outcome taken(Outcome outcome, uint32_t port) {
    outcome.counters.erase(port_counter(port, "rx_frames"));
    outcome.counters.erase(port_counter(port, "rx_bytes"));
    outcome.counters[port_counter(port, "taken")] = 1;
    return outcome;
}

Rig& Rig::get() {
    static Rig rig;
    return rig;
}

Rig::Rig() {
    const bpf_objects::Limits limits;
    auto maps = SharedMaps::create(limits);
    if (!maps) give_up(maps.error());
    maps_ = std::move(*maps);
    spd_ = std::make_unique<bpf_objects::SpdWriter>(maps_, limits);

    const struct {
        uint32_t port;
        const char* device;
        uint32_t role;
    } ports[] = {{kWan, "wan0", SP_ROLE_UNPROTECTED}, {kLan, "lan0", SP_ROLE_PROTECTED}};
    for (const auto& port : ports) {
        const uint32_t index = ifindex(port.device);
        sp_port_info info{index, 1500, port.role, 0, SP_CONNTRACK_OFF, SP_CONNTRACK_OFF, {}};
        std::ranges::copy(Link{}.dst, info.mac);
        const bpf_devmap_val value{.ifindex = index, .bpf_prog = {.fd = -1}};
        if (bpf_map_update_elem(maps_.fd("port_info"), &port.port, &info, BPF_ANY) != 0 ||
            bpf_map_update_elem(maps_.fd("port_by_ifindex"), &index, &port.port, BPF_ANY) != 0 ||
            bpf_map_update_elem(maps_.fd("tx_ports"), &port.port, &value, BPF_ANY) != 0) {
            give_up("cannot fill the port maps");
        }
    }
    for (uint32_t cpu = 0; cpu < SP_CPUS_MAX; ++cpu) set_cpu_worker(cpu, SP_OWNER_NONE);
    for (const char* address :
         {"192.0.2.1", "192.0.2.255", "2001:db8:1::1", "10.1.0.1", "10.1.0.255", "2001:db8:a::1"}) {
        set_own_address(address, true);
    }
}

Instance Rig::load(Program program, uint32_t port, Settings settings) {
    auto xsks = bpf_objects::create_xsks(kQueues, kWorkers);
    if (!xsks) give_up(xsks.error());
    sp_tunables tunables{.port = port,
                         .queues = kQueues,
                         .workers = kWorkers,
                         .use_kfunc = settings.use_kfunc ? 1u : 0u,
                         .punt_unknown_spi = settings.punt_unknown_spi ? 1u : 0u,
                         .register_mode = settings.register_mode ? 1u : 0u,
                         .conntrack = settings.conntrack ? 1u : 0u,
                         .ct_marks = settings.ct_marks ? 1u : 0u,
                         .ct_refresh = settings.ct_refresh,
                         .bypass_cpu_count = static_cast<uint32_t>(settings.bypass_cpus.size()),
                         .bypass_cpus = {}};
    std::ranges::copy(settings.bypass_cpus, tunables.bypass_cpus);
    auto queues = bpf_objects::create_bypass_queues();
    if (!queues) give_up(queues.error());
    for (const uint32_t cpu : settings.bypass_cpus) {
        bpf_cpumap_val value{};
        value.qsize = 64;
        if (settings.with_queues && bpf_map_update_elem(queues->get(), &cpu, &value, 0) != 0) {
            give_up("cannot make a queue to a CPU");
        }
    }
    auto object = ProgramObject::open(program, tunables, maps_,
                                      {.xsks = xsks->get(), .bypass_queues = queues->get()});
    if (!object) give_up(object.error());
    // The kernel test-runs no programs of the devmap and cpumap types; the code is the same.
    const bool is_xdp = bpf_program__type(object->program()) == BPF_PROG_TYPE_XDP;
    if (is_xdp) bpf_program__set_expected_attach_type(object->program(), BPF_XDP);
    if (auto loaded = object->load(); !loaded) give_up(loaded.error());

    Instance instance{.program = std::move(*object),
                      .xsks = std::move(*xsks),
                      .sockets = {},
                      .queues = std::move(*queues),
                      .device = port == kWan   ? "wan0"
                                : port == kLan ? "lan0"
                                               : "sp0"};
    if (settings.with_sockets) {
        for (uint32_t slot = 0; slot < kQueues * kWorkers; ++slot) {
            FileDescriptor socket(::socket(AF_XDP, SOCK_RAW, 0));
            const int fd = socket.get();
            if (!socket || bpf_map_update_elem(instance.xsks.get(), &slot, &fd, BPF_ANY) != 0) {
                give_up("cannot put a socket into the XSKMAP");
            }
            instance.sockets.push_back(std::move(socket));
        }
    }
    return instance;
}

uint32_t Rig::verdict(const Instance& instance, const Bytes& in, uint32_t queue, Bytes* out) {
    Bytes frame(in.size() + 256);
    xdp_md context{};
    context.data_end = static_cast<uint32_t>(in.size());
    context.ingress_ifindex = ifindex(instance.device);
    context.rx_queue_index = queue;
    LIBBPF_OPTS(bpf_test_run_opts, options);
    options.data_in = in.data();
    options.data_size_in = static_cast<uint32_t>(in.size());
    options.data_out = frame.data();
    options.data_size_out = static_cast<uint32_t>(frame.size());
    __sk_buff of_skb{};
    if (bpf_program__type(instance.program.program()) == BPF_PROG_TYPE_XDP) {
        options.ctx_in = &context;
        options.ctx_size_in = sizeof context;
    } else {
        of_skb.ingress_ifindex = instance.is_forwarded ? ifindex("lan0") : 0;
        options.ctx_in = &of_skb;
        options.ctx_size_in = sizeof of_skb;
    }
    const int error = bpf_prog_test_run_opts(instance.program.fd(), &options);
    EXPECT_EQ(error, 0) << strerror(-error);
    if (out != nullptr) {
        frame.resize(options.data_size_out);
        *out = std::move(frame);
    }
    return options.retval;
}

Counters Rig::read_counters() const {
#define SP_NAME(name) #name,
    static constexpr const char* kNames[] = {SP_PORT_COUNTERS(SP_NAME)};
#undef SP_NAME
    Counters counters;
    const size_t words = sizeof(sp_port_counters) / sizeof(uint64_t);
    const auto ports = read_all(maps_.fd("port_counters"), SP_PORTS_MAX, words);
    const auto drops = read_all(maps_.fd("drop_counters"), SP_PORTS_MAX * SP_DROP_COUNT, 1);
    // Of the two ports that steer: the whole map takes as long to read as all tests to run.
    const auto steers = read_all(maps_.fd("steer_counters"), 2 * SP_QUEUES_MAX * SP_WORKERS_MAX, 1);
    for (uint32_t port = 0; port < SP_PORTS_MAX; ++port) {
        for (size_t word = 0; word < words; ++word) {
            if (const uint64_t value = ports[port * words + word]; value != 0) {
                counters.values[port_counter(port, kNames[word])] = value;
            }
        }
        for (uint32_t reason = 0; reason < SP_DROP_COUNT; ++reason) {
            if (const uint64_t value = drops[port * SP_DROP_COUNT + reason]; value != 0) {
                counters.values[drop_counter(port, reason)] = value;
            }
        }
    }
    const struct {
        const char* map;
        std::vector<const char*> names;
    } more[] = {{"conntrack_counters",
                 {"connection established", "connection to_kernel", "connection refused"}},
                {"spread_counters", {"handed_over", "taken"}},
                {"partial_checksums", {"partial_checksum"}}};
    for (const auto& [map, names] : more) {
        const auto values = read_all(maps_.fd(map), SP_PORTS_MAX, names.size());
        for (uint32_t i = 0; i < values.size(); ++i) {
            if (values[i] == 0) continue;
            const auto port = static_cast<uint32_t>(i / names.size());
            counters.values[port_counter(port, names[i % names.size()])] = values[i];
        }
    }
    for (uint32_t key = 0; key < steers.size(); ++key) {
        if (steers[key] == 0) continue;
        counters.values[steer_counter(key / SP_WORKERS_MAX / SP_QUEUES_MAX,
                                      key / SP_WORKERS_MAX % SP_QUEUES_MAX, key % SP_WORKERS_MAX)] =
            steers[key];
    }
    return counters;
}

void Rig::check(const Instance& instance, const Row& row) {
    SCOPED_TRACE(row.name);
    const Counters before = read_counters();
    Bytes out;
    const uint32_t action = verdict(instance, row.in, row.queue, &out);
    const Counters after = read_counters();

    EXPECT_EQ(action, row.expected.action);
    EXPECT_EQ(hex(out), hex(row.expected.out.value_or(row.in)));
    std::map<std::string, uint64_t> deltas;
    for (const auto& [name, value] : after.values) {
        const auto old = before.values.find(name);
        const uint64_t delta = value - (old == before.values.end() ? 0 : old->second);
        if (delta != 0) deltas[name] = delta;
    }
    EXPECT_EQ(deltas, row.expected.counters);
}

void Rig::set_owner(uint32_t spi, const std::string& destination, uint32_t owner) {
    sp_owner_key key{};
    key.spi = htonl(spi);
    key.protocol = 50;
    key.family = parse_address(destination, key.daddr) ? AF_INET : AF_INET6;
    const sp_owner value{owner, 0};
    if (bpf_map_update_elem(maps_.fd("owner_map"), &key, &value, BPF_ANY) != 0) {
        give_up("cannot write owner_map");
    }
}

void Rig::set_cpu_worker(uint32_t cpu, uint32_t worker) {
    if (bpf_map_update_elem(maps_.fd("cpu_worker"), &cpu, &worker, BPF_ANY) != 0) {
        give_up("cannot write cpu_worker");
    }
}

void Rig::set_rules(uint32_t port, const std::vector<sp_egress_rule>& rules) {
    for (uint32_t i = 0; i < rules.size(); ++i) {
        const uint32_t key = port * SP_EGRESS_RULES_MAX + i;
        if (bpf_map_update_elem(maps_.fd("egress_rules"), &key, &rules[i], BPF_ANY) != 0) {
            give_up("cannot write egress_rules");
        }
    }
    sp_port_info info{};
    bpf_map_lookup_elem(maps_.fd("port_info"), &port, &info);
    info.rule_count = static_cast<uint32_t>(rules.size());
    bpf_map_update_elem(maps_.fd("port_info"), &port, &info, BPF_ANY);
}

void Rig::set_conntrack(uint32_t port, sp_conntrack in, sp_conntrack out) {
    sp_port_info info{};
    bpf_map_lookup_elem(maps_.fd("port_info"), &port, &info);
    info.conntrack_in = static_cast<uint8_t>(in);
    info.conntrack_out = static_cast<uint8_t>(out);
    bpf_map_update_elem(maps_.fd("port_info"), &port, &info, BPF_ANY);
}

void Rig::set_forward_to(const std::string& device, bool may) {
    const uint32_t key = ifindex(device);
    const uint32_t none = SP_PORT_NONE;
    const int fd = maps_.fd("port_by_ifindex");
    if ((may ? bpf_map_update_elem(fd, &key, &none, 0) : bpf_map_delete_elem(fd, &key)) != 0) {
        give_up("cannot write port_by_ifindex");
    }
}

void Rig::set_own_address(const std::string& address, bool is_own) {
    sp_own_address key{};
    key.family = parse_address(address, key.address) ? AF_INET : AF_INET6;
    const uint8_t one = 1;
    const int fd = maps_.fd("own_addresses");
    if ((is_own ? bpf_map_update_elem(fd, &key, &one, 0) : bpf_map_delete_elem(fd, &key)) != 0) {
        give_up("cannot write own_addresses");
    }
}

void Rig::set_mac(uint32_t port, const Mac& mac) {
    sp_port_info info{};
    bpf_map_lookup_elem(maps_.fd("port_info"), &port, &info);
    std::ranges::copy(mac, info.mac);
    bpf_map_update_elem(maps_.fd("port_info"), &port, &info, BPF_ANY);
}

void Rig::set_injector(uint32_t index) {
    sp_port_info info{};
    info.ifindex = index;
    info.role = SP_ROLE_INJECTOR;
    bpf_map_update_elem(maps_.fd("port_info"), &kInjector, &info, BPF_ANY);
}

void Rig::publish(const std::vector<SpdEntry>& outbound, const std::vector<SpdEntry>& inbound,
                  const std::vector<std::vector<WorkerId>>& owners,
                  const std::vector<uint32_t>& if_ids) {
    const auto rows_out = compile_spd(outbound);
    const auto rows_in = compile_spd(inbound);
    if (!rows_out || !rows_in) give_up(rows_out ? rows_in.error() : rows_out.error());
    const auto published = spd_->publish(*rows_out, *rows_in, owners, if_ids);
    if (!published) give_up(published.error());
}

void Rig::set_interface(const std::string& device) {
    const uint32_t port = SP_PORT_INTERFACE;
    sp_port_info info{};
    info.ifindex = device.empty() ? 0 : ifindex(device);
    info.mtu = 1400;
    info.role = SP_ROLE_INTERFACE;
    if (bpf_map_update_elem(maps_.fd("port_info"), &port, &info, BPF_ANY) != 0) {
        give_up("cannot write port_info");
    }
}

size_t Rig::update_owners(const std::vector<std::vector<WorkerId>>& owners) {
    const auto written = spd_->update_owners(owners);
    if (!written) give_up(written.error());
    return *written;
}

void Rig::disable_spd() {
    const uint32_t zero = 0;
    sp_spd_active active{};
    bpf_map_lookup_elem(maps_.fd("spd_active"), &zero, &active);
    active.enabled = 0;
    bpf_map_update_elem(maps_.fd("spd_active"), &zero, &active, BPF_ANY);
}

void Rig::set_bypass_until(uint64_t monotonic_ns) {
    if (const auto done = spd_->set_bypass_until(monotonic_ns); !done) give_up(done.error());
}

void Rig::remove_tx_port(uint32_t port) {
    if (bpf_map_delete_elem(maps_.fd("tx_ports"), &port) != 0) give_up("cannot write tx_ports");
}

void Rig::restore_tx_port(uint32_t port) {
    sp_port_info info{};
    bpf_map_lookup_elem(maps_.fd("port_info"), &port, &info);
    const bpf_devmap_val value{.ifindex = info.ifindex, .bpf_prog = {.fd = -1}};
    if (bpf_map_update_elem(maps_.fd("tx_ports"), &port, &value, BPF_ANY) != 0) {
        give_up("cannot write tx_ports");
    }
}

size_t Rig::count_rows(const char* lpm_map) const {
    sp_lpm_key key{};
    size_t rows = 0;
    for (const void* previous = nullptr;
         bpf_map_get_next_key(maps_.fd(lpm_map), previous, &key) == 0; previous = &key) {
        ++rows;
    }
    return rows;
}

void register_sa(uint32_t spi, const std::string& source, const std::string& destination,
                 std::optional<uint32_t> cpu, uint32_t if_id) {
    struct Attribute {
        nlattr header{};
        uint32_t value = 0;
    };
    struct {
        nlmsghdr header;
        xfrm_userspi_info body;
        Attribute attributes[2];
    } request{};
    static_assert(offsetof(decltype(request), attributes) ==
                  sizeof(nlmsghdr) + sizeof(xfrm_userspi_info));
    static_assert(sizeof(xfrm_userspi_info) % NLMSG_ALIGNTO == 0);
    request.header.nlmsg_type = XFRM_MSG_ALLOCSPI;
    request.header.nlmsg_flags = NLM_F_REQUEST;
    size_t attributes = 0;
    const auto add = [&](uint16_t type, uint32_t value) {
        request.attributes[attributes++] = {
            {.nla_len = sizeof(nlattr) + sizeof value, .nla_type = type}, value};
    };
    if (cpu) add(kXfrmaSaPcpu, *cpu);
    if (if_id != 0) add(XFRMA_IF_ID, if_id);
    request.header.nlmsg_len = static_cast<uint32_t>(offsetof(decltype(request), attributes) +
                                                     attributes * sizeof(Attribute));
    xfrm_usersa_info& info = request.body.info;
    auto* const daddr = reinterpret_cast<uint8_t*>(&info.id.daddr);
    info.family = parse_address(destination, daddr) ? AF_INET : AF_INET6;
    parse_address(source, reinterpret_cast<uint8_t*>(&info.saddr));
    info.id.proto = 50;
    info.mode = XFRM_MODE_TUNNEL;
    info.reqid = spi;
    request.body.min = spi;
    request.body.max = spi;

    const FileDescriptor socket(::socket(AF_NETLINK, SOCK_RAW, NETLINK_XFRM));
    if (send(socket.get(), &request, request.header.nlmsg_len, 0) < 0) give_up("ALLOCSPI");
    alignas(nlmsghdr) char answer[4096];
    const ssize_t size = recv(socket.get(), answer, sizeof answer, 0);
    nlmsghdr header{};
    if (size < static_cast<ssize_t>(sizeof header)) give_up("no answer to ALLOCSPI");
    std::memcpy(&header, answer, sizeof header);
    if (header.nlmsg_type == NLMSG_ERROR) {
        nlmsgerr error{};
        std::memcpy(&error, answer + NLMSG_HDRLEN, sizeof error);
        give_up(std::string("ALLOCSPI: ") + strerror(-error.error));
    }
}

IpPrefix prefix(const std::string& text) {
    const auto parsed = parse_ip_prefix(text);
    if (!parsed) give_up(parsed.error());
    return *parsed;
}

SpdEntry entry(uint32_t policy, SpdAction action, const char* source, const char* destination,
               uint8_t protocol) {
    return {.policy = PolicyId{policy},
            .action = action,
            .source = prefix(source),
            .destination = prefix(destination),
            .protocol = protocol};
}

SpdEntry to_port(SpdEntry entry, uint16_t destination_port) {
    entry.has_ports = true;
    entry.destination_port_lo = destination_port;
    entry.destination_port_hi = destination_port;
    return entry;
}

}  // namespace sallyport::packet
