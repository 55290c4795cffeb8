// SPDX-License-Identifier: Apache-2.0
#pragma once

// The XDP programs and their maps, as the control thread sees them.
//
//   create()            maps that all programs share
//   add_port()          rules, MTU, egress program in the devmap, an XSKMAP: nothing attached yet
//   set_socket()        AF_XDP sockets into the port's XSKMAP
//   attach_kernel_out()  what judges the kernel's own sending onto the device
//   attach_port()       the steering program onto the device
//   add_injector()      egress_route and to_neighbour onto sp0
//   publish_spd()       from now on packets are forwarded
//
// Add every port before the first is attached or an SPD is published: a frame that leaves through
// a device which is not (yet) a port passes no egress filter.
//
// Attaching goes through libxdp. Where the kernel allows freplace its dispatcher lets other XDP
// programs share the device; where not, the program is attached alone, and Attachment says why. A
// copy of our own programs that a killed daemon left behind is replaced; a foreign program is never
// touched. While the object lives it holds, per device and network namespace, a lock that the
// kernel releases with the process: that is how a stale copy differs from a second daemon.
//
// Owner: the control thread. Everything is detached and freed on destruction. Errors are sentences
// for the operator. The only place that includes libbpf or libxdp.

#include <array>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bpf/abi.h"
#include "config/config.h"
#include "dataplane/base/drop_reason.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/spd/classes.h"
#include "dataplane/spd/spd.h"

namespace sallyport::bpf_objects {

// What of ours is on a device before anything is attached there.
enum class Leftover : uint8_t {
    none,
    replaceable,  // a new program takes its place, with no moment between
    other_mode    // it has to go first: the kernel has one mode at a time
};
// `mode`: that the new program is to have. What cannot be read counts as none.
Leftover leftover_on(uint32_t ifindex, config::XdpMode mode);

// Takes XDP programs and TC filters of ours off the device, and nothing of others. An error where a
// sallyportd, in whatever network namespace, has the device.
std::expected<void, std::string> remove_leftovers(const std::string& device, uint32_t ifindex);

// How the inbound SA of an ESP packet is found in XDP.
struct SaLookup {
    bool kfunc = false;  // bpf_xdp_get_xfrm_state(); otherwise the owner map alone
    std::string reason;  // for `show status`: why it is so
};
// Looks for the kfunc in the running kernel's BTF.
SaLookup probe_sa_lookup();

// Whether XDP can ask the kernel's connection tracking.
struct ConnectionLookup {
    bool possible = false;
    std::string reason;
};
// Looks for bpf_xdp_ct_lookup() in the BTF of the kernel and of its module nf_conntrack.
ConnectionLookup probe_connection_lookup();

// What of it the configuration needs. Nothing is asked of the kernel without `lookups`.
struct Connections {
    bool lookups = false;  // some port or policy asks for connections
    bool marks = false;    // some policy selects by connection mark
};

// Whether this kernel lets programs set and read the if_id of packets on an xfrm interface. Answers
// after such an interface was made, which loads the kernel's module. Empty: it does; else why not.
std::string probe_if_ids();

// The ids that sp0 and the xfrm interface have in counters. Ports of the configuration take
// 0 .. kPortsMax - 1.
inline constexpr PortId kInjectorPort{SP_PORT_INJECTOR};
inline constexpr PortId kInterfacePort{SP_PORT_INTERFACE};
inline constexpr size_t kPortsMax = SP_PORT_INTERFACE;

// Room in the shared maps. One generation of the SPD, both directions together, may take
// spd_destinations and spd_sources rows and spd_entries entries; the maps have room for two.
struct Limits {
    uint32_t inbound_sas = 4096;
    uint32_t spd_destinations = 4096;
    uint32_t spd_sources = 16384;
    uint32_t spd_entries = 16384;
    uint32_t if_ids = 4096;
};

using MacAddress = std::array<uint8_t, 6>;

// Whether native XDP can send out of a device. A redirect is never refused: what the driver does
// not take is lost. So it is tried, by one frame from each CPU that this thread may use: 60 bytes
// from the device's own MAC to itself, of the type (0x9000) by which switches look for loops.
struct NativeSending {
    enum class Answer : uint8_t { possible, impossible, unknown };
    Answer answer = Answer::unknown;
    std::string why;
};
// `running`: up and with carrier; without, what the driver says about one frame is no word about
// those to come. Some drivers send only while the device has an XDP program itself.
NativeSending prove_native_sending(uint32_t ifindex, const MacAddress& mac, bool running);

struct PortSetup {
    PortId id{};
    std::string device;
    uint32_t ifindex = 0;
    config::PortRole role = config::PortRole::unprotected_side;
    uint16_t queues = 1;
    uint16_t workers = 1;
    uint32_t mtu = 1500;  // IP bytes
    MacAddress mac{};     // unicast frames to others are dropped
    config::XdpMode mode = config::XdpMode::automatic;
    // Why this one, where the configuration has another; empty: it has not.
    std::string mode_reason;
    bool use_kfunc = true;          // false: owner map alone, whatever the kernel has
    bool punt_unknown_spi = false;  // true: ESP of unknown SAs goes to the kernel
    // true: SAs and policies are the kernel's; what no worker has taken over stays with it. On an
    // unprotected port this wants native XDP: a generic program also sees what the kernel has
    // decrypted, as cleartext, and drops it (Attachment::reason says so).
    bool register_mode = false;
    config::Conntrack conntrack_in = config::Conntrack::off;
    config::Conntrack conntrack_out = config::Conntrack::off;
    std::vector<uint16_t> bypass_cpus;            // at most SP_BYPASS_CPUS_MAX
    std::vector<config::EgressRule> egress_deny;  // at most SP_EGRESS_RULES_MAX
};

struct InterfaceSetup {
    std::string device;
    uint32_t ifindex = 0;
    uint32_t mtu = 1500;
};

struct InjectorSetup {
    std::string device = "sp0";
    uint32_t ifindex = 0;
    config::XdpMode mode = config::XdpMode::native;
    std::string mode_reason;
};

// How a program came onto its device, as `show ports` tells it.
struct Attachment {
    config::XdpMode mode = config::XdpMode::native;  // native or generic
    bool dispatcher = false;                         // false: alone
    std::string reason;           // why alone, and why generic where native was tried
    bool replaced_stale = false;  // a copy of a killed daemon was there
    [[nodiscard]] const char* attached() const { return dispatcher ? "dispatcher" : "alone"; }
};

// Counters of one port, summed over CPUs. rx_frames = passed + steered + redirected + dropped
// + spread.handed_over - spread.taken (in a queue to another CPU, or lost there); egress_frames -
// egress_sent were dropped on the way out; `drops` has both kinds.
struct PortCounters {
    sp_port_counters totals{};
    std::array<uint64_t, SP_DROP_COUNT> drops{};
    std::vector<std::vector<uint64_t>> steered;  // [queue][worker]; empty for sp0
    sp_conntrack_counters conntrack{};
    sp_spread_counters spread{};
    std::vector<uint64_t> taken_by_cpu;  // in the order of bypass_cpus
    // BYPASS packets whose TCP or UDP checksum a device was to complete: left to the kernel.
    uint64_t partial_checksums = 0;
};

// What the kernel's SAs with an if_id have carried, for each that some policy names; summed over
// CPUs.
struct IfIdTraffic {
    uint32_t if_id = 0;
    sp_if_id_counters counters{};
};

// What the kernel has dropped of packets that came in by a port of ours and were passed to it
// (lost_in_kernel), or that AF_XDP sent by one (lost_in_device).
struct KernelLoss {
    PortId port{};
    DropReason drop{};
    std::string reason;  // as the kernel calls it
    uint64_t packets = 0;
    friend auto operator<=>(const KernelLoss&, const KernelLoss&) = default;
};

// A next hop that a packet has found without a MAC.
struct UnresolvedHop {
    uint32_t ifindex = 0;
    IpAddress address;
    bool waited_for = false;  // the kernel keeps packets of ours for it
};

// A deny rule as the egress programs (and direct egress) read it.
std::expected<sp_egress_rule, std::string> egress_rule_row(const config::EgressRule& rule);

class BpfObjects {
  public:
    static std::expected<BpfObjects, std::string> create(const Limits& limits,
                                                         const Connections& connections = {});
    BpfObjects(BpfObjects&&) noexcept;
    BpfObjects& operator=(BpfObjects&&) noexcept;
    ~BpfObjects();

    // --- ports ---
    std::expected<void, std::string> add_port(const PortSetup& setup);
    // `socket_fd`: AF_XDP socket of (queue, worker), bound to the port's device and queue.
    std::expected<void, std::string> set_socket(PortId port, QueueId queue, WorkerId worker,
                                                int socket_fd);
    std::expected<Attachment, std::string> attach_port(PortId port);
    // Attaches the program anew in this mode, also from now on. Between the two there is none: the
    // caller keeps packets away.
    std::expected<Attachment, std::string> change_mode(PortId port, config::XdpMode mode,
                                                       const std::string& reason);
    std::expected<Attachment, std::string> change_injector_mode(config::XdpMode mode,
                                                                const std::string& reason);
    // From now on what was redirected and did not arrive is counted. An error: this kernel does not
    // tell, and says why; nothing else depends on it.
    std::expected<void, std::string> watch_redirects();
    // Attaches kernel_out by TC, in place of what a killed run left or somebody has removed. On a
    // protected port nothing is to be there, and what a run with other roles left goes.
    std::expected<void, std::string> attach_kernel_out(PortId port);
    // Ask the kernel whether the programs are (still) where they were attached.
    [[nodiscard]] bool is_port_attached(PortId port) const;
    [[nodiscard]] bool is_kernel_out_attached(PortId port) const;
    [[nodiscard]] bool is_injector_attached() const;
    [[nodiscard]] bool is_interface_attached() const;
    // Takes the steering programs off all ports: nothing new comes in, and what workers still write
    // to sp0 goes its way until the end of this object. So long kernel_out judges.
    void detach_ports();
    // kernel_out stays on its ports when this object ends, with the SPD as it is now.
    void leave_kernel_out();
    // Loads and attaches egress_route, and behind it to_neighbour by TC. A TAP has native XDP on
    // every kernel we support, and generic XDP for ports that native XDP cannot send out of.
    std::expected<Attachment, std::string> add_injector(const InjectorSetup& setup);
    // Attaches them again where somebody has removed them.
    std::expected<Attachment, std::string> attach_injector();
    // Loads the program that chooses the worker for what the kernel routes into sp0, for
    // io::Tap::choose_queues_by(). The descriptor stays ours.
    std::expected<int, std::string> load_injector_queue();
    // The xfrm interface: loads interface_in and interface_out. From here on packets of policies
    // with an if_id are left to the kernel, if it routes them there.
    std::expected<void, std::string> add_interface(const InterfaceSetup& setup);
    // Attaches them by TC. True: those of a killed run were there and are replaced.
    std::expected<bool, std::string> attach_interface();
    // MTU of the device changed.
    std::expected<void, std::string> set_mtu(PortId port, uint32_t mtu);
    std::expected<void, std::string> set_interface_mtu(uint32_t mtu);
    // So did its address. A program may meanwhile see one that is half old: it drops that frame.
    std::expected<void, std::string> set_mac(PortId port, const MacAddress& mac);
    // Addresses of this host and broadcast addresses of its networks, instead of those of the call
    // before, each once: packets to these alone are passed where a device does not forward, and
    // what comes in with one of them as its source is not forwarded.
    std::expected<void, std::string> set_own_addresses(std::span<const IpAddress> addresses);
    // Devices beside the ports that packets may be routed to, instead of those of the call before;
    // at most SP_FORWARD_TO_MAX. To sp0 and the xfrm interface they always may.
    std::expected<void, std::string> set_forward_to(std::span<const uint32_t> ifindexes);
    // Replaces the port's egress filter. The old one holds until the new one is complete.
    std::expected<void, std::string> set_egress_deny(PortId port,
                                                     std::span<const config::EgressRule> rules);

    // --- next hops without a MAC ---
    // Those that packets have found since they were forgotten. An error counts as none.
    [[nodiscard]] std::vector<UnresolvedHop> unresolved_hops() const;
    // It is resolved, or need not be told again until the next packet.
    void forget_unresolved(uint32_t ifindex, const IpAddress& address) const;

    // --- ownership of inbound SAs ---
    // SAs whose pcpu_num is `cpu` belong to `worker`; nullopt: that CPU runs no worker.
    std::expected<void, std::string> set_cpu_worker(uint32_t cpu, std::optional<WorkerId> worker);
    // nullopt: the kernel keeps this SA, its packets are passed. Register mode needs that only for
    // SAs that the kfunc does not find (those with a mark).
    std::expected<void, std::string> insert_owner(Spi spi, const IpAddress& outer_destination,
                                                  std::optional<WorkerId> worker);
    // Removing what is not there is no error.
    std::expected<void, std::string> remove_owner(Spi spi, const IpAddress& outer_destination);

    // --- policies ---
    // Writes a new generation beside the one in use, switches to it by one map write, waits until
    // no program can still read the old one, deletes the old one. On error the old one stays.
    // `owners_by_policy[PolicyId]`: workers that hold an outbound SA of the policy, at most
    // SP_OWNERS_MAX; none or out of range: PROTECT packets are dropped with no_sa, or left to the
    // kernel in register mode.
    // `if_id_by_policy[PolicyId]`: the if_id of the kernel's SAs that serve a PROTECT policy while
    // it has no owners; 0 or out of range: none.
    // `switched`: called right after the switch, before the wait.
    std::expected<void, std::string> publish_spd(
        const CompiledSpd& outbound, const CompiledSpd& inbound,
        std::span<const std::vector<WorkerId>> owners_by_policy,
        std::span<const uint32_t> if_id_by_policy = {}, const std::function<void()>& switched = {});
    // BYPASS is believed until then (CLOCK_MONOTONIC), by this SPD and later ones; before it is
    // called for ever.
    std::expected<void, std::string> set_bypass_until(uint64_t monotonic_ns);
    // The SPD in use, changed by rows (dataplane/spd/classes.h), which count from what was
    // published as a whole: its entries from 0 on, first those of outbound. On error nothing has
    // changed, unless the text says so: then as a whole again. `changed_owners`: policies whose
    // owners are others than before. Waits for programs where `changes` say so, and after
    // `switched`, where they ask for rest.
    std::expected<void, std::string> publish_spd_rows(
        const SpdRowChanges& changes, std::span<const std::vector<WorkerId>> owners_by_policy,
        std::span<const PolicyId> changed_owners, std::span<const uint32_t> if_id_by_policy,
        const std::function<void()>& switched);
    // Room of one generation.
    [[nodiscard]] const Limits& limits() const;

    // Other owners for the SPD in use, in place: only entries whose owners differ are written, so
    // that an SA that comes or goes costs one map write for each entry of its policy. Returns how
    // many were written. A program that reads an entry meanwhile finds an owner of before or after.
    std::expected<size_t, std::string> update_owners(
        std::span<const std::vector<WorkerId>> owners_by_policy);
    // Of these policies only: costs nothing for others.
    std::expected<size_t, std::string> update_owners(
        std::span<const std::vector<WorkerId>> owners_by_policy, std::span<const PolicyId> changed);

    // --- counters ---
    [[nodiscard]] std::expected<PortCounters, std::string> counters(PortId port) const;
    // From here on the kernel's drops of our packets are counted; after everything is attached. The
    // error says why this kernel cannot tell.
    std::expected<void, std::string> count_kernel_losses();
    // By port. Empty where the kernel cannot tell.
    [[nodiscard]] std::vector<KernelLoss> kernel_losses() const;
    // By if_id, those that the published policies name.
    [[nodiscard]] std::vector<IfIdTraffic> if_id_traffic() const;

  private:
    struct Impl;
    explicit BpfObjects(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace sallyport::bpf_objects
