// SPDX-License-Identifier: Apache-2.0
#pragma once

// The programs of the xfrm interface, and what they count for each if_id (bpf/abi.h).

#include <cstdint>
#include <expected>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "control/bpf_objects/attachment.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/program_object.h"
#include "control/bpf_objects/tc_attachment.h"

namespace sallyport::bpf_objects {

class InterfacePrograms {
  public:
    // Loads both and takes the device's lock; nothing is attached yet.
    static std::expected<InterfacePrograms, std::string> load(const InterfaceSetup& setup,
                                                              const SharedMaps& maps);
    // True: programs of a killed run were replaced.
    std::expected<bool, std::string> attach();
    [[nodiscard]] uint32_t ifindex() const { return setup_.ifindex; }
    [[nodiscard]] bool is_attached() const { return attachment_ && attachment_->is_there(); }

  private:
    InterfacePrograms(const InterfaceSetup& setup, DeviceLock lock, ProgramObject in,
                      ProgramObject out);

    InterfaceSetup setup_;
    DeviceLock lock_;
    ProgramObject in_;
    ProgramObject out_;
    std::optional<TcAttachment> attachment_;
};

// The keys of if_id_counters. `if_ids`: of policies; 0 is none.
class IfIdCounters {
  public:
    explicit IfIdCounters(const SharedMaps& maps) : fd_(maps.fd("if_id_counters")) {}

    // Before a policy names them: then the first packet is counted.
    std::expected<void, std::string> add(std::span<const uint32_t> if_ids);
    // When no policy names the others any more.
    void keep_only(std::span<const uint32_t> if_ids);
    [[nodiscard]] std::vector<IfIdTraffic> read() const;

  private:
    int fd_;
    std::set<uint32_t> keys_;
};

}  // namespace sallyport::bpf_objects
