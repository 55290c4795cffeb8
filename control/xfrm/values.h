// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the kernel's register of SAs holds, as values: a state (SA) and a policy of xfrm with
// everything that decides whether a worker may take an SA over. messages.h reads them from
// NETLINK_XFRM messages, RegisterMirror keeps them, control/adoption/decide.h decides.
//
// Owner: control thread.

#include <compare>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/base/secret_bytes.h"

namespace sallyport::xfrm {

inline constexpr uint8_t kProtocolEsp = 50;
inline constexpr uint8_t kProtocolAh = 51;
inline constexpr uint8_t kProtocolIpcomp = 108;

enum class StateDirection : uint8_t { inbound, outbound };
enum class Mode : uint8_t { transport = 0, tunnel = 1, other = 255 };

struct Mark {
    uint32_t value = 0;
    uint32_t mask = 0;
    friend auto operator<=>(const Mark&, const Mark&) = default;
};

// What tells one state from all others in the kernel's tables.
struct SaName {
    Spi spi{};
    IpAddress destination;
    uint8_t protocol = kProtocolEsp;
    Mark mark;
    friend auto operator<=>(const SaName&, const SaName&) = default;
};

inline constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// struct xfrm_lifetime_cfg. Times in seconds, 0: none.
struct Limits {
    uint64_t soft_bytes = kNoLimit;
    uint64_t hard_bytes = kNoLimit;
    uint64_t soft_packets = kNoLimit;
    uint64_t hard_packets = kNoLimit;
    uint64_t soft_add_s = 0;
    uint64_t hard_add_s = 0;
    uint64_t soft_use_s = 0;
    uint64_t hard_use_s = 0;
    friend bool operator==(const Limits&, const Limits&) = default;
};

// struct xfrm_lifetime_cur. Times are seconds since the epoch, 0: never.
struct Usage {
    uint64_t bytes = 0;
    uint64_t packets = 0;
    uint64_t add_time = 0;
    uint64_t use_time = 0;
    friend bool operator==(const Usage&, const Usage&) = default;
};

// Replay counters of a state: the last sequence number sent, and the top of the window.
struct Replay {
    bool esn_form = false;      // the kernel keeps XFRMA_REPLAY_ESN_VAL (also without ESN)
    uint32_t bitmap_words = 0;  // of that form; 0 is legal for outbound states
    uint32_t window = 0;        // packets
    uint64_t sent = 0;          // oseq: the next packet gets sent + 1
    uint64_t top = 0;           // seq: highest that was authenticated
    friend bool operator==(const Replay&, const Replay&) = default;
};

// One state. Move-only, because it holds the key.
struct KernelSa {
    SaName name;
    IpAddress source;
    uint32_t reqid = 0;
    Family family = Family::v4;  // of the outer addresses
    Mode mode = Mode::tunnel;
    bool esn = false;
    bool larval = false;       // reserved by ALLOCSPI, no keys yet
    uint8_t flags = 0;         // XFRM_STATE_* as in xfrm_usersa_info
    uint32_t extra_flags = 0;  // XFRMA_SA_EXTRA_FLAGS
    std::string algorithm;     // kernel's name of the AEAD, or of cipher and integrity "a + b"
    bool aead = false;         // key below is that of an AEAD
    uint32_t icv_bits = 0;
    SecretBytes key;            // key || salt, as the kernel has it; empty unless `aead`
    bool keys_hidden = false;   // the kernel shows zeros instead (lockdown); `key` is empty
    bool encapsulated = false;  // in UDP (NAT-T) or TCP
    bool offloaded = false;
    bool has_security_context = false;
    bool has_care_of_address = false;
    uint32_t if_id = 0;
    Mark output_mark;  // XFRMA_SET_MARK
    uint32_t tfc_pad = 0;
    bool has_selector = false;  // the state itself limits its traffic (BEET, transport)
    std::optional<StateDirection> direction;  // XFRMA_SA_DIR
    std::optional<uint32_t> pcpu;
    Limits limits;
    Usage usage;
    uint64_t last_used = 0;  // seconds since the epoch, 0: not known
    Replay replay;
    uint64_t arrival = 0;  // set by RegisterMirror: a later state has a greater number
};

// ---- policies ----------------------------------------------------------------------------------

enum class PolicyDirection : uint8_t { in = 0, out = 1, forward = 2 };
enum class PolicyAction : uint8_t { allow = 0, block = 1 };

// A selector as xfrm has it: ports match where (port & mask) == (value & mask).
struct PolicySelector {
    IpPrefix source;
    IpPrefix destination;  // same family as source
    uint8_t protocol = 0;  // 0: any
    uint16_t source_port = 0;
    uint16_t source_port_mask = 0;
    uint16_t destination_port = 0;
    uint16_t destination_port_mask = 0;
    uint32_t ifindex = 0;  // of the device that the route leads to; 0: any
    // No packet is compared with it, but the kernel takes policies for different ones by it.
    uint32_t user = 0;

    friend bool operator==(const PolicySelector&, const PolicySelector&) = default;
};

struct PolicyRow {
    PolicySelector selector;
    PolicyDirection direction = PolicyDirection::out;
    PolicyAction action = PolicyAction::block;
    uint32_t priority = 0;  // lower decides first
    uint32_t index = 0;     // its low three bits are the direction
    // XFRM_POLICY_ICMP: also for ICMP errors about packets of the other direction, whatever address
    // they come from. Without it the kernel looks only at the error's own addresses.
    bool icmp_errors = false;

    friend bool operator==(const PolicyRow&, const PolicyRow&) = default;
};

struct Template {
    IpAddress source;  // of the tunnel
    IpAddress destination;
    Spi spi{};  // 0: any
    uint8_t protocol = kProtocolEsp;
    Mode mode = Mode::tunnel;
    uint32_t reqid = 0;
    bool optional = false;
    friend bool operator==(const Template&, const Template&) = default;
};

// One policy that is not bound to a socket.
struct KernelPolicy {
    PolicyRow row;          // selector, direction, action, priority, index
    bool main_type = true;  // false: XFRM_POLICY_TYPE_SUB
    uint32_t if_id = 0;
    Mark mark;
    uint32_t selector_ifindex = 0;  // traffic of that device only
    bool offloaded = false;
    bool has_security_context = false;
    std::vector<Template> templates;  // none: the action alone decides
    friend bool operator==(const KernelPolicy&, const KernelPolicy&) = default;
};

}  // namespace sallyport::xfrm
