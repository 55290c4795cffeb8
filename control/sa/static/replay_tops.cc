// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/replay_tops.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <span>

#include "dataplane/base/unique_fd.h"

namespace sallyport::control {

namespace {

constexpr std::string_view kTopsFirstLine = "sallyport-replay-tops 1\n";
constexpr std::string_view kTopsFile = "replay_tops";
constexpr std::string_view kTopsNewFile = "replay_tops.new";
// A line has some 70 bytes, and there are as many as static SAs.
constexpr off_t kFileBytesMax = off_t{64} << 20;

std::string tops_checksum(std::string_view text) {
    return "checksum " + to_hex(sha256({std::as_bytes(std::span(text))})) + "\n";
}

template <typename T>
bool read_number(std::string_view text, int base, T& out) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out, base);
    return error == std::errc{} && end == text.data() + text.size();
}

// "sa SPI DIGEST TOP", each of a fixed width but the last.
std::optional<std::pair<ReplayTops::Name, uint64_t>> read_line(std::string_view line) {
    constexpr size_t kSpiAt = 3;
    constexpr size_t kKeyAt = kSpiAt + 8 + 1;
    constexpr size_t kTopAt = kKeyAt + 32 + 1;
    if (line.size() <= kTopAt || !line.starts_with("sa ") || line[kKeyAt - 1] != ' ' ||
        line[kTopAt - 1] != ' ') {
        return std::nullopt;
    }
    ReplayTops::Name name;
    uint32_t spi = 0;
    uint64_t top = 0;
    if (!read_number(line.substr(kSpiAt, 8), 16, spi) ||
        !read_number(line.substr(kTopAt), 10, top)) {
        return std::nullopt;
    }
    name.spi = Spi{spi};
    for (size_t i = 0; i < name.key.bytes.size(); ++i) {
        if (!read_number(line.substr(kKeyAt + 2 * i, 2), 16, name.key.bytes[i])) {
            return std::nullopt;
        }
    }
    return std::pair(name, top);
}

std::string spi_text(Spi spi) {
    std::string out(8, '0');
    for (size_t i = 0; i < out.size(); ++i) {
        out[i] = "0123456789abcdef"[to_index(spi) >> (28 - 4 * i) & 15];
    }
    return out;
}

bool write_whole(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t written = write(fd, text.data(), text.size());
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        text.remove_prefix(static_cast<size_t>(written));
    }
    return true;
}

}  // namespace

std::string encode_replay_tops(const ReplayTops::Tops& tops) {
    std::string text(kTopsFirstLine);
    for (const auto& [name, top] : tops) {
        text +=
            "sa " + spi_text(name.spi) + " " + name.key.to_hex() + " " + std::to_string(top) + "\n";
    }
    return text + tops_checksum(text);
}

std::expected<ReplayTops::Tops, std::string> decode_replay_tops(std::string_view text) {
    const auto damaged = std::unexpected("it is damaged");
    const size_t end = text.rfind("checksum ");
    if (end == std::string_view::npos || text.substr(end) != tops_checksum(text.substr(0, end))) {
        return damaged;
    }
    std::string_view rest = text.substr(0, end);
    if (!rest.starts_with(kTopsFirstLine)) return std::unexpected("it is of another version");
    rest.remove_prefix(kTopsFirstLine.size());
    ReplayTops::Tops tops;
    while (!rest.empty()) {
        const std::string_view line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(line.size() + 1, rest.size()));
        const auto found = read_line(line);
        if (!found || !tops.insert(*found).second) return damaged;
    }
    return tops;
}

std::expected<void, std::string> ReplayTops::load() {
    const std::filesystem::path path = dir_ / kTopsFile;
    file_ = File::unreadable;  // until it was read
    auto done = read(path);
    if (!done) {
        return std::unexpected(path.string() + " cannot be used, " + done.error() +
                               ": packets that were recorded earlier are accepted once more");
    }
    return {};
}

std::expected<void, std::string> ReplayTops::read(const std::filesystem::path& path) {
    // Not for a writer of a FIFO, and nothing that somebody has put in its place.
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!file && errno == ENOENT) {
        file_ = File::ours;
        return {};
    }
    struct stat status{};
    if (!file || fstat(file.get(), &status) != 0) {
        return std::unexpected(std::string("it cannot be read: ") + std::strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) return std::unexpected("it is no regular file");
    if (status.st_size > kFileBytesMax) return std::unexpected("it is too large");
    std::string text(static_cast<size_t>(status.st_size), '\0');
    for (size_t have = 0; have < text.size();) {
        const ssize_t bytes = ::read(file.get(), text.data() + have, text.size() - have);
        if (bytes < 0 && errno == EINTR) continue;
        if (bytes < 0)
            return std::unexpected(std::string("reading fails: ") + std::strerror(errno));
        if (bytes == 0) text.resize(have);
        have += static_cast<size_t>(bytes);
    }
    file_ = File::ours;
    auto tops = decode_replay_tops(text);
    if (!tops) return std::unexpected(tops.error());
    tops_ = std::move(*tops);
    return {};
}

uint64_t ReplayTops::find(const Name& name) const {
    const auto found = tops_.find(name);
    return found == tops_.end() ? 0 : found->second;
}

void ReplayTops::raise(const Name& name, uint64_t top) {
    if (top <= find(name)) return;
    tops_[name] = top;
    changed_ = true;
}

std::expected<void, std::string> ReplayTops::save(Sync sync) {
    if (file_ == File::not_asked || (!changed_ && sync == Sync::later)) return {};
    const std::filesystem::path path = dir_ / kTopsFile;
    if (file_ == File::unreadable) {
        return std::unexpected(path.string() + " is not written, because it could not be read");
    }
    const std::filesystem::path new_path = dir_ / kTopsNewFile;
    const auto failed = [&] {
        const std::string text = "cannot write " + path.string() + ": " + std::strerror(errno);
        unlink(new_path.c_str());
        return std::unexpected(text);
    };
    const UniqueFd file(
        ::open(new_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file || !write_whole(file.get(), encode_replay_tops(tops_))) return failed();
    if (sync == Sync::now && fsync(file.get()) != 0) return failed();
    if (rename(new_path.c_str(), path.c_str()) != 0) return failed();
    if (sync == Sync::now) {
        const UniqueFd directory(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (!directory || fsync(directory.get()) != 0) return failed();
    }
    changed_ = false;
    return {};
}

}  // namespace sallyport::control
