// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <string>

#include "config/config.h"
#include "control/log.h"
#include "control/xfrm/interface.h"

namespace sallyport::control {

// The xfrm interface that the configuration asks for. What the kernel lacks is no reason to stop:
// then there is none, the log says why, and policies with an if_id have no SA and drop.
std::expected<std::optional<xfrm::Interface>, std::string> open_interface(
    const config::Config& config, uint32_t mtu, Log& log);

}  // namespace sallyport::control
