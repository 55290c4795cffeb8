// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/owners.h"

#include <algorithm>
#include <optional>
#include <set>
#include <vector>

namespace sallyport::control::adoption {

namespace {

constexpr uint64_t kRankOwnCpu = uint64_t{1} << 63;
constexpr uint64_t kRankFallback = uint64_t{1} << 62;

// Stable across rekeying and restarts, and different for different peers.
uint64_t owner_hash(const IpAddress& peer, uint32_t reqid) {
    uint64_t hash = 0xcbf29ce484222325u ^ reqid;
    for (const uint8_t byte : peer.bytes) hash = (hash ^ byte) * 0x100000001b3u;
    hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15u;
    return hash >> 32;
}

WorkerId hashed_owner(uint64_t hash, size_t worker_count) {
    return WorkerId{static_cast<uint16_t>(worker_count == 0 ? 0 : hash % worker_count)};
}

std::optional<WorkerId> worker_of_cpu(std::optional<uint32_t> cpu, std::span<const uint16_t> cpus) {
    if (!cpu) return std::nullopt;
    const auto found = std::ranges::find(cpus, *cpu);
    if (found == cpus.end()) return std::nullopt;
    return WorkerId{static_cast<uint16_t>(found - cpus.begin())};
}

}  // namespace

void hold_back(std::span<const Member> group) {
    const auto newest = std::ranges::max_element(
        group, {}, [](const Member& member) { return member.sa->arrival; });
    if (newest == group.end() || newest->decision->adopted()) return;
    for (const Member& member : group) {
        if (member.decision->adopted()) {
            member.decision->reason = "a newer SA of its policy is with the kernel";
        }
    }
}

WorkerId inbound_owner(const xfrm::KernelSa& sa, std::span<const uint16_t> cpus) {
    const WorkerId hashed = hashed_owner(owner_hash(sa.source, sa.reqid), cpus.size());
    return worker_of_cpu(sa.pcpu, cpus).value_or(hashed);
}

void choose_outbound_owners(std::span<const Member> group, std::span<const uint16_t> cpus) {
    std::set<WorkerId> owners;
    for (const Member& member : group) {
        const auto worker = worker_of_cpu(member.sa->pcpu, cpus);
        if (!member.decision->adopted() || !worker) continue;
        member.decision->owner = *worker;
        member.decision->rank = kRankOwnCpu | member.sa->arrival;
        owners.insert(*worker);
    }
    std::vector<WorkerId> without_own;
    for (uint16_t i = 0; i < cpus.size(); ++i) {
        if (!owners.contains(WorkerId{i})) without_own.push_back(WorkerId{i});
    }
    for (const Member& member : group) {
        if (!member.decision->adopted() || worker_of_cpu(member.sa->pcpu, cpus)) continue;
        const uint64_t hash = owner_hash(member.sa->name.destination, member.sa->reqid);
        member.decision->owner = without_own.empty() ? hashed_owner(hash, cpus.size())
                                                     : without_own[hash % without_own.size()];
        member.decision->rank = (member.sa->pcpu ? 0 : kRankFallback) | member.sa->arrival;
    }
}

}  // namespace sallyport::control::adoption
