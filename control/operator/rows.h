// SPDX-License-Identifier: Apache-2.0
#pragma once

// The answers of the control protocol, one function for each (docs/rpc.md): rows_*.cc, by subject.
// What they read is read while workers, XDP programs and sockets run. Never a key. Owner: control
// thread.

#include <boost/json.hpp>
#include <chrono>
#include <expected>
#include <string>
#include <string_view>

#include "control/appliance.h"
#include "control/log.h"

namespace sallyport::control {

using Rows = std::expected<boost::json::value, std::string>;

Rows status_object(const Appliance& appliance, const Log& log, std::chrono::seconds uptime);
Rows port_rows(const Appliance& appliance);
Rows worker_rows(const Appliance& appliance);
Rows sa_rows(const Appliance& appliance);
Rows policy_rows(const Appliance& appliance);
Rows drop_rows(const Appliance& appliance);
Rows connection_rows(const Appliance& appliance);

// ---- for the files behind them

inline boost::json::string text(std::string_view view) {
    return boost::json::string(view.data(), view.size());
}

}  // namespace sallyport::control
