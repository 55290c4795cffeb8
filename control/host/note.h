// SPDX-License-Identifier: Apache-2.0
#pragma once

// A note on disk about settings of the kernel that this process has changed: should it be killed,
// the next run puts them back. Notes of another boot or network namespace say nothing. Whoever put
// something else into its place is not followed (a symbolic link) nor waited for (a FIFO).

#include <expected>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace sallyport::host {

// Empty: there is no note about this namespace since it was booted.
std::vector<std::string> read_note(const std::filesystem::path& note);
// Replaces the note as a whole, readable by the owner alone. The error names the file.
std::expected<void, std::string> write_note(const std::filesystem::path& note,
                                            std::span<const std::string> lines);
void remove_note(const std::filesystem::path& note);

}  // namespace sallyport::host
