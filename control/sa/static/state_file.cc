// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/state_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>

namespace sallyport::control {

bool write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t written = write(fd, text.data(), text.size());
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        text.remove_prefix(static_cast<size_t>(written));
    }
    return true;
}

std::expected<std::string, std::string> read_all(int fd, size_t bytes, size_t bytes_max) {
    if (bytes > bytes_max) return std::unexpected("it is too large");
    std::string text(bytes, '\0');
    size_t filled = 0;
    while (filled < text.size()) {
        const ssize_t got = read(fd, text.data() + filled, text.size() - filled);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return std::unexpected(std::strerror(errno));
        if (got == 0) break;
        filled += static_cast<size_t>(got);
    }
    text.resize(filled);
    return text;
}

std::string checksum_line(std::string_view text) {
    return "checksum " + to_hex(sha256({std::as_bytes(std::span(text))})) + "\n";
}

std::string_view next_word(std::string_view& line) {
    const size_t space = std::min(line.find(' '), line.size());
    const std::string_view word = line.substr(0, space);
    line.remove_prefix(std::min(space + 1, line.size()));
    return word;
}

std::optional<KeyDigest> digest_from_hex(std::string_view text) {
    KeyDigest out;
    if (text.size() != out.bytes.size() * 2) return std::nullopt;
    for (size_t i = 0; i < out.bytes.size(); ++i) {
        const auto byte = parse_number<uint8_t>(text.substr(i * 2, 2), 16);
        if (!byte) return std::nullopt;
        out.bytes[i] = *byte;
    }
    return out.to_hex() == text ? std::optional(out) : std::nullopt;
}

}  // namespace sallyport::control
