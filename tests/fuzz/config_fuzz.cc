// SPDX-License-Identifier: Apache-2.0

// Fuzzes the configuration file: whatever the text, parse() returns. What it accepts keeps the
// promises of config/config.h; what it refuses says why, with a line of the text.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <tuple>

#include "bpf/abi.h"
#include "config/config.h"

namespace {

using namespace sallyport;
using namespace sallyport::config;

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "broken promise: %s\n", what);
    std::abort();
}

void check_errors(const std::vector<Error>& errors, std::string_view text) {
    const auto lines = static_cast<uint32_t>(std::ranges::count(text, '\n') + 1);
    require(!errors.empty(), "a refusal has an error");
    for (const Error& error : errors) {
        require(!error.text.empty(), "an error has text");
        require(error.line <= lines, "an error's line is in the file");
        require(std::ranges::none_of(error.text,
                                     [](char c) { return static_cast<unsigned char>(c) < 0x20; }),
                "an error is one printable line");
    }
}

void check_ports(const Config& config) {
    require(config.ports.size() >= 2 && config.ports.size() <= SP_PORT_INTERFACE,
            "number of ports");
    std::set<std::string> names{config.device};
    std::set<std::string> devices{config.device};
    for (const Port& port : config.ports) {
        require(names.insert(port.name).second, "port names differ");
        require(devices.insert(port.device).second, "port devices differ");
        require(!port.device.empty() && port.device.size() < 16, "device name");
        require(!port.queues || (*port.queues >= 1 && *port.queues <= SP_QUEUES_MAX), "queues");
        require(port.egress_deny.size() <= SP_EGRESS_RULES_MAX, "number of egress rules");
        for (const EgressRule& rule : port.egress_deny) {
            require(rule.port_lo <= rule.port_hi, "egress port range");
            require(!rule.source || !rule.destination ||
                        rule.source->address.family == rule.destination->address.family,
                    "egress rule is of one family");
        }
    }
}

void check_policies(const Config& config, std::set<std::string>& protecting) {
    std::set<std::string> names;
    std::optional<uint32_t> last_priority = 0;
    for (const Policy& policy : config.policies) {
        require(names.insert(policy.name).second, "policy names differ");
        require(!policy.local.empty() && !policy.remote.empty(), "a policy has both sides");
        const Family family = policy.local[0].address.family;
        for (const auto* side : {&policy.local, &policy.remote}) {
            for (const IpPrefix& prefix : *side) {
                require(prefix.address.family == family, "a policy is of one family");
                require(prefix.bits <= prefix.address.bit_count(), "prefix length");
            }
        }
        require(!policy.local_ports || policy.protocol, "ports have a protocol");
        require(last_priority || !policy.priority, "priorities stand first");
        require(!policy.priority || *policy.priority >= *last_priority, "lower priorities first");
        last_priority = policy.priority;
        if (policy.action == SpdAction::protect) protecting.insert(policy.name);
    }
}

void check_sas(const Config& config, const std::set<std::string>& protecting) {
    require(config.sas.size() <= config.max_sas, "room for the SAs");
    std::set<std::string> names;
    std::set<std::string> outbound;
    std::set<std::tuple<uint32_t, Family, std::array<uint8_t, 16>>> spis;
    for (const StaticSa& sa : config.sas) {
        require(names.insert(sa.name).second, "SA names differ");
        require(to_index(sa.spi) >= 256, "SPI is not reserved");
        require(spis.emplace(to_index(sa.spi), sa.destination.family, sa.destination.bytes).second,
                "SPI and destination name one SA");
        require(sa.source.family == sa.destination.family, "an outer header is of one family");
        require(sa.source != sa.destination, "a tunnel has two ends");
        require(sa.suite != nullptr && sa.key.size() == sa.suite->key_material_bytes(),
                "key length");
        require(protecting.contains(sa.policy), "an SA's policy exists and protects");
        require(sa.replay_window == 0 || (sa.replay_window >= 32 && sa.replay_window <= 4096),
                "replay window");
        require(!sa.worker || config.workers.cpus.empty() ||
                    to_index(*sa.worker) < config.workers.cpus.size(),
                "an SA's worker exists");
        if (sa.direction == SaDirection::outbound) {
            require(outbound.insert(sa.policy).second, "one outbound SA for each policy");
        }
        for (const StaticSa& other : config.sas) {
            require(&sa == &other || !(sa.key == other.key), "keys differ");
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string text(reinterpret_cast<const char*>(data), size);
    // Key files are looked for where there are none.
    const auto config = parse(text, "/nonexistent/fuzz.toml");
    if (!config) {
        check_errors(config.error(), text);
        return 0;
    }
    require(std::has_single_bit(config->memory.frames), "frames are a power of two");
    check_ports(*config);
    std::set<std::string> protecting;
    check_policies(*config, protecting);
    check_sas(*config, protecting);
    return 0;
}
