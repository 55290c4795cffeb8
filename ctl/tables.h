// SPDX-License-Identifier: Apache-2.0
#pragma once

// The daemon's answers as people read them. Pure functions: JSON in, text out.

#include <boost/json/value.hpp>
#include <string>

#include "control/operator/request.h"

namespace sallyport::ctl {

enum class DropRows : uint8_t { occurred, all };

// Members that are missing (an older or newer daemon) show as "-".
std::string format_table(rpc::Show show, const boost::json::value& result, DropRows drop_rows);

// The result as it is, indented.
std::string format_json(const boost::json::value& result);

// 1536 -> "1.5 KiB".
std::string format_bytes(uint64_t bytes);

}  // namespace sallyport::ctl
