// SPDX-License-Identifier: Apache-2.0
#pragma once

// The configuration after reading and validation: what the rest of the daemon sees of the file.
//
// Everything here is complete and consistent: names are unique, references resolve, defaults are
// filled in. Checks that need the running system (does the device exist, how many queues has it)
// are in check_against_system(), so that a file can be validated anywhere. docs/config.md has
// every key with its default, range and reason.
//
// No function throws. No error text contains key material, whatever the operator typed where.
// All of it runs on the control thread, before workers start.

#include <algorithm>
#include <cstdint>
#include <expected>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/base/secret_bytes.h"
#include "dataplane/crypto/suite.h"
#include "dataplane/io/bind.h"
#include "dataplane/sa/df_policy.h"
#include "dataplane/spd/spd.h"

namespace sallyport::config {

// Where in the file something stands, kept so that later errors can point to it.
struct Location {
    uint32_t line = 0;  // 1-based; 0: not from the file
};

enum class PortRole : uint8_t { unprotected_side, protected_side };
enum class XdpMode : uint8_t { automatic, native, generic };
using BindMode = io::Bind;
enum class EgressMode : uint8_t { devmap, direct };
enum class UnknownSpi : uint8_t { drop, punt };
enum class AtStop : uint8_t { closed, open };
// What happens to cleartext in transit that belongs to no established connection of the kernel's;
// off: nothing is asked.
enum class Conntrack : uint8_t { off, punt, drop };

// One deny rule of a port's egress filter. Absent fields match everything.
struct EgressRule {
    std::optional<IpPrefix> source;
    std::optional<IpPrefix> destination;
    std::optional<uint8_t> protocol;
    uint16_t port_lo = 0;  // destination port, inclusive, host order
    uint16_t port_hi = 65535;
    Location location;
};

struct Port {
    std::string name;    // the table's name: [port.wan0]
    std::string device;  // netdev; default: the name
    PortRole role = PortRole::unprotected_side;
    std::optional<uint16_t> queues;  // default: what the device has
    XdpMode xdp_mode = XdpMode::automatic;
    BindMode bind_mode = BindMode::automatic;
    Conntrack conntrack_in = Conntrack::off;   // of what enters; both are off or none is
    Conntrack conntrack_out = Conntrack::off;  // of what leaves
    std::vector<uint16_t> bypass_cpus;         // that share BYPASS traffic; empty: no hand-over
    std::vector<EgressRule> egress_deny;
    Location location;
};

struct Workers {
    std::vector<uint16_t> cpus;  // empty: automatic, all CPUs this process may use
    // How long a worker keeps polling without work before it sleeps, microseconds.
    uint32_t spin_us = 50;
    Location location;  // of `cpus`, or of the table
};

inline constexpr uint32_t kFramesMax = 1u << 20;

struct Memory {
    uint32_t frames = 16384;  // of 4 KiB, for all ports and workers; power of two, up to kFramesMax
    bool hugepages = true;    // use when present
    Location location;        // of `frames`, or of the table
};

using sallyport::SpdAction;

// One SPD entry as RFC 4301 4.4.1 writes it: seen from the gateway, `local` is the protected side.
// It yields an outbound selector (local -> remote) and an inbound one (remote -> local).
struct Policy {
    std::string name;
    SpdAction action = SpdAction::discard;
    std::vector<IpPrefix> local;   // at least one; same family as remote
    std::vector<IpPrefix> remote;  // at least one
    std::optional<uint8_t> protocol;
    std::optional<std::pair<uint16_t, uint16_t>> local_ports;  // inclusive; only tcp, udp, sctp
    std::optional<std::pair<uint16_t, uint16_t>> remote_ports;
    // Lower decides first, and before every entry without; equal ones in file order. Without:
    // the greater sum of longest local and longest remote prefix length first, then file order.
    std::optional<uint32_t> priority;
    // Mark of the kernel's connection, where the mask has bits; bypass and discard only.
    std::optional<uint32_t> ct_mark;
    uint32_t ct_mark_mask = UINT32_MAX;
    uint32_t if_id = 0;  // protect: the kernel's IPsec connection that serves it; 0: our own SAs
    Location location;
};

enum class SaDirection : uint8_t { inbound, outbound };
using sallyport::DfPolicy;

// A manually keyed SA (tunnel mode).
struct StaticSa {
    std::string name;
    SaDirection direction = SaDirection::inbound;
    Spi spi{};                             // host order, >= 256
    IpAddress source;                      // outer
    IpAddress destination;                 // outer
    const crypto::Suite* suite = nullptr;  // a row of the table that was given to the reader
    SecretBytes key;                       // key || salt (RFC 4106 8.1)
    bool esn = false;
    uint32_t replay_window = 64;     // inbound; 0 (off) or 32 .. 4096
    std::string policy;              // name of the PROTECT policy whose traffic it carries
    std::optional<WorkerId> worker;  // default: spread by hash of SPI and destination
    DfPolicy df = DfPolicy::copy;
    bool copy_dscp = true;
    uint8_t outer_ttl = 64;
    uint16_t mtu = 0;  // largest outer packet in bytes; 0: the MTU of the unprotected port
    Location location;
};

struct Config {
    std::filesystem::path file;
    std::string device = "sp0";  // name of the TAP between workers and kernel
    std::string xfrm_interface;  // for IPsec connections of the kernel's; empty: none
    // Devices beside the ports to which packets in transit may be routed. None: neither a tunnel's
    // far end nor a host in clear reaches what is not behind a port. They may come later.
    std::vector<std::string> forward_to;
    EgressMode egress = EgressMode::devmap;
    UnknownSpi unknown_spi = UnknownSpi::drop;
    // What the host does with packets of ports after a stop that was asked for; none:
    // closes_at_stop() decides.
    std::optional<AtStop> at_stop;
    std::filesystem::path state_dir = "/var/lib/sallyport";
    std::filesystem::path control_socket = "/run/sallyport/control.sock";
    uint32_t max_sas = 4096;  // inbound + outbound SAs there is room for
    Workers workers;
    Memory memory;
    std::vector<Port> ports;       // at least one; position is the PortId
    std::vector<Policy> policies;  // in SPD order: position is the PolicyId
    std::vector<StaticSa> sas;

    // Whether SAs and policies come from the kernel's xfrm, where an IKE daemon puts them: so where
    // the file has neither SAs nor a policy that protects.
    [[nodiscard]] bool follows_xfrm() const {
        return sas.empty() && std::ranges::none_of(policies, [](const Policy& policy) {
                   return policy.action == SpdAction::protect;
               });
    }
    // Whether the host forwards nothing of ports after a stop. By default so with static SAs, which
    // nobody else has; where an IKE daemon has put them into the kernel, that goes on with them.
    [[nodiscard]] bool closes_at_stop() const {
        return at_stop.value_or(follows_xfrm() ? AtStop::open : AtStop::closed) == AtStop::closed;
    }
};

// Frames of each direction that may wait in a worker for an SA that is being taken over from xfrm.
inline constexpr uint32_t kHoldFrames = 256;

// One thing that is wrong, as the operator reads it: "file:line: what is wrong, what is allowed".
struct Error {
    // not_yet: the file is right, and the system may be so later (a device that is made at boot).
    enum class Kind : uint8_t { wrong, not_yet };

    std::filesystem::path file;
    uint32_t line = 0;  // 0: concerns the whole file
    std::string text;
    Kind kind = Kind::wrong;

    [[nodiscard]] std::string to_string() const;
};

// Reads and validates `file`. Either everything is valid or every error found is reported, in the
// order of lines (text that is not TOML at all ends at its first error). A file with inline keys
// must be readable by its owner only.
std::expected<Config, std::vector<Error>> load(const std::filesystem::path& file);

// The same for text already in memory; `file` is used for messages and for relative key files,
// which are read. `suites`: those that an SA may name.
std::expected<Config, std::vector<Error>> parse(
    std::string_view text, const std::filesystem::path& file,
    std::span<const crypto::Suite> suites = crypto::suites());

// What only the running system can say: missing devices, queue counts, CPUs. Empty: all is well.
std::vector<Error> check_against_system(const Config& config);

}  // namespace sallyport::config
