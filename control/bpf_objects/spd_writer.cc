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

namespace sallyport::bpf_objects {
namespace {

static_assert(static_cast<int>(SpdAction::protect) == SP_SPD_PROTECT);
static_assert(static_cast<int>(SpdAction::bypass) == SP_SPD_BYPASS);
static_assert(static_cast<int>(SpdAction::discard) == SP_SPD_DISCARD);
static_assert(CompiledSpd::kNone == SP_SPD_NO_ORDER);

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

std::expected<void, std::string> check_owners(std::span<const std::vector<WorkerId>> owners) {
    for (const std::vector<WorkerId>& workers : owners) {
        if (workers.size() > SP_OWNERS_MAX) {
            return std::unexpected("more than " + std::to_string(SP_OWNERS_MAX) +
                                   " workers share the outbound SAs of one policy");
        }
    }
    return {};
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

double SpdWriter::share_of_room(const CompiledSpd& outbound, const CompiledSpd& inbound) const {
    double most = 0;
    for (const Need& need : needs_of(outbound, inbound)) {
        most = std::max(most, static_cast<double>(need.rows) / static_cast<double>(need.room));
    }
    return most;
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

std::expected<void, std::string> SpdWriter::write(const CompiledSpd& spd, uint32_t direction,
                                                  uint32_t generation, uint32_t first_entry,
                                                  std::span<const std::vector<WorkerId>> owners,
                                                  std::span<const uint32_t> if_ids,
                                                  Rows& rows) const {
    for (uint32_t i = 0; i < spd.entries.size(); ++i) {
        const uint32_t index = first_entry + i;
        const sp_spd_entry row = entry_row(spd.entries[i], owners, if_ids);
        if (bpf_map_update_elem(entries_fd_, &index, &row, BPF_ANY) != 0) {
            return std::unexpected(map_error("spd_entries"));
        }
        if (direction == SP_SPD_OUTBOUND) rows.outbound_entries.push_back(row);
    }
    for (const CompiledSpd::SourceRow& source : spd.sources) {
        const sp_lpm_key key =
            lpm_key(class_id(generation, direction, source.destination_class), source.source);
        const sp_spd_cell cell{.first = first_entry + source.cell_first,
                               .count = source.cell_count};
        if (bpf_map_update_elem(sources_fd_, &key, &cell, BPF_NOEXIST) != 0) {
            return std::unexpected(map_error("spd_src"));
        }
        rows.sources.push_back(key);
    }
    for (const CompiledSpd::DestinationRow& destination : spd.destinations) {
        const bool is_v6 = destination.destination.address.family == Family::v6;
        const sp_lpm_key key =
            lpm_key(SP_SPD_TABLE(generation, direction, is_v6 ? 1u : 0u), destination.destination);
        const sp_spd_class row{.id = class_id(generation, direction, destination.destination_class),
                               .prefix_bits = key.prefix_bits,
                               .order_above = destination.order_above};
        if (bpf_map_update_elem(destinations_fd_, &key, &row, BPF_NOEXIST) != 0) {
            return std::unexpected(map_error("spd_dst"));
        }
        rows.destinations.push_back(key);
    }
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

void SpdWriter::erase(const Rows& rows) const {
    // Destinations first: without its class a source row is never looked up.
    for (const sp_lpm_key& key : rows.destinations) bpf_map_delete_elem(destinations_fd_, &key);
    for (const sp_lpm_key& key : rows.sources) bpf_map_delete_elem(sources_fd_, &key);
}

std::expected<void, std::string> SpdWriter::publish(const CompiledSpd& outbound,
                                                    const CompiledSpd& inbound,
                                                    std::span<const std::vector<WorkerId>> owners,
                                                    std::span<const uint32_t> if_ids,
                                                    const std::function<void()>& switched) {
    if (auto room = check_room(outbound, inbound); !room) return room;
    if (auto checked = check_owners(owners); !checked) return checked;

    // SP_SPD_TABLE has 30 bits for it. 0 is "none yet".
    const uint32_t next = (generation_ + 1) & 0x3fffffff;
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

// Of an entry that gets its first owner or loses its last the count is written by itself, behind or
// before the slots, so that whoever reads the count finds slots that go with it.
std::expected<size_t, std::string> SpdWriter::update_owners(
    std::span<const std::vector<WorkerId>> owners) {
    if (auto checked = check_owners(owners); !checked) return std::unexpected(checked.error());
    size_t count = 0;
    for (uint32_t i = 0; i < rows_.outbound_entries.size(); ++i) {
        sp_spd_entry& row = rows_.outbound_entries[i];
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
    return count;
}

}  // namespace sallyport::bpf_objects
