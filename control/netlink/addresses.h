// SPDX-License-Identifier: Apache-2.0
#pragma once

// The addresses of this host, of all its devices.

#include <expected>
#include <optional>
#include <string>
#include <vector>

#include "control/netlink/message.h"
#include "dataplane/base/ip.h"

namespace sallyport::netlink {

// In the order in which the kernel lists them. nullopt: it cannot be asked right now.
std::optional<std::vector<IpAddress>> local_addresses();

// Those and the broadcast addresses of their IPv4 networks, each once and sorted. getifaddrs(),
// which tells a broadcast address and the far end's by the same field, does not do for these.
std::expected<std::vector<IpAddress>, std::string> local_and_broadcast_addresses();

// Payload of RTM_NEWADDR: the address of this host and the broadcast addresses that the kernel has
// for it; none when it is not IP.
std::expected<std::vector<IpAddress>, std::string> decode_addresses(Bytes payload);

}  // namespace sallyport::netlink
