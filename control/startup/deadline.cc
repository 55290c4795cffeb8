// SPDX-License-Identifier: Apache-2.0
#include "control/startup/deadline.h"

#include <unistd.h>

#include <csignal>
#include <string_view>

namespace sallyport::control {

namespace {

// Nothing may be waited for any more, so nothing is taken down.
void end_now(int /*signal*/) {
    constexpr std::string_view kWord =
        "sallyportd: the stop takes too long (a worker or the kernel does not answer): ended as it "
        "is\n";
    const auto ignored = write(STDERR_FILENO, kWord.data(), kWord.size());
    (void)ignored;
    _exit(1);
}

}  // namespace

void end_at_latest_in(std::chrono::seconds time) {
    struct sigaction action{};
    action.sa_handler = end_now;
    sigaction(SIGALRM, &action, nullptr);
    alarm(static_cast<unsigned>(time.count()));
}

}  // namespace sallyport::control
