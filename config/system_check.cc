// SPDX-License-Identifier: Apache-2.0
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "bpf/abi.h"
#include "config/config.h"
#include "config/diagnostics.h"
#include "config/system.h"
#include "dataplane/io/port_sockets.h"

namespace sallyport::config {

// Any socket will do to ask it.
bool ask_device(const std::string& device, unsigned long question, ifreq& request) {
    if (device.size() >= sizeof request.ifr_name) {
        errno = ENODEV;
        return false;
    }
    std::memcpy(request.ifr_name, device.c_str(), device.size() + 1);
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    const bool answered = ioctl(fd, question, &request) == 0;
    const int error = errno;
    close(fd);
    errno = error;
    return answered;
}

namespace {

std::optional<uint32_t> channels_by_ethtool(const std::string& device) {
    ethtool_channels channels{.cmd = ETHTOOL_GCHANNELS};
    ifreq request{};
    request.ifr_data = reinterpret_cast<char*>(&channels);
    if (!ask_device(device, SIOCETHTOOL, request)) return std::nullopt;
    const uint32_t count = channels.combined_count + channels.rx_count;
    return count == 0 ? std::nullopt : std::optional(count);
}

// For drivers without channels. /sys shows the network namespace it was mounted in, which need not
// be ours; the index tells whether it speaks of the same device.
std::optional<uint32_t> queues_by_sysfs(const std::string& device) {
    const std::filesystem::path directory = "/sys/class/net/" + device;
    unsigned index = 0;
    std::ifstream(directory / "ifindex") >> index;
    if (index == 0 || index != if_nametoindex(device.c_str())) return std::nullopt;
    uint32_t count = 0;
    std::error_code error;
    for (std::filesystem::directory_iterator it(directory / "queues", error), end;
         !error && it != end; it.increment(error)) {
        if (it->path().filename().string().starts_with("rx-")) ++count;
    }
    return count == 0 ? std::nullopt : std::optional(count);
}

std::string numbers(const std::vector<uint16_t>& values) {
    std::string result;
    for (const uint16_t value : values) {
        result += (result.empty() ? "" : ", ") + std::to_string(value);
    }
    return result;
}

// Checks the ports; returns the queues of all of them together.
uint64_t check_ports(const Config& config, Diagnostics& diagnostics) {
    uint64_t queues_total = 0;
    std::map<unsigned, const Port*> by_index;
    for (const Port& port : config.ports) {
        const std::string label = "[port." + port.name + "] ";
        const auto report = [&](const std::string& text) {
            diagnostics.add(port.location.line, label + text);
        };
        const auto report_for_now = [&](const std::string& text) {
            diagnostics.add(port.location.line, label + text, Error::Kind::not_yet);
        };
        const unsigned index = if_nametoindex(port.device.c_str());
        if (index == 0) {
            report_for_now("there is no network device " + shown(port.device) +
                           ": 'ip link' lists those there are");
            continue;
        }
        // An alternative name leads to a device that another port has by its first name.
        const auto [first, is_new] = by_index.emplace(index, &port);
        if (!is_new) {
            report("device " + shown(port.device) + " is the device of [port." +
                   first->second->name + "] too: each port needs its own");
            continue;
        }
        ifreq request{};
        if (!ask_device(port.device, SIOCGIFHWADDR, request) ||
            request.ifr_hwaddr.sa_family != ARPHRD_ETHER) {
            report("device " + shown(port.device) +
                   " is not an Ethernet device: ports need Ethernet frames");
            continue;
        }
        const auto queues = device_queue_count(port.device);
        if (!queues) {
            report_for_now(queues.error());
            continue;
        }
        if (port.queues && *port.queues > *queues) {
            report_for_now("queues: device " + shown(port.device) + " has " +
                           std::to_string(*queues) + ", not " + std::to_string(*port.queues) +
                           ": allowed are 1 to " + std::to_string(*queues) +
                           " or \"auto\" ('ethtool -L' changes what it has)");
            continue;
        }
        // Frames that arrive on a queue without our sockets would pass the gateway by.
        if (port.queues && *port.queues < *queues) {
            report_for_now("queues: device " + shown(port.device) + " spreads frames over " +
                           std::to_string(*queues) + " queues, of which " +
                           std::to_string(*port.queues) +
                           " would be served: write \"auto\" or reduce them with 'ethtool -L'");
            continue;
        }
        if (*queues > SP_QUEUES_MAX) {
            report_for_now("device " + shown(port.device) + " has " + std::to_string(*queues) +
                           " queues: allowed are at most " + std::to_string(SP_QUEUES_MAX) +
                           ", reduce them with 'ethtool -L'");
            continue;
        }
        queues_total += *queues;
    }
    return queues_total;
}

// "0-3,8" of /sys; empty where it cannot be read.
std::set<unsigned> online_cpus() {
    std::set<unsigned> cpus;
    std::ifstream file("/sys/devices/system/cpu/online");
    for (std::string range; std::getline(file, range, ',');) {
        unsigned first = 0;
        unsigned last = 0;
        const int read = std::sscanf(range.c_str(), "%u-%u", &first, &last);
        if (read < 1) continue;
        if (read == 1) last = first;
        for (unsigned cpu = first; cpu <= last && cpu < SP_CPUS_MAX; ++cpu) cpus.insert(cpu);
    }
    return cpus;
}

// Any CPU will do, whether this process may use it or not: the kernel's threads work there.
void check_bypass_cpus(const Config& config, Diagnostics& diagnostics) {
    const std::set<unsigned> online = online_cpus();
    if (online.empty()) return;
    for (const Port& port : config.ports) {
        for (const uint16_t cpu : port.bypass_cpus) {
            if (online.contains(cpu)) continue;
            diagnostics.add(port.location.line, "[port." + port.name +
                                                    "] bypass_cpus: this machine has no CPU " +
                                                    std::to_string(cpu) + " online: allowed are " +
                                                    numbers({online.begin(), online.end()}));
        }
    }
}

// Checks the CPUs; returns how many workers there will be.
uint64_t check_workers(const Config& config, Diagnostics& diagnostics) {
    const std::vector<uint16_t> usable = usable_cpus();
    const auto& wanted = config.workers.cpus;
    for (const uint16_t cpu : wanted) {
        if (std::ranges::find(usable, cpu) != usable.end()) continue;
        diagnostics.add(config.workers.location.line,
                        "[workers] cpus: CPU " + std::to_string(cpu) +
                            " is not available to this process: allowed are " + numbers(usable));
    }
    const size_t workers =
        wanted.empty() ? std::min<size_t>(usable.size(), SP_WORKERS_MAX) : wanted.size();
    for (const StaticSa& sa : config.sas) {
        if (!wanted.empty() || !sa.worker || to_index(*sa.worker) < workers) continue;
        diagnostics.add(sa.location.line, "[[sa]] " + shown(sa.name) +
                                              " worker: " + std::to_string(to_index(*sa.worker)) +
                                              " does not exist: this machine "
                                              "gives " +
                                              std::to_string(workers) +
                                              " workers, allowed are 0 to " +
                                              std::to_string(workers - 1));
    }
    return workers;
}

}  // namespace

std::vector<uint16_t> usable_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<uint16_t> cpus;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
    for (uint16_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
    return cpus;
}

std::expected<uint16_t, std::string> device_queue_count(const std::string& device) {
    if (if_nametoindex(device.c_str()) == 0) {
        return std::unexpected("there is no network device " + shown(device));
    }
    auto count = channels_by_ethtool(device);
    if (!count) count = queues_by_sysfs(device);
    if (!count) {
        return std::unexpected("device " + shown(device) +
                               " does not say how many receive queues it has: neither ethtool nor "
                               "/sys/class/net (of this network namespace) knows");
    }
    return static_cast<uint16_t>(std::min<uint32_t>(*count, UINT16_MAX));
}

uint32_t receive_ring_slots(const std::string& device) {
    ethtool_ringparam rings{.cmd = ETHTOOL_GRINGPARAM};
    ifreq request{};
    request.ifr_data = reinterpret_cast<char*>(&rings);
    return ask_device(device, SIOCETHTOOL, request) ? rings.rx_pending : 0;
}

uint64_t frames_needed(uint64_t queues, uint64_t workers, bool follows_xfrm) {
    // A FILL ring is kept full, so each queue holds as many frames as that ring has slots. A worker
    // holds its mempool cache (512, which DPDK lets grow to half as much again) and up to four
    // bursts of 64: received, in the pipeline, waiting at the egress, read from the TAP. What
    // stands in receive rings comes out of the rest; that is what spare frames are good for.
    const uint64_t fill = io::PortSocketsSetup{}.fill_entries;
    constexpr uint64_t kWorkerFrames = 512 + 512 / 2 + 4 * kBurstMax;
    const uint64_t held = follows_xfrm ? 2 * kHoldFrames : 0;
    return queues * fill + workers * (kWorkerFrames + held);
}

std::vector<Error> check_against_system(const Config& config) {
    Diagnostics diagnostics(config.file);
    const uint64_t queues = check_ports(config, diagnostics);
    const uint64_t workers = check_workers(config, diagnostics);
    check_bypass_cpus(config, diagnostics);
    const uint64_t needed = frames_needed(queues, workers, config.follows_xfrm());
    if (config.memory.frames < needed) {
        diagnostics.add(config.memory.location.line,
                        "[memory] frames: " + std::to_string(config.memory.frames) +
                            " are too few for " + std::to_string(queues) + " queues and " +
                            std::to_string(workers) + " workers: write " +
                            std::to_string(std::bit_ceil(needed)) + " or more");
    }
    return diagnostics.take();
}

}  // namespace sallyport::config
