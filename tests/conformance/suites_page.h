// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>

#include "dataplane/crypto/suite.h"

namespace sallyport::test {

// docs/suites.md, made from a table of suites.
std::string suites_page(std::span<const crypto::Suite> table);

}  // namespace sallyport::test
