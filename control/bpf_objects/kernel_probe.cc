// SPDX-License-Identifier: Apache-2.0
#include <bpf/btf.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/library_log.h"

namespace sallyport::bpf_objects {

namespace {

using Types = std::unique_ptr<btf, decltype(&btf__free)>;

}  // namespace

SaLookup probe_sa_lookup() {
    capture_library_log();
    const Types types(btf__load_vmlinux_btf(), &btf__free);
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

ConnectionLookup probe_connection_lookup() {
    capture_library_log();
    const Types types(btf__load_vmlinux_btf(), &btf__free);
    if (types == nullptr) {
        return {.possible = false,
                .reason = std::string("the kernel shows no BTF (") + std::strerror(errno) + ")"};
    }
    // Debian's kernels have it as a module, which must be loaded.
    const Types module(btf__load_module_btf("nf_conntrack", types.get()), &btf__free);
    for (const char* name : {"bpf_xdp_ct_lookup", "bpf_ct_release"}) {
        const bool found =
            btf__find_by_name_kind(types.get(), name, BTF_KIND_FUNC) >= 0 ||
            (module != nullptr && btf__find_by_name_kind(module.get(), name, BTF_KIND_FUNC) >= 0);
        if (found) continue;
        return {.possible = false,
                .reason = std::string("the kernel has no ") + name +
                          " (Linux 5.18 with connection tracking has it; where that is a module, "
                          "'modprobe nf_conntrack' loads it)"};
    }
    return {.possible = true, .reason = "the kernel has bpf_xdp_ct_lookup"};
}

std::string probe_if_ids() {
    capture_library_log();
    using Types = std::unique_ptr<btf, decltype(&btf__free)>;
    const Types kernel(btf__load_vmlinux_btf(), &btf__free);
    if (kernel == nullptr) {
        return std::string("the kernel shows no BTF (") + std::strerror(errno) + ")";
    }
    // Null where the interface is no module. Its types come on top of the kernel's.
    const Types module(btf__load_module_btf("xfrm_interface", kernel.get()), &btf__free);
    const btf* types = module == nullptr ? kernel.get() : module.get();
    for (const char* name : {"bpf_skb_set_xfrm_info", "bpf_skb_get_xfrm_info"}) {
        if (btf__find_by_name_kind(types, name, BTF_KIND_FUNC) < 0) {
            return std::string("the kernel has no ") + name +
                   " (Linux 6.2 with CONFIG_XFRM_INTERFACE has it)";
        }
    }
    return {};
}

}  // namespace sallyport::bpf_objects
