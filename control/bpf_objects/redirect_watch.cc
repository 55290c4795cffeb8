// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/redirect_watch.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sys/stat.h>

#include <cerrno>

#include "bpf/lost.h"
#include "control/bpf_objects/library_log.h"

namespace sallyport::bpf_objects {

void DestroyLink::operator()(bpf_link* link) const {
    bpf_link__destroy(link);
}

LinkHandle attach_tracepoint(const bpf_program* program) {
    return LinkHandle(bpf_program__attach(program));
}

uint32_t own_netns() {
    struct stat status{};
    return stat("/proc/thread-self/ns/net", &status) == 0 ? static_cast<uint32_t>(status.st_ino)
                                                          : 0;
}

uint32_t map_id(int map_fd) {
    bpf_map_info info{};
    uint32_t size = sizeof info;
    return bpf_obj_get_info_by_fd(map_fd, &info, &size) == 0 ? info.id : 0;
}

std::expected<RedirectWatch, std::string> RedirectWatch::attach(const SharedMaps& maps) {
    auto object = ProgramObject::open(Program::redirect_watch, sp_tunables{}, maps);
    if (!object) return std::unexpected(object.error());
    if (auto loaded = object->load(); !loaded) return std::unexpected(loaded.error());
    const sp_lost_setup setup{.netns = own_netns(), .tx_ports = map_id(maps.fd("tx_ports"))};
    const uint32_t zero = 0;
    if (bpf_map_update_elem(maps.fd("lost_setup"), &zero, &setup, BPF_ANY) != 0) {
        return std::unexpected(library_error("cannot write lost_setup", errno));
    }
    RedirectWatch watch(std::move(*object));
    bpf_program* program = nullptr;
    bpf_object__for_each_program(program, watch.object_.object()) {
        LinkHandle link = attach_tracepoint(program);
        if (!link) {
            return std::unexpected(
                library_error(std::string("cannot attach ") + bpf_program__name(program), errno));
        }
        watch.links_.push_back(std::move(link));
    }
    return watch;
}

}  // namespace sallyport::bpf_objects
