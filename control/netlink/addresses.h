// SPDX-License-Identifier: Apache-2.0
#pragma once

// The addresses of this host, of all its devices.

#include <optional>
#include <vector>

#include "dataplane/base/ip.h"

namespace sallyport::netlink {

// In the order in which the kernel lists them. nullopt: it cannot be asked right now.
std::optional<std::vector<IpAddress>> local_addresses();

}  // namespace sallyport::netlink
