// SPDX-License-Identifier: Apache-2.0
#pragma once

// Writes compiled SPDs into the BPF maps, one generation beside the other.
//
// Generation g and g + 1 share the maps: g's parity picks the half of spd_entries and the range of
// destination classes. So at most two exist, and the older one is deleted as soon as no program can
// still be reading it. Deleting earlier would not only miss: with a row gone, a shorter prefix
// would answer in its place.

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "bpf/abi.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/program_object.h"

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
    // See BpfObjects::set_bypass_until().
    std::expected<void, std::string> set_bypass_until(uint64_t monotonic_ns);
    // See BpfObjects::spd_share_of_room().
    [[nodiscard]] double share_of_room(const CompiledSpd& outbound,
                                       const CompiledSpd& inbound) const;

    // See BpfObjects::update_owners().
    std::expected<size_t, std::string> update_owners(std::span<const std::vector<WorkerId>> owners);

  private:
    struct Rows {
        std::vector<sp_spd_entry> outbound_entries;  // as they stand in the map
        std::vector<sp_lpm_key> destinations;
        std::vector<sp_lpm_key> sources;
    };
    struct Need {
        const char* what;
        size_t rows;
        size_t room;
    };
    [[nodiscard]] std::array<Need, 3> needs_of(const CompiledSpd& outbound,
                                               const CompiledSpd& inbound) const;
    std::expected<void, std::string> check_room(const CompiledSpd& outbound,
                                                const CompiledSpd& inbound) const;
    std::expected<void, std::string> write(const CompiledSpd& spd, uint32_t direction,
                                           uint32_t generation, uint32_t first_entry,
                                           std::span<const std::vector<WorkerId>> owners,
                                           std::span<const uint32_t> if_ids, Rows& rows) const;
    [[nodiscard]] bool use(uint32_t generation, uint64_t bypass_until_ns) const;
    void erase(const Rows& rows) const;
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
    Rows rows_;  // of the generation in use
};

}  // namespace sallyport::bpf_objects
