// SPDX-License-Identifier: Apache-2.0
#pragma once

// The programs on the kernel's tracepoints of XDP that count what was redirected and did not
// arrive (bpf/redirect_watch.bpf.c).

#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <vector>

#include "control/bpf_objects/program_object.h"

struct bpf_link;

namespace sallyport::bpf_objects {

struct DestroyLink {
    void operator()(bpf_link* link) const;
};
using LinkHandle = std::unique_ptr<bpf_link, DestroyLink>;

// Null and errno where the kernel refuses.
LinkHandle attach_tracepoint(const bpf_program* program);

// Inode number of the network namespace of the calling thread; 0: it cannot be read.
uint32_t own_netns();
// 0: it cannot be read.
uint32_t map_id(int map_fd);

class RedirectWatch {
  public:
    // An error: this kernel does not let programs see it, and such losses stay uncounted.
    static std::expected<RedirectWatch, std::string> attach(const SharedMaps& maps);

  private:
    explicit RedirectWatch(ProgramObject object) : object_(std::move(object)) {}

    ProgramObject object_;
    std::vector<LinkHandle> links_;
};

}  // namespace sallyport::bpf_objects
