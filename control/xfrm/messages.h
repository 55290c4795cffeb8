// SPDX-License-Identifier: Apache-2.0
#pragma once

// NETLINK_XFRM messages: bytes <-> values, each message decoded in one place. Pure functions
// without a socket, so that they can be tested and fuzzed (control/netlink/message.h); the kernel's
// UAPI structures stay inside messages.cc. Every length is checked before it is used.

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>

#include "control/netlink/message.h"
#include "control/xfrm/values.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/crypto/suite.h"

namespace sallyport::xfrm {

using netlink::Message;
using netlink::RequestBuffer;

// ---- types of messages --------------------------------------------------------------------------

extern const uint16_t kMessageState;   // XFRM_MSG_NEWSA
extern const uint16_t kMessagePolicy;  // XFRM_MSG_NEWPOLICY
extern const uint16_t kMessageDeleteState;
extern const uint16_t kMessageUpdateState;
extern const uint16_t kMessageExpire;
extern const uint16_t kMessageFlushStates;
extern const uint16_t kMessageDeletePolicy;
extern const uint16_t kMessageUpdatePolicy;
extern const uint16_t kMessagePolicyExpire;
extern const uint16_t kMessageFlushPolicies;
extern const uint16_t kMessageAcquire;
extern const uint16_t kMessageMapping;
extern const uint16_t kMessageMigrate;
extern const uint16_t kMessageNewEvent;  // XFRM_MSG_NEWAE

// "0x0000c0de", as iproute2 writes it.
std::string to_text(Spi spi);

// ---- states that we make ------------------------------------------------------------------------

// What identifies a state to the kernel: (destination, SPI), protocol is always ESP here.
struct StateId {
    Spi spi{};
    IpAddress destination;

    friend bool operator==(const StateId&, const StateId&) = default;
};

// An ESP tunnel-mode state of a combined algorithm.
struct NewState {
    StateId id;
    IpAddress source;
    uint32_t reqid = 0;
    StateDirection direction = StateDirection::inbound;
    const crypto::Suite* suite = nullptr;
    std::span<const std::byte> key;  // key || salt; neither is needed for a larval state
    bool esn = false;
    uint32_t replay_window = 64;
    std::optional<uint32_t> pcpu;  // CPU that owns the state (RFC 9611)
};

// XFRMA_SA_DIR (Linux 6.10) and XFRMA_SA_PCPU (6.13) are unknown to older kernels.
enum class StateAttributes : uint8_t { all, direction_only, none };

// XFRM_MSG_NEWSA: a full state. An outbound one is registered with its sequence numbers used up:
// the kernel can show it but never send with it, since two senders under one key would repeat IVs.
RequestBuffer encode_new_state(const NewState& state, StateAttributes attributes,
                               uint32_t sequence);
// XFRM_MSG_ALLOCSPI: a larval state that only reserves (destination, SPI) and names the CPU.
// It needs no ESP in the kernel and expires after net.core.xfrm_acq_expires seconds. The kernel
// answers with the state; when the SPI is taken it says ENOENT and leaves a larval state with
// SPI 0 behind, so look first (encode_get_sa).
RequestBuffer encode_allocate_spi(const NewState& state, StateAttributes attributes,
                                  uint32_t sequence);
RequestBuffer encode_delete_state(const StateId& id, uint32_t sequence);

// ---- states of the register ---------------------------------------------------------------------

RequestBuffer encode_dump_states(uint32_t sequence);
// XFRM_MSG_GETSA of one state.
RequestBuffer encode_get_sa(const SaName& name, uint32_t sequence);

// XFRM_MSG_NEWAE: counters of one state as the workers have them. `state`: what the kernel said of
// it last (form and size of its replay state). A time of 0 in `usage` means the one of `state`.
// Nothing in a window below `replay.top` is accepted by the kernel afterwards: its bitmap is
// written full, because a packet that a worker has accepted must not pass again.
struct CounterUpdate {
    std::optional<Replay> replay;  // nullopt: the kernel keeps its own, whatever it is by now
    std::optional<Usage> usage;    // nullopt: the kernel goes on counting
};
RequestBuffer encode_counters(const KernelSa& state, const CounterUpdate& update,
                              uint32_t sequence);

// XFRM_MSG_UPDSA: other limits for a state that is there. Its key, counters, numbers and window
// stay as they are by now; one that was soft-expired may be so once more. Not for a state with UDP
// encapsulation. `state`: whole, with its key, without which the kernel takes no such message.
RequestBuffer encode_limits(const KernelSa& state, const Limits& limits, uint32_t sequence);

// XFRM_MSG_EXPIRE: tells the IKE daemon that a limit was reached. Hard: the kernel deletes it.
RequestBuffer encode_expire(const KernelSa& state, bool hard, uint32_t sequence);

// Payload of NEWSA, UPDSA (and the answer to GETSA).
std::expected<KernelSa, std::string> decode_kernel_sa(std::span<const std::byte> payload);
// Payload of DELSA.
struct Deletion {
    SaName name;
    // As it was when it went, with its last counters. A request has none; and a deletion is one
    // too where this part of it cannot be read.
    std::optional<KernelSa> last;
};
std::expected<Deletion, std::string> decode_deleted_sa(std::span<const std::byte> payload);

struct Expiry {
    SaName name;
    uint32_t reqid = 0;
    bool hard = false;
};
std::expected<Expiry, std::string> decode_expire(std::span<const std::byte> payload);

struct CounterEvent {
    SaName name;
    uint32_t reqid = 0;
    bool by_program = false;  // somebody wrote these counters; else the kernel used the state
    std::optional<Replay> replay;
    std::optional<Usage> usage;
};
std::expected<CounterEvent, std::string> decode_counter_event(std::span<const std::byte> payload);

// Payload of FLUSHSA: the protocol, 0 or 255 for all.
std::expected<uint8_t, std::string> decode_flush_states(std::span<const std::byte> payload);

// ---- policies -----------------------------------------------------------------------------------

// XFRM_MSG_UPDPOLICY without templates. The kernel replaces a policy with the same selector and
// direction, whatever its priority, and then keeps the old index.
RequestBuffer encode_update_policy(const PolicyRow& row, uint32_t sequence);
RequestBuffer encode_delete_policy(uint32_t index, uint32_t sequence);
RequestBuffer encode_dump_policies(uint32_t sequence);

// Payload of NEWPOLICY, UPDPOLICY. Policies of sockets: empty optional.
std::expected<std::optional<KernelPolicy>, std::string> decode_kernel_policy(
    std::span<const std::byte> payload);
// Payload of DELPOLICY: the index of the policy that has gone.
std::expected<uint32_t, std::string> decode_deleted_policy(std::span<const std::byte> payload);
struct PolicyExpiry {
    uint32_t index = 0;
    bool hard = false;
};
std::expected<PolicyExpiry, std::string> decode_policy_expire(std::span<const std::byte> payload);

// Payload of FLUSHPOLICY: true when policies of the main type go, false for the others.
std::expected<bool, std::string> decode_flush_policies(std::span<const std::byte> payload);

struct AcquireMessage {
    KernelPolicy policy;
    IpAddress source;  // of the tunnel
    IpAddress destination;
};
std::expected<AcquireMessage, std::string> decode_acquire(std::span<const std::byte> payload);

}  // namespace sallyport::xfrm
