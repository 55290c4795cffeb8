// SPDX-License-Identifier: Apache-2.0
#pragma once

// NETLINK_XFRM messages: bytes <-> values. Pure functions without a socket, so that they can be
// tested and fuzzed; the kernel's UAPI structures stay inside messages.cc.
//
// A message is a nlmsghdr, a fixed structure and attributes, all in host byte order except
// addresses, SPIs and ports (network order). Every length is checked before it is used: what the
// kernel sends is trusted no more than what comes from a wire.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>

#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"
#include "dataplane/base/secret_bytes.h"

namespace sallyport::xfrm {

// One request. Its capacity is fixed and it is wiped when it goes, because a state carries its key.
class RequestBuffer {
  public:
    static constexpr size_t kCapacity = 2048;

    RequestBuffer() = default;
    RequestBuffer(RequestBuffer&& other) noexcept : bytes_(other.bytes_), size_(other.size_) {
        other.clear();
    }
    RequestBuffer& operator=(RequestBuffer&&) = delete;
    RequestBuffer(const RequestBuffer&) = delete;
    ~RequestBuffer() { clear(); }

    [[nodiscard]] std::span<const std::byte> bytes() const { return {bytes_.data(), size_}; }
    [[nodiscard]] size_t size() const { return size_; }
    // Appends `count` zero bytes; the caller fills them. Our messages are all far below kCapacity.
    std::byte* extend(size_t count);
    std::byte* data() { return bytes_.data(); }
    void clear() {
        wipe(bytes_.data(), bytes_.size());
        size_ = 0;
    }

  private:
    std::array<std::byte, kCapacity> bytes_{};
    size_t size_ = 0;
};

// "0x0000c0de", as iproute2 writes it.
std::string to_text(Spi spi);

// ---- states ----------------------------------------------------------------------------------

enum class StateDirection : uint8_t { inbound, outbound };

// What identifies a state to the kernel: (destination, SPI), protocol is always ESP here.
struct StateId {
    Spi spi{};
    IpAddress destination;

    friend bool operator==(const StateId&, const StateId&) = default;
};

// An ESP tunnel-mode state with RFC 4106 AES-GCM and a 16-byte ICV.
struct NewState {
    StateId id;
    IpAddress source;
    uint32_t reqid = 0;
    StateDirection direction = StateDirection::inbound;
    std::span<const std::byte> key;  // key || salt; not needed for a larval state
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
// SPI 0 behind, so look first (encode_get_state).
RequestBuffer encode_allocate_spi(const NewState& state, StateAttributes attributes,
                                  uint32_t sequence);
RequestBuffer encode_get_state(const StateId& id, uint32_t sequence);
RequestBuffer encode_delete_state(const StateId& id, uint32_t sequence);
RequestBuffer encode_dump_states(uint32_t sequence);

struct StateInfo {
    StateId id;
    IpAddress source;
    uint8_t protocol = 0;
    uint32_t reqid = 0;
    std::optional<uint32_t> pcpu;
    std::optional<uint8_t> direction;  // 1 in, 2 out
};

// Payload of XFRM_MSG_NEWSA. Nothing of its key attributes is kept.
std::expected<StateInfo, std::string> decode_state(std::span<const std::byte> payload);

// ---- policies --------------------------------------------------------------------------------

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

// XFRM_MSG_UPDPOLICY without templates. The kernel replaces a policy with the same selector and
// direction, whatever its priority, and then keeps the old index.
RequestBuffer encode_update_policy(const PolicyRow& row, uint32_t sequence);
RequestBuffer encode_delete_policy(uint32_t index, uint32_t sequence);
RequestBuffer encode_dump_policies(uint32_t sequence);

struct PolicyInfo {
    PolicyRow row;
    bool per_socket = false;  // belongs to a socket: row holds only the index
};

// Payload of XFRM_MSG_NEWPOLICY.
std::expected<PolicyInfo, std::string> decode_policy(std::span<const std::byte> payload);

// ---- answers ---------------------------------------------------------------------------------

struct Message {
    uint16_t type = 0;
    uint16_t flags = 0;
    uint32_t sequence = 0;
    uint32_t port = 0;  // of a notification: what the request that caused it had here; else 0
    std::span<const std::byte> payload;
};

inline constexpr uint16_t kMessageError = 2;  // NLMSG_ERROR
inline constexpr uint16_t kMessageDone = 3;   // NLMSG_DONE
extern const uint16_t kMessageState;          // XFRM_MSG_NEWSA
extern const uint16_t kMessagePolicy;         // XFRM_MSG_NEWPOLICY

// Takes the first message off `rest`. Nothing left: empty optional.
std::expected<std::optional<Message>, std::string> next_message(std::span<const std::byte>& rest);

// Writes `port` into the header of a request. The kernel does not look at it, but quotes it in the
// notifications that the request causes.
void sign_request(RequestBuffer& request, uint32_t port);
// Payload of NLMSG_DONE: 0, or the positive errno that ended the dump early.
int decode_dump_end(std::span<const std::byte> payload);

// Payload of NLMSG_ERROR. number 0 is an acknowledgement; otherwise a positive errno, and `text`
// what the kernel said about it, if anything.
struct Acknowledgement {
    int number = 0;
    std::string text;
};
std::expected<Acknowledgement, std::string> decode_acknowledgement(const Message& message);

}  // namespace sallyport::xfrm
