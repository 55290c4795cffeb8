// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expected>
#include <string>

namespace sallyport::watch {

// Removes what blocks the kernel path after a stop, a kill or a failed start: the policies of the
// guard and the rules of the gate. Refused while a sallyportd runs in this network namespace.
// Returns and errors: sentences for the operator.
std::expected<std::string, std::string> open_kernel_path();

}  // namespace sallyport::watch
