// SPDX-License-Identifier: Apache-2.0
#pragma once

// Writes compiled SPDs into the BPF maps: as a whole, one generation beside the other, or by rows.
//
// Generation g and g + 1 share the maps: g's parity picks the half of spd_entries and the range of
// destination classes. So at most two exist, and the older one is deleted as soon as no program can
// still be reading it. Deleting earlier would not only miss: with a row gone, a shorter prefix
// would answer in its place.
//
// Changes by rows are made inside the generation in use, in the order of dataplane/spd/classes.h,
// and taken back in the opposite order where one fails. What they take out of use rests: source
// rows of classes that nothing leads to stay until it has been waited once for the programs, for
// many of them together (to wait takes milliseconds).

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "bpf/abi.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/program_object.h"
#include "dataplane/spd/classes.h"

namespace sallyport::bpf_objects {

class SpdWriter {
  public:
    SpdWriter(const SharedMaps& maps, const Limits& limits);

    // See BpfObjects::publish_spd().
    std::expected<void, std::string> publish(const CompiledSpd& outbound,
                                             const CompiledSpd& inbound,
                                             std::span<const std::vector<WorkerId>> owners,
                                             std::span<const uint32_t> if_ids = {},
                                             const std::function<void()>& switched = {});
    // See BpfObjects::publish_spd_rows().
    std::expected<void, std::string> publish_rows(const SpdRowChanges& changes,
                                                  std::span<const std::vector<WorkerId>> owners,
                                                  std::span<const PolicyId> changed_owners,
                                                  std::span<const uint32_t> if_ids,
                                                  const std::function<void()>& switched);
    // See BpfObjects::set_bypass_until().
    std::expected<void, std::string> set_bypass_until(uint64_t monotonic_ns);
    // See BpfObjects::update_owners().
    std::expected<size_t, std::string> update_owners(std::span<const std::vector<WorkerId>> owners);
    std::expected<size_t, std::string> update_owners(std::span<const std::vector<WorkerId>> owners,
                                                     std::span<const PolicyId> changed);

  private:
    struct KeyHash {
        size_t operator()(const sp_lpm_key& key) const;
    };
    struct KeyEqual {
        bool operator()(const sp_lpm_key& a, const sp_lpm_key& b) const;
    };
    using Keys = std::unordered_set<sp_lpm_key, KeyHash, KeyEqual>;
    struct Rows {
        Keys destinations;
        Keys sources;
        // As they stand in the map, from the generation's first on.
        std::vector<sp_spd_entry> entries;
        // Entries of one policy: each leads to another one, kNobody ends them.
        struct Links {
            uint32_t next;
            uint32_t previous;
            bool outbound;
        };
        std::vector<Links> links;
        std::vector<uint32_t> first_of_policy;
        void link(uint32_t entry, bool outbound);
        void unlink(uint32_t entry);
    };
    // Of one direction's changes.
    struct Progress {
        uint32_t direction;
        const SpdChanges* changes;
        size_t done = 0;
    };
    struct Need {
        const char* what;
        size_t rows;
        size_t room;
    };
    template <typename Key, typename Value>
    bool put_all(int fd, std::vector<Key>& keys, std::vector<Value>& values);
    void erase_all(int fd, std::vector<sp_lpm_key>& keys);
    [[nodiscard]] std::array<Need, 3> needs_of(const CompiledSpd& outbound,
                                               const CompiledSpd& inbound) const;
    std::expected<void, std::string> check_room(const CompiledSpd& outbound,
                                                const CompiledSpd& inbound) const;
    std::expected<void, std::string> write(const CompiledSpd& spd, uint32_t direction,
                                           uint32_t generation, uint32_t first_entry,
                                           std::span<const std::vector<WorkerId>> owners,
                                           std::span<const uint32_t> if_ids, Rows& rows);
    std::expected<void, std::string> advance(Progress& progress,
                                             std::span<const std::vector<WorkerId>> owners,
                                             std::span<const uint32_t> if_ids);
    bool take_back(Progress& progress);
    bool put_source(uint32_t direction, uint32_t number, const IpPrefix& source,
                    const SpdChanges::Run& was, const SpdChanges::Run& now);
    bool put_destination(uint32_t direction, const IpPrefix& destination,
                         const std::optional<SpdChanges::Class>& was,
                         const std::optional<SpdChanges::Class>& now);
    void settle(const Progress& progress);
    void rest();
    [[nodiscard]] bool use(uint32_t generation, uint64_t bypass_until_ns) const;
    void erase(const Rows& rows);
    [[nodiscard]] uint32_t first_entry(uint32_t generation) const {
        return (generation & 1) * limits_.spd_entries;
    }

    int destinations_fd_;
    int sources_fd_;
    int entries_fd_;
    int active_fd_;
    Limits limits_;
    uint32_t generation_ = 0;  // in use; 0: none yet
    uint64_t bypass_until_ns_ = SP_BYPASS_FOREVER;
    Rows rows_;                        // of the generation in use
    std::vector<sp_lpm_key> resting_;  // of its source rows: nothing leads to them
    bool batches_ = true;              // this kernel has them
};

}  // namespace sallyport::bpf_objects
