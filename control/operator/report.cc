// SPDX-License-Identifier: Apache-2.0
#include "control/operator/report.h"

#include "control/operator/rows.h"

namespace sallyport::control {

std::expected<boost::json::value, std::string> Report::show(rpc::Show what) const {
    const auto uptime = std::chrono::steady_clock::now() - started_;
    switch (what) {
        case rpc::Show::status:
            return status_object(appliance_, log_,
                                 std::chrono::duration_cast<std::chrono::seconds>(uptime));
        case rpc::Show::ports:
            return port_rows(appliance_);
        case rpc::Show::workers:
            return worker_rows(appliance_);
        case rpc::Show::sa:
            return sa_rows(appliance_);
        case rpc::Show::policy:
            return policy_rows(appliance_);
        case rpc::Show::drops:
            return drop_rows(appliance_);
        case rpc::Show::connections:
            return connection_rows(appliance_);
    }
    return std::unexpected("unknown request");
}

}  // namespace sallyport::control
