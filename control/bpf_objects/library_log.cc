// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/library_log.h"

#include <bpf/libbpf.h>
#include <xdp/libxdp.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace sallyport::bpf_objects {
namespace {

constexpr size_t kLogBytesMax = 64 * 1024;

// Both libraries are used by the control thread only.
std::string& log() {
    static std::string text;
    return text;
}
std::string& warning() {
    static std::string text;
    return text;
}

int keep(bool is_warning, const char* format, va_list arguments) {
    std::array<char, 2048> line{};
    const int length = std::vsnprintf(line.data(), line.size(), format, arguments);
    if (length <= 0) return length;
    log() += line.data();
    if (log().size() > kLogBytesMax) log().erase(0, log().size() - kLogBytesMax);
    if (is_warning) {
        std::string_view text = line.data();
        while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
        // A verifier log comes as one "line"; its end says what is wrong.
        if (const size_t end = text.rfind('\n'); end != std::string_view::npos) {
            text.remove_prefix(end + 1);
        }
        if (!text.empty()) warning() = text;
    }
    return length;
}

int keep_libbpf(libbpf_print_level level, const char* format, va_list arguments) {
    if (level == LIBBPF_DEBUG) return 0;
    return keep(level == LIBBPF_WARN, format, arguments);
}

int keep_libxdp(libxdp_print_level level, const char* format, va_list arguments) {
    return keep(level == LIBXDP_WARN, format, arguments);
}

}  // namespace

void capture_library_log() {
    libbpf_set_print(keep_libbpf);
    libxdp_set_print(keep_libxdp);
}

void clear_library_log() {
    log().clear();
    warning().clear();
}

std::string_view library_log() {
    return log();
}

std::string last_library_warning() {
    return warning();
}

std::string library_error(std::string_view text, int error) {
    std::string result(text);
    result += ": ";
    result += std::strerror(std::abs(error));
    if (!warning().empty()) result += " (" + warning() + ")";
    return result;
}

}  // namespace sallyport::bpf_objects
