// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string_view>

#include "config/config.h"
#include "config/reader.h"

namespace sallyport::config {

// Reads the name of a suite. What is not one of ours gets the answer it deserves: weak algorithms
// are refused with the reason, sound ones that this version lacks are called that.
std::optional<Suite> read_suite(TableReader& table, std::string_view key);

}  // namespace sallyport::config
