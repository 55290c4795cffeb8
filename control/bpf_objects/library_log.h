// SPDX-License-Identifier: Apache-2.0
#pragma once

// libbpf and libxdp print to stderr by default. Here their lines are kept instead, so that an error
// can carry what the library said and nothing else disturbs the daemon's log.

#include <string>
#include <string_view>

namespace sallyport::bpf_objects {

// Takes over the output of both libraries. Any number of times.
void capture_library_log();
// Forgets what was kept.
void clear_library_log();
// Everything since the last clear, the last 64 KiB of it.
std::string_view library_log();
// The last warning since the last clear, without line end; empty when there was none.
std::string last_library_warning();
// "text: <errno text> (<last warning>)".
std::string library_error(std::string_view text, int error);

}  // namespace sallyport::bpf_objects
