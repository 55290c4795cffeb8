// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <string>

#include "config/config.h"
#include "config/diagnostics.h"
#include "config/document.h"
#include "config/draft.h"
#include "config/key_material.h"

namespace sallyport::config {

namespace {

constexpr size_t kFileBytesMax = 4u << 20;

// A file's text, wiped with it: it may hold keys.
struct SecretText {
    std::string text;
    SecretText() = default;
    SecretText(const SecretText&) = delete;
    SecretText& operator=(const SecretText&) = delete;
    ~SecretText() { wipe(text.data(), text.size()); }
};

// `file_attributes`: of the file the text came from, when it came from one.
std::expected<Config, std::vector<Error>> build(std::string_view text,
                                                const std::filesystem::path& file,
                                                const struct stat* file_attributes,
                                                std::span<const crypto::Suite> suites) {
    Diagnostics diagnostics(file);
    if (text.size() > kFileBytesMax) {
        diagnostics.add(0, "is larger than 4 MiB: no configuration is");
        return std::unexpected(diagnostics.take());
    }
    const auto document = Document::parse(text, diagnostics);
    if (!document) return std::unexpected(diagnostics.take());

    Draft draft = read_sections(document->root(), file, diagnostics, suites);
    validate(draft, diagnostics);
    if (file_attributes != nullptr && draft.inline_key_line != 0) {
        if (const std::string problem = secret_file_problem(*file_attributes); !problem.empty()) {
            diagnostics.add(draft.inline_key_line, "a key stands here, and this file " + problem +
                                                       ", or move the key to a key_file");
        }
    }
    if (!diagnostics.empty()) return std::unexpected(diagnostics.take());

    Config config = std::move(draft.config);
    for (PortDraft& item : draft.ports) config.ports.push_back(std::move(item.port));
    for (PolicyDraft& item : draft.policies) config.policies.push_back(std::move(item.policy));
    for (SaDraft& item : draft.sas) config.sas.push_back(std::move(item.sa));
    order_policies(config.policies);
    return config;
}

// Reads all of `fd` into `text`, which is allocated once so that no copy is left behind.
bool read_all(int fd, std::string& text) {
    text.resize(kFileBytesMax + 1);
    size_t size = 0;
    while (size < text.size()) {
        const ssize_t got = read(fd, text.data() + size, text.size() - size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return false;
        if (got == 0) break;
        size += static_cast<size_t>(got);
    }
    text.resize(size);
    return true;
}

}  // namespace

std::expected<Config, std::vector<Error>> parse(std::string_view text,
                                                const std::filesystem::path& file,
                                                std::span<const crypto::Suite> suites) {
    return build(text, file, nullptr, suites);
}

std::expected<Config, std::vector<Error>> load(const std::filesystem::path& file) {
    const auto failed = [&](std::string text) {
        return std::unexpected(
            std::vector<Error>{{.file = file, .line = 0, .text = std::move(text)}});
    };
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return failed(std::string("cannot be read: ") + std::strerror(errno));
    struct stat attributes{};
    SecretText content;
    const bool is_regular = fstat(fd, &attributes) == 0 && S_ISREG(attributes.st_mode);
    const bool is_read = is_regular && read_all(fd, content.text);
    const int read_error = errno;
    close(fd);
    if (!is_regular) return failed("is not a regular file");
    if (!is_read) return failed(std::string("cannot be read: ") + std::strerror(read_error));
    return build(content.text, file, &attributes, crypto::suites());
}

}  // namespace sallyport::config
