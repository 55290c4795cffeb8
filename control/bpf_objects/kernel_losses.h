// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the kernel drops of packets that we have handed to it, by its own names of the reasons
// (bpf/kernel_losses.bpf.c). Owner: control thread.

#include <cstdint>
#include <expected>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/program_object.h"
#include "control/bpf_objects/redirect_watch.h"

namespace sallyport::bpf_objects {

class KernelLosses {
  public:
    // Counts from here on. The error says why this kernel cannot tell.
    static std::expected<KernelLosses, std::string> attach(const SharedMaps& maps);

    // Packets that come in by the device, or that AF_XDP sends by it, are ours.
    std::expected<void, std::string> add(PortId port, uint32_t ifindex, config::XdpMode mode);
    // By port; sorted.
    [[nodiscard]] std::vector<KernelLoss> read() const;

  private:
    KernelLosses(ProgramObject object, LinkHandle link, int devices_fd, int losses_fd);

    ProgramObject object_;
    LinkHandle link_;
    int devices_;
    int losses_;
    uint32_t netns_inode_;
    std::map<uint32_t, std::string> reasons_;  // as the running kernel numbers them
};

}  // namespace sallyport::bpf_objects
