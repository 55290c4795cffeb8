// SPDX-License-Identifier: Apache-2.0
#include "control/startup/sysctls.h"

#include <cerrno>
#include <cstring>
#include <fstream>

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
    const std::filesystem::path file = file_of(name);
    const std::string before = get(name);
    if (before == value) return Change::none;
    if (!write_value(file, value)) {
        return std::unexpected("cannot write " + file.string() + ": " + std::strerror(errno));
    }
    saved_.push_back({file, before});
    return Change::changed;
}

Sysctls::~Sysctls() {
    // A device that is gone took its settings with it: then there is nothing to write to.
    for (auto saved = saved_.rbegin(); saved != saved_.rend(); ++saved) {
        write_value(saved->file, saved->value);
    }
}

}  // namespace sallyport::control
