// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/spd_writer.h"

#include <bpf/bpf.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <variant>

namespace sallyport::bpf_objects {
namespace {

static_assert(static_cast<int>(SpdAction::protect) == SP_SPD_PROTECT);
static_assert(static_cast<int>(SpdAction::bypass) == SP_SPD_BYPASS);
static_assert(static_cast<int>(SpdAction::discard) == SP_SPD_DISCARD);
static_assert(CompiledSpd::kNone == SP_SPD_NO_ORDER);

constexpr uint32_t kNobody = 0xffffffff;

std::string map_error(const char* what) {
    return std::string("cannot write ") + what + ": " + std::strerror(errno);
}

sp_lpm_key lpm_key(uint32_t table, const IpPrefix& prefix) {
    sp_lpm_key key{};
    key.prefix_bits = 32u + prefix.bits;
    key.table = table;
    std::ranges::copy(prefix.address.bytes, key.address);
    return key;
}

// Unique over the two generations and both directions.
uint32_t class_id(uint32_t generation, uint32_t direction, uint32_t destination_class) {
    return (generation & 1) << 31 | direction << 30 | destination_class;
}

// Slots beyond owner_count repeat the owners. A program may read an entry while the kernel copies
// 32 bytes over it, and see the count of before with the slots of after or the other way round: so
// every slot names a worker that may be meant.
void put_owners(sp_spd_entry& row, std::span<const std::vector<WorkerId>> owners) {
    row.owner_count = 0;
    if (row.policy >= owners.size() || owners[row.policy].empty()) return;
    const std::vector<WorkerId>& workers = owners[row.policy];
    row.owner_count = static_cast<uint8_t>(workers.size());
    for (size_t slot = 0; slot < SP_OWNERS_MAX; ++slot) {
        row.owners[slot] = static_cast<uint8_t>(to_index(workers[slot % workers.size()]));
    }
}

sp_spd_entry entry_row(const CompiledSpd::Candidate& candidate,
                       std::span<const std::vector<WorkerId>> owners,
                       std::span<const uint32_t> if_ids) {
    const SpdEntry& entry = candidate.entry;
    sp_spd_entry row{};
    row.order = candidate.order;
    row.policy = to_index(entry.policy);
    row.action = static_cast<uint8_t>(entry.action);
    row.protocol = entry.protocol;
    row.has_ports = entry.has_ports ? 1 : 0;
    row.src_port_lo = entry.source_port_lo;
    row.src_port_hi = entry.source_port_hi;
    row.dst_port_lo = entry.destination_port_lo;
    row.dst_port_hi = entry.destination_port_hi;
    row.ct_mark = entry.ct_mark;
    row.ct_mark_mask = entry.ct_mark_mask;
    put_owners(row, owners);
    if (entry.action == SpdAction::protect && row.policy < if_ids.size()) {
        row.if_id = if_ids[row.policy];
    }
    return row;
}

bool too_many_owners(std::span<const std::vector<WorkerId>> owners, PolicyId policy) {
    return to_index(policy) < owners.size() && owners[to_index(policy)].size() > SP_OWNERS_MAX;
}

std::unexpected<std::string> owners_error() {
    return std::unexpected("more than " + std::to_string(SP_OWNERS_MAX) +
                           " workers share the outbound SAs of one policy");
}

// Returns when every program that was running has ended. XDP programs are RCU readers, and this
// command waits for RCU's readers.
void wait_for_programs() {
    if (syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) != 0) {
        // Kernels with nohz_full refuse it. A program runs for microseconds.
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

}  // namespace

SpdWriter::SpdWriter(const SharedMaps& maps, const Limits& limits)
    : destinations_fd_(maps.fd("spd_dst")),
      sources_fd_(maps.fd("spd_src")),
      entries_fd_(maps.fd("spd_entries")),
      active_fd_(maps.fd("spd_active")),
      limits_(limits) {}

std::array<SpdWriter::Need, 3> SpdWriter::needs_of(const CompiledSpd& outbound,
                                                   const CompiledSpd& inbound) const {
    return {{{"destination rows", outbound.destinations.size() + inbound.destinations.size(),
              limits_.spd_destinations},
             {"source rows", outbound.sources.size() + inbound.sources.size(), limits_.spd_sources},
             {"entries", outbound.entries.size() + inbound.entries.size(), limits_.spd_entries}}};
}

std::expected<void, std::string> SpdWriter::check_room(const CompiledSpd& outbound,
                                                       const CompiledSpd& inbound) const {
    for (const Need& need : needs_of(outbound, inbound)) {
        if (need.rows > need.room) {
            return std::unexpected("the policies compile to " + std::to_string(need.rows) + " " +
                                   need.what + " and the XDP maps have room for " +
                                   std::to_string(need.room) +
                                   ": use fewer policies or fewer prefixes in them");
        }
    }
    for (const CompiledSpd* spd : {&outbound, &inbound}) {
        for (const CompiledSpd::SourceRow& row : spd->sources) {
            if (row.cell_count > SP_CELL_ENTRIES_MAX) {
                return std::unexpected("more than " + std::to_string(SP_CELL_ENTRIES_MAX) +
                                       " policies compete for packets from " +
                                       to_string(row.source));
            }
        }
    }
    return {};
}

// ---- the rows of a generation -----------------------------------------------------------------

size_t SpdWriter::KeyHash::operator()(const sp_lpm_key& key) const {
    uint64_t words[3];
    std::memcpy(words, &key, sizeof words);
    uint64_t hash = words[0] * 0x9e3779b97f4a7c15ull;
    hash = (hash ^ (hash >> 29) ^ words[1]) * 0xbf58476d1ce4e5b9ull;
    hash = (hash ^ (hash >> 32) ^ words[2]) * 0x94d049bb133111ebull;
    return hash ^ hash >> 31;
}

bool SpdWriter::KeyEqual::operator()(const sp_lpm_key& a, const sp_lpm_key& b) const {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

void SpdWriter::Rows::link(uint32_t entry, bool outbound) {
    const uint32_t policy = entries[entry].policy;
    if (policy >= first_of_policy.size()) first_of_policy.resize(policy + size_t{1}, kNobody);
    if (links.size() < entries.size()) links.resize(entries.size());
    const uint32_t next = std::exchange(first_of_policy[policy], entry);
    links[entry] = {.next = next, .previous = kNobody, .outbound = outbound};
    if (next != kNobody) links[next].previous = entry;
}

void SpdWriter::Rows::unlink(uint32_t entry) {
    const Links here = links[entry];
    if (here.previous == kNobody) {
        first_of_policy[entries[entry].policy] = here.next;
    } else {
        links[here.previous].next = here.next;
    }
    if (here.next != kNobody) links[here.next].previous = here.previous;
}

// Where there are no batches, or one ends early, one by one: the error is that of the one it met.
template <typename Key, typename Value>
bool SpdWriter::put_all(int fd, std::vector<Key>& keys, std::vector<Value>& values) {
    if (batches_ && !keys.empty()) {
        auto count = static_cast<uint32_t>(keys.size());
        DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);
        if (bpf_map_update_batch(fd, keys.data(), values.data(), &count, &options) == 0)
            return true;
        batches_ = errno == ENOSPC || errno == ENOMEM;
    }
    for (size_t i = 0; i < keys.size(); ++i) {
        if (bpf_map_update_elem(fd, &keys[i], &values[i], BPF_ANY) != 0) return false;
    }
    return true;
}

void SpdWriter::erase_all(int fd, std::vector<sp_lpm_key>& keys) {
    size_t done = 0;
    if (batches_ && !keys.empty()) {
        auto count = static_cast<uint32_t>(keys.size());
        DECLARE_LIBBPF_OPTS(bpf_map_batch_opts, options);
        if (bpf_map_delete_batch(fd, keys.data(), &count, &options) == 0) done = count;
    }
    for (; done < keys.size(); ++done) bpf_map_delete_elem(fd, &keys[done]);
}

std::expected<void, std::string> SpdWriter::write(const CompiledSpd& spd, uint32_t direction,
                                                  uint32_t generation, uint32_t first_entry,
                                                  std::span<const std::vector<WorkerId>> owners,
                                                  std::span<const uint32_t> if_ids, Rows& rows) {
    const auto first = static_cast<uint32_t>(rows.entries.size());
    std::vector<uint32_t> indices;
    std::vector<sp_spd_entry> entries;
    for (uint32_t i = 0; i < spd.entries.size(); ++i) {
        indices.push_back(first_entry + i);
        entries.push_back(entry_row(spd.entries[i], owners, if_ids));
    }
    rows.entries.insert(rows.entries.end(), entries.begin(), entries.end());
    for (uint32_t i = 0; i < entries.size(); ++i) {
        rows.link(first + i, direction == SP_SPD_OUTBOUND);
    }
    if (!put_all(entries_fd_, indices, entries)) return std::unexpected(map_error("spd_entries"));

    std::vector<sp_lpm_key> keys;
    std::vector<sp_spd_cell> cells;
    for (const CompiledSpd::SourceRow& source : spd.sources) {
        keys.push_back(
            lpm_key(class_id(generation, direction, source.destination_class), source.source));
        cells.push_back({.first = first_entry + source.cell_first, .count = source.cell_count});
    }
    rows.sources.insert(keys.begin(), keys.end());
    if (!put_all(sources_fd_, keys, cells)) return std::unexpected(map_error("spd_src"));

    keys.clear();
    std::vector<sp_spd_class> classes;
    for (const CompiledSpd::DestinationRow& destination : spd.destinations) {
        const bool is_v6 = destination.destination.address.family == Family::v6;
        const sp_lpm_key key =
            lpm_key(SP_SPD_TABLE(generation, direction, is_v6 ? 1u : 0u), destination.destination);
        keys.push_back(key);
        classes.push_back({.id = class_id(generation, direction, destination.destination_class),
                           .prefix_bits = key.prefix_bits,
                           .order_above = destination.order_above});
    }
    rows.destinations.insert(keys.begin(), keys.end());
    if (!put_all(destinations_fd_, keys, classes)) return std::unexpected(map_error("spd_dst"));
    return {};
}

// Programs read two words of it, each written in one piece, and either may be of before.
bool SpdWriter::use(uint32_t generation, uint64_t bypass_until_ns) const {
    const uint32_t zero = 0;
    const sp_spd_active active{
        .generation = generation, .enabled = 1, .bypass_until_ns = bypass_until_ns};
    return bpf_map_update_elem(active_fd_, &zero, &active, BPF_ANY) == 0;
}

std::expected<void, std::string> SpdWriter::set_bypass_until(uint64_t monotonic_ns) {
    if (generation_ != 0 && !use(generation_, monotonic_ns)) {
        return std::unexpected(map_error("spd_active"));
    }
    bypass_until_ns_ = monotonic_ns;
    return {};
}

void SpdWriter::erase(const Rows& rows) {
    // Destinations first: without its class a source row is never looked up.
    std::vector<sp_lpm_key> keys(rows.destinations.begin(), rows.destinations.end());
    erase_all(destinations_fd_, keys);
    keys.assign(rows.sources.begin(), rows.sources.end());
    erase_all(sources_fd_, keys);
}

std::expected<void, std::string> SpdWriter::publish(const CompiledSpd& outbound,
                                                    const CompiledSpd& inbound,
                                                    std::span<const std::vector<WorkerId>> owners,
                                                    std::span<const uint32_t> if_ids,
                                                    const std::function<void()>& switched) {
    if (auto room = check_room(outbound, inbound); !room) return room;
    for (uint32_t policy = 0; policy < owners.size(); ++policy) {
        if (too_many_owners(owners, PolicyId{policy})) return owners_error();
    }

    // SP_SPD_TABLE has 30 bits for it. 0 is "none yet".
    const uint32_t next = (generation_ + 1) & 0x3fffffff;
    if (!resting_.empty()) rest();  // they have taken room
    const uint32_t half = first_entry(next);
    const auto outbound_entries = static_cast<uint32_t>(outbound.entries.size());
    Rows rows;
    auto written = write(outbound, SP_SPD_OUTBOUND, next, half, owners, if_ids, rows);
    if (written) {
        // Nobody encrypts by an inbound entry.
        written = write(inbound, SP_SPD_INBOUND, next, half + outbound_entries, {}, if_ids, rows);
    }
    if (written && !use(next, bypass_until_ns_)) written = std::unexpected(map_error("spd_active"));
    if (!written) {
        erase(rows);
        return written;
    }

    generation_ = next;
    if (switched) switched();
    wait_for_programs();
    erase(rows_);
    rows_ = std::move(rows);
    return {};
}

// ---- by rows --------------------------------------------------------------------------------

bool SpdWriter::put_source(uint32_t direction, uint32_t number, const IpPrefix& source,
                           const SpdChanges::Run& was, const SpdChanges::Run& now) {
    const sp_lpm_key key = lpm_key(class_id(generation_, direction, number), source);
    if (now.count == 0) {
        if (bpf_map_delete_elem(sources_fd_, &key) != 0) return false;
        rows_.sources.erase(key);
        return true;
    }
    const sp_spd_cell cell{.first = first_entry(generation_) + now.first, .count = now.count};
    const auto flags = was.count == 0 ? BPF_NOEXIST : BPF_ANY;
    if (bpf_map_update_elem(sources_fd_, &key, &cell, flags) != 0) return false;
    if (was.count == 0) rows_.sources.insert(key);
    return true;
}

bool SpdWriter::put_destination(uint32_t direction, const IpPrefix& destination,
                                const std::optional<SpdChanges::Class>& was,
                                const std::optional<SpdChanges::Class>& now) {
    const bool is_v6 = destination.address.family == Family::v6;
    const sp_lpm_key key =
        lpm_key(SP_SPD_TABLE(generation_, direction, is_v6 ? 1u : 0u), destination);
    if (!now) {
        if (bpf_map_delete_elem(destinations_fd_, &key) != 0) return false;
        rows_.destinations.erase(key);
        return true;
    }
    const sp_spd_class row{.id = class_id(generation_, direction, now->number),
                           .prefix_bits = key.prefix_bits,
                           .order_above = now->order_above};
    const auto flags = was ? BPF_ANY : BPF_NOEXIST;
    if (bpf_map_update_elem(destinations_fd_, &key, &row, flags) != 0) return false;
    if (!was) rows_.destinations.insert(key);
    return true;
}

std::expected<void, std::string> SpdWriter::advance(Progress& progress,
                                                    std::span<const std::vector<WorkerId>> owners,
                                                    std::span<const uint32_t> if_ids) {
    const auto& steps = progress.changes->steps;
    for (; progress.done < steps.size(); ++progress.done) {
        const SpdChanges::Step& step = steps[progress.done];
        if (const auto* source = std::get_if<SpdChanges::Source>(&step)) {
            for (uint32_t i = 0; i < source->now.count; ++i) {
                const uint32_t place = source->now.first + i;
                const uint32_t index = first_entry(generation_) + place;
                if (too_many_owners(owners, source->entries[i].entry.policy)) return owners_error();
                const sp_spd_entry row = entry_row(source->entries[i], owners, if_ids);
                if (place >= rows_.entries.size()) rows_.entries.resize(place + size_t{1});
                if (place >= limits_.spd_entries ||
                    bpf_map_update_elem(entries_fd_, &index, &row, BPF_ANY) != 0) {
                    return std::unexpected(map_error("spd_entries"));
                }
                rows_.entries[place] = row;
            }
            if (!put_source(progress.direction, source->number, source->source, source->was,
                            source->now)) {
                return std::unexpected(map_error("spd_src"));
            }
        } else if (const auto* row = std::get_if<SpdChanges::Destination>(&step)) {
            if (!put_destination(progress.direction, row->destination, row->was, row->now)) {
                return std::unexpected(map_error("spd_dst"));
            }
        } else {
            wait_for_programs();
        }
    }
    return {};
}

// What was in use has not been written over, so only rows that lead to it are put back.
bool SpdWriter::take_back(Progress& progress) {
    bool done = true;
    while (progress.done > 0) {
        const SpdChanges::Step& step = progress.changes->steps[--progress.done];
        if (const auto* source = std::get_if<SpdChanges::Source>(&step)) {
            done = put_source(progress.direction, source->number, source->source, source->now,
                              source->was) &&
                   done;
        } else if (const auto* row = std::get_if<SpdChanges::Destination>(&step)) {
            done =
                put_destination(progress.direction, row->destination, row->now, row->was) && done;
        } else {
            wait_for_programs();
        }
    }
    return done;
}

// Which entries are in use now, and which rows rest. A run may come and go within one change.
void SpdWriter::settle(const Progress& progress) {
    const bool outbound = progress.direction == SP_SPD_OUTBOUND;
    const auto unlink = [&](const SpdChanges::Run& run) {
        for (uint32_t i = 0; i < run.count; ++i) rows_.unlink(run.first + i);
    };
    for (const SpdChanges::Step& step : progress.changes->steps) {
        const auto* source = std::get_if<SpdChanges::Source>(&step);
        if (source == nullptr) continue;
        unlink(source->was);
        for (uint32_t i = 0; i < source->now.count; ++i) {
            rows_.link(source->now.first + i, outbound);
        }
    }
    for (const SpdChanges::Source& row : progress.changes->later) {
        unlink(row.was);
        resting_.push_back(
            lpm_key(class_id(generation_, progress.direction, row.number), row.source));
    }
}

void SpdWriter::rest() {
    wait_for_programs();
    erase_all(sources_fd_, resting_);
    for (const sp_lpm_key& key : resting_) rows_.sources.erase(key);
    resting_.clear();
}

std::expected<void, std::string> SpdWriter::publish_rows(
    const SpdRowChanges& changes, std::span<const std::vector<WorkerId>> owners,
    std::span<const PolicyId> changed_owners, std::span<const uint32_t> if_ids,
    const std::function<void()>& switched) {
    Progress outbound{.direction = SP_SPD_OUTBOUND, .changes = &changes.outbound};
    Progress inbound{.direction = SP_SPD_INBOUND, .changes = &changes.inbound};
    auto done = advance(outbound, owners, if_ids);
    if (done) done = advance(inbound, {}, if_ids);
    if (done) {
        if (auto updated = update_owners(owners, changed_owners); !updated) {
            done = std::unexpected(updated.error());
        }
    }
    if (!done) {
        if (!take_back(inbound) || !take_back(outbound)) {
            done = std::unexpected(done.error() + "; part of it could not be taken back");
        }
        return done;
    }
    settle(outbound);
    settle(inbound);
    if (switched) switched();
    if (changes.rest) rest();
    return {};
}

// ---- owners -----------------------------------------------------------------------------------

std::expected<size_t, std::string> SpdWriter::update_owners(
    std::span<const std::vector<WorkerId>> owners) {
    std::vector<PolicyId> all;
    for (uint32_t policy = 0; policy < rows_.first_of_policy.size(); ++policy) {
        all.push_back(PolicyId{policy});
    }
    return update_owners(owners, all);
}

// Of an entry that gets its first owner or loses its last the count is written by itself, behind or
// before the slots, so that whoever reads the count finds slots that go with it.
std::expected<size_t, std::string> SpdWriter::update_owners(
    std::span<const std::vector<WorkerId>> owners, std::span<const PolicyId> changed) {
    size_t count = 0;
    for (const PolicyId policy : changed) {
        if (too_many_owners(owners, policy)) return owners_error();
        if (to_index(policy) >= rows_.first_of_policy.size()) continue;
        for (uint32_t i = rows_.first_of_policy[to_index(policy)]; i != kNobody;
             i = rows_.links[i].next) {
            if (!rows_.links[i].outbound) continue;
            sp_spd_entry& row = rows_.entries[i];
            sp_spd_entry wanted = row;
            put_owners(wanted, owners);
            if (std::memcmp(&wanted, &row, sizeof row) == 0) continue;

            const uint32_t index = first_entry(generation_) + i;
            if (row.owner_count == 0) {
                sp_spd_entry slots_only = wanted;
                slots_only.owner_count = 0;
                if (bpf_map_update_elem(entries_fd_, &index, &slots_only, BPF_ANY) != 0) {
                    return std::unexpected(map_error("spd_entries"));
                }
            }
            if (bpf_map_update_elem(entries_fd_, &index, &wanted, BPF_ANY) != 0) {
                return std::unexpected(map_error("spd_entries"));
            }
            row = wanted;
            ++count;
        }
    }
    return count;
}

}  // namespace sallyport::bpf_objects
