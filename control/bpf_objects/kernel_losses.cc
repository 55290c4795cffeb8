// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/kernel_losses.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

#include "bpf/losses.h"
#include "control/bpf_objects/library_log.h"

namespace sallyport::bpf_objects {

namespace {

// "SKB_DROP_REASON_NETFILTER_DROP" is "netfilter_drop" here.
std::string shown(std::string_view name) {
    constexpr std::string_view kPrefix = "SKB_DROP_REASON_";
    if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
    std::string out(name);
    std::ranges::transform(out, out.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return out;
}

std::map<uint32_t, std::string> reasons_of_the_kernel() {
    std::map<uint32_t, std::string> out;
    const std::unique_ptr<btf, decltype(&btf__free)> types(btf__load_vmlinux_btf(), &btf__free);
    if (types == nullptr) return out;
    const int id = btf__find_by_name_kind(types.get(), "skb_drop_reason", BTF_KIND_ENUM);
    if (id < 0) return out;
    const btf_type* type = btf__type_by_id(types.get(), static_cast<uint32_t>(id));
    const std::span values(btf_enum(type), btf_vlen(type));
    for (const auto& value : values) {
        out.emplace(static_cast<uint32_t>(value.val),
                    shown(btf__name_by_offset(types.get(), value.name_off)));
    }
    return out;
}

}  // namespace

KernelLosses::KernelLosses(ProgramObject object, LinkHandle link, int devices_fd, int losses_fd)
    : object_(std::move(object)),
      link_(std::move(link)),
      devices_(devices_fd),
      losses_(losses_fd),
      netns_inode_(own_netns()),
      reasons_(reasons_of_the_kernel()) {}

std::expected<KernelLosses, std::string> KernelLosses::attach(const SharedMaps& maps) {
    auto object = ProgramObject::open(Program::kernel_losses, {}, maps);
    if (!object) return std::unexpected(object.error());
    if (auto loaded = object->load(); !loaded) return std::unexpected(loaded.error());
    clear_library_log();
    LinkHandle link = attach_tracepoint(object->program());
    if (!link) {
        return std::unexpected(library_error("the kernel does not attach kernel_losses", errno));
    }
    return KernelLosses(std::move(*object), std::move(link), maps.fd("loss_devices"),
                        maps.fd("kernel_losses_by_reason"));
}

std::expected<void, std::string> KernelLosses::add(PortId port, uint32_t ifindex,
                                                   config::XdpMode mode) {
    const sp_loss_device device{.port = to_index(port),
                                .netns_inode = netns_inode_,
                                .generic = mode == config::XdpMode::generic ? 1U : 0U};
    if (bpf_map_update_elem(devices_, &ifindex, &device, BPF_ANY) != 0) {
        return std::unexpected(std::string("cannot write loss_devices: ") + std::strerror(errno));
    }
    return {};
}

std::vector<KernelLoss> KernelLosses::read() const {
    std::vector<KernelLoss> out;
    const int cpus = libbpf_num_possible_cpus();
    if (cpus <= 0) return out;
    std::vector<uint64_t> counts(static_cast<size_t>(cpus));
    sp_loss_key key{};
    sp_loss_key next{};
    for (const sp_loss_key* from = nullptr; bpf_map_get_next_key(losses_, from, &next) == 0;
         from = &key) {
        key = next;
        if (bpf_map_lookup_elem(losses_, &key, counts.data()) != 0) continue;
        KernelLoss loss{.port = PortId{static_cast<uint16_t>(key.port)},
                        .drop = static_cast<DropReason>(key.drop),
                        .reason = {},
                        .packets = 0};
        for (const uint64_t count : counts) loss.packets += count;
        const auto name = reasons_.find(key.reason);
        loss.reason =
            name == reasons_.end() ? "reason " + std::to_string(key.reason) : name->second;
        if (loss.packets > 0) out.push_back(std::move(loss));
    }
    std::ranges::sort(out);
    return out;
}

}  // namespace sallyport::bpf_objects
