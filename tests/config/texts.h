// SPDX-License-Identifier: Apache-2.0
#pragma once

// What tests of the configuration file read in files and in messages.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace sallyport::config {

inline std::string all_text(const std::vector<Error>& errors) {
    std::string text;
    for (const Error& error : errors) text += error.to_string() + "\n";
    return text;
}

// The line that carries "#!"; 0 when none does.
inline uint32_t marked_line(std::string_view text) {
    const size_t at = text.find("#!");
    if (at == std::string_view::npos) return 0;
    return static_cast<uint32_t>(std::ranges::count(text.substr(0, at), '\n') + 1);
}

}  // namespace sallyport::config
