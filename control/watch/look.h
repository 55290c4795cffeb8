// SPDX-License-Identifier: Apache-2.0
#pragma once

// Looks at one device: some ioctls, so cheap that it can be done at each message about links.

#include <cstdint>

#include "control/watch/differences.h"

namespace sallyport::watch {

// `has_program` is not looked at. What cannot be read stays empty.
DeviceNow look_at(uint32_t ifindex);

}  // namespace sallyport::watch
