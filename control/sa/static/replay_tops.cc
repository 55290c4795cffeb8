// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/replay_tops.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "control/sa/static/state_file.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::control {

namespace {

constexpr std::string_view kTopsFirstLine = "sallyport-replay-tops 1\n";
constexpr std::string_view kTopsFile = "replay_tops";
constexpr std::string_view kTopsNewFile = "replay_tops.new";
// A line has some 70 bytes, and there are as many as static SAs.
constexpr size_t kFileBytesMax = size_t{64} << 20;

// "sa SPI DIGEST TOP"
std::optional<std::pair<ReplayTops::Name, uint64_t>> read_line(std::string_view line) {
    if (next_word(line) != "sa") return std::nullopt;
    const std::string_view spi = next_word(line);
    const auto number = parse_number<uint32_t>(spi, 16);
    const auto key = digest_from_hex(next_word(line));
    const auto top = parse_number<uint64_t>(line);
    if (spi.size() != 8 || !number || !key || !top) return std::nullopt;
    return std::pair(ReplayTops::Name{.spi = Spi{*number}, .key = *key}, *top);
}

std::string spi_text(Spi spi) {
    std::string out(8, '0');
    for (size_t i = 0; i < out.size(); ++i) {
        out[i] = "0123456789abcdef"[to_index(spi) >> (28 - 4 * i) & 15];
    }
    return out;
}

}  // namespace

std::string encode_replay_tops(const ReplayTops::Tops& tops) {
    std::string text(kTopsFirstLine);
    for (const auto& [name, top] : tops) {
        text +=
            "sa " + spi_text(name.spi) + " " + name.key.to_hex() + " " + std::to_string(top) + "\n";
    }
    return text + checksum_line(text);
}

std::expected<ReplayTops::Tops, std::string> decode_replay_tops(std::string_view text) {
    const auto damaged = std::unexpected("it is damaged");
    const size_t end = text.rfind("checksum ");
    if (end == std::string_view::npos || text.substr(end) != checksum_line(text.substr(0, end))) {
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
    const auto text = read_all(file.get(), static_cast<size_t>(status.st_size), kFileBytesMax);
    if (!text) return std::unexpected(text.error());
    file_ = File::ours;
    auto tops = decode_replay_tops(*text);
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
    if (!file || !write_all(file.get(), encode_replay_tops(tops_))) return failed();
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
