// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/interface_programs.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace sallyport::bpf_objects {
namespace {

std::expected<ProgramObject, std::string> load_program(Program program, const SharedMaps& maps) {
    sp_tunables tunables{};
    tunables.port = to_index(kInterfacePort);
    tunables.workers = 1;
    tunables.use_kfunc = 1;
    auto object = ProgramObject::open(program, tunables, maps);
    if (!object) return object;
    if (auto loaded = object->load(); !loaded) return std::unexpected(loaded.error());
    return object;
}

}  // namespace

std::expected<InterfacePrograms, std::string> InterfacePrograms::load(const InterfaceSetup& setup,
                                                                      const SharedMaps& maps) {
    auto lock = DeviceLock::take(setup.device, setup.ifindex);
    if (!lock) return std::unexpected(lock.error());
    auto in = load_program(Program::interface_in, maps);
    if (!in) return std::unexpected(in.error());
    auto out = load_program(Program::interface_out, maps);
    if (!out) return std::unexpected(out.error());
    return InterfacePrograms(setup, std::move(*lock), std::move(*in), std::move(*out));
}

InterfacePrograms::InterfacePrograms(const InterfaceSetup& setup, DeviceLock lock, ProgramObject in,
                                     ProgramObject out)
    : setup_(setup), lock_(std::move(lock)), in_(std::move(in)), out_(std::move(out)) {}

std::expected<bool, std::string> InterfacePrograms::attach() {
    auto attachment = TcAttachment::attach(setup_.device, setup_.ifindex,
                                           {.ingress_fd = in_.fd(), .egress_fd = out_.fd()});
    if (!attachment) return std::unexpected(attachment.error());
    if (attachment_) attachment_->release();  // what it had is replaced
    attachment_.emplace(std::move(*attachment));
    return attachment_->replaced_stale();
}

std::expected<void, std::string> IfIdCounters::add(std::span<const uint32_t> if_ids) {
    const std::vector<sp_if_id_counters> zero(static_cast<size_t>(libbpf_num_possible_cpus()));
    for (const uint32_t if_id : if_ids) {
        if (if_id == 0 || keys_.contains(if_id)) continue;
        if (bpf_map_update_elem(fd_, &if_id, zero.data(), BPF_ANY) != 0) {
            return std::unexpected("cannot count packets of IPsec connection " +
                                   std::to_string(if_id) + ": " + std::strerror(errno));
        }
        keys_.insert(if_id);
    }
    return {};
}

void IfIdCounters::keep_only(std::span<const uint32_t> if_ids) {
    const std::set<uint32_t> wanted(if_ids.begin(), if_ids.end());
    std::erase_if(keys_, [&](uint32_t if_id) {
        return !wanted.contains(if_id) && bpf_map_delete_elem(fd_, &if_id) == 0;
    });
}

std::vector<IfIdTraffic> IfIdCounters::read() const {
    std::vector<IfIdTraffic> out;
    std::vector<sp_if_id_counters> values(static_cast<size_t>(libbpf_num_possible_cpus()));
    for (const uint32_t if_id : keys_) {
        IfIdTraffic traffic{.if_id = if_id};
        if (bpf_map_lookup_elem(fd_, &if_id, values.data()) != 0) continue;
        for (const sp_if_id_counters& cpu : values) {
            traffic.counters.in_packets += cpu.in_packets;
            traffic.counters.in_bytes += cpu.in_bytes;
            traffic.counters.in_dropped += cpu.in_dropped;
            traffic.counters.out_packets += cpu.out_packets;
            traffic.counters.out_bytes += cpu.out_bytes;
        }
        out.push_back(traffic);
    }
    return out;
}

}  // namespace sallyport::bpf_objects
