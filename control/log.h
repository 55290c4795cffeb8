// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace sallyport::control {

// Log lines on stderr: "level: text". Under systemd (JOURNAL_STREAM is set) each begins with the
// journal's priority, "<4>warning: text". Control characters in the text become '?', so that a
// line stays a line whatever a file or a peer put into it.
//
// Never blocks: lines that a reader who stands still does not take wait here, up to
// kWaitingLinesMax, and what comes then is lost, counted, and said when there is room again.
//
// Owner: control thread.
class Log {
  public:
    // Rather the first lines than the last: they say how it began.
    static constexpr size_t kWaitingLinesMax = 1024;
    // What a pipe takes at once or not at all (PIPE_BUF); longer lines are cut.
    static constexpr size_t kLineBytesMax = 4096;
    // For this long the end of the program waits for a reader.
    static constexpr std::chrono::milliseconds kFarewell{500};

    explicit Log(int fd = STDERR_FILENO);
    Log(const Log&) = delete;
    Log& operator=(const Log&) = delete;
    ~Log();

    void info(std::string_view text) { write(6, "info", text); }
    void warning(std::string_view text) { write(4, "warning", text); }
    void error(std::string_view text) { write(3, "error", text); }
    // An event of RFC 4303 section 4; the line carries its own UTC time.
    void audit(std::string_view text);
    // Something an operator should know for as long as the daemon runs: fallbacks in use and why.
    // Also in `show status`.
    void note(std::string text);

    // Writes what waits, as far as there is room. About once a second.
    void flush();

    [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }
    [[nodiscard]] uint64_t lines_lost() const { return lost_; }

  private:
    void write(int priority, std::string_view level, std::string_view text);
    [[nodiscard]] std::string line_of(int priority, std::string_view level,
                                      std::string_view text) const;
    [[nodiscard]] bool has_room(std::chrono::milliseconds within) const;
    void put(std::string_view line) const;

    int fd_;
    bool with_priority_ = false;
    std::deque<std::string> waiting_;
    uint64_t lost_ = 0;
    uint64_t lost_said_ = 0;
    std::vector<std::string> notes_;
};

}  // namespace sallyport::control
