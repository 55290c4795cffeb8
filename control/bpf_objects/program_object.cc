// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/program_object.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "control/bpf_objects/library_log.h"

namespace sallyport::bpf_objects {
namespace {

constexpr std::string_view kSocketMap = "xsks";
constexpr std::string_view kQueueMap = "bypass_queues";

bool is_per_port(std::string_view name) {
    return name == kSocketMap || name == kQueueMap;
}

uint32_t max_entries(const bpf_map* map, const Limits& limits) {
    const std::string_view name = bpf_map__name(map);
    if (name == "owner_map") return limits.inbound_sas;
    if (name == "if_id_counters") return limits.if_ids;
    if (name == "spd_dst") return 2 * limits.spd_destinations;
    if (name == "spd_src") return 2 * limits.spd_sources;
    if (name == "spd_entries") return 2 * limits.spd_entries;
    return bpf_map__max_entries(map);
}

}  // namespace

std::expected<ObjectHandle, std::string> open_object(Program program) {
    capture_library_log();
    const std::span<const std::byte> bytes = program_bytes(program);
    LIBBPF_OPTS(bpf_object_open_opts, options);
    options.object_name = program_name(program);
    bpf_object* object = bpf_object__open_mem(bytes.data(), bytes.size(), &options);
    if (object == nullptr) {
        return std::unexpected(
            library_error(std::string("cannot open BPF object ") + program_name(program), errno));
    }
    return ObjectHandle(object);
}

void CloseObject::operator()(bpf_object* object) const {
    bpf_object__close(object);
}

std::expected<SharedMaps, std::string> SharedMaps::create(const Limits& limits) {
    SharedMaps shared;
    for (const Program program : kAllPrograms) {
        auto object = open_object(program);
        if (!object) return std::unexpected(object.error());
        const bpf_map* map = nullptr;
        bpf_object__for_each_map(map, object->get()) {
            const std::string name = bpf_map__name(map);
            if (bpf_map__is_internal(map) || is_per_port(name) || shared.maps_.contains(name)) {
                continue;
            }
            LIBBPF_OPTS(bpf_map_create_opts, options);
            options.map_flags = bpf_map__map_flags(map);
            FileDescriptor fd(bpf_map_create(bpf_map__type(map), name.c_str(),
                                             bpf_map__key_size(map), bpf_map__value_size(map),
                                             max_entries(map, limits), &options));
            if (!fd) {
                const int error = errno;
                std::string text = library_error("cannot create BPF map " + name, error);
                if (error == EPERM) text += "; run as root or with CAP_BPF and CAP_NET_ADMIN";
                return std::unexpected(std::move(text));
            }
            shared.maps_.emplace(name, std::move(fd));
        }
    }
    return shared;
}

int SharedMaps::fd(std::string_view name) const {
    const auto found = maps_.find(name);
    return found == maps_.end() ? -1 : found->second.get();
}

std::expected<FileDescriptor, std::string> create_xsks(uint16_t queues, uint16_t workers) {
    FileDescriptor fd(bpf_map_create(BPF_MAP_TYPE_XSKMAP, "xsks", sizeof(uint32_t),
                                     sizeof(uint32_t), static_cast<uint32_t>(queues) * workers,
                                     nullptr));
    if (!fd) return std::unexpected(library_error("cannot create BPF map xsks", errno));
    return fd;
}

std::expected<FileDescriptor, std::string> create_bypass_queues() {
    const int cpus = libbpf_num_possible_cpus();
    FileDescriptor fd(bpf_map_create(BPF_MAP_TYPE_CPUMAP, "bypass_queues", sizeof(uint32_t),
                                     sizeof(bpf_cpumap_val),
                                     static_cast<uint32_t>(std::max(cpus, 1)), nullptr));
    if (!fd) return std::unexpected(library_error("cannot create BPF map bypass_queues", errno));
    return fd;
}

std::expected<ProgramObject, std::string> ProgramObject::open(Program program,
                                                              const sp_tunables& tunables,
                                                              const SharedMaps& maps,
                                                              const PortMaps& port_maps) {
    auto object = open_object(program);
    if (!object) return std::unexpected(object.error());
    ProgramObject opened;
    opened.object_ = std::move(*object);
    opened.program_ = bpf_object__find_program_by_name(opened.object_.get(), program_name(program));
    if (opened.program_ == nullptr) {
        return std::unexpected(std::string("BPF object without program ") + program_name(program));
    }

    bpf_map* map = nullptr;
    bpf_object__for_each_map(map, opened.object_.get()) {
        const std::string_view name = bpf_map__name(map);
        if (bpf_map__is_internal(map)) {
            if (!name.ends_with(SP_TUNABLES_SECTION)) continue;
            if (bpf_map__set_initial_value(map, &tunables, sizeof tunables) != 0) {
                return std::unexpected(library_error("cannot set tunables", errno));
            }
            continue;
        }
        const int fd = name == kSocketMap  ? port_maps.xsks
                       : name == kQueueMap ? port_maps.bypass_queues
                                           : maps.fd(name);
        if (fd < 0 && is_per_port(name)) continue;
        if (bpf_map__reuse_fd(map, fd) != 0) {
            return std::unexpected(
                library_error("cannot share BPF map " + std::string(name), errno));
        }
    }
    return opened;
}

std::expected<void, std::string> ProgramObject::load() {
    clear_library_log();
    if (const int error = bpf_object__load(object_.get()); error != 0) {
        return std::unexpected(library_error(
            std::string("the kernel does not load ") + bpf_program__name(program_), error));
    }
    return {};
}

int ProgramObject::fd() const {
    return bpf_program__fd(program_);
}

bool is_our_program(int program_fd) {
    std::array<uint32_t, 64> map_ids{};
    bpf_prog_info info{};
    info.map_ids = reinterpret_cast<uintptr_t>(map_ids.data());
    info.nr_map_ids = map_ids.size();
    uint32_t size = sizeof info;
    if (bpf_obj_get_info_by_fd(program_fd, &info, &size) != 0) return false;

    // The kernel keeps 15 characters of a name.
    const bool name_matches = std::ranges::any_of(kAllPrograms, [&info](Program program) {
        return std::strncmp(info.name, program_name(program), sizeof info.name - 1) == 0;
    });
    if (!name_matches) return false;

    for (size_t i = 0; i < std::min<size_t>(info.nr_map_ids, map_ids.size()); ++i) {
        const FileDescriptor map(bpf_map_get_fd_by_id(map_ids[i]));
        bpf_map_info map_info{};
        uint32_t map_size = sizeof map_info;
        if (!map || bpf_obj_get_info_by_fd(map.get(), &map_info, &map_size) != 0) continue;
        if (std::strcmp(map_info.name, SP_TUNABLES_SECTION) == 0) return true;
    }
    return false;
}

}  // namespace sallyport::bpf_objects
