// SPDX-License-Identifier: Apache-2.0
#include "config/diagnostics.h"

#include <algorithm>
#include <numeric>

namespace sallyport::config {

namespace {

constexpr size_t kShownBytesMax = 60;

bool is_hex_digit(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

// Longest run of hex digits, where one character of `separators` between two digits does not end
// it.
size_t longest_hex_run(std::string_view text, std::string_view separators) {
    size_t longest = 0;
    size_t run = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        if (is_hex_digit(text[i])) {
            longest = std::max(longest, ++run);
            continue;
        }
        const bool joins = separators.find(text[i]) != std::string_view::npos && i > 0 &&
                           is_hex_digit(text[i - 1]);
        if (!joins) run = 0;
    }
    return longest;
}

bool is_address(std::string_view text) {
    if (text.find('\0') != std::string_view::npos) return false;
    return parse_ip_address(text.substr(0, text.find('/'))).has_value();
}

// Levenshtein distance; both words are short.
size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < b.size(); ++j) {
            const size_t replaced = diagonal + (a[i] == b[j] ? 0u : 1u);
            diagonal = row[j + 1];
            row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
        }
    }
    return row.back();
}

}  // namespace

std::string Error::to_string() const {
    std::string result = file.string();
    if (line != 0) result += ":" + std::to_string(line);
    return result + ": " + text;
}

void Diagnostics::add(uint32_t line, std::string text, Error::Kind kind) {
    if (errors_.size() == kErrorsMax) {
        ++withheld_;
        return;
    }
    errors_.push_back({.file = file_, .line = line, .text = std::move(text), .kind = kind});
}

std::vector<Error> Diagnostics::take() {
    std::ranges::stable_sort(errors_, {}, &Error::line);
    if (withheld_ != 0) {
        errors_.push_back(
            {.file = file_,
             .line = 0,
             .text = "and " + std::to_string(withheld_) + " more errors: correct these first"});
    }
    return std::move(errors_);
}

bool looks_like_key(std::string_view text) {
    const bool long_run = longest_hex_run(text, "") >= 12;
    const bool long_groups = longest_hex_run(text, " -_:") >= 16;
    const auto digits = static_cast<size_t>(std::ranges::count_if(text, is_hex_digit));
    const bool mostly_hex = digits >= 16 && digits * 10 >= text.size() * 8;
    return (long_run || long_groups || mostly_hex) && !is_address(text);
}

std::string shown(std::string_view text) {
    if (looks_like_key(text)) return "(text that may be a key, not shown)";
    std::string result = "'";
    for (const char c : text.substr(0, kShownBytesMax)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte == 0x7f) {
            constexpr std::string_view kDigits = "0123456789abcdef";
            result += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
        } else {
            result += c;
        }
    }
    return result + (text.size() > kShownBytesMax ? "...'" : "'");
}

std::string alternatives(std::span<const std::string_view> names) {
    std::string result;
    for (size_t i = 0; i < names.size(); ++i) {
        if (i != 0) result += i + 1 == names.size() ? " or " : ", ";
        result += names[i];
    }
    return result;
}

std::string_view nearest(std::string_view text, std::span<const std::string_view> candidates) {
    constexpr size_t kWordBytesMax = 32;
    if (text.size() > kWordBytesMax) return {};
    std::string_view best;
    size_t best_distance = 3;  // two slips of the finger, not another word
    for (const std::string_view candidate : candidates) {
        const size_t distance = edit_distance(text, candidate);
        if (distance < best_distance && distance * 2 < candidate.size()) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

}  // namespace sallyport::config
