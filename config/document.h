// SPDX-License-Identifier: Apache-2.0
#pragma once

// TOML text as a tree in file order, every node with its line.
//
// The one door to toml++: nothing of that library is visible here, and nothing it throws gets
// out. Its tables are sorted by name; ours keep the order of the file, which gives ports their
// ids. Strings are wiped when the document goes, because some of them are keys.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/diagnostics.h"

namespace sallyport::config {

struct Entry;

struct Node {
    enum class Kind : uint8_t { table, array, string, integer, boolean, floating, date_time };

    Kind kind = Kind::table;
    uint32_t line = 0;
    std::string text;            // string
    int64_t integer = 0;         // integer
    bool boolean = false;        // boolean
    std::vector<Entry> entries;  // table, in file order
    std::vector<Node> elements;  // array
};

struct Entry {
    std::string key;
    uint32_t line = 0;
    Node value;
};

[[nodiscard]] std::string_view kind_name(Node::Kind kind);

class Document {
  public:
    // Reports what is not TOML, or nested deeper than any configuration, and returns nothing then.
    static std::optional<Document> parse(std::string_view text, Diagnostics& diagnostics);

    Document(Document&&) noexcept = default;
    Document& operator=(Document&&) noexcept = delete;
    ~Document();

    [[nodiscard]] const Node& root() const { return root_; }

  private:
    explicit Document(Node root) : root_(std::move(root)) {}
    Node root_;
};

}  // namespace sallyport::config
