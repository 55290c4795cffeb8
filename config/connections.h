// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys of [port.NAME] and [[policy]] about connections and CPUs (docs/config.md, "Connection
// tracking" and "BYPASS traffic on several CPUs").

#include "config/config.h"
#include "config/draft.h"
#include "config/reader.h"

namespace sallyport::config {

// Distinct CPU numbers, or "auto" where that is allowed. Empty: absent, automatic or wrong. `use`
// says what each CPU gets, as in "one worker".
enum class AutoCpus : uint8_t { allowed, refused };
std::vector<uint16_t> read_cpus(TableReader& table, std::string_view key, AutoCpus automatic,
                                size_t count_max, const std::string& use);

void read_conntrack(TableReader& table, Port& port);
void read_bypass_cpus(TableReader& table, Port& port);
void read_ct_mark(TableReader& table, Policy& policy);

// What connections need elsewhere in the file.
void check_connections(const Draft& draft, Diagnostics& diagnostics);

}  // namespace sallyport::config
