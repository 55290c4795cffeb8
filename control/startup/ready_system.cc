// SPDX-License-Identifier: Apache-2.0
#include "control/startup/ready_system.h"

#include <algorithm>
#include <thread>

namespace sallyport::control {

namespace {

constexpr std::chrono::milliseconds kLookAgain{100};

}  // namespace

bool may_heal(const std::vector<config::Error>& errors) {
    return !errors.empty() && std::ranges::all_of(errors, [](const config::Error& error) {
        return error.kind == config::Error::Kind::not_yet;
    });
}

std::vector<config::Error> wait_for_system(const std::function<std::vector<config::Error>()>& check,
                                           Log& log, std::chrono::milliseconds at_most) {
    const auto end = std::chrono::steady_clock::now() + at_most;
    auto errors = check();
    if (!may_heal(errors)) return errors;
    for (const config::Error& error : errors) {
        log.info("waiting up to " +
                 std::to_string(std::chrono::ceil<std::chrono::seconds>(at_most).count()) +
                 " s: " + error.to_string());
    }
    while (may_heal(errors) && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(kLookAgain);
        errors = check();
    }
    return errors;
}

}  // namespace sallyport::control
