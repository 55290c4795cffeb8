// SPDX-License-Identifier: Apache-2.0
#include "control/startup/sysctls.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "control/netlink/namespace.h"

namespace sallyport::control {

namespace {

std::filesystem::path file_of(const std::string& name) {
    return std::filesystem::path("/proc/sys") / name;
}

bool write_value(const std::filesystem::path& file, const std::string& value) {
    std::ofstream out(file);
    out << value << '\n';
    out.flush();
    return out.good();
}

}  // namespace

std::string Sysctls::get(const std::string& name) {
    std::ifstream in(file_of(name));
    std::string line;
    std::getline(in, line);
    return line;
}

std::expected<Sysctls::Change, std::string> Sysctls::set(const std::string& name,
                                                         const std::string& value) {
    read_note();
    const std::filesystem::path file = file_of(name);
    const std::string before = get(name);
    const auto noted = leftover_.find(name);
    if (before == value && noted == leftover_.end()) return Change::none;
    saved_.push_back({.name = name, .value = before == value ? noted->second : before});
    if (noted != leftover_.end()) leftover_.erase(noted);
    // The note comes first: with it, whoever finds the changed value knows the original.
    if (!write_note()) {
        return std::unexpected("cannot write " + note_.string() + ": " + std::strerror(errno));
    }
    if (before != value && !write_value(file, value)) {
        return std::unexpected("cannot write " + file.string() + ": " + std::strerror(errno));
    }
    return Change::changed;
}

void Sysctls::read_note() {
    if (std::exchange(note_read_, true)) return;
    std::ifstream in(note_);
    std::string line;
    if (!std::getline(in, line) || line != netlink::namespace_identity()) return;
    while (std::getline(in, line)) {
        const size_t space = line.find(' ');
        if (space != std::string::npos) leftover_[line.substr(0, space)] = line.substr(space + 1);
    }
}

bool Sysctls::write_note() const {
    const std::filesystem::path unfinished = note_.string() + ".new";
    std::ofstream out(unfinished);
    out << netlink::namespace_identity() << '\n';
    for (const Saved& saved : saved_) out << saved.name << ' ' << saved.value << '\n';
    for (const auto& [name, value] : leftover_) out << name << ' ' << value << '\n';
    out.close();
    std::error_code error;
    if (out.good()) std::filesystem::rename(unfinished, note_, error);
    if (error) errno = error.value();
    return out.good() && !error;
}

Sysctls::~Sysctls() {
    // A device that is gone took its settings with it: then there is nothing to write to.
    for (auto saved = saved_.rbegin(); saved != saved_.rend(); ++saved) {
        write_value(file_of(saved->name), saved->value);
    }
    std::error_code ignored;
    if (!saved_.empty()) std::filesystem::remove(note_, ignored);
}

}  // namespace sallyport::control
