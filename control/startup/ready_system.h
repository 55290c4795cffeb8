// SPDX-License-Identifier: Apache-2.0
#pragma once

// At boot the devices of ports come when they come: VLANs and bonds are made by whoever configures
// the network, at the same time as we start. Owner: control thread, before anything is touched.

#include <chrono>
#include <functional>
#include <vector>

#include "config/config.h"
#include "control/log.h"

namespace sallyport::control {

// Below TimeoutStartSec of the unit, with room for the start itself.
inline constexpr std::chrono::seconds kSystemMax{30};

// Looks again while all that is wrong may be right later, for `at_most`; what is wrong then. Empty:
// all is well. `check` asks the system.
std::vector<config::Error> wait_for_system(const std::function<std::vector<config::Error>()>& check,
                                           Log& log,
                                           std::chrono::milliseconds at_most = kSystemMax);

// Whether all of these may be right later.
bool may_heal(const std::vector<config::Error>& errors);

}  // namespace sallyport::control
