// SPDX-License-Identifier: Apache-2.0
#pragma once

// What direct egress needs to know of the kernel's FIB and neighbour tables: an immutable snapshot
// that control mirrors from netlink and publishes to workers. Devmap egress does not use it.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "bpf/abi.h"
#include "dataplane/base/drop_reason.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/prefix_table.h"

namespace sallyport {

struct NextHop {
    PortId port{};
    std::array<uint8_t, 6> source_mac{};
    std::array<uint8_t, 6> destination_mac{};
    uint16_t mtu = 1500;    // IP bytes
    bool resolved = false;  // false: the kernel must resolve the neighbour (send it through sp0)
};

// The egress filter of a port, the same rules as its devmap program has (bpf/abi.h).
struct EgressFilter {
    std::vector<sp_egress_rule> rules;
};

class NextHops {
  public:
    // Value of a route that leaves its destinations to the kernel though a shorter prefix has a
    // hop: addresses of this host, routes with features that are not mirrored.
    static constexpr uint32_t kLeaveToKernel = 0xfffffffe;

    // Values of `routes` are indexes into `hops`, or kLeaveToKernel. A destination on no route
    // through a port is left to the kernel (sent through sp0).
    NextHops(std::span<const PrefixTable::Entry> routes, std::vector<NextHop> hops,
             std::vector<EgressFilter> filters_by_port)
        : routes_(routes), hops_(std::move(hops)), filters_(std::move(filters_by_port)) {}

    // Null: not for us, leave it to the kernel.
    [[nodiscard]] const NextHop* lookup(Family family, const std::byte* destination) const {
        const uint32_t index = routes_.lookup(family, destination);
        return index < hops_.size() ? &hops_[index] : nullptr;
    }
    [[nodiscard]] const EgressFilter& filter(PortId port) const { return filters_[to_index(port)]; }

  private:
    PrefixTable routes_;
    std::vector<NextHop> hops_;
    std::vector<EgressFilter> filters_;
};

}  // namespace sallyport
