// SPDX-License-Identifier: Apache-2.0
#include "control/startup/sysctls.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "control/host/note.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::control {

namespace {

std::filesystem::path file_of(const std::string& name) {
    return std::filesystem::path("/proc/sys") / name;
}

// 0, or errno.
int write_value(const std::filesystem::path& file, const std::string& value) {
    const UniqueFd out(open(file.c_str(), O_WRONLY | O_CLOEXEC));
    if (!out) return errno;
    const std::string line = value + '\n';
    return write(out.get(), line.data(), line.size()) < 0 ? errno : 0;
}

}  // namespace

std::string Sysctls::get(const std::string& name) {
    std::ifstream in(file_of(name));
    std::string line;
    std::getline(in, line);
    return line;
}

std::expected<Sysctls::Change, std::string> Sysctls::set(const std::string& name,
                                                         const std::string& value, Insist insist) {
    read_note();
    const std::filesystem::path file = file_of(name);
    const std::string before = get(name);
    std::erase_if(wanted_, [&](const Wanted& wanted) { return wanted.name == name; });
    if (insist == Insist::yes) wanted_.push_back({.name = name, .value = value});
    const auto noted = leftover_.find(name);
    if (before == value && noted == leftover_.end()) return Change::none;
    saved_.push_back({.name = name,
                      .original = {.value = before == value ? noted->second.value : before,
                                   .ours = insist == Insist::yes ? "" : value}});
    if (noted != leftover_.end()) leftover_.erase(noted);
    // The note comes first: with it, whoever finds the changed value knows the original.
    if (auto written = write_note(); !written) return std::unexpected(written.error());
    if (before == value) return Change::changed;
    if (const int error = write_value(file, value); error != 0) {
        return std::unexpected("cannot write " + file.string() + ": " + std::strerror(error));
    }
    return Change::changed;
}

std::vector<Sysctls::Changed> Sysctls::mend() {
    std::vector<Changed> changed;
    for (const Wanted& wanted : wanted_) {
        std::string now = get(wanted.name);
        if (now.empty() || now == wanted.value) continue;
        const int error = write_value(file_of(wanted.name), wanted.value);
        changed.push_back({.name = wanted.name,
                           .found = std::move(now),
                           .error = error == 0 ? "" : std::strerror(error)});
        // Not each that the kernel takes is kept.
        if (error == 0 && get(wanted.name) != wanted.value) {
            changed.back().error = "the kernel does not keep it";
        }
    }
    return changed;
}

void Sysctls::restore(const std::string& name, const Original& original) {
    if (!original.ours.empty() && get(name) != original.ours) return;
    write_value(file_of(name), original.value);
}

void Sysctls::put_back(const std::string& name) {
    std::erase_if(wanted_, [&](const Wanted& wanted) { return wanted.name == name; });
    std::erase_if(saved_, [&](const Saved& saved) {
        if (saved.name != name) return false;
        restore(name, saved.original);
        return true;
    });
    if (const auto noted = leftover_.find(name); noted != leftover_.end()) {
        restore(name, noted->second);
        leftover_.erase(noted);
    }
    // What was put back is not put back again after a kill: somebody may have changed it since.
    if (note_read_) (void)write_note();
}

void Sysctls::read_note() {
    if (std::exchange(note_read_, true)) return;
    // Name, original, and our value where it counts: neither has a space (a list has tabs).
    for (const std::string& line : host::read_note(note_)) {
        const size_t space = line.find(' ');
        if (space == std::string::npos) continue;
        const size_t second = line.find(' ', space + 1);
        Original original{.value = line.substr(space + 1, second - space - 1), .ours = {}};
        if (second != std::string::npos) original.ours = line.substr(second + 1);
        leftover_[line.substr(0, space)] = std::move(original);
    }
}

std::expected<void, std::string> Sysctls::write_note() const {
    std::vector<std::string> lines;
    const auto add = [&lines](std::string line, const Original& original) {
        line += ' ';
        line += original.value;
        if (!original.ours.empty()) {
            line += ' ';
            line += original.ours;
        }
        lines.push_back(std::move(line));
    };
    for (const Saved& saved : saved_) add(saved.name, saved.original);
    for (const auto& [name, original] : leftover_) add(name, original);
    return host::write_note(note_, lines);
}

Sysctls::~Sysctls() {
    // A device that is gone took its settings with it: then there is nothing to write to.
    for (auto saved = saved_.rbegin(); saved != saved_.rend(); ++saved) {
        restore(saved->name, saved->original);
    }
    // What a killed run had changed and this one had no use for.
    for (const auto& [name, original] : leftover_) restore(name, original);
    if (note_read_) host::remove_note(note_);
}

}  // namespace sallyport::control
