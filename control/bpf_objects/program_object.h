// SPDX-License-Identifier: Apache-2.0
#pragma once

// The BPF object files inside this binary, and the maps their programs share.

#include <cstddef>
#include <expected>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "bpf/abi.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/file_descriptor.h"

struct bpf_object;
struct bpf_program;

namespace sallyport::bpf_objects {

enum class Program {
    steer_unprotected,
    steer_protected,
    egress_route,
    egress_port,
    injector_queue,
    bypass_cpu,
    interface_in,
    interface_out,
    kernel_out,
    kernel_losses,
    redirect_watch,
    send_probe,
    to_neighbour
};
// send_probe is not among them: it has its maps for itself (send_probe.cc).
inline constexpr std::array kAllPrograms = {
    Program::steer_unprotected, Program::steer_protected, Program::egress_route,
    Program::egress_port,       Program::injector_queue,  Program::bypass_cpu,
    Program::interface_in,      Program::interface_out,   Program::kernel_out,
    Program::kernel_losses,     Program::redirect_watch,  Program::to_neighbour};

constexpr const char* program_name(Program program) {
    switch (program) {
        case Program::steer_unprotected:
            return "steer_unprotected";
        case Program::steer_protected:
            return "steer_protected";
        case Program::egress_route:
            return "egress_route";
        case Program::egress_port:
            return "egress_port";
        case Program::injector_queue:
            return "injector_queue";
        case Program::bypass_cpu:
            return "bypass_cpu";
        case Program::interface_in:
            return "interface_in";
        case Program::interface_out:
            return "interface_out";
        case Program::kernel_out:
            return "kernel_out";
        case Program::kernel_losses:
            return "kernel_losses";
        case Program::to_neighbour:
            return "to_neighbour";
        case Program::redirect_watch:
            return "redirect_watch";
        case Program::send_probe:
            return "send_probe";
    }
    return "";
}

// The object file. Generated at build time.
std::span<const std::byte> program_bytes(Program program);

struct CloseObject {
    void operator()(bpf_object* object) const;
};
using ObjectHandle = std::unique_ptr<bpf_object, CloseObject>;

// The object file of a program, opened.
std::expected<ObjectHandle, std::string> open_object(Program program);

// Every map that programs share, by name. Freed by the kernel when the last fd and the last program
// that uses it are gone.
class SharedMaps {
  public:
    static std::expected<SharedMaps, std::string> create(const Limits& limits);

    // -1: no such map.
    [[nodiscard]] int fd(std::string_view name) const;

  private:
    std::map<std::string, FileDescriptor, std::less<>> maps_;
};

// The per-port map of sockets.
std::expected<FileDescriptor, std::string> create_xsks(uint16_t queues, uint16_t workers);
// The per-port map of queues to other CPUs, with room for every CPU that the kernel can have.
std::expected<FileDescriptor, std::string> create_bypass_queues();

// The maps that a port has for itself. -1: the program gets an empty one of its own, which its
// tunables keep it from using.
struct PortMaps {
    int xsks = -1;
    int bypass_queues = -1;
};

// One program with its tunables and maps, opened; loaded by load() or by libxdp on attaching.
class ProgramObject {
  public:
    static std::expected<ProgramObject, std::string> open(Program program,
                                                          const sp_tunables& tunables,
                                                          const SharedMaps& maps,
                                                          const PortMaps& port_maps = {});
    std::expected<void, std::string> load();

    [[nodiscard]] bpf_object* object() const { return object_.get(); }
    [[nodiscard]] bpf_program* program() const { return program_; }
    [[nodiscard]] int fd() const;  // after load()

  private:
    ObjectHandle object_;
    bpf_program* program_ = nullptr;
};

// One of our programs, whoever loaded it: by its name and by the map behind its tunables.
bool is_our_program(int program_fd);

}  // namespace sallyport::bpf_objects
