// SPDX-License-Identifier: Apache-2.0
#include "config/reader.h"

#include <algorithm>

namespace sallyport::config {

const Entry* TableReader::entry(std::string_view key) const {
    const auto found = std::ranges::find(table_.entries, key, &Entry::key);
    return found == table_.entries.end() ? nullptr : &*found;
}

uint32_t TableReader::line_of(std::string_view key) const {
    const Entry* found = entry(key);
    return found == nullptr ? table_.line : found->line;
}

const Node* TableReader::node(std::string_view key) {
    if (std::ranges::find(known_, key) == known_.end()) known_.push_back(key);
    const Entry* found = entry(key);
    return found == nullptr ? nullptr : &found->value;
}

std::optional<std::string_view> TableReader::string(std::string_view key) {
    const Node* value = node(key);
    if (value == nullptr) return std::nullopt;
    if (value->kind != Node::Kind::string) {
        report_type(key, *value, "a string in quotes");
        return std::nullopt;
    }
    return value->text;
}

std::optional<bool> TableReader::boolean(std::string_view key) {
    const Node* value = node(key);
    if (value == nullptr) return std::nullopt;
    if (value->kind != Node::Kind::boolean) {
        report_type(key, *value, "true or false");
        return std::nullopt;
    }
    return value->boolean;
}

std::optional<int64_t> TableReader::integer(std::string_view key, int64_t lowest, int64_t highest,
                                            std::string_view unit) {
    const Node* value = node(key);
    if (value == nullptr) return std::nullopt;
    if (value->kind != Node::Kind::integer) {
        report_type(key, *value, "an integer");
        return std::nullopt;
    }
    if (value->integer < lowest || value->integer > highest) {
        // A huge number is no slip: it may be the beginning of a key without its quotes.
        const bool harmless = value->integer >= INT32_MIN && value->integer <= UINT32_MAX;
        std::string text = (harmless ? std::to_string(value->integer) + " is" : "is") +
                           " out of range: allowed are " + std::to_string(lowest) + " to " +
                           std::to_string(highest);
        if (!unit.empty()) text += " " + std::string(unit);
        report(key, text);
        return std::nullopt;
    }
    return value->integer;
}

void TableReader::require(std::string_view key, std::string_view meaning) {
    if (has(key)) return;
    diagnostics_.add(table_.line,
                     label_ + " lacks '" + std::string(key) + "': " + std::string(meaning));
}

void TableReader::report(std::string_view key, const std::string& text) {
    diagnostics_.add(line_of(key), label_ + " " + std::string(key) + ": " + text);
}

void TableReader::report_type(std::string_view key, const Node& value, std::string_view expected) {
    report(key, "is " + std::string(kind_name(value.kind)) + ", must be " + std::string(expected));
}

void TableReader::report_choice(std::string_view key, std::string_view word,
                                std::span<const std::string_view> words) {
    report(key, shown(word) + " is not known: allowed are " + alternatives(words));
}

void TableReader::finish() {
    for (const Entry& found : table_.entries) {
        if (std::ranges::find(known_, found.key) != known_.end()) continue;
        std::string text = label_ + " has no key " + shown(found.key);
        const std::string_view meant = nearest(found.key, known_);
        if (!meant.empty()) text += ", did you mean '" + std::string(meant) + "'?";
        diagnostics_.add(found.line, text + (meant.empty() ? ": allowed are " : " Allowed are ") +
                                         alternatives(known_));
    }
}

}  // namespace sallyport::config
