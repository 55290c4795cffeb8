// SPDX-License-Identifier: Apache-2.0
#include "config/document.h"

#include <algorithm>
#include <cctype>
#include <exception>
#include <new>
#include <stdexcept>

#include "dataplane/base/secret_bytes.h"

// Some input reaches assertions of toml++ 3.3 before the checks behind them ("[#" does). With
// assert() the file would abort the daemon, and with NDEBUG an optimiser may take them for
// promises. Here they throw, like every other error of that parser.
namespace sallyport::config {
constexpr void parser_invariant(bool holds) {
    if (!holds) throw std::logic_error("invariant of the TOML parser");
}
}  // namespace sallyport::config
#undef NDEBUG
#define TOML_ASSERT(expr) ::sallyport::config::parser_invariant(static_cast<bool>(expr))
#include <toml++/toml.h>

namespace sallyport::config {

namespace {

constexpr unsigned kDotsPerNameMax = 8;
constexpr unsigned kDotsMax = 16384;
constexpr unsigned kBracketsMax = 16;

// Refuses text that toml++ 3.3 cannot take safely:
// - Brackets nest at most 256 deep there, but dotted names without limit: a megabyte of "a.a.a..."
//   makes a tree that overflows the stack when it is freed. All tables made by dotted names are
//   searched, too, whenever one of them is met again.
// - A table header without a name is undefined behaviour (see TOML_ASSERT above).
// - So are many letters beyond ASCII where white space may stand (U+0458 is one): its test for
//   Unicode white space runs into code marked unreachable. No value of this file needs them, so
//   they are left to comments, where the parser looks for line ends only.
//
// This scanner agrees with the parser as long as the text is valid; where it is not, the parser
// stops and what follows does not matter.
class ParserGuard {
  public:
    explicit ParserGuard(std::string_view text) : text_(text) {}

    // False: too deep or too many; line() says where, problem() what.
    bool accepts() {
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (c == '"' || c == '\'') {
                at_line_start_ = false;
                if (!skip_string(c)) return false;
                continue;
            }
            if (c == '#') {
                at_ = std::min(text_.find('\n', at_), text_.size());
                continue;
            }
            if (!is_ascii(c)) return refuse_letter();
            if (c == '[' && brackets_ == 0 && at_line_start_ && !header_names_something()) {
                problem_ = "not valid TOML: expected the name of a table after '['";
                return false;
            }
            ++at_;
            if (c != ' ' && c != '\t') at_line_start_ = c == '\n';
            if (!count(c)) return false;
        }
        return true;
    }
    [[nodiscard]] uint32_t line() const { return line_; }
    [[nodiscard]] const std::string& problem() const { return problem_; }

  private:
    // Does a key, or the end of the header, follow the '[' or '[[' at the beginning of a line?
    [[nodiscard]] bool header_names_something() const {
        size_t at = text_.find_first_not_of(" \t", at_ + 1);
        if (at != std::string_view::npos && text_[at] == '[') {
            at = text_.find_first_not_of(" \t", at + 1);
        }
        if (at == std::string_view::npos) return false;
        const auto c = static_cast<unsigned char>(text_[at]);
        return std::isalnum(c) != 0 ||
               std::string_view("_-'\"]").find(text_[at]) != std::string_view::npos;
    }

    bool count(char c) {
        switch (c) {
            case '\n':
                ++line_;
                dots_ = 0;
                break;
            case '=':
            case ',':
                dots_ = 0;
                break;
            case '.':
                if (++dots_ > kDotsPerNameMax) {
                    problem_ = "a dotted name has more than " + std::to_string(kDotsPerNameMax) +
                               " dots: no key of this file has more than two";
                    return false;
                }
                if (++dots_total_ > kDotsMax) {
                    problem_ = "the file has more than " + std::to_string(kDotsMax) +
                               " dotted names: write tables such as [port.wan0] once";
                    return false;
                }
                break;
            case '[':
            case '{':
                dots_ = 0;
                if (++brackets_ > kBracketsMax) {
                    problem_ = "values are nested more than " + std::to_string(kBracketsMax) +
                               " deep: no value of this file needs more than a list";
                    return false;
                }
                break;
            case ']':
            case '}':
                dots_ = 0;
                if (brackets_ != 0) --brackets_;
                break;
            default:
                break;
        }
        return true;
    }

    // Four kinds: "x", 'x', and both in three quotes over several lines.
    bool skip_string(char quote) {
        const std::string three(3, quote);
        const bool multi_line = text_.substr(at_).starts_with(three);
        at_ += multi_line ? 3 : 1;
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (c == '\n') {
                if (!multi_line) return true;  // not TOML: the parser will say so
                ++line_;
            }
            if (!is_ascii(c)) return refuse_letter();
            if (c == '\\' && quote == '"') {
                if (at_ + 1 < text_.size() && text_[at_ + 1] == '\n') ++line_;
                at_ += 2;
                continue;
            }
            if (c == quote && (!multi_line || text_.substr(at_).starts_with(three))) {
                at_ += multi_line ? 3 : 1;
                // Up to two quotes may stand directly before the closing three.
                for (int extra = 0; multi_line && extra < 2 && at_ < text_.size(); ++extra) {
                    if (text_[at_] == quote) ++at_;
                }
                return true;
            }
            ++at_;
        }
        return true;
    }

    static bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

    bool refuse_letter() {
        problem_ = "a character that is not ASCII stands here: allowed are such in comments only";
        return false;
    }

    std::string_view text_;
    size_t at_ = 0;
    uint32_t line_ = 1;
    bool at_line_start_ = true;
    unsigned dots_ = 0;
    unsigned dots_total_ = 0;
    unsigned brackets_ = 0;
    std::string problem_;
};

// What toml++ says, without what it quotes: it repeats numbers, names and the character it met,
// and any of them can be part of a key.
std::string describe(std::string_view description) {
    if (description.find("cannot redefine") != std::string_view::npos ||
        description.find("cannot insert") != std::string_view::npos) {
        return "this name is defined a second time: write each key and each table once";
    }
    constexpr std::string_view kPrefix = "Error while parsing ";
    if (description.starts_with(kPrefix)) description.remove_prefix(kPrefix.size());
    description = description.substr(0, description.find(", saw"));

    // Quotes around one punctuation mark are the parser's own words ("expected '='").
    size_t end = description.find('\'');
    while (end != std::string_view::npos) {
        const bool harmless = end + 2 < description.size() && description[end + 2] == '\'' &&
                              std::ispunct(static_cast<unsigned char>(description[end + 1])) != 0;
        if (!harmless) break;
        end = description.find('\'', end + 3);
    }
    description = description.substr(0, end);
    while (!description.empty() && (description.back() == ' ' || description.back() == ':')) {
        description.remove_suffix(1);
    }
    if (looks_like_key(description)) description = "syntax error";
    return "not valid TOML: " + std::string(description);
}

Node convert(toml::node& from);

Node convert_table(toml::table& from) {
    struct Child {
        toml::source_position position;
        const toml::key* key;
        toml::node* value;
    };
    std::vector<Child> children;
    for (auto&& [key, value] : from) {
        children.push_back({key.source().begin, &key, &value});
    }
    std::ranges::stable_sort(
        children, [](const Child& a, const Child& b) { return a.position < b.position; });
    Node to{.kind = Node::Kind::table};
    for (const Child& child : children) {
        to.entries.push_back({.key = std::string(child.key->str()),
                              .line = child.position.line,
                              .value = convert(*child.value)});
    }
    return to;
}

Node convert(toml::node& from) {
    Node to;
    if (auto* table = from.as_table()) {
        to = convert_table(*table);
    } else if (auto* array = from.as_array()) {
        to.kind = Node::Kind::array;
        for (toml::node& element : *array) to.elements.push_back(convert(element));
    } else if (auto* string = from.as_string()) {
        to.kind = Node::Kind::string;
        to.text = std::move(string->get());
    } else if (auto* integer = from.as_integer()) {
        to.kind = Node::Kind::integer;
        to.integer = integer->get();
    } else if (auto* boolean = from.as_boolean()) {
        to.kind = Node::Kind::boolean;
        to.boolean = boolean->get();
    } else {
        to.kind = from.is_floating_point() ? Node::Kind::floating : Node::Kind::date_time;
    }
    to.line = from.source().begin.line;
    return to;
}

void wipe_strings(Node& node) {
    wipe(node.text.data(), node.text.size());
    for (Node& element : node.elements) wipe_strings(element);
    for (Entry& entry : node.entries) wipe_strings(entry.value);
}

}  // namespace

std::string_view kind_name(Node::Kind kind) {
    switch (kind) {
        case Node::Kind::table:
            return "a table";
        case Node::Kind::array:
            return "a list";
        case Node::Kind::string:
            return "a string";
        case Node::Kind::integer:
            return "an integer";
        case Node::Kind::boolean:
            return "true or false";
        case Node::Kind::floating:
            return "a number with a fraction";
        case Node::Kind::date_time:
            return "a date or time";
    }
    return "unknown";
}

std::optional<Document> Document::parse(std::string_view text, Diagnostics& diagnostics) {
    ParserGuard guard(text);
    if (!guard.accepts()) {
        diagnostics.add(guard.line(), guard.problem());
        return std::nullopt;
    }
    try {
        toml::table root = toml::parse(text);
        return Document(convert(root));
    } catch (const toml::parse_error& error) {
        const auto position = error.source().begin;
        diagnostics.add(position.line, describe(error.description()) + " (column " +
                                           std::to_string(position.column) + ")");
    } catch (const std::bad_alloc&) {
        diagnostics.add(0, "not enough memory to read it");
    } catch (const std::exception&) {
        diagnostics.add(0, "not valid TOML, in a way the parser cannot describe");
    }
    return std::nullopt;
}

Document::~Document() {
    wipe_strings(root_);
}

}  // namespace sallyport::config
