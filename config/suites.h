// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "config/reader.h"
#include "dataplane/crypto/suite.h"

namespace sallyport::config {

// Reads the name of a suite. What is not one of ours gets the answer it deserves: weak algorithms
// are refused with the reason, sound ones that this version lacks are called that. Null: absent or
// wrong.
const crypto::Suite* read_suite(TableReader& table, std::string_view key,
                                std::span<const crypto::Suite> suites);

std::vector<std::string_view> suite_names(std::span<const crypto::Suite> suites);

}  // namespace sallyport::config
