// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the text files of state_dir have in common: read and written whole, words and numbers, and a
// last line that says whether the rest is as it was written.

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "control/sa/key_digest.h"

namespace sallyport::control {

// errno tells why not.
bool write_all(int fd, std::string_view text);
// `bytes`: of the file, which is refused when it has more than `bytes_max`. A file that has become
// shorter is read as far as it goes.
std::expected<std::string, std::string> read_all(int fd, size_t bytes, size_t bytes_max);

// The last line behind `text`: "checksum " and its SHA-256.
std::string checksum_line(std::string_view text);

// Up to the next space, which goes too.
std::string_view next_word(std::string_view& line);

// All of `text`, or nothing.
template <typename T>
std::optional<T> parse_number(std::string_view text, int base = 10) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (error != std::errc{} || end != text.data() + text.size() || text.empty()) {
        return std::nullopt;
    }
    return value;
}

// As KeyDigest::to_hex() writes it.
std::optional<KeyDigest> digest_from_hex(std::string_view text);

}  // namespace sallyport::control
