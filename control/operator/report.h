// SPDX-License-Identifier: Apache-2.0
#pragma once

// The operator's view: answers what `sallyportctl show` asks, as docs/rpc.md defines it. The rows
// are made in rows_*.cc. Owner: control thread.

#include <boost/json/value.hpp>
#include <chrono>
#include <expected>
#include <string>

#include "control/appliance.h"
#include "control/log.h"
#include "control/operator/request.h"

namespace sallyport::control {

class Report {
  public:
    Report(const Appliance& appliance, const Log& log)
        : appliance_(appliance), log_(log), started_(std::chrono::steady_clock::now()) {}

    [[nodiscard]] std::expected<boost::json::value, std::string> show(rpc::Show what) const;

  private:
    const Appliance& appliance_;
    const Log& log_;
    std::chrono::steady_clock::time_point started_;
};

}  // namespace sallyport::control
