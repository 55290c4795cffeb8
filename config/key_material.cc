// SPDX-License-Identifier: Apache-2.0
#include "config/key_material.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <span>

#include "dataplane/base/unique_fd.h"

namespace sallyport::config {

namespace {

constexpr size_t kKeyFileBytesMax = 1024;

// Bytes on the stack that are gone when the scope ends.
template <size_t N>
struct ScratchSecret {
    std::array<std::byte, N> bytes{};
    ScratchSecret() = default;
    ScratchSecret(const ScratchSecret&) = delete;
    ScratchSecret& operator=(const ScratchSecret&) = delete;
    ~ScratchSecret() { wipe(bytes.data(), bytes.size()); }
};

std::optional<unsigned> hex_value(char c) {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
    if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
    return std::nullopt;
}

std::string system_error(std::string_view what) {
    return std::string(what) + ": " + std::strerror(errno);
}

}  // namespace

std::span<const std::byte> cipher_key(const SecretBytes& material, const crypto::Suite& suite) {
    const auto bytes = material.bytes();
    return bytes.first(std::min<size_t>(bytes.size(), suite.key_bytes));
}

std::expected<SecretBytes, std::string> parse_key(std::string_view hex,
                                                  const crypto::Suite* suite) {
    if (!std::ranges::all_of(hex, [](char c) { return hex_value(c).has_value(); })) {
        return std::unexpected(
            "contains something other than hex digits: write 0-9 and a-f only, without 0x, spaces "
            "or colons");
    }
    if (suite == nullptr) return SecretBytes();
    const size_t bytes = suite->key_material_bytes();
    if (hex.size() != 2 * bytes) {
        return std::unexpected("has " + std::to_string(hex.size()) + " hex digits; " +
                               std::string(suite->name) + " takes " + std::to_string(2 * bytes) +
                               ": " + std::to_string(suite->key_bytes) + " bytes of key, then " +
                               std::to_string(suite->form.salt_bytes) + " of salt");
    }

    ScratchSecret<SecretBytes::kCapacity> scratch;
    for (size_t i = 0; i < bytes; ++i) {
        scratch.bytes[i] = std::byte(*hex_value(hex[2 * i]) << 4 | *hex_value(hex[2 * i + 1]));
    }
    SecretBytes material(std::span(scratch.bytes).first(bytes));
    if (std::ranges::all_of(cipher_key(material, *suite),
                            [](std::byte b) { return b == std::byte{0}; })) {
        return std::unexpected(
            "is all zero, which everybody can guess: make one with 'openssl rand -hex " +
            std::to_string(bytes) + "'");
    }
    return material;
}

std::string secret_file_problem(const struct stat& attributes) {
    if (!S_ISREG(attributes.st_mode)) return "is not a regular file";
    if (attributes.st_uid != 0 && attributes.st_uid != geteuid()) {
        return "belongs to another user (uid " + std::to_string(attributes.st_uid) +
               "): it must belong to root or to the user who runs this";
    }
    constexpr mode_t kForbidden = 07177;
    if ((attributes.st_mode & kForbidden) != 0) {
        constexpr std::string_view kDigits = "01234567";
        const mode_t mode = attributes.st_mode & 07777;
        const std::string octal{kDigits[mode >> 9], kDigits[(mode >> 6) & 7],
                                kDigits[(mode >> 3) & 7], kDigits[mode & 7]};
        return "has mode " + octal + ": keys need 0600 or stricter (chmod 600)";
    }
    return {};
}

std::expected<SecretBytes, std::string> read_key_file(const std::filesystem::path& path,
                                                      const crypto::Suite* suite) {
    // Opening a device can have effects, so look first; what counts is the second look, at what
    // was really opened.
    struct stat attributes{};
    if (lstat(path.c_str(), &attributes) != 0)
        return std::unexpected(system_error("cannot be read"));
    if (S_ISLNK(attributes.st_mode)) {
        return std::unexpected("is a symbolic link: name the file itself");
    }
    if (!S_ISREG(attributes.st_mode)) return std::unexpected("is not a regular file");
    const UniqueFd file(
        open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
    if (file.get() < 0 || fstat(file.get(), &attributes) != 0) {
        return std::unexpected(system_error("cannot be read"));
    }
    if (const std::string problem = secret_file_problem(attributes); !problem.empty()) {
        return std::unexpected(problem);
    }

    ScratchSecret<kKeyFileBytesMax + 1> content;
    size_t size = 0;
    while (size < content.bytes.size()) {
        const ssize_t got =
            read(file.get(), content.bytes.data() + size, content.bytes.size() - size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return std::unexpected(system_error("cannot be read"));
        if (got == 0) break;
        size += static_cast<size_t>(got);
    }
    if (size > kKeyFileBytesMax) {
        return std::unexpected("is larger than " + std::to_string(kKeyFileBytesMax) +
                               " bytes: it holds the hex digits of one key and nothing else");
    }
    std::string_view text(reinterpret_cast<const char*>(content.bytes.data()), size);
    constexpr std::string_view kWhiteSpace = " \t\r\n";
    text.remove_prefix(std::min(text.find_first_not_of(kWhiteSpace), text.size()));
    text = text.substr(0, text.find_last_not_of(kWhiteSpace) + 1);
    return parse_key(text, suite);
}

}  // namespace sallyport::config
