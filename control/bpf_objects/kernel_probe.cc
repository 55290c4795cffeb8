// SPDX-License-Identifier: Apache-2.0
#include <bpf/btf.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/library_log.h"

namespace sallyport::bpf_objects {

SaLookup probe_sa_lookup() {
    capture_library_log();
    const std::unique_ptr<btf, decltype(&btf__free)> types(btf__load_vmlinux_btf(), &btf__free);
    if (types == nullptr) {
        return {.kfunc = false,
                .reason = std::string("the kernel shows no BTF (") + std::strerror(errno) +
                          "): the owner map decides"};
    }
    for (const char* name : {"bpf_xdp_get_xfrm_state", "bpf_xdp_xfrm_state_release"}) {
        if (btf__find_by_name_kind(types.get(), name, BTF_KIND_FUNC) < 0) {
            return {.kfunc = false,
                    .reason = std::string("the kernel has no ") + name +
                              " (Linux 6.8 with CONFIG_XFRM has it): the owner map decides"};
        }
    }
    return {.kfunc = true, .reason = "the kernel has bpf_xdp_get_xfrm_state"};
}

}  // namespace sallyport::bpf_objects
