// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which neighbours the kernel is asked to look after, and how it is asked.
//
// What XDP or a worker forwards does not use the kernel's entry of the neighbour as its own sending
// does. So an entry ages to STALE and stays there: nobody notices that the MAC has moved, and one
// that is not known yet is resolved by nobody but a packet that is left to the kernel. Both are
// asked for here, in either egress mode:
// - stale entries on the ports' links: the kernel asks the neighbour, and gives it up if it does
//   not answer (RFC 4861 7.3.3);
// - next hops that are needed and not known: the kernel resolves them.
//
// The request (NTF_USE) also changes the entry: it takes NUD_PERMANENT away, and with that the MAC,
// after which an operator's static entry is resolved like any other and can be spoofed; and it
// takes NTF_EXT_LEARNED and the extended flags (NTF_EXT_MANAGED) away, by which the kernel knows
// that another control plane looks after the entry. So only those are asked for that are purely the
// kernel's, and each is looked at again right before. What is not asked for is used while the
// kernel says it is valid.
//
// Owner: control thread.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "control/netlink/socket.h"
#include "control/route/messages.h"

namespace sallyport::route {

// Stale ones, and those of `needed` that are not usable; at most `most` (1 or more), each kind in
// its turn. `known`: all that the kernel has on the ports' links. `asked_last`: of the needed ones,
// by the call before and by this one.
std::vector<NeighbourName> to_ask(std::span<const Neighbour> known,
                                  const std::set<NeighbourName>& needed, size_t most,
                                  std::optional<NeighbourName>& asked_last);

class NeighbourSocket {
  public:
    // Of the network namespace of the calling thread.
    static std::expected<NeighbourSocket, std::string> open();

    // The kernel's entries on these links, of both families. One that changes meanwhile may be
    // missing.
    std::expected<std::vector<Neighbour>, std::string> dump(std::span<const uint32_t> ifindexes);

    // Whom the kernel's routes hand packets of this host to `destination` to.
    std::expected<std::optional<NeighbourName>, std::string> next_hop(const IpAddress& destination);

    // Makes the kernel look after these, as if it had sent to them, unless they are others' now.
    std::expected<void, std::string> ask(std::span<const NeighbourName> names);

  private:
    explicit NeighbourSocket(netlink::Socket requests) : requests_(std::move(requests)) {}

    netlink::Socket requests_;
};

}  // namespace sallyport::route
