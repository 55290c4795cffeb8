// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the operator sees of SAs and policies that come from xfrm: docs/rpc.md, "sa" and "policy".
// Owner: control thread.

#include <boost/json.hpp>

#include "control/sa/kernel/kernel_sas.h"

namespace sallyport::control {

// `cpus`: of the workers.
boost::json::array xfrm_sas(KernelSaControl& control, std::span<const uint16_t> cpus);
boost::json::array xfrm_policies(const KernelSaControl& control);

}  // namespace sallyport::control
