// SPDX-License-Identifier: Apache-2.0
#include "control/log.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>

namespace sallyport::control {

Log::Log(int fd) : fd_(fd), with_priority_(std::getenv("JOURNAL_STREAM") != nullptr) {}

Log::~Log() {
    const auto end = std::chrono::steady_clock::now() + kFarewell;
    for (flush(); !waiting_.empty(); flush()) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            end - std::chrono::steady_clock::now());
        if (left.count() <= 0 || !has_room(left)) return;
    }
}

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

std::string Log::line_of(int priority, std::string_view level, std::string_view text) const {
    std::string line = with_priority_ ? "<" + std::to_string(priority) + ">" : std::string();
    line.append(level).append(": ").append(text);
    if (line.size() >= kLineBytesMax) line.replace(kLineBytesMax - 4, std::string::npos, "...");
    std::ranges::replace_if(line, [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
    return line + '\n';
}

void Log::write(int priority, std::string_view level, std::string_view text) {
    flush();
    std::string line = line_of(priority, level, text);
    if (waiting_.empty() && has_room({})) return put(line);
    if (waiting_.size() < kWaitingLinesMax) {
        waiting_.push_back(std::move(line));
    } else {
        ++lost_;
    }
}

void Log::flush() {
    for (; !waiting_.empty() && has_room({}); waiting_.pop_front()) put(waiting_.front());
    if (waiting_.empty() && lost_ != lost_said_ && has_room({})) {
        put(line_of(4, "warning",
                    std::to_string(lost_ - lost_said_) +
                        " lines of this log are lost: its reader stood still"));
        lost_said_ = lost_;
    }
}

// For one line: a pipe is ready when it has room for PIPE_BUF bytes, a socket when it has for more.
// The descriptor may be shared, so its flags are left alone.
bool Log::has_room(std::chrono::milliseconds within) const {
    pollfd ready{.fd = fd_, .events = POLLOUT, .revents = 0};
    return poll(&ready, 1, static_cast<int>(within.count())) > 0;
}

void Log::put(std::string_view line) const {
    // One write, so that lines of several processes do not mix. Nothing can be done if it fails.
    (void)!::write(fd_, line.data(), line.size());
}

}  // namespace sallyport::control
