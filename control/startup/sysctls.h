// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expected>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace sallyport::control {

// Kernel settings (/proc/sys) that the appliance needs while it runs, put back in reverse order on
// destruction. A setting that already has the wanted value is left alone, also at the end.
//
// Some are set once and not insisted on: whoever changes such a one later has it, and it is put
// back only where it still has our value.
//
// After a kill the settings stay as they are. A note in the state directory holds the original
// values, so that the end of the next run puts them back: forwarding that was off before the first
// run must not stay on when the policy guard has gone.
//
// Owner: control thread, under the lock of the state directory from the first set() on.
class Sysctls {
  public:
    enum class Change : uint8_t { none, changed };
    enum class Insist : uint8_t { yes, no };

    explicit Sysctls(std::filesystem::path note) : note_(std::move(note)) {}
    Sysctls(const Sysctls&) = delete;
    ~Sysctls();

    // `name` with slashes: "net/ipv4/ip_forward".
    std::expected<Change, std::string> set(const std::string& name, const std::string& value,
                                           Insist insist = Insist::yes);
    struct Changed {
        std::string name;
        std::string found;
        std::string error;  // empty: it has our value again
    };
    // Writes what set() has set and insists on wherever it has another value by now, and says
    // where; a device that has gone took its settings with it.
    std::vector<Changed> mend();
    // What a killed run has changed is put back by the destructor; set() does so too.
    void take_over() { read_note(); }
    // Puts the setting back now, as the destructor would.
    void put_back(const std::string& name);
    // Empty when there is no such setting.
    static std::string get(const std::string& name);

  private:
    struct Wanted {
        std::string name;
        std::string value;
    };
    struct Original {
        std::string value;
        std::string ours;  // put back only where it has this value; empty: in any case
    };
    struct Saved {
        std::string name;
        Original original;
    };
    static void restore(const std::string& name, const Original& original);
    void read_note();
    [[nodiscard]] std::expected<void, std::string> write_note() const;

    std::filesystem::path note_;
    bool note_read_ = false;
    std::vector<Wanted> wanted_;  // in the order of set()
    std::vector<Saved> saved_;
    std::map<std::string, Original> leftover_;  // what a killed run noted, by name
};

}  // namespace sallyport::control
