// SPDX-License-Identifier: Apache-2.0
#pragma once

// The way out without the kernel: finished frames go straight to the TX ring of a port.
//
// AF_XDP TX passes neither the kernel's routing nor devmap programs, so this class does what they
// do in devmap egress, from a snapshot that control mirrors from netlink (next_hops.h):
//
//   outermost destination -> next hop -> egress filter -> TTL, neighbour, MTU -> MACs -> TX ring
//                              |                              |
//                              +-- not ours, or the kernel has something to say: fallback (sp0)
//
// What goes to the fallback, unchanged: destinations on no route through a port (this host
// included), next hops the kernel must still resolve, transit packets whose TTL ends here or that
// do not fit the link (the kernel fragments them or answers with ICMP), and transit packets towards
// an unprotected port: whether those may leave in clear is for the outbound SPD to say, which the
// program on sp0 asks (bpf/forward.h, sp_refuse_in_clear). Our own outer packets that
// do not fit and must not be fragmented would only make the kernel complain to ourselves: too_big.
// The filter of a port decides before any of that, so a denied packet does not get out through
// the kernel either.
//
// Drop reasons: egress_denied, too_big, injector_full (TX ring full), malformed_ip, truncated,
// unsupported_packet; and those of the fallback, which are counted here too.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "dataplane/base/ids.h"
#include "dataplane/egress/egress.h"
#include "dataplane/egress/next_hops.h"
#include "dataplane/io/packet_memory.h"
#include "dataplane/io/port_sockets.h"

namespace sallyport::egress {

struct DirectEgressSetup {
    WorkerId worker{};
    io::PacketMemory* memory = nullptr;
    std::vector<io::PortSockets*> ports;  // by PortId; outlive the egress
    std::vector<bool> protected_side;     // by PortId; a port that is missing counts as unprotected
    std::unique_ptr<Egress> fallback;
    // Ends the sleep of another worker, whose queue's COMPLETION ring fills up.
    std::function<void(WorkerId)> wake;
};

// Without next hops (before the first set_next_hops()) everything goes to the fallback.
// Owner: one worker.
std::unique_ptr<Egress> make_direct_egress(DirectEgressSetup setup);

}  // namespace sallyport::egress
