// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the operator sees of SAs, and of policies that come from xfrm: docs/rpc.md, "sa" and
// "policy". Owner: control thread.

#include <boost/json.hpp>
#include <cstdint>
#include <span>

#include "control/sa/source.h"

namespace sallyport::control {

// `cpus`: of the workers.
boost::json::array sa_rows(std::span<const SaRow> rows, std::span<const uint16_t> cpus);
boost::json::array policy_rows(std::span<const PolicyRow> rows);

}  // namespace sallyport::control
