// SPDX-License-Identifier: Apache-2.0
#pragma once

// The operator's view: what `sallyportctl show` prints, as docs/rpc.md defines it. Reads counters
// of workers, XDP programs and sockets while they run. Never contains keys. Owner: control thread.

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
    [[nodiscard]] boost::json::value status() const;
    [[nodiscard]] std::expected<boost::json::value, std::string> ports() const;
    [[nodiscard]] boost::json::value workers() const;
    [[nodiscard]] boost::json::value sas() const;
    [[nodiscard]] boost::json::value policies() const;
    [[nodiscard]] std::expected<boost::json::value, std::string> drops() const;
    [[nodiscard]] boost::json::value connections() const;

    const Appliance& appliance_;
    const Log& log_;
    std::chrono::steady_clock::time_point started_;
};

}  // namespace sallyport::control
