// SPDX-License-Identifier: Apache-2.0
// What steer_unprotected costs for one ESP packet, by BPF_PROG_TEST_RUN: SPIs in random order, for
// each way to find the owner of an SA and for several numbers of SAs, interleaved. Measures and
// prints; it stops only when packets did not take the way that a row is about.
//
// Included: the program from the first byte to its verdict, with its counters, the redirect into
// the XSKMAP (an AF_XDP socket stands in it), and the harness (next_spi.bpf.c and a tail call),
// which the floor has as well. Not included: driver, AF_XDP receive, and what the kernel does with
// what is passed to it.
//
// SAs are larval xfrm states with random SPIs to one address, in a network namespace for each
// number of them; the namespaces go with the process.

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "control/bpf_objects/program_object.h"
#include "control/netlink/socket.h"
#include "control/xfrm/messages.h"

namespace sallyport::bench {
namespace {

using bpf_objects::FileDescriptor;
using bpf_objects::Program;
using bpf_objects::ProgramObject;
using bpf_objects::SharedMaps;

constexpr uint32_t kDraws = 65536;    // as in next_spi.bpf.c
constexpr uint32_t kRepeat = kDraws;  // every draw once
constexpr int kRounds = 33;
constexpr int kWarmUp = 2;
constexpr std::array kSaCounts = {1u, 1000u, 20000u};
constexpr uint32_t kPort = 0;

[[noreturn]] void give_up(const std::string& text) {
    std::fprintf(stderr, "steering_bench: %s\n", text.c_str());
    std::exit(1);
}

void run(const char* command) {
    if (std::system(command) != 0) give_up(std::string("failed: ") + command);
}

// ---- packets
// -------------------------------------------------------------------------------------

struct Packet {
    std::vector<uint8_t> bytes;
    uint32_t spi_offset;  // where the harness writes
};

// IPv4 from 192.0.2.2 to 192.0.2.1.
Packet packet(uint8_t protocol, std::vector<uint8_t> upper, uint32_t spi_offset) {
    const auto total = static_cast<uint8_t>(20 + upper.size());
    std::vector<uint8_t> bytes = {
        2,    0, 0, 0,     1, 1, 2, 0, 0,  0,        1, 2, 8,   0,  // Ethernet
        0x45, 0, 0, total, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1};
    uint32_t sum = 0;
    for (size_t i = 14; i < bytes.size(); i += 2) sum += uint32_t{bytes[i]} << 8 | bytes[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    bytes[24] = static_cast<uint8_t>(~sum >> 8);
    bytes[25] = static_cast<uint8_t>(~sum);
    bytes.insert(bytes.end(), upper.begin(), upper.end());
    return {std::move(bytes), spi_offset};
}
Packet esp_packet() {
    return packet(50, std::vector<uint8_t>(64), 34);
}
// Looks the same up to the moment when an owner would be looked for.
Packet esp_stump() {
    return packet(50, std::vector<uint8_t>(4), 34);
}
Packet ike_packet() {
    std::vector<uint8_t> udp(72);
    udp[0] = udp[2] = 500 >> 8;
    udp[1] = udp[3] = 500 & 0xff;
    udp[5] = 72;
    return packet(17, std::move(udp), 42);
}

// ---- the harness
// ---------------------------------------------------------------------------------

class Harness {
  public:
    Harness() {
        object_.reset(bpf_object__open_file(NEXT_SPI_OBJECT, nullptr));
        if (object_ == nullptr || bpf_object__load(object_.get()) != 0) {
            give_up("cannot load " NEXT_SPI_OBJECT);
        }
        program_ = bpf_program__fd(bpf_object__find_program_by_name(object_.get(), "next_spi"));
    }
    void draw_from(const std::vector<uint32_t>& spis, std::mt19937& random) {
        for (uint32_t key = 0; key < kDraws; ++key) {
            const uint32_t value = htonl(spis[random() % spis.size()]);
            put("draws", key, value);
        }
    }
    struct Run {
        uint32_t ns;
        uint32_t verdict;
    };
    Run run(int program_fd, const Packet& packet, uint32_t ifindex, uint32_t repeat) {
        put("target", 0, static_cast<uint32_t>(program_fd));
        put("position", 0, packet.spi_offset);
        xdp_md context{};
        context.data_end = static_cast<uint32_t>(packet.bytes.size());
        context.ingress_ifindex = ifindex;
        LIBBPF_OPTS(bpf_test_run_opts, options);
        options.data_in = packet.bytes.data();
        options.data_size_in = static_cast<uint32_t>(packet.bytes.size());
        options.ctx_in = &context;
        options.ctx_size_in = sizeof context;
        options.repeat = static_cast<int>(repeat);
        if (bpf_prog_test_run_opts(program_, &options) != 0) give_up("BPF_PROG_TEST_RUN failed");
        return {options.duration, options.retval};
    }

  private:
    void put(const char* map, uint32_t key, uint32_t value) {
        const int fd = bpf_object__find_map_fd_by_name(object_.get(), map);
        if (bpf_map_update_elem(fd, &key, &value, BPF_ANY) != 0) give_up("cannot write a map");
    }
    bpf_objects::ObjectHandle object_;
    int program_ = -1;
};

// ---- what is measured
// ----------------------------------------------------------------------------

enum class Way { stump, ike, kfunc, owner_map, registered, kept };
struct Measured {
    Way way;
    const char* what;
    uint32_t verdict;
    __u64 sp_port_counters::* counter;  // moves once for each packet
};
constexpr std::array kMeasured = {
    Measured{Way::stump, "floor: parsed, counted, dropped as malformed_esp", XDP_DROP,
             &sp_port_counters::dropped},
    Measured{Way::ike, "IKE: parsed, route lookup, to the kernel", XDP_PASS,
             &sp_port_counters::passed},
    Measured{Way::kfunc, "kfunc alone (pcpu_num names the worker)", XDP_REDIRECT,
             &sp_port_counters::steered},
    Measured{Way::owner_map, "owner map alone", XDP_REDIRECT, &sp_port_counters::steered},
    Measured{Way::registered, "register mode, SA of a worker (owner map)", XDP_REDIRECT,
             &sp_port_counters::steered},
    Measured{Way::kept, "register mode, SA of the kernel (owner map, kfunc, route)", XDP_PASS,
             &sp_port_counters::passed_esp},
};

struct Series {
    std::vector<uint32_t> ns;
    double at(double share) {
        std::ranges::sort(ns);
        return ns[static_cast<size_t>(share * static_cast<double>(ns.size() - 1))];
    }
};

// A network namespace with `sa_count` SAs in xfrm, and programs over maps that know them.
class World {
  public:
    World(uint32_t sa_count, std::mt19937& random) : sa_count_(sa_count) {
        if (unshare(CLONE_NEWNET) != 0) give_up("cannot make a network namespace");
        namespace_ = FileDescriptor(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
        run("sysctl -qw net.core.xfrm_acq_expires=86400 net.ipv4.ip_forward=1");
        run("ip link add wan0 address 02:00:00:00:01:01 type veth peer name wanp && "
            "ip link set wan0 up && ip link set wanp up && ip addr add 192.0.2.1/24 dev wan0");
        ifindex_ = if_nametoindex("wan0");

        std::set<uint32_t> distinct;
        while (distinct.size() < sa_count) {
            distinct.insert(static_cast<uint32_t>(random()) | 0x1000);
        }
        spis_.assign(distinct.begin(), distinct.end());
        std::ranges::shuffle(spis_, random);
        register_states();

        known_ = make_maps();
        unknown_ = make_maps();
        for (const uint32_t spi : spis_) {
            sp_owner_key key{};
            key.spi = htonl(spi);
            key.family = AF_INET;
            key.protocol = IPPROTO_ESP;
            std::ranges::copy(kUs, key.daddr);
            const sp_owner owner{};
            if (bpf_map_update_elem(known_.fd("owner_map"), &key, &owner, BPF_ANY) != 0) {
                give_up("cannot fill the owner map");
            }
        }
        auto xsks = bpf_objects::create_xsks(1, 1);
        socket_ = FileDescriptor(::socket(AF_XDP, SOCK_RAW, 0));
        const uint32_t slot = 0;
        const int fd = socket_.get();
        if (!xsks || bpf_map_update_elem(xsks->get(), &slot, &fd, BPF_ANY) != 0) {
            give_up("cannot put an AF_XDP socket into an XSKMAP");
        }
        xsks_ = std::move(*xsks);
        for (const Measured& measured : kMeasured) programs_.push_back(load(measured.way));
        series_.resize(kMeasured.size());
    }

    void measure(Harness& harness, std::mt19937& random, bool keep) {
        if (setns(namespace_.get(), CLONE_NEWNET) != 0) give_up("cannot enter a namespace");
        harness.draw_from(spis_, random);
        for (size_t i = 0; i < kMeasured.size(); ++i) {
            const Measured& measured = kMeasured[i];
            const uint64_t before = count(measured);
            const Packet packet = measured.way == Way::stump ? esp_stump()
                                  : measured.way == Way::ike ? ike_packet()
                                                             : esp_packet();
            const auto [ns, verdict] = harness.run(programs_[i].fd(), packet, ifindex_, kRepeat);
            if (verdict != measured.verdict || count(measured) - before != kRepeat) {
                give_up(std::string("packets took another way, the figures mean nothing: ") +
                        measured.what);
            }
            if (keep) series_[i].ns.push_back(ns);
        }
    }

    void print() {
        const double floor = series_[0].at(0.5);
        for (size_t i = 0; i < kMeasured.size(); ++i) {
            Series& series = series_[i];
            std::printf("%6u  %-58s %6.0f (%4.0f-%4.0f)  %+6.0f\n", sa_count_, kMeasured[i].what,
                        series.at(0.5), series.at(0.1), series.at(0.9), series.at(0.5) - floor);
        }
    }

  private:
    static constexpr std::array<uint8_t, 4> kUs = {192, 0, 2, 1};

    void register_states() {
        auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
        if (!socket) give_up(socket.error());
        IpAddress us;
        IpAddress peer;
        std::ranges::copy(kUs, us.bytes.begin());
        std::ranges::copy(std::array<uint8_t, 4>{192, 0, 2, 2}, peer.bytes.begin());
        uint32_t reqid = 0;
        for (const uint32_t spi : spis_) {
            const xfrm::NewState state{.id = {.spi = Spi{spi}, .destination = us},
                                       .source = peer,
                                       .reqid = ++reqid,
                                       .pcpu = 0};
            auto done = socket->exchange(xfrm::encode_allocate_spi(
                state, xfrm::StateAttributes::all, socket->next_sequence()));
            if (!done) give_up("ALLOCSPI: " + done.error().text);
        }
    }
    static SharedMaps make_maps() {
        auto maps = SharedMaps::create({.inbound_sas = 32768});
        if (!maps) give_up(maps.error());
        const uint32_t cpu = 0;
        const uint32_t worker = 0;
        bpf_map_update_elem(maps->fd("cpu_worker"), &cpu, &worker, BPF_ANY);
        const sp_port_info info{.mtu = 1500, .mac = {2, 0, 0, 0, 1, 1}};
        bpf_map_update_elem(maps->fd("port_info"), &kPort, &info, BPF_ANY);
        return std::move(*maps);
    }
    ProgramObject load(Way way) const {
        const bool register_mode = way == Way::registered || way == Way::kept;
        sp_tunables tunables{};
        tunables.port = kPort;
        tunables.queues = 1;
        tunables.workers = 1;
        tunables.use_kfunc = way == Way::owner_map ? 0u : 1u;
        tunables.register_mode = register_mode ? 1u : 0u;
        auto object =
            ProgramObject::open(Program::steer_unprotected, tunables,
                                way == Way::kept ? unknown_ : known_, {.xsks = xsks_.get()});
        if (!object) give_up(object.error());
        if (auto loaded = object->load(); !loaded) give_up(loaded.error());
        return std::move(*object);
    }
    [[nodiscard]] uint64_t count(const Measured& measured) const {
        std::vector<sp_port_counters> cpus(static_cast<size_t>(libbpf_num_possible_cpus()));
        const SharedMaps& maps = measured.way == Way::kept ? unknown_ : known_;
        bpf_map_lookup_elem(maps.fd("port_counters"), &kPort, cpus.data());
        uint64_t sum = 0;
        for (const sp_port_counters& cpu : cpus) sum += cpu.*measured.counter;
        return sum;
    }

    uint32_t sa_count_;
    FileDescriptor namespace_;
    uint32_t ifindex_ = 0;
    std::vector<uint32_t> spis_;
    SharedMaps known_;    // the owner map has every SA
    SharedMaps unknown_;  // the owner map is empty
    FileDescriptor socket_;
    FileDescriptor xsks_;
    std::vector<ProgramObject> programs_;
    std::vector<Series> series_;
};

int run() {
    if (geteuid() != 0) {
        std::printf("SKIP: BPF_PROG_TEST_RUN needs root\n");
        return 0;
    }
    if (const auto lookup = bpf_objects::probe_sa_lookup(); !lookup.kfunc) {
        std::printf("SKIP: %s\n", lookup.reason.c_str());
        return 0;
    }
    std::mt19937 random(17);
    Harness harness;
    std::vector<std::unique_ptr<World>> worlds;
    for (const uint32_t count : kSaCounts) worlds.push_back(std::make_unique<World>(count, random));
    for (int round = 0; round < kRounds + kWarmUp; ++round) {
        for (const auto& world : worlds) world->measure(harness, random, round >= kWarmUp);
    }
    std::printf(
        "steer_unprotected, SPIs in random order; ns per packet, median (10 %% - 90 %% of %d "
        "rounds "
        "of %u packets)\nwith harness, counters and redirect into the XSKMAP; without driver, "
        "AF_XDP receive and the kernel's work on what is passed\n",
        kRounds, kRepeat);
    std::printf("   SAs  %-58s     ns               over floor\n", "way");
    for (const auto& world : worlds) world->print();
    return 0;
}

}  // namespace
}  // namespace sallyport::bench

int main() {
    return sallyport::bench::run();
}
