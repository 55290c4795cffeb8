// SPDX-License-Identifier: Apache-2.0
#pragma once

// The command line of sallyportctl.

#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "control/operator/request.h"
#include "ctl/tables.h"

namespace sallyport::ctl {

extern const std::string_view kUsage;

struct Arguments {
    std::string socket = "/run/sallyport/control.sock";
    std::optional<rpc::Show> show;
    bool as_json = false;
    DropRows drop_rows = DropRows::occurred;
    // Usage or version, when that was asked for: then nothing is shown.
    std::string_view only_print;
};

// `words` begin with the program's own name. Errors say what is wrong with them.
std::expected<Arguments, std::string> parse_arguments(std::span<const char* const> words);

}  // namespace sallyport::ctl
