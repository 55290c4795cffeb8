// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expected>
#include <string>
#include <string_view>

#include "config/config.h"

namespace sallyport::control {

// `sallyportd --accept-key NAME[=SEQUENCE]`: the operator's word for the key of the outbound SA
// NAME (control/sa/static/sequence_store.h). Returns what was done, or why not. The daemon must not
// run.
std::expected<std::string, std::string> accept_key(const config::Config& config,
                                                   std::string_view argument);

}  // namespace sallyport::control
