// SPDX-License-Identifier: Apache-2.0
// What it costs to mirror 10 000 SA pairs from an empty start, in CPU time: whole states from
// messages in memory, and larval ones from this machine's kernel in a network namespace of its own,
// where the kernel's share counts too. Measures and prints; asserts nothing.

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <vector>

#include "control/xfrm/mirror_socket.h"

namespace sallyport::xfrm {
namespace {

constexpr uint32_t kPairs = 10000;
constexpr int kRounds = 7;

struct CpuTime {
    double user_ms = 0;
    double system_ms = 0;
    [[nodiscard]] double total() const { return user_ms + system_ms; }
};

CpuTime cpu_time() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto ms = [](const timeval& time) {
        return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_usec) / 1e3;
    };
    return {.user_ms = ms(usage.ru_utime), .system_ms = ms(usage.ru_stime)};
}

// Least, median and most of kRounds, with the share of the kernel in the median.
void report(const char* what, const std::function<void()>& round) {
    std::vector<CpuTime> times;
    for (int i = 0; i < kRounds; ++i) {
        const CpuTime before = cpu_time();
        round();
        const CpuTime after = cpu_time();
        times.push_back({.user_ms = after.user_ms - before.user_ms,
                         .system_ms = after.system_ms - before.system_ms});
    }
    std::ranges::sort(times, {}, &CpuTime::total);
    const CpuTime& median = times[times.size() / 2];
    std::printf("%-44s %7.1f %7.1f %7.1f   (%.1f in the kernel)\n", what, times.front().total(),
                median.total(), times.back().total(), median.system_ms);
}

NewState state(uint32_t number, std::mt19937& random, std::span<const std::byte> key) {
    const bool inbound = number % 2 == 0;
    IpAddress here;
    here.bytes = {192, 0, 2, 1};
    IpAddress peer;
    peer.bytes = {10, static_cast<uint8_t>(number >> 17), static_cast<uint8_t>(number >> 9),
                  static_cast<uint8_t>(number >> 1)};
    return {.id = {Spi{0x100u + (static_cast<uint32_t>(random()) & 0x7fffffffu)},
                   inbound ? here : peer},
            .source = inbound ? peer : here,
            .reqid = number / 2 + 1,
            .direction = inbound ? StateDirection::inbound : StateDirection::outbound,
            .suite = crypto::find_suite("aes-gcm-16-256"),
            .key = key,
            .esn = true,
            .replay_window = 128};
}

// Datagrams as the kernel fills them for a dump: up to 32 KiB of messages each.
std::vector<std::vector<std::byte>> whole_states() {
    std::mt19937 random(1);
    std::vector<std::vector<std::byte>> datagrams(1);
    for (uint32_t i = 0; i < kPairs * 2; ++i) {
        std::array<std::byte, 36> key;
        for (std::byte& byte : key) byte = static_cast<std::byte>(random());
        const RequestBuffer message =
            encode_new_state(state(i, random, key), StateAttributes::all, 1);
        if (datagrams.back().size() + message.size() > 32 * 1024) datagrams.emplace_back();
        datagrams.back().insert(datagrams.back().end(), message.bytes().begin(),
                                message.bytes().end());
    }
    return datagrams;
}

template <typename Take>
void for_each_message(const std::vector<std::vector<std::byte>>& datagrams, Take take) {
    for (const auto& datagram : datagrams) {
        std::span<const std::byte> rest = datagram;
        while (const auto message = netlink::next_message(rest)) {
            if (!*message) break;
            take(**message);
        }
    }
}

void bench_messages() {
    const auto datagrams = whole_states();
    size_t bytes = 0;
    for (const auto& datagram : datagrams) bytes += datagram.size();
    std::printf("messages: %.1f MB in %zu datagrams\n", static_cast<double>(bytes) / 1e6,
                datagrams.size());
    size_t mirrored = 0;
    const auto from_dump = [&](RegisterMirror& mirror) {
        RegisterChanges changes;
        mirror.begin_dump();
        for_each_message(datagrams, [&](const Message& message) { mirror.load(message); });
        mirror.end_dump(changes);
        mirrored = mirror.states().size();
    };
    report("whole states, as a dump", [&] {
        RegisterMirror mirror;
        from_dump(mirror);
    });
    report("whole states, as notifications", [&] {
        RegisterMirror mirror;
        RegisterChanges changes;
        for_each_message(datagrams,
                         [&](const Message& message) { mirror.apply(message, changes); });
    });
    RegisterMirror mirror;
    from_dump(mirror);
    report("whole states, dumped again and compared", [&] { from_dump(mirror); });
    std::printf("mirrored: %zu states\n", mirrored);
}

void bench_kernel() {
    if (geteuid() != 0 || unshare(CLONE_NEWNET) != 0) {
        std::printf("SKIP larval states of the kernel: needs root for a network namespace\n");
        return;
    }
    // Only of this namespace: larval states are to live for longer than the bench.
    std::ofstream("/proc/sys/net/core/xfrm_acq_expires") << "3600\n";
    auto requests = netlink::Socket::open(netlink::Protocol::xfrm);
    auto socket = RegisterSocket::open();
    if (!requests || !socket) {
        std::printf("SKIP larval states of the kernel: %s\n",
                    (requests ? socket.error() : requests.error()).c_str());
        return;
    }
    std::mt19937 random(2);
    for (uint32_t i = 0; i < kPairs * 2; ++i) {
        const auto made = requests->exchange(encode_allocate_spi(
            state(i, random, {}), StateAttributes::none, requests->next_sequence()));
        if (!made) {
            std::printf("SKIP larval states of the kernel: %s\n", made.error().text.c_str());
            return;
        }
    }
    size_t mirrored = 0;
    report("larval states of this kernel, by a dump", [&] {
        RegisterMirror mirror;
        RegisterChanges changes;
        if (!socket->dump(mirror, changes)) std::printf("the dump failed\n");
        mirrored = mirror.states().size();
    });
    std::printf("mirrored: %zu states\n", mirrored);
}

}  // namespace
}  // namespace sallyport::xfrm

int main() {
    std::printf("%u SA pairs from an empty start, CPU time in ms of %d rounds\n",
                sallyport::xfrm::kPairs, sallyport::xfrm::kRounds);
    std::printf("%-44s %7s %7s %7s\n", "", "least", "median", "most");
    sallyport::xfrm::bench_messages();
    sallyport::xfrm::bench_kernel();
    return 0;
}
