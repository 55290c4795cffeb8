// SPDX-License-Identifier: Apache-2.0
#pragma once

// Our static SAs in the kernel's xfrm, which is the register of SAs: the XDP program finds the
// owner of an ESP packet there (bpf_xdp_get_xfrm_state, pcpu_num), and `ip xfrm state` shows what
// the appliance holds.
//
// Two ways, found out with the first SA:
//   full    XFRM_MSG_NEWSA, where the kernel has ESP and the cipher. Inbound states are complete;
//           outbound ones are registered with their sequence numbers used up, for show only.
//   larval  XFRM_MSG_ALLOCSPI, where it has not (NEWSA: EPROTONOSUPPORT without ESP, ENOSYS or
//           ENOENT without the cipher). Only inbound SAs; they need no key.
//
// ALLOCSPI takes an SPI once in a network namespace since Linux 6.17 and its stable back-ports,
// whatever the destinations, and leaves a state without SPI behind where it refuses, which nothing
// can remove. So it is asked only for an SPI that no state of ESP has; other SAs are not
// registered, and XDP finds them in the owner map alone. NEWSA takes an SPI once for each
// destination.
//
// A larval state lives net.core.xfrm_acq_expires seconds, counted from its creation with the value
// of that moment. The value is therefore raised only while states are being made and put back at
// once: acquires of an IKE daemon in the same namespace keep their usual short life. Should the
// daemon be killed in that instant, a note in the state directory holds the original value.
//
// Our states carry a reqid of the range 0x53500000 .. 0x5350ffff. States of that range left by a
// killed run are removed at start. Only the holder of the NamespaceLock may do that, so that a
// second daemon cannot remove the first one's states.
//
// Owner: control.

#include <cstdint>
#include <expected>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "control/host/lock.h"
#include "control/netlink/socket.h"
#include "control/xfrm/messages.h"

namespace sallyport::xfrm {

// One daemon per network namespace. Taken before anything in xfrm is touched.
class NamespaceLock {
  public:
    static std::expected<NamespaceLock, std::string> acquire();

  private:
    explicit NamespaceLock(host::Lock lock) : lock_(std::move(lock)) {}
    host::Lock lock_;
};

// Raises net.core.xfrm_acq_expires for as long as the object lives.
class RaisedAcquireExpiry {
  public:
    // `note`: file that keeps the original value meanwhile.
    static std::expected<RaisedAcquireExpiry, std::string> raise(std::filesystem::path note);
    // Puts the value back that a killed run left raised, if its note says so.
    static void recover(const std::filesystem::path& note);
    RaisedAcquireExpiry(RaisedAcquireExpiry&& other) noexcept;
    RaisedAcquireExpiry& operator=(RaisedAcquireExpiry&&) = delete;
    ~RaisedAcquireExpiry();

  private:
    RaisedAcquireExpiry(std::filesystem::path note, std::string original)
        : note_(std::move(note)), original_(std::move(original)) {}
    std::filesystem::path note_;
    std::string original_;
};

class SaRegistry {
  public:
    enum class Method : uint8_t { undecided, full, larval };

    // Removes what a killed run left. The caller holds the NamespaceLock.
    static std::expected<SaRegistry, std::string> open(const std::filesystem::path& state_dir);
    SaRegistry(SaRegistry&&) = default;
    SaRegistry& operator=(SaRegistry&&) = delete;
    ~SaRegistry();  // removes all states

    // beside_another: its SPI is another SA's too, and kernels without ESP may take one once only.
    // Nobody but us knows the SA.
    enum class Registered : uint8_t { in_xfrm, nothing_to_do, beside_another };
    // Registers SAs; one result for each. `reqid` is chosen here. For an outbound SA on a kernel
    // without ESP there is nothing to do.
    std::vector<std::expected<Registered, std::string>> add(std::span<NewState> states);
    void remove(const StateId& id);

    [[nodiscard]] Method method() const { return method_; }
    // Why it is that method, for the log and `show status`.
    [[nodiscard]] const std::string& reason() const { return reason_; }

  private:
    SaRegistry(netlink::Socket socket, std::filesystem::path note)
        : socket_(std::move(socket)), note_(std::move(note)) {}

    std::expected<void, std::string> remove_stale();
    std::expected<void, std::string> refuse_foreign(const StateId& id);
    std::expected<void, std::string> learn_spis();
    std::expected<Registered, std::string> add_one(const NewState& state);
    std::expected<void, netlink::Error> try_full(const NewState& state);
    std::expected<void, netlink::Error> try_larval(const NewState& state);
    std::expected<void, netlink::Error> delete_state(const StateId& id);

    netlink::Socket socket_;
    std::filesystem::path note_;
    Method method_ = Method::undecided;
    std::string reason_ = "no SA was registered yet";
    StateAttributes attributes_ = StateAttributes::all;
    std::optional<RaisedAcquireExpiry> raised_;
    uint32_t reqids_used_ = 0;
    std::vector<StateId> registered_;
    // Of all states of ESP, ours and others': larval only, from the first SA on.
    std::optional<std::set<Spi>> spis_;
};

}  // namespace sallyport::xfrm
