// SPDX-License-Identifier: Apache-2.0
#include "control/log.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>

namespace sallyport::control {

Log::Log() : with_priority_(std::getenv("JOURNAL_STREAM") != nullptr) {}

void Log::audit(std::string_view text) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    tm utc{};
    gmtime_r(&now.tv_sec, &utc);
    char time[32];
    std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", &utc);
    write(5, "audit", std::string(text) + " time=" + time);
}

void Log::note(std::string text) {
    info(text);
    notes_.push_back(std::move(text));
}

void Log::write(int priority, std::string_view level, std::string_view text) const {
    std::string line = with_priority_ ? "<" + std::to_string(priority) + ">" : std::string();
    line.append(level).append(": ").append(text);
    std::ranges::replace_if(line, [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
    line += '\n';
    // One write, so that lines of several processes do not mix. Nothing can be done if it fails.
    (void)!::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace sallyport::control
