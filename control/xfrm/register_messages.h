// SPDX-License-Identifier: Apache-2.0
#pragma once

// NETLINK_XFRM messages about the register of SAs: bytes <-> values, beside messages.h, which has
// what the gateway writes for static SAs. Pure functions; every length is checked.

#include <cstdint>
#include <expected>
#include <span>
#include <string>

#include "control/xfrm/values.h"

namespace sallyport::xfrm {

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

// Payload of NEWSA, UPDSA (and the answer to GETSA).
std::expected<KernelSa, std::string> decode_kernel_sa(std::span<const std::byte> payload);
// Payload of DELSA (xfrm_usersa_id with the state as attribute, or the state itself).
std::expected<SaName, std::string> decode_deleted_sa(std::span<const std::byte> payload);

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

// ---- requests --------------------------------------------------------------------------------

// XFRM_MSG_GETSA of one state.
RequestBuffer encode_get_sa(const SaName& name, uint32_t sequence);

// XFRM_MSG_NEWAE: counters of one state as the workers have them. `state`: what the kernel said of
// it last (form and size of its replay state). A time of 0 in `usage` means the one of `state`.
// Nothing in a window below `replay.top` is accepted by the kernel afterwards: its bitmap is
// written full, because a packet that a worker has accepted must not pass again.
struct CounterUpdate {
    std::optional<Replay> replay;  // nullopt: the kernel keeps its own, whatever it is by now
    Usage usage;
};
RequestBuffer encode_counters(const KernelSa& state, const CounterUpdate& update,
                              uint32_t sequence);

// XFRM_MSG_EXPIRE: tells the IKE daemon that a limit was reached. Hard: the kernel deletes it.
RequestBuffer encode_expire(const KernelSa& state, bool hard, uint32_t sequence);

}  // namespace sallyport::xfrm
