// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "config/config.h"

namespace sallyport::control {

// What the start would refuse of the policies though each of them is right: all together they do
// not fit the lookup tables, or the xfrm policies that guard the kernel's path become too many.
// Changes nothing.
std::vector<config::Error> check_policies(const config::Config& config);

}  // namespace sallyport::control
