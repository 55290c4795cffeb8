// SPDX-License-Identifier: Apache-2.0
#pragma once

// The configuration between reading (sections.cc) and checking (validate.cc): each part beside
// the lines its errors point to. A part with an error in it stays in the draft, so that what
// refers to it is not reported as well; fields that were wrong say so.

#include <cstdint>
#include <optional>
#include <vector>

#include "config/config.h"
#include "config/diagnostics.h"
#include "config/document.h"

namespace sallyport::config {

struct PortDraft {
    Port port;
    bool role_known = false;
    uint32_t device_line = 0;
};

struct PolicyDraft {
    Policy policy;  // name empty: wrong
    bool action_known = false;
    uint32_t name_line = 0;
};

struct SaDraft {
    StaticSa sa;  // name, policy, key empty or SPI 0: wrong
    bool direction_known = false;
    std::optional<IpAddress> source;
    std::optional<IpAddress> destination;
    uint32_t name_line = 0;
    uint32_t spi_line = 0;
    uint32_t key_line = 0;
    uint32_t policy_line = 0;
    uint32_t worker_line = 0;
};

struct Draft {
    Config config;  // all but ports, policies and SAs
    std::vector<PortDraft> ports;
    std::vector<PolicyDraft> policies;
    std::vector<SaDraft> sas;
    uint32_t ports_line = 0;       // of [port], 0: there is none
    uint32_t inline_key_line = 0;  // of the first, 0: there is none
    bool sections_known = true;    // false: a whole section could not be read
};

// Each key by itself: type, range, spelling.
Draft read_sections(const Node& root, const std::filesystem::path& file, Diagnostics& diagnostics,
                    std::span<const crypto::Suite> suites);

// What concerns several of them: duplicates, references, limits.
void validate(const Draft& draft, Diagnostics& diagnostics);

// Brings policies into SPD order (docs/config.md, "Order").
void order_policies(std::vector<Policy>& policies);

}  // namespace sallyport::config
