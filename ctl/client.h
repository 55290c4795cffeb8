// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/json/value.hpp>
#include <expected>
#include <filesystem>
#include <string>

#include "control/operator/request.h"

namespace sallyport::ctl {

// Asks the daemon at `socket` and waits at most five seconds. Errors say what to do.
std::expected<boost::json::value, std::string> ask(const std::filesystem::path& socket,
                                                   const rpc::Request& request);

}  // namespace sallyport::ctl
