// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace sallyport::control {

// Tells systemd (sd_notify protocol) how the service is, such as "READY=1". Does nothing when
// NOTIFY_SOCKET is not set.
void tell_service_manager(std::string_view state);

}  // namespace sallyport::control
