// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/tc_attachment.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cerrno>

#include "control/bpf_objects/file_descriptor.h"
#include "control/bpf_objects/library_log.h"
#include "control/bpf_objects/program_object.h"

namespace sallyport::bpf_objects {
namespace {

constexpr uint32_t kPriority = 1;
constexpr uint32_t kHandle = 0x5350;

bpf_tc_hook hook_of(uint32_t ifindex, bpf_tc_attach_point point) {
    bpf_tc_hook hook{};
    hook.sz = sizeof hook;
    hook.ifindex = static_cast<int>(ifindex);
    hook.attach_point = point;
    return hook;
}

bpf_tc_opts our_filter() {
    bpf_tc_opts options{};
    options.sz = sizeof options;
    options.handle = kHandle;
    options.priority = kPriority;
    return options;
}

enum class Found { nothing, ours, foreign };

Found find_filter(const bpf_tc_hook& hook) {
    bpf_tc_opts options = our_filter();
    if (bpf_tc_query(&hook, &options) != 0) return Found::nothing;
    const FileDescriptor program(bpf_prog_get_fd_by_id(options.prog_id));
    return program && is_our_program(program.get()) ? Found::ours : Found::foreign;
}

// An ingress qdisc stands where clsact would, and has one place for both directions: what goes to
// its egress comes out at its ingress.
bool is_at_ingress(uint32_t ifindex, int fd) {
    bpf_prog_info info{};
    uint32_t bytes = sizeof info;
    bpf_tc_opts options = our_filter();
    const bpf_tc_hook hook = hook_of(ifindex, BPF_TC_INGRESS);
    return bpf_obj_get_info_by_fd(fd, &info, &bytes) == 0 && bpf_tc_query(&hook, &options) == 0 &&
           options.prog_id == info.id;
}

void detach(uint32_t ifindex, bpf_tc_attach_point point) {
    const bpf_tc_hook hook = hook_of(ifindex, point);
    if (find_filter(hook) != Found::ours) return;
    const bpf_tc_opts options = our_filter();
    bpf_tc_detach(&hook, &options);
}

}  // namespace

std::expected<TcAttachment, std::string> TcAttachment::attach(const std::string& device,
                                                              uint32_t ifindex,
                                                              const TcPrograms& programs) {
    capture_library_log();
    clear_library_log();
    bpf_tc_hook both =
        hook_of(ifindex, static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS));
    if (const int error = bpf_tc_hook_create(&both); error != 0 && error != -EEXIST) {
        return std::unexpected(library_error(device + ": cannot make the clsact qdisc", -error));
    }
    TcAttachment attachment(ifindex, programs);
    for (const auto& [point, fd] : {std::pair{BPF_TC_EGRESS, programs.egress_fd},
                                    std::pair{BPF_TC_INGRESS, programs.ingress_fd}}) {
        if (fd < 0) continue;
        const bpf_tc_hook hook = hook_of(ifindex, point);
        const Found found = find_filter(hook);
        if (found == Found::foreign) {
            return std::unexpected(device +
                                   ": another program's TC filter has priority 1 and "
                                   "handle 0x5350, which are ours: remove it (tc filter)");
        }
        bpf_tc_opts options = our_filter();
        options.prog_fd = fd;
        options.flags = found == Found::ours ? BPF_TC_F_REPLACE : 0;
        if (const int error = bpf_tc_attach(&hook, &options); error != 0) {
            return std::unexpected(library_error(device + ": cannot attach by TC", -error) +
                                   ". Usual cause: a filter of another kind with priority 1 (tc "
                                   "filter)");
        }
        if (point == BPF_TC_EGRESS && is_at_ingress(ifindex, fd)) {
            return std::unexpected(
                device +
                ": it has an ingress qdisc, which has no place for what leaves. Put clsact in its "
                "place, whose ingress takes the same filters (tc qdisc del dev DEVICE ingress; tc "
                "qdisc add dev DEVICE clsact; tc filter add dev DEVICE ingress ...)");
        }
        attachment.replaced_stale_ = attachment.replaced_stale_ || found == Found::ours;
    }
    return attachment;
}

void TcAttachment::remove_leftovers(uint32_t ifindex) {
    capture_library_log();
    for (const bpf_tc_attach_point point : {BPF_TC_INGRESS, BPF_TC_EGRESS}) detach(ifindex, point);
}

bool TcAttachment::is_there() const {
    const auto has = [this](bpf_tc_attach_point point) {
        return find_filter(hook_of(ifindex_, point)) == Found::ours;
    };
    return (!ingress_ || has(BPF_TC_INGRESS)) && (!egress_ || has(BPF_TC_EGRESS));
}

TcAttachment::~TcAttachment() {
    if (ifindex_ == 0) return;
    if (ingress_) detach(ifindex_, BPF_TC_INGRESS);
    if (egress_) detach(ifindex_, BPF_TC_EGRESS);
}

}  // namespace sallyport::bpf_objects
