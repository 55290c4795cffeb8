// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/attachment.h"

#include <bpf/bpf.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <xdp/libxdp.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "control/bpf_objects/library_log.h"

namespace sallyport::bpf_objects {
namespace {

struct CloseMultiprog {
    void operator()(xdp_multiprog* multiprog) const { xdp_multiprog__close(multiprog); }
};
using MultiprogHandle = std::unique_ptr<xdp_multiprog, CloseMultiprog>;

// What is on the device; null and 0 when nothing is.
MultiprogHandle attached_programs(uint32_t ifindex, int& error) {
    xdp_multiprog* multiprog = xdp_multiprog__get_from_ifindex(static_cast<int>(ifindex));
    error = static_cast<int>(libxdp_get_error(multiprog));
    if (error != 0) {
        if (error == -ENOENT) error = 0;
        return {};
    }
    return MultiprogHandle(multiprog);
}

std::string mode_word(xdp_attach_mode mode) {
    return mode == XDP_MODE_SKB ? "xdpgeneric" : mode == XDP_MODE_HW ? "xdpoffload" : "xdpdrv";
}

// True: something of ours was there. Afterwards the device is free, or has a dispatcher without us.
std::expected<bool, std::string> remove_leftovers(const std::string& device, uint32_t ifindex) {
    int error = 0;
    const MultiprogHandle multiprog = attached_programs(ifindex, error);
    if (error != 0) {
        return std::unexpected(
            library_error(device + ": cannot read which XDP programs are attached", error));
    }
    if (!multiprog) return false;
    const xdp_attach_mode mode = xdp_multiprog__attach_mode(multiprog.get());

    if (xdp_multiprog__is_legacy(multiprog.get())) {
        const xdp_program* program = xdp_multiprog__main_prog(multiprog.get());
        if (program == nullptr) program = xdp_multiprog__hw_prog(multiprog.get());
        if (program == nullptr) return false;
        if (!is_our_program(xdp_program__fd(program))) {
            const char* name = xdp_program__name(program);
            return std::unexpected(
                device + ": another XDP program is attached: \"" +
                (name != nullptr ? name : "without name") + "\" (id " +
                std::to_string(xdp_program__id(program)) +
                "), and it does not share the device. If it is not needed, remove it with: ip link "
                "set dev " +
                device + " " + mode_word(mode) + " off");
        }
        if (const int failed = xdp_multiprog__detach(multiprog.get()); failed != 0) {
            return std::unexpected(library_error(
                device + ": cannot detach the program that an earlier sallyportd left", failed));
        }
        return true;
    }

    std::vector<uint32_t> ours;
    for (const xdp_program* program = xdp_multiprog__next_prog(nullptr, multiprog.get());
         program != nullptr; program = xdp_multiprog__next_prog(program, multiprog.get())) {
        if (is_our_program(xdp_program__fd(program))) ours.push_back(xdp_program__id(program));
    }
    for (const uint32_t id : ours) {
        xdp_program* program = xdp_program__from_id(id);
        int failed = static_cast<int>(libxdp_get_error(program));
        if (failed == 0) {
            failed = xdp_program__detach(program, static_cast<int>(ifindex), mode, 0);
            xdp_program__close(program);
        }
        if (failed != 0) {
            return std::unexpected(library_error(
                device + ": cannot detach the program that an earlier sallyportd left", failed));
        }
    }
    return !ours.empty();
}

// Why libxdp attached without its dispatcher.
std::string reason_for_alone() {
    const char* configured = std::getenv(XDP_BPFFS_ENVVAR);
    const std::string directory = configured != nullptr ? configured : "/sys/fs/bpf";
    struct statfs status{};
    if (statfs(directory.c_str(), &status) != 0 ||
        static_cast<unsigned long>(status.f_type) != BPF_FS_MAGIC) {
        return "no BPF file system is mounted at " + directory +
               ", which the dispatcher needs: mount one, or name one in " XDP_BPFFS_ENVVAR;
    }
    // libxdp asks the kernel once for each process and says the answer in its log.
    static std::string refusal;
    constexpr std::string_view kRefusal = "Compatibility check for dispatcher program failed: ";
    if (const size_t found = library_log().find(kRefusal); found != std::string_view::npos) {
        const std::string_view rest = library_log().substr(found + kRefusal.size());
        refusal = rest.substr(0, rest.find('\n'));
    }
    if (!refusal.empty()) {
        return "the kernel refuses programs that extend another (freplace: " + refusal + ")";
    }
    const std::string warning = last_library_warning();
    return "libxdp did not use its dispatcher" + (warning.empty() ? "" : ": " + warning);
}

}  // namespace

std::expected<DeviceLock, std::string> DeviceLock::take(const std::string& device,
                                                        uint32_t ifindex) {
    auto lock = host::Lock::take("device-" + std::to_string(ifindex));
    if (lock) return DeviceLock(std::move(*lock));
    if (lock.error().refusal != host::Lock::Refusal::held) {
        return std::unexpected(device + ": " + lock.error().text);
    }
    return std::unexpected(
        device +
        ": another sallyportd is using this device: stop it first, or give one of them another "
        "device");
}

std::expected<XdpAttachment, std::string> XdpAttachment::attach(const std::string& device,
                                                                uint32_t ifindex,
                                                                config::XdpMode mode,
                                                                const OpenProgram& open) {
    capture_library_log();
    clear_library_log();
    const auto leftovers = remove_leftovers(device, ifindex);
    if (!leftovers) return std::unexpected(leftovers.error());

    std::vector<xdp_attach_mode> attempts;
    if (mode != config::XdpMode::generic) attempts.push_back(XDP_MODE_NATIVE);
    if (mode != config::XdpMode::native) attempts.push_back(XDP_MODE_SKB);

    std::string failures;
    for (const xdp_attach_mode attempt : attempts) {
        // A failed attempt leaves its object in a state of libxdp's choosing: begin with a new one.
        auto object = open();
        if (!object) return std::unexpected(object.error());
        clear_library_log();
        LIBBPF_OPTS(xdp_program_opts, options);
        options.obj = object->object();
        const std::string name = bpf_program__name(object->program());
        options.prog_name = name.c_str();
        xdp_program* program = xdp_program__create(&options);
        int error = static_cast<int>(libxdp_get_error(program));
        if (error == 0) {
            error = xdp_program__attach(program, static_cast<int>(ifindex), attempt, 0);
            if (error != 0) xdp_program__close(program);
        }
        if (error != 0) {
            const char* word = attempt == XDP_MODE_NATIVE ? "native" : "generic";
            if (!failures.empty()) failures += "; ";
            failures += library_error(word, error);
            continue;
        }

        Attachment report;
        report.mode =
            attempt == XDP_MODE_NATIVE ? config::XdpMode::native : config::XdpMode::generic;
        report.replaced_stale = *leftovers;
        const std::string alone = reason_for_alone();
        int read_error = 0;
        const MultiprogHandle multiprog = attached_programs(ifindex, read_error);
        report.dispatcher = multiprog && !xdp_multiprog__is_legacy(multiprog.get());
        report.reason = report.dispatcher ? "libxdp's dispatcher shares the device" : alone;
        if (!failures.empty()) report.reason += "; generic because native failed: " + failures;
        return XdpAttachment(ifindex, std::move(*object), program, std::move(report));
    }
    return std::unexpected(device + ": cannot attach the XDP program: " + failures +
                           ". Usual causes: an MTU above what XDP carries in one page, or fewer "
                           "receive queues than the peer of a veth has transmit queues");
}

XdpAttachment::XdpAttachment(uint32_t ifindex, ProgramObject object, xdp_program* program,
                             Attachment report)
    : ifindex_(ifindex),
      object_(std::move(object)),
      program_(program),
      report_(std::move(report)) {}

XdpAttachment::XdpAttachment(XdpAttachment&& other) noexcept
    : ifindex_(other.ifindex_),
      object_(std::move(other.object_)),
      program_(std::exchange(other.program_, nullptr)),
      report_(std::move(other.report_)) {}

XdpAttachment::~XdpAttachment() {
    if (program_ == nullptr) return;
    const xdp_attach_mode mode =
        report_.mode == config::XdpMode::native ? XDP_MODE_NATIVE : XDP_MODE_SKB;
    // Fails when the device has gone, and the program with it.
    xdp_program__detach(program_, static_cast<int>(ifindex_), mode, 0);
    xdp_program__close(program_);
}

}  // namespace sallyport::bpf_objects
