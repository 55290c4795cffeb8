// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

namespace sallyport::control {

// Ends the process in so long if it is still there, with a word on stderr and exit status 1: as if
// it were killed, for which everything is prepared. A later call counts in place of an earlier one.
// For the whole process, by SIGALRM.
void end_at_latest_in(std::chrono::seconds time);

}  // namespace sallyport::control
