// SPDX-License-Identifier: Apache-2.0
#pragma once

// Typed access to one table of the document.
//
// Each call names one key, checks type and range, and reports what is wrong with line and allowed
// values; it returns nothing both when the key is absent and when it is wrong, so that reading
// goes on and every error of a file is found. The keys asked for are the keys that exist:
// finish() reports all others.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/choices.h"
#include "config/diagnostics.h"
#include "config/document.h"

namespace sallyport::config {

class TableReader {
  public:
    // `label`: how messages call the table, such as "[gateway]".
    TableReader(const Node& table, std::string label, Diagnostics& diagnostics)
        : table_(table), label_(std::move(label)), diagnostics_(diagnostics) {}

    [[nodiscard]] const std::string& label() const { return label_; }
    void set_label(std::string label) { label_ = std::move(label); }
    [[nodiscard]] uint32_t line() const { return table_.line; }
    // Line of the key, or of the table when it is absent.
    [[nodiscard]] uint32_t line_of(std::string_view key) const;
    [[nodiscard]] bool has(std::string_view key) const { return entry(key) != nullptr; }

    // The value of any type; null when absent.
    const Node* node(std::string_view key);
    std::optional<std::string_view> string(std::string_view key);
    std::optional<bool> boolean(std::string_view key);
    // `unit` ends the message: "takes 1 to 255 hops".
    std::optional<int64_t> integer(std::string_view key, int64_t lowest, int64_t highest,
                                   std::string_view unit = {});
    template <typename T>
    std::optional<T> choice(std::string_view key, std::span<const Choice<T>> choices) {
        const auto word = string(key);
        if (!word) return std::nullopt;
        std::vector<std::string_view> words;
        for (const auto& [candidate, value] : choices) {
            if (candidate == *word) return value;
            words.push_back(candidate);
        }
        report_choice(key, *word, words);
        return std::nullopt;
    }

    // Reports that a required key is absent; `meaning` says what to write.
    void require(std::string_view key, std::string_view meaning);
    // "LABEL key: text" at the key's line.
    void report(std::string_view key, const std::string& text);
    void report_type(std::string_view key, const Node& value, std::string_view expected);
    // Reports every key that was never asked for. Last call.
    void finish();

    [[nodiscard]] Diagnostics& diagnostics() { return diagnostics_; }

  private:
    [[nodiscard]] const Entry* entry(std::string_view key) const;
    void report_choice(std::string_view key, std::string_view word,
                       std::span<const std::string_view> words);

    const Node& table_;
    std::string label_;
    Diagnostics& diagnostics_;
    std::vector<std::string_view> known_;
};

}  // namespace sallyport::config
