// SPDX-License-Identifier: Apache-2.0
#pragma once

// Collecting what is wrong with a file, and putting the operator's own words into messages.
//
// A configuration holds keys, and people paste them into the wrong place. So text from the file
// reaches a message only through shown(), which withholds whatever could be a key, and never at
// all from the places that are meant for keys.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace sallyport::config {

// A file this wrong is not the file that was meant; the rest would only fill the terminal.
inline constexpr size_t kErrorsMax = 1000;

class Diagnostics {
  public:
    explicit Diagnostics(std::filesystem::path file) : file_(std::move(file)) {}

    // `line` 0: the whole file.
    void add(uint32_t line, std::string text, Error::Kind kind = Error::Kind::wrong);
    [[nodiscard]] bool empty() const { return errors_.empty(); }
    // Everything so far in the order of lines.
    [[nodiscard]] std::vector<Error> take();

  private:
    std::filesystem::path file_;
    std::vector<Error> errors_;
    size_t withheld_ = 0;
};

// Could this be key material: a long run of hex digits, also in groups, that is not an address?
[[nodiscard]] bool looks_like_key(std::string_view text);

// `text` in quotes for a message: control characters escaped, long text cut, keys withheld.
[[nodiscard]] std::string shown(std::string_view text);

// "a, b or c"
[[nodiscard]] std::string alternatives(std::span<const std::string_view> names);

// The candidate that `text` was probably meant to be; empty when none is near.
[[nodiscard]] std::string_view nearest(std::string_view text,
                                       std::span<const std::string_view> candidates);

}  // namespace sallyport::config
