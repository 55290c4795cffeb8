// SPDX-License-Identifier: Apache-2.0
#include "control/policy/compile.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace sallyport::control {

namespace {

constexpr std::pair<uint16_t, uint16_t> kAllPorts = {0, 65535};

// Ports as a packet from one side to the other has them.
template <typename T>
void set_ports(T& out, const config::Policy& policy, SpdDirection direction) {
    auto source = policy.local_ports.value_or(kAllPorts);
    auto destination = policy.remote_ports.value_or(kAllPorts);
    if (direction == SpdDirection::inbound) std::swap(source, destination);
    out.protocol = policy.protocol.value_or(0);
    out.has_ports = policy.local_ports || policy.remote_ports;
    out.source_port_lo = source.first;
    out.source_port_hi = source.second;
    out.destination_port_lo = destination.first;
    out.destination_port_hi = destination.second;
}

// The list as workers have it.
std::expected<CompiledSpd, std::string> compile_unmarked(std::span<const SpdEntry> entries) {
    std::vector<SpdEntry> unmarked(entries.begin(), entries.end());
    std::erase_if(unmarked, [](const SpdEntry& entry) { return entry.ct_mark_mask != 0; });
    return compile_spd(unmarked);
}

}  // namespace

std::vector<SpdEntry> spd_entries(std::span<const config::Policy> policies,
                                  SpdDirection direction) {
    std::vector<SpdEntry> entries;
    for (size_t i = 0; i < policies.size(); ++i) {
        const config::Policy& policy = policies[i];
        for (const IpPrefix& local : policy.local) {
            for (const IpPrefix& remote : policy.remote) {
                SpdEntry entry;
                entry.policy = PolicyId{static_cast<uint32_t>(i)};
                entry.action = policy.action;
                const bool outbound = direction == SpdDirection::outbound;
                entry.source = outbound ? local : remote;
                entry.destination = outbound ? remote : local;
                set_ports(entry, policy, direction);
                if (policy.ct_mark) {
                    entry.ct_mark = *policy.ct_mark;
                    entry.ct_mark_mask = policy.ct_mark_mask;
                }
                entries.push_back(entry);
            }
        }
    }
    return entries;
}

std::vector<config::Policy> policies_without_marks(std::span<const config::Policy> policies) {
    std::vector<config::Policy> out;
    std::ranges::copy_if(policies, std::back_inserter(out),
                         [](const config::Policy& policy) { return !policy.ct_mark; });
    return out;
}

std::vector<Selector> inbound_selectors(const config::Policy& policy) {
    std::vector<Selector> selectors;
    for (const IpPrefix& local : policy.local) {
        for (const IpPrefix& remote : policy.remote) {
            Selector selector;
            selector.source = remote;
            selector.destination = local;
            set_ports(selector, policy, SpdDirection::inbound);
            selectors.push_back(selector);
        }
    }
    return selectors;
}

std::expected<PublishedSpd, std::string> compile_entries(
    std::span<const SpdEntry> outbound_entries, std::span<const SpdEntry> inbound_entries) {
    auto outbound = compile_spd(outbound_entries);
    if (!outbound) return std::unexpected("outbound policies: " + outbound.error());
    auto inbound = compile_spd(inbound_entries);
    if (!inbound) return std::unexpected("inbound policies: " + inbound.error());
    PublishedSpd out;
    // What XDP hands to a worker has passed all entries with marks by, so that the worker finds
    // the same entry in a list without them.
    auto unmarked_outbound = compile_unmarked(outbound_entries);
    if (!unmarked_outbound) return std::unexpected(unmarked_outbound.error());
    auto unmarked_inbound = compile_unmarked(inbound_entries);
    if (!unmarked_inbound) return std::unexpected(unmarked_inbound.error());
    out.spd = std::make_unique<const Spd>(*unmarked_outbound, *unmarked_inbound);
    out.outbound = std::move(*outbound);
    out.inbound = std::move(*inbound);
    return out;
}

std::expected<PublishedSpd, std::string> compile_policies(
    std::span<const config::Policy> policies) {
    return compile_entries(spd_entries(policies, SpdDirection::outbound),
                           spd_entries(policies, SpdDirection::inbound));
}

}  // namespace sallyport::control
