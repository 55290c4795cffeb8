// SPDX-License-Identifier: Apache-2.0
#include "control/host_traffic/plan.h"

#include <algorithm>
#include <optional>

#include "dataplane/base/prefix_map.h"

namespace sallyport::host_traffic {

namespace {

enum class Verdict : uint8_t { others, shared, tunnel };

IpAddress no_source(Family family) {
    return {.family = family};
}

IpPrefix host_prefix(const IpAddress& address) {
    return {.address = address, .bits = static_cast<uint8_t>(address.bit_count())};
}

bool can_be_source(const IpAddress& address) {
    const auto& b = address.bytes;
    if (address == no_source(address.family)) return false;
    if (address.family == Family::v4) {
        return b[0] != 127 && (b[0] & 0xf0) != 0xe0 && !(b[0] == 169 && b[1] == 254);
    }
    const bool loopback =
        std::all_of(b.begin(), b.end() - 1, [](uint8_t byte) { return byte == 0; });
    return !loopback && b[0] != 0xff && !(b[0] == 0xfe && (b[1] & 0xc0) == 0x80);
}

class Planner {
  public:
    explicit Planner(const Policies& policies) : policies_(policies) {}

    Plan plan(std::span<const IpAddress> own) {
        // An outer address is the last choice: its packets are the tunnels' own.
        for (const bool outer : {false, true}) {
            for (const IpAddress& source : own) {
                if (can_be_source(source) && policies_.near_ends.contains(source) == outer) {
                    add_source(source);
                }
            }
        }
        for (const Family family : {Family::v4, Family::v6}) {
            add_table(no_source(family), without_source_[family == Family::v4 ? 0 : 1]);
        }
        return std::move(out_);
    }

  private:
    // nullopt: not into the tunnel.
    using Choices = PrefixMap<std::optional<IpAddress>>;

    [[nodiscard]] bool served(const SpdEntry& entry) const {
        const size_t group = to_index(entry.policy);
        return entry.action == SpdAction::protect && group < policies_.served.size() &&
               policies_.served[group];
    }

    // `positions`: of the entries that cover all packets between two prefixes, in their order.
    [[nodiscard]] Verdict judge(std::span<const uint32_t> positions) const {
        bool by_worker = false;
        bool by_others = false;
        for (const uint32_t position : positions) {
            const SpdEntry& entry = policies_.outbound[position];
            by_worker = by_worker || served(entry);
            by_others = by_others || (!served(entry) && entry.action != SpdAction::discard);
            if (entry.takes_all()) break;
        }
        if (!by_worker) return Verdict::others;
        return by_others ? Verdict::shared : Verdict::tunnel;
    }

    void add_source(const IpAddress& source) {
        PrefixPositions entries;
        for (uint32_t i = 0; i < policies_.outbound.size(); ++i) {
            const SpdEntry& entry = policies_.outbound[i];
            if (entry.source.contains(source)) entries[entry.destination].push_back(i);
        }
        Choices choices;
        Choices& shared_choices = without_source_[source.family == Family::v4 ? 0 : 1];
        const bool outer = policies_.near_ends.contains(source);
        for (const auto& [to, unused] : entries.items()) {
            const Verdict verdict = judge(positions_around(entries, to));
            const bool too_wide = outer && to.bits == 0;
            const bool into_tunnel = verdict == Verdict::tunnel && !too_wide;
            if (verdict != Verdict::others && !into_tunnel) out_.left.insert({source, to});
            choices[to] = into_tunnel ? std::optional(source) : std::nullopt;
            std::optional<IpAddress>& choice = shared_choices[to];
            if (!choice && into_tunnel && to.bits != 0) choice = source;
        }
        add_table(source, choices);
    }

    void add_table(const IpAddress& source, Choices& choices) {
        const auto leads_into_tunnel = [&](const IpPrefix& to) {
            return choices.any_around(to, [](const auto& choice) { return choice.has_value(); });
        };
        for (const IpAddress& peer : policies_.far_ends) {
            if (peer.family != source.family || !leads_into_tunnel(host_prefix(peer))) continue;
            std::optional<IpAddress>& choice = choices[host_prefix(peer)];
            if (choice) out_.left.insert({source, host_prefix(peer)});
            choice.reset();
        }
        for (const auto& [to, choice] : choices.items()) {
            if (choice) {
                const bool v6 = source.family == Family::v6;
                out_.ways[{source, to}] = {.leads = v6 ? Leads::refused : Leads::into_tunnel,
                                           .from = *choice};
            } else if (leads_into_tunnel(to)) {
                out_.ways[{source, to}] = {};
            }
        }
    }

    const Policies& policies_;
    Choices without_source_[2];  // IPv4, IPv6
    Plan out_;
};

}  // namespace

Plan plan_ways(const Policies& policies, std::span<const IpAddress> own) {
    return Planner(policies).plan(own);
}

}  // namespace sallyport::host_traffic
