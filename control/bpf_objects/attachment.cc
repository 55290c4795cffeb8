// SPDX-License-Identifier: Apache-2.0
#include "control/bpf_objects/attachment.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <xdp/libxdp.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "control/bpf_objects/file_descriptor.h"
#include "control/bpf_objects/library_log.h"
#include "control/bpf_objects/tc_attachment.h"

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

// Programs of ours that a killed run left on a device: one alone, or some in a dispatcher.
struct Leftovers {
    MultiprogHandle on_device;
    xdp_attach_mode mode = XDP_MODE_UNSPEC;
    uint32_t alone = 0;  // program ids; 0: none
    std::vector<uint32_t> shared;
    std::string foreign;  // a program of others stands alone there: what to do about it

    [[nodiscard]] bool any() const { return alone != 0 || !shared.empty(); }
};

std::expected<Leftovers, std::string> find_leftovers(const std::string& device, uint32_t ifindex) {
    Leftovers found;
    int error = 0;
    found.on_device = attached_programs(ifindex, error);
    if (error != 0) {
        return std::unexpected(
            library_error(device + ": cannot read which XDP programs are attached", error));
    }
    const xdp_multiprog* multiprog = found.on_device.get();
    if (multiprog == nullptr) return found;
    found.mode = xdp_multiprog__attach_mode(multiprog);

    if (xdp_multiprog__is_legacy(multiprog)) {
        const xdp_program* program = xdp_multiprog__main_prog(multiprog);
        if (program == nullptr) program = xdp_multiprog__hw_prog(multiprog);
        if (program == nullptr) return found;
        if (!is_our_program(xdp_program__fd(program))) {
            const char* name = xdp_program__name(program);
            found.foreign =
                device + ": another XDP program is attached: \"" +
                (name != nullptr ? name : "without name") + "\" (id " +
                std::to_string(xdp_program__id(program)) +
                "), and it does not share the device. If it is not needed, remove it with: ip link "
                "set dev " +
                device + " " + mode_word(found.mode) + " off";
            return found;
        }
        found.alone = xdp_program__id(program);
        return found;
    }
    for (const xdp_program* program = xdp_multiprog__next_prog(nullptr, multiprog);
         program != nullptr; program = xdp_multiprog__next_prog(program, multiprog)) {
        if (is_our_program(xdp_program__fd(program))) {
            found.shared.push_back(xdp_program__id(program));
        }
    }
    return found;
}

// Afterwards the device is free, or has a dispatcher without them.
std::expected<void, std::string> remove(const Leftovers& leftovers, const std::string& device,
                                        uint32_t ifindex) {
    int failed = 0;
    if (leftovers.alone != 0) failed = xdp_multiprog__detach(leftovers.on_device.get());
    for (const uint32_t id : leftovers.shared) {
        if (failed != 0) break;
        xdp_program* program = xdp_program__from_id(id);
        failed = static_cast<int>(libxdp_get_error(program));
        if (failed == 0) {
            failed = xdp_program__detach(program, static_cast<int>(ifindex), leftovers.mode, 0);
            xdp_program__close(program);
        }
    }
    if (failed == 0) return {};
    return std::unexpected(library_error(
        device + ": cannot detach the program that an earlier sallyportd left", failed));
}

// Puts the program of `object` where that of a killed run stands alone, in one step.
std::expected<xdp_program*, std::string> replace_alone(const Leftovers& leftovers, uint32_t ifindex,
                                                       ProgramObject& object) {
    if (auto loaded = object.load(); !loaded) return std::unexpected(loaded.error());
    const FileDescriptor old(bpf_prog_get_fd_by_id(leftovers.alone));
    if (!old) return std::unexpected(library_error("the program of a killed run", errno));
    LIBBPF_OPTS(bpf_xdp_attach_opts, options);
    options.old_prog_fd = old.get();
    const uint32_t mode = leftovers.mode == XDP_MODE_SKB ? XDP_FLAGS_SKB_MODE : XDP_FLAGS_DRV_MODE;
    const int error =
        bpf_xdp_attach(static_cast<int>(ifindex), object.fd(), mode | XDP_FLAGS_REPLACE, &options);
    if (error != 0) return std::unexpected(library_error("cannot replace it", error));
    bpf_prog_info info{};
    uint32_t size = sizeof info;
    if (bpf_obj_get_info_by_fd(object.fd(), &info, &size) != 0) {
        return std::unexpected(library_error("cannot read the id of a program", errno));
    }
    xdp_program* program = xdp_program__from_id(info.id);
    if (const auto failed = static_cast<int>(libxdp_get_error(program)); failed != 0) {
        return std::unexpected(library_error("cannot open a program", failed));
    }
    return program;
}

struct Attempt {
    xdp_attach_mode mode;
    bool beside_leftovers;
};

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

std::vector<xdp_attach_mode> modes_of(config::XdpMode mode) {
    std::vector<xdp_attach_mode> out;
    if (mode != config::XdpMode::generic) out.push_back(XDP_MODE_NATIVE);
    if (mode != config::XdpMode::native) out.push_back(XDP_MODE_SKB);
    return out;
}

}  // namespace

Leftover leftover_on(uint32_t ifindex, config::XdpMode mode) {
    capture_library_log();
    const auto found = find_leftovers({}, ifindex);
    if (!found || !found->any()) return Leftover::none;
    const auto modes = modes_of(mode);
    return std::ranges::find(modes, found->mode) == modes.end() ? Leftover::other_mode
                                                                : Leftover::replaceable;
}

std::expected<void, std::string> remove_leftovers(const std::string& device, uint32_t ifindex) {
    capture_library_log();
    const auto lock = DeviceLock::take(device, ifindex);
    if (!lock) return std::unexpected(lock.error());
    TcAttachment::remove_leftovers(ifindex);
    const auto found = find_leftovers(device, ifindex);
    if (!found) return std::unexpected(found.error());
    return remove(*found, device, ifindex);
}

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
    const auto leftovers = find_leftovers(device, ifindex);
    if (!leftovers) return std::unexpected(leftovers.error());
    if (!leftovers->foreign.empty()) return std::unexpected(leftovers->foreign);

    const std::vector<xdp_attach_mode> modes = modes_of(mode);
    std::string failures;
    const auto failed_as = [&failures](const std::string& what) {
        if (!failures.empty()) failures += "; ";
        failures += what;
    };

    // There is no moment without a program: one that stands alone is replaced, and a dispatcher
    // gets the new one before the old one goes. The device must be free only for another mode,
    // since it has one at a time, or where that fails.
    const bool same_mode = std::ranges::find(modes, leftovers->mode) != modes.end();
    if (leftovers->alone != 0 && same_mode) {
        auto object = open();
        if (!object) return std::unexpected(object.error());
        if (const auto program = replace_alone(*leftovers, ifindex, *object)) {
            const bool generic = leftovers->mode == XDP_MODE_SKB;
            Attachment report{
                .mode = generic ? config::XdpMode::generic : config::XdpMode::native,
                .dispatcher = false,
                .reason = "in place of the program of a killed run, which stood alone",
                .replaced_stale = true};
            if (generic && mode == config::XdpMode::automatic)
                report.reason += "; generic as it was";
            return XdpAttachment(ifindex, std::move(*object), *program, std::move(report));
        } else {
            failed_as(program.error());
        }
    }
    std::vector<Attempt> attempts;
    if (!leftovers->shared.empty() && same_mode) {
        attempts.push_back({.mode = leftovers->mode, .beside_leftovers = true});
    }
    for (const xdp_attach_mode each : modes) {
        attempts.push_back({.mode = each, .beside_leftovers = false});
    }

    bool has_leftovers = leftovers->any();
    const auto clear = [&]() -> std::expected<void, std::string> {
        if (!std::exchange(has_leftovers, false)) return {};
        return remove(*leftovers, device, ifindex);
    };
    for (const Attempt& attempt : attempts) {
        if (!attempt.beside_leftovers) {
            if (auto done = clear(); !done) return std::unexpected(done.error());
        }
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
            error = xdp_program__attach(program, static_cast<int>(ifindex), attempt.mode, 0);
            if (error != 0) xdp_program__close(program);
        }
        const bool native = attempt.mode == XDP_MODE_NATIVE;
        if (error != 0) {
            failed_as(library_error(native ? "native" : "generic", error));
            continue;
        }

        Attachment report;
        report.mode = native ? config::XdpMode::native : config::XdpMode::generic;
        report.replaced_stale = leftovers->any();
        const std::string alone = reason_for_alone();
        XdpAttachment attachment(ifindex, std::move(*object), program, std::move(report));
        if (auto done = clear(); !done) return std::unexpected(done.error());
        attachment.describe(alone, failures);
        return attachment;
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

// `alone`: why it would be. `failures`: of what was tried before.
void XdpAttachment::describe(const std::string& alone, const std::string& failures) {
    int error = 0;
    const MultiprogHandle multiprog = attached_programs(ifindex_, error);
    report_.dispatcher = multiprog && !xdp_multiprog__is_legacy(multiprog.get());
    report_.reason = report_.dispatcher ? "libxdp's dispatcher shares the device" : alone;
    if (failures.empty()) return;
    report_.reason += report_.mode == config::XdpMode::generic ? "; generic because native failed: "
                                                               : "; tried before: ";
    report_.reason += failures;
}

bool XdpAttachment::is_there() {
    uint32_t on_device = 0;
    const int mode =
        report_.mode == config::XdpMode::native ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE;
    if (bpf_xdp_query_id(static_cast<int>(ifindex_), mode, &on_device) != 0 || on_device == 0) {
        return false;
    }
    if (on_device != seen_with_ && is_among_those()) seen_with_ = on_device;
    return on_device == seen_with_;
}

// Takes the dispatcher apart, which costs milliseconds.
bool XdpAttachment::is_among_those() const {
    int error = 0;
    const MultiprogHandle multiprog = attached_programs(ifindex_, error);
    if (!multiprog) return false;
    const uint32_t ours = xdp_program__id(program_);
    if (xdp_multiprog__is_legacy(multiprog.get())) {
        const xdp_program* alone = xdp_multiprog__main_prog(multiprog.get());
        return alone != nullptr && xdp_program__id(alone) == ours;
    }
    for (const xdp_program* program = xdp_multiprog__next_prog(nullptr, multiprog.get());
         program != nullptr; program = xdp_multiprog__next_prog(program, multiprog.get())) {
        if (xdp_program__id(program) == ours) return true;
    }
    return false;
}

XdpAttachment::XdpAttachment(XdpAttachment&& other) noexcept
    : ifindex_(other.ifindex_),
      object_(std::move(other.object_)),
      program_(std::exchange(other.program_, nullptr)),
      report_(std::move(other.report_)),
      seen_with_(other.seen_with_) {}

XdpAttachment::~XdpAttachment() {
    if (program_ == nullptr) return;
    const xdp_attach_mode mode =
        report_.mode == config::XdpMode::native ? XDP_MODE_NATIVE : XDP_MODE_SKB;
    // Fails when the device has gone, and the program with it.
    xdp_program__detach(program_, static_cast<int>(ifindex_), mode, 0);
    xdp_program__close(program_);
}

}  // namespace sallyport::bpf_objects
