// SPDX-License-Identifier: Apache-2.0
#pragma once

// One of our programs on one device, through libxdp.

#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <string>

#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/program_object.h"
#include "control/host/lock.h"

struct xdp_program;

namespace sallyport::bpf_objects {

// The right to put programs on a device: who holds it knows that our programs there are leftovers.
class DeviceLock {
  public:
    static std::expected<DeviceLock, std::string> take(const std::string& device, uint32_t ifindex);

  private:
    explicit DeviceLock(host::Lock lock) : lock_(std::move(lock)) {}
    host::Lock lock_;
};

class XdpAttachment {
  public:
    using OpenProgram = std::function<std::expected<ProgramObject, std::string>()>;

    // Attaches what `open` gives (called once for each attempt) in place of leftovers of ours, with
    // no moment between, unless they have a mode that `mode` does not allow: then the caller keeps
    // packets away from the device meanwhile. The caller holds the device's lock.
    static std::expected<XdpAttachment, std::string> attach(const std::string& device,
                                                            uint32_t ifindex, config::XdpMode mode,
                                                            const OpenProgram& open);
    XdpAttachment(XdpAttachment&& other) noexcept;
    XdpAttachment& operator=(XdpAttachment&&) = delete;
    ~XdpAttachment();  // detaches

    [[nodiscard]] const Attachment& report() const { return report_; }
    // Asks the kernel whether the program is (still) on the device; cheap where all is as it was.
    [[nodiscard]] bool is_there();

  private:
    XdpAttachment(uint32_t ifindex, ProgramObject object, xdp_program* program, Attachment report);
    void describe(const std::string& alone, const std::string& failures);
    [[nodiscard]] bool is_among_those() const;

    uint32_t ifindex_;
    ProgramObject object_;
    xdp_program* program_;
    Attachment report_;
    uint32_t seen_with_ = 0;  // what is on the device when ours is: itself, or a dispatcher
};

}  // namespace sallyport::bpf_objects
