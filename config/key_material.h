// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys as the operator writes them: hex digits of the key followed by those of the salt (RFC
// 4106 8.1: 4 bytes), inline or in a file of their own.
//
// Errors are sentences that never repeat a digit of what was read. Every buffer that held digits
// is wiped.

#include <sys/stat.h>

#include <cstddef>
#include <expected>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "dataplane/base/secret_bytes.h"
#include "dataplane/crypto/suite.h"

namespace sallyport::config {

// The part of `material` that encrypts, without the salt.
[[nodiscard]] std::span<const std::byte> cipher_key(const SecretBytes& material,
                                                    const crypto::Suite& suite);

// `suite` null: it lacks or was wrong, which has been reported; then only the digits are checked,
// since there is no right length, and the result is empty.
std::expected<SecretBytes, std::string> parse_key(std::string_view hex, const crypto::Suite* suite);

// Reads `path`. The file must be a regular one (no symbolic link), belong to this user or root and
// be closed to everybody else; both are checked on the open file. Around the digits it may have
// white space.
std::expected<SecretBytes, std::string> read_key_file(const std::filesystem::path& path,
                                                      const crypto::Suite* suite);

// Why a file with these attributes must not hold keys; empty when it may.
[[nodiscard]] std::string secret_file_problem(const struct stat& attributes);

}  // namespace sallyport::config
