// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sallyport::control {

// Log lines on stderr: "level: text". Under systemd (JOURNAL_STREAM is set) each begins with the
// journal's priority, "<4>warning: text". Control characters in the text become '?', so that a
// line stays a line whatever a file or a peer put into it.
//
// Owner: control thread.
class Log {
  public:
    Log();

    void info(std::string_view text) { write(6, "info", text); }
    void warning(std::string_view text) { write(4, "warning", text); }
    void error(std::string_view text) { write(3, "error", text); }
    // An event of RFC 4303 section 4; the line carries its own UTC time.
    void audit(std::string_view text);
    // Something an operator should know for as long as the daemon runs: fallbacks in use and why.
    // Also in `show status`.
    void note(std::string text);

    [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }

  private:
    void write(int priority, std::string_view level, std::string_view text) const;

    bool with_priority_ = false;
    std::vector<std::string> notes_;
};

}  // namespace sallyport::control
