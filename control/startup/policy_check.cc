// SPDX-License-Identifier: Apache-2.0
#include "control/startup/policy_check.h"

#include "control/policy/compile.h"
#include "control/xfrm/guard.h"

namespace sallyport::control {

std::vector<config::Error> check_policies(const config::Config& config) {
    std::vector<config::Error> errors;
    const auto add = [&](const std::string& text) {
        errors.push_back({.file = config.file, .line = 0, .text = "[[policy]] " + text});
    };
    if (const auto compiled = compile_policies(config.policies); !compiled) add(compiled.error());
    const auto rows = xfrm::guard_rows(policies_without_marks(config.policies), config.sas);
    if (!rows) add(rows.error());
    return errors;
}

}  // namespace sallyport::control
