// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys as the operator writes them: hex digits of the key followed by those of the 4-byte salt
// (RFC 4106 8.1), inline or in a file of their own.
//
// Errors are sentences that never repeat a digit of what was read. Every buffer that held digits
// is wiped.

#include <sys/stat.h>

#include <cstddef>
#include <expected>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "config/config.h"

namespace sallyport::config {

// Bytes of key and salt together.
[[nodiscard]] size_t key_material_bytes(Suite suite);
[[nodiscard]] std::string_view suite_name(Suite suite);
// The part of `material` that encrypts, without the salt.
[[nodiscard]] std::span<const std::byte> cipher_key(const SecretBytes& material);

// `suite` absent: it was wrong and has been reported; then only the digits are checked.
std::expected<SecretBytes, std::string> parse_key(std::string_view hex, std::optional<Suite> suite);

// Reads `path`. The file must be a regular one (no symbolic link), belong to this user or root and
// be closed to everybody else; both are checked on the open file. Around the digits it may have
// white space.
std::expected<SecretBytes, std::string> read_key_file(const std::filesystem::path& path,
                                                      std::optional<Suite> suite);

// Why a file with these attributes must not hold keys; empty when it may.
[[nodiscard]] std::string secret_file_problem(const struct stat& attributes);

}  // namespace sallyport::config
