// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the packet tables stand on: a network namespace with routes and neighbours, the shared maps,
// programs loaded with given tunables, and runs by BPF_PROG_TEST_RUN whose verdict, bytes and
// counters are compared with what a row says. Counters that a row does not name must not move.
//
//   192.0.2.0/24, 2001:db8:1::/64     wan0 (port 0)   192.0.2.2 and ::2 are neighbours
//   10.1.0.0/24, 2001:db8:a::/64      lan0 (port 1)   10.1.0.10 and ::10 are neighbours
//   198.18.0.0/24, 2001:db8:c::/64    other0          not a port
//   sp0                               the injector
//
// The programs know the addresses of the first two for this host's, and their broadcast addresses.
//
// The namespace belongs to the test process and goes with it.

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bpf/abi.h"
#include "control/bpf_objects/program_object.h"
#include "control/bpf_objects/spd_writer.h"
#include "dataplane/spd/spd.h"
#include "tests/bpf/packet_builder.h"

namespace sallyport::packet {

using bpf_objects::Program;

inline constexpr uint32_t kWan = 0;
inline constexpr uint32_t kLan = 1;
inline constexpr uint32_t kInjector = SP_PORT_INJECTOR;
inline constexpr uint32_t kQueues = 2;
inline constexpr uint32_t kWorkers = 2;

inline constexpr Mac kWanMac = {0x02, 0, 0, 0, 1, 1};
inline constexpr Mac kWanPeerMac = {0x02, 0, 0, 0, 1, 2};
inline constexpr Mac kLanMac = {0x02, 0, 0, 0, 2, 1};
inline constexpr Mac kLanHostMac = {0x02, 0, 0, 0, 2, 2};

// The source of frames that a worker writes to sp0.
constexpr Mac worker_mac(uint8_t kind) {
    Mac mac{};
    sp_write_worker_mac(mac.data(), kind);
    return mac;
}

// Runs a command and fails the test when it fails.
void run(const std::string& command);
bool try_run(const std::string& command);
uint32_t ifindex(const std::string& device);

// The device does not forward while this lives, in neither family. The others, and IPv6 by the
// setting that the kernel itself goes by, do.
class ForwardingOff {
  public:
    explicit ForwardingOff(const std::string& device) : device_(device) { set("0"); }
    ~ForwardingOff() { set("1"); }
    ForwardingOff(const ForwardingOff&) = delete;
    ForwardingOff& operator=(const ForwardingOff&) = delete;

  private:
    void set(const std::string& value) const {
        run("sysctl -qw net.ipv4.conf." + device_ + ".forwarding=" + value + " net.ipv6.conf." +
            device_ + ".forwarding=" + value);
    }
    std::string device_;
};

// Every counter of every map, as one sparse table.
struct Counters {
    std::map<std::string, uint64_t> values;  // "port 0 passed", "port 0 drop no_sa", ...
};

struct Outcome {
    uint32_t action;
    std::map<std::string, uint64_t> counters;  // deltas
    std::optional<Bytes> out;                  // nullopt: unchanged
};

// What rows say.
Outcome passed(uint32_t port, size_t bytes);
Outcome passed_esp(uint32_t port, size_t bytes);
Outcome passed_protect(uint32_t port, size_t bytes);
Outcome dropped(uint32_t port, size_t bytes, sp_drop_reason reason);
Outcome steered(uint32_t port, size_t bytes, uint32_t queue, uint32_t worker);
Outcome redirected(uint32_t port, size_t bytes, Bytes out);
Outcome egress_sent(uint32_t port, size_t bytes);
Outcome egress_dropped(uint32_t port, size_t bytes, sp_drop_reason reason);
Outcome handed_over(uint32_t port, size_t bytes);
// The same, after a question about the frame's connection: "established", "to_kernel", "refused".
Outcome with_connection(Outcome outcome, uint32_t port, const std::string& counted);
// What the cpumap program does with a frame that was counted in before.
Outcome taken(Outcome outcome, uint32_t port);

struct Row {
    std::string name;
    Bytes in;
    Outcome expected;
    uint32_t queue = 0;
};

// A program loaded with its own tunables and sockets.
struct Instance {
    bpf_objects::ProgramObject program;
    bpf_objects::FileDescriptor xsks;
    std::vector<bpf_objects::FileDescriptor> sockets;
    bpf_objects::FileDescriptor queues;
    std::string device;         // frames come from here
    bool is_forwarded = false;  // TC: they came in by a device
};

struct Settings {
    bool use_kfunc = false;
    bool punt_unknown_spi = false;
    bool with_sockets = true;
    bool register_mode = false;
    bool conntrack = false;
    bool ct_marks = false;
    uint32_t ct_refresh = 0;
    std::vector<uint16_t> bypass_cpus = {};
    bool with_queues = true;  // to bypass_cpus
};

class Rig {
  public:
    static Rig& get();

    const bpf_objects::SharedMaps& maps() const { return maps_; }
    Instance load(Program program, uint32_t port, Settings settings);
    void check(const Instance& instance, const Row& row);
    // Verdict alone, for sweeps; the frame after the run in `out` when given.
    uint32_t verdict(const Instance& instance, const Bytes& in, uint32_t queue = 0,
                     Bytes* out = nullptr);
    Counters read_counters() const;

    void set_owner(uint32_t spi, const std::string& destination, uint32_t owner);
    void set_cpu_worker(uint32_t cpu, uint32_t worker);
    void set_rules(uint32_t port, const std::vector<sp_egress_rule>& rules);
    void set_conntrack(uint32_t port, sp_conntrack in, sp_conntrack out);
    // Whether packets may be routed to this device, which is no port; at first they may not.
    void set_forward_to(const std::string& device, bool may);
    void set_own_address(const std::string& address, bool is_own);
    void set_mac(uint32_t port, const Mac& mac);  // as long as nobody says so: Link{}.dst
    void set_injector(uint32_t ifindex);          // 0: none
    void publish(const std::vector<SpdEntry>& outbound, const std::vector<SpdEntry>& inbound,
                 const std::vector<std::vector<WorkerId>>& owners,
                 const std::vector<uint32_t>& if_ids = {});
    // The device that stands for the xfrm interface; "": none.
    void set_interface(const std::string& device);
    // How many entries were written.
    size_t update_owners(const std::vector<std::vector<WorkerId>>& owners);
    void disable_spd();
    // BYPASS is believed until then, CLOCK_MONOTONIC.
    void set_bypass_until(uint64_t monotonic_ns);
    void remove_tx_port(uint32_t port);
    void restore_tx_port(uint32_t port);
    size_t count_rows(const char* lpm_map) const;
    // What publishes.
    bpf_objects::SpdWriter& spd() { return *spd_; }

  private:
    Rig();
    bpf_objects::SharedMaps maps_;
    std::unique_ptr<bpf_objects::SpdWriter> spd_;
};

// Registers a larval SA by XFRM_MSG_ALLOCSPI; `cpu`: its pcpu_num; `if_id`: its connection.
void register_sa(uint32_t spi, const std::string& source, const std::string& destination,
                 std::optional<uint32_t> cpu, uint32_t if_id = 0);

IpPrefix prefix(const std::string& text);

// Rows of an SPD.
SpdEntry entry(uint32_t policy, SpdAction action, const char* source, const char* destination,
               uint8_t protocol = 0);
SpdEntry to_port(SpdEntry entry, uint16_t destination_port);

}  // namespace sallyport::packet
