// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sched.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "bpf/lost.h"
#include "control/bpf_objects/bpf_objects.h"
#include "control/bpf_objects/library_log.h"
#include "control/bpf_objects/program_object.h"
#include "control/bpf_objects/redirect_watch.h"

namespace sallyport::bpf_objects {

namespace {

// Puts the thread back where it was allowed to run.
class OnEachCpu {
  public:
    OnEachCpu() {
        CPU_ZERO(&allowed_);
        known_ = sched_getaffinity(0, sizeof allowed_, &allowed_) == 0;
    }
    OnEachCpu(OnEachCpu&&) = delete;
    ~OnEachCpu() {
        if (known_) sched_setaffinity(0, sizeof allowed_, &allowed_);
    }

    template <typename Call>
    void run(Call call) const {
        for (size_t cpu = 0; known_ && cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed_)) continue;
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            if (sched_setaffinity(0, sizeof one, &one) == 0) call();
        }
    }

  private:
    cpu_set_t allowed_{};
    bool known_ = false;
};

// What a switch sends to itself to see whether a line is looped: nobody forwards it.
constexpr size_t kProbeBytes = 60;
constexpr std::byte kLoopbackType[] = {std::byte{0x90}, std::byte{0x00}};

std::array<std::byte, kProbeBytes> probe_frame(const MacAddress& mac) {
    std::array<std::byte, kProbeBytes> frame{};
    std::memcpy(frame.data(), mac.data(), mac.size());
    std::memcpy(frame.data() + mac.size(), mac.data(), mac.size());
    std::memcpy(frame.data() + 2 * mac.size(), kLoopbackType, sizeof kLoopbackType);
    return frame;
}

class Probe {
  public:
    // An error: it cannot be tried here.
    static std::expected<Probe, std::string> open(uint32_t ifindex) {
        auto object = open_object(Program::send_probe);
        if (!object) return std::unexpected(object.error());
        clear_library_log();
        if (const int error = bpf_object__load(object->get()); error != 0) {
            return std::unexpected(library_error("the kernel does not load send_probe", error));
        }
        Probe probe(std::move(*object));
        const uint32_t zero = 0;
        bpf_devmap_val way{};
        way.ifindex = ifindex;
        way.bpf_prog.fd = probe.program_fd("probe_taken");
        sp_send_probe state{};
        state.netns = own_netns();
        state.ifindex = ifindex;
        state.map = map_id(probe.map_fd("send_probe_port"));
        if (bpf_map_update_elem(probe.map_fd("send_probe_port"), &zero, &way, BPF_ANY) != 0 ||
            bpf_map_update_elem(probe.map_fd("send_probe_state"), &zero, &state, BPF_ANY) != 0) {
            return std::unexpected(library_error("the devmap does not take the device", errno));
        }
        for (const char* name : {"probe_sent", "probe_refused"}) {
            LinkHandle link = attach_tracepoint(probe.program(name));
            if (!link) return std::unexpected(library_error("no tracepoints of XDP", errno));
            probe.links_.push_back(std::move(link));
        }
        return probe;
    }

    // False: the kernel does not send frames for a program, errno says why.
    [[nodiscard]] bool send(const MacAddress& mac) const {
        const auto frame = probe_frame(mac);
        LIBBPF_OPTS(bpf_test_run_opts, options);
        options.data_in = frame.data();
        options.data_size_in = kProbeBytes;
        options.repeat = 1;
        options.batch_size = 1;
        options.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
        return bpf_prog_test_run_opts(program_fd("send_probe"), &options) == 0;
    }

    [[nodiscard]] sp_send_probe state() const {
        const uint32_t zero = 0;
        sp_send_probe state{};
        bpf_map_lookup_elem(map_fd("send_probe_state"), &zero, &state);
        return state;
    }

  private:
    explicit Probe(ObjectHandle object) : object_(std::move(object)) {}
    [[nodiscard]] bpf_program* program(const char* name) const {
        return bpf_object__find_program_by_name(object_.get(), name);
    }
    [[nodiscard]] int program_fd(const char* name) const { return bpf_program__fd(program(name)); }
    [[nodiscard]] int map_fd(const char* name) const {
        return bpf_object__find_map_fd_by_name(object_.get(), name);
    }

    ObjectHandle object_;
    std::vector<LinkHandle> links_;
};

// Errors that say what the driver is, and not how the line or its rings are just now.
bool is_inability(int error) {
    return error == -EOPNOTSUPP || error == -ENXIO || error == -EINVAL;
}

NativeSending judge(const sp_send_probe& before, const sp_send_probe& after, bool running) {
    using Answer = NativeSending::Answer;
    if (after.taken == before.taken) {
        if (!is_inability(after.redirect_error)) {
            return {Answer::unknown, std::string("the kernel did not take a frame for it: ") +
                                         std::strerror(-after.redirect_error)};
        }
        return {Answer::impossible, "its driver has no way to send for native XDP"};
    }
    if (after.sent != before.sent) return {Answer::possible, "a frame was sent"};
    // The peer of a veth that is down takes none either.
    if (running && is_inability(after.send_error)) {
        return {Answer::impossible,
                std::string("its driver refuses frames of native XDP (") +
                    std::strerror(-after.send_error) +
                    "): a transmit queue is missing, or on a veth GRO of its peer is off"};
    }
    return {Answer::unknown,
            std::string("a frame was not sent: ") + std::strerror(-after.send_error)};
}

}  // namespace

NativeSending prove_native_sending(uint32_t ifindex, const MacAddress& mac, bool running) {
    using Answer = NativeSending::Answer;
    capture_library_log();
    const auto probe = Probe::open(ifindex);
    if (!probe) return {Answer::unknown, probe.error()};
    NativeSending verdict{Answer::unknown, "no CPU may be used"};
    const OnEachCpu cpus;
    cpus.run([&] {
        if (verdict.answer == Answer::impossible) return;
        const sp_send_probe before = probe->state();
        if (!probe->send(mac)) {
            verdict.why =
                std::string("the kernel sends no frames for a program: ") + std::strerror(errno);
            return;
        }
        verdict = judge(before, probe->state(), running);
    });
    return verdict;
}

}  // namespace sallyport::bpf_objects
