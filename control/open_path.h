// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expected>
#include <string>

#include "config/config.h"
#include "control/log.h"

namespace sallyport::control {

// Takes away what a stop, a kill or a failed start has left in this host, in the order of a stop:
//
//   settings   back to what they were before the first run, forwarding among them
//   programs   of ours, on all devices; the xfrm interface that we made
//   routes     of the host's own packets, with their rules
//   states     that were announced in xfrm
//   guard      policies that block, and the rules that close ports: last, since from here on the
//              kernel path is open
//
// Refused while a sallyportd runs in this network namespace or has the state directory. Where a
// step fails those behind it are not done: what blocks stays. It can be called again. Returns and
// errors: sentences for the operator.
std::expected<std::string, std::string> open_kernel_path(const config::Config& config, Log& log);

}  // namespace sallyport::control
