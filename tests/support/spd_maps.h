// SPDX-License-Identifier: Apache-2.0
#pragma once

// A model of the BPF maps of one direction, and of the program that reads them (bpf/spd.h). Each
// read of a map goes from wider prefixes to longer ones, as in the kernel's LPM trie, and before
// each step of it `tick` is called: what is written meanwhile is seen by the steps that follow.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "bpf/abi.h"
#include "dataplane/spd/classes.h"

namespace sallyport::test {

class SpdMaps {
  public:
    SpdMaps() = default;
    explicit SpdMaps(const CompiledSpd& compiled) {
        for (size_t i = 0; i < compiled.entries.size(); ++i) {
            entries_[compiled.first_entry + static_cast<uint32_t>(i)] = compiled.entries[i];
        }
        for (const auto& row : compiled.sources) {
            sources_[{row.destination_class, row.source}] = {
                .first = compiled.first_entry + row.cell_first, .count = row.cell_count};
        }
        for (const auto& row : compiled.destinations) {
            destinations_[row.destination] = {.number = row.destination_class,
                                              .order_above = row.order_above};
        }
    }

    // False: what was there is not what the step says.
    bool take(const SpdChanges::Step& step) { return put(step, false); }
    bool take_back(const SpdChanges::Step& step) { return put(step, true); }
    bool erase(const std::vector<SpdChanges::Source>& rows) {
        bool known = true;
        for (const auto& row : rows) known = sources_.erase({row.number, row.source}) == 1 && known;
        return known;
    }
    [[nodiscard]] size_t row_count() const { return destinations_.size() + sources_.size(); }

    // `marks`: of the packet's connection, where it has one.
    SpdVerdict lookup(
        const IpAddress& source, const IpAddress& destination, const SpdKey& key,
        std::optional<uint32_t> mark = std::nullopt, const std::function<void()>& tick = [] {}) {
        SpdVerdict verdict;
        uint32_t best = CompiledSpd::kNone;
        auto bits = static_cast<int>(destination.bit_count());
        for (uint32_t visited = 0; visited < SP_SPD_CLASSES_MAX; ++visited) {
            std::optional<SpdChanges::Class> found;
            int found_bits = 0;
            for (int length = 0; length <= bits; ++length) {
                tick();
                const auto row = destinations_.find(cut(destination, length));
                if (row == destinations_.end()) continue;
                found = row->second;
                found_bits = length;
            }
            if (!found) break;
            std::optional<SpdChanges::Run> run;
            for (int length = 0; length <= static_cast<int>(source.bit_count()); ++length) {
                tick();
                const auto row = sources_.find({found->number, cut(source, length)});
                if (row != sources_.end()) run = row->second;
            }
            for (uint32_t i = 0; run && i < run->count; ++i) {
                tick();
                const auto& [entry, order] = entries_.at(run->first + i);
                const auto match = matches(entry, key, mark);
                if (!match) continue;
                if (order < best) {
                    best = order;
                    verdict = *match;
                }
                break;
            }
            if (best <= found->order_above || found_bits == 0) break;
            bits = found_bits - 1;
        }
        return verdict;
    }

  private:
    static IpPrefix cut(const IpAddress& address, int bits) {
        const IpPrefix whole{.address = address, .bits = static_cast<uint8_t>(address.bit_count())};
        return shortened(whole, static_cast<uint8_t>(bits));
    }
    static std::optional<SpdVerdict> matches(const SpdEntry& entry, const SpdKey& key,
                                             std::optional<uint32_t> mark) {
        constexpr SpdVerdict kUnknown{.kind = SpdVerdict::Kind::ports_unknown};
        if (entry.protocol != 0) {
            if (!key.protocol_known) return kUnknown;
            if (entry.protocol != key.protocol) return std::nullopt;
        }
        if (entry.has_ports) {
            if (!key.ports_known) return kUnknown;
            if (key.source_port < entry.source_port_lo || key.source_port > entry.source_port_hi ||
                key.destination_port < entry.destination_port_lo ||
                key.destination_port > entry.destination_port_hi) {
                return std::nullopt;
            }
        }
        if (entry.ct_mark_mask != 0 && (!mark || (*mark & entry.ct_mark_mask) != entry.ct_mark)) {
            return std::nullopt;
        }
        return SpdVerdict{
            .kind = SpdVerdict::Kind::matched, .action = entry.action, .policy = entry.policy};
    }

    bool put(const SpdChanges::Step& step, bool backwards) {
        if (const auto* source = std::get_if<SpdChanges::Source>(&step)) {
            const auto& was = backwards ? source->now : source->was;
            const auto& now = backwards ? source->was : source->now;
            for (uint32_t i = 0; !backwards && i < now.count; ++i) {
                entries_[now.first + i] = source->entries[i];
            }
            const std::pair key(source->number, source->source);
            const auto found = sources_.find(key);
            if ((found == sources_.end()) != (was.count == 0)) return false;
            if (found != sources_.end() && found->second != was) return false;
            if (now.count == 0) {
                sources_.erase(found);
            } else {
                sources_[key] = now;
            }
        } else if (const auto* row = std::get_if<SpdChanges::Destination>(&step)) {
            const auto& was = backwards ? row->now : row->was;
            const auto& now = backwards ? row->was : row->now;
            const auto found = destinations_.find(row->destination);
            if ((found == destinations_.end()) != !was) return false;
            if (was && found->second.number != was->number) return false;
            if (now) {
                destinations_[row->destination] = *now;
            } else {
                destinations_.erase(found);
            }
        }
        return true;
    }

    struct Less {
        bool operator()(const std::pair<uint32_t, IpPrefix>& a,
                        const std::pair<uint32_t, IpPrefix>& b) const {
            if (a.first != b.first) return a.first < b.first;
            return OutsideFirst{}(a.second, b.second);
        }
    };
    std::map<IpPrefix, SpdChanges::Class, OutsideFirst> destinations_;
    std::map<std::pair<uint32_t, IpPrefix>, SpdChanges::Run, Less> sources_;
    std::map<uint32_t, CompiledSpd::Candidate> entries_;
};

}  // namespace sallyport::test
