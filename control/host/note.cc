// SPDX-License-Identifier: Apache-2.0
#include "control/host/note.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <system_error>

#include "control/host/identity.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::host {

namespace {

// Some lines of a name and a number each.
constexpr size_t kNoteBytesMax = size_t{1} << 16;

std::string text_of(int fd) {
    std::string text;
    std::array<char, 4096> piece{};
    while (text.size() < kNoteBytesMax) {
        const ssize_t got = read(fd, piece.data(), piece.size());
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        text.append(piece.data(), static_cast<size_t>(got));
    }
    return text;
}

}  // namespace

std::vector<std::string> read_note(const std::filesystem::path& note) {
    const UniqueFd file(open(note.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    struct stat status{};
    if (!file || fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) return {};
    std::istringstream in(text_of(file.get()));
    std::string line;
    if (!std::getline(in, line) || line != namespace_identity()) return {};
    std::vector<std::string> lines;
    while (std::getline(in, line)) lines.push_back(line);
    return lines;
}

std::expected<void, std::string> write_note(const std::filesystem::path& note,
                                            std::span<const std::string> lines) {
    const std::filesystem::path unfinished = note.string() + ".new";
    const auto failed = [&] {
        const std::string why = std::strerror(errno);
        unlink(unfinished.c_str());
        return std::unexpected("cannot write " + note.string() + ": " + why);
    };
    std::string text = namespace_identity() + "\n";
    for (const std::string& line : lines) text += line + "\n";
    unlink(unfinished.c_str());
    const UniqueFd file(open(unfinished.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file) return failed();
    if (write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
        return failed();
    }
    if (rename(unfinished.c_str(), note.c_str()) != 0) return failed();
    return {};
}

void remove_note(const std::filesystem::path& note) {
    std::error_code ignored;
    std::filesystem::remove(note, ignored);
}

}  // namespace sallyport::host
