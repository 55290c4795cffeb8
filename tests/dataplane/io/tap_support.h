// SPDX-License-Identifier: Apache-2.0
#pragma once

// The TAP as the gateway has it: made by dataplane/io, set up by control/netlink.

#include <cstdint>
#include <expected>
#include <string>

#include "control/netlink/link.h"
#include "dataplane/io/tap.h"

namespace sallyport::test {

inline std::expected<io::Tap, std::string> make_tap(uint16_t queues, uint32_t mtu = 1500) {
    auto tap = io::Tap::create("sp0", queues, netlink::move_link);
    if (!tap) return tap;
    const auto up = netlink::set_up_tap("sp0", tap->ifindex(), io::Tap::kMac, mtu);
    if (!up) return std::unexpected(up.error());
    return tap;
}

}  // namespace sallyport::test
