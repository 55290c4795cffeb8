// SPDX-License-Identifier: Apache-2.0
#pragma once

// Closes ports to what the kernel would forward: a routing rule before all others but the local
// table's,
//
//   1: from all iif lan0 blackhole proto 83
//
// drops what comes in by the device of a port and is not for this host. It stands while no steering
// program of ours is on the device, so that the kernel forwards nothing there that the SPD did not
// see: at a start until all programs are attached, at a stop before they go, and whenever one was
// lost. What is for the host itself (IKE, SSH, ESP of the kernel's SAs) comes in as ever, and what
// workers write to sp0 does not come in by a port.
//
// A rule names the device, so it also holds for one that is made again under its name, and it
// outlives the process. Rules left by an earlier run are kept: the port stays closed until open().
//
// Owner: control thread. Errors: sentences for the operator.

#include <cstdint>
#include <expected>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "control/netlink/message.h"
#include "control/netlink/socket.h"
#include "dataplane/base/ip.h"

namespace sallyport::watch {

inline constexpr uint32_t kGatePriority = 1;

// One rule. Pure functions.
netlink::RequestBuffer encode_close(Family family, const std::string& device, uint32_t sequence);
netlink::RequestBuffer encode_open(Family family, const std::string& device, uint32_t sequence);
// Payload of RTM_NEWRULE and RTM_DELRULE: the device that it closes; nullopt: no rule of ours.
std::expected<std::optional<std::string>, std::string> decode_closed(netlink::Bytes payload);

class Gate {
  public:
    static std::expected<Gate, std::string> make();
    Gate(Gate&& other) noexcept = default;
    Gate& operator=(Gate&&) = delete;
    ~Gate();  // opens all, or keeps them

    // Both may be called again; what is so already is no error.
    std::expected<void, std::string> close(const std::string& device);
    std::expected<void, std::string> open(const std::string& device);
    // Rules of ours for devices of any name, also of earlier runs, but for those named.
    std::expected<void, std::string> open_all(const std::set<std::string>& but = {});
    // Read from the kernel: a device is closed when it is so for each family that the kernel has.
    [[nodiscard]] std::expected<std::set<std::string>, std::string> closed();

    enum class AtEnd : uint8_t { open, keep };
    void at_end(AtEnd what) { at_end_ = what; }

  private:
    explicit Gate(netlink::Socket socket) : socket_(std::move(socket)) {}
    std::expected<std::set<std::string>, std::string> closed_of(Family family);

    std::optional<netlink::Socket> socket_;
    std::vector<Family> families_;  // that have routing rules
    AtEnd at_end_ = AtEnd::keep;
};

}  // namespace sallyport::watch
