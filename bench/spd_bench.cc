// SPDX-License-Identifier: Apache-2.0
//
// What a change of policies costs the control thread, from lists of entries to maps and to the
// object for workers: the first publication, one tunnel more, one less, other owners of one group.
//
//   spd_bench [tunnels ...]     medians of kRounds; 1000, 10000, 50000, 100000 unless given
//
// A tunnel is one entry in each direction, site to site, with a BYPASS for all behind them. With
// root the rows go into BPF maps, as XDP programs read them.

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string_view>
#include <vector>

#include "control/bpf_objects/program_object.h"
#include "control/bpf_objects/spd_writer.h"
#include "control/policy/compiler.h"

namespace {

using namespace sallyport;
using control::SpdCompiler;
using control::SpdUpdate;

constexpr int kRounds = 51;

double now_us(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return 1e6 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_nsec);
}

// CPU of this thread and time, in microseconds.
struct Cost {
    double cpu = 0;
    double wall = 0;
};
template <typename Work>
Cost cost_of(Work work) {
    const double cpu = now_us(CLOCK_THREAD_CPUTIME_ID);
    const double wall = now_us(CLOCK_MONOTONIC);
    work();
    return {.cpu = now_us(CLOCK_THREAD_CPUTIME_ID) - cpu, .wall = now_us(CLOCK_MONOTONIC) - wall};
}
void print(const char* what, std::vector<Cost> costs) {
    const auto median = [&](double Cost::* of) {
        std::ranges::sort(costs, {}, of);
        return costs[costs.size() / 2].*of;
    };
    std::printf("  %-28s %10.0f us CPU %10.0f us\n", what, median(&Cost::cpu), median(&Cost::wall));
}

IpPrefix site(uint32_t number, bool remote) {
    IpPrefix out{.address = {}, .bits = 24};
    out.address.bytes[0] = remote ? static_cast<uint8_t>(64 + (number >> 16)) : 10;
    out.address.bytes[1] = static_cast<uint8_t>(remote ? number >> 8 : 1);
    out.address.bytes[2] = static_cast<uint8_t>(remote ? number : 0);
    return out;
}
SpdPlace place_of(uint32_t number) {
    return {.tier = 1, .priority = 1000, .rank = number + 1, .index = number};
}
SpdEdits tunnel(uint32_t number, bool comes) {
    const SpdEntry out{.policy = PolicyId{number},
                       .action = SpdAction::protect,
                       .source = site(number, false),
                       .destination = site(number, true)};
    SpdEntry in = out;
    std::swap(in.source, in.destination);
    SpdEdits edits;
    edits.outbound.push_back({place_of(number), comes ? std::optional(out) : std::nullopt});
    edits.inbound.push_back({place_of(number), comes ? std::optional(in) : std::nullopt});
    return edits;
}

class Bench {
  public:
    explicit Bench(uint32_t tunnels) : tunnels_(tunnels), owners_(tunnels + 1) {
        const uint32_t rows = 4 * tunnels + 4096;
        limits_.spd_destinations = limits_.spd_sources = limits_.spd_entries = rows;
        compiler_.open({.destinations = rows, .sources = rows, .entries = rows});
        for (auto& workers : owners_) workers = {WorkerId{0}};
        if (geteuid() != 0) return;
        auto maps = bpf_objects::SharedMaps::create(limits_);
        if (!maps) {
            std::printf("  without maps: %s\n", maps.error().c_str());
            return;
        }
        maps_ = std::move(*maps);
        writer_ = std::make_unique<bpf_objects::SpdWriter>(maps_, limits_);
    }

    void run() {
        std::printf("%u tunnels%s\n", tunnels_, writer_ ? "" : ", no maps");
        SpdEdits all;
        for (uint32_t i = 0; i < tunnels_; ++i) {
            const SpdEdits one = tunnel(i, true);
            all.outbound.push_back(one.outbound.front());
            all.inbound.push_back(one.inbound.front());
        }
        const SpdEntry open{.policy = PolicyId{tunnels_ + 1}, .action = SpdAction::bypass};
        all.outbound.push_back({{.tier = 9}, open});
        all.inbound.push_back({{.tier = 9}, open});
        print("first publication", {cost_of([&] { publish(all); })});
        std::mt19937 random(1);
        std::vector<Cost> more;
        std::vector<Cost> less;
        std::vector<Cost> owned;
        for (int i = 0; i < kRounds; ++i) {
            const auto number = static_cast<uint32_t>(random() % tunnels_);
            less.push_back(cost_of([&] { publish(tunnel(number, false)); }));
            more.push_back(cost_of([&] { publish(tunnel(number, true)); }));
            owners_[number] = {WorkerId{static_cast<uint16_t>(1 + i % 2)}};
            owned.push_back(cost_of([&] {
                const PolicyId changed{number};
                if (writer_) (void)writer_->update_owners(owners_, std::span(&changed, 1));
            }));
        }
        print("a tunnel less", less);
        print("a tunnel more", more);
        print("other owners of a group", owned);
        print("nothing", {cost_of([&] { (void)compiler_.change({}); })});
    }

  private:
    void publish(const SpdEdits& edits) {
        auto update = compiler_.change(edits);
        if (!update || !*update) {
            std::printf("  %s\n", update ? "nothing changes" : update.error().text.c_str());
            return;
        }
        if (writer_) {
            const auto* rows = std::get_if<SpdRowChanges>(&(*update)->rows);
            const auto* whole = std::get_if<SpdUpdate::Whole>(&(*update)->rows);
            const auto done = rows != nullptr
                                  ? writer_->publish_rows(*rows, owners_, {}, {}, {})
                                  : writer_->publish(whole->outbound, whole->inbound, owners_);
            if (!done) std::printf("  %s\n", done.error().c_str());
        }
        compiler_.commit();
        workers_ = std::move((*update)->spd);
    }

    uint32_t tunnels_;
    std::vector<std::vector<WorkerId>> owners_;
    bpf_objects::Limits limits_;
    SpdCompiler compiler_;
    bpf_objects::SharedMaps maps_;
    std::unique_ptr<bpf_objects::SpdWriter> writer_;
    std::unique_ptr<const Spd> workers_;
};

}  // namespace

int main(int argc, char** argv) {
    std::vector<uint32_t> sizes;
    for (int i = 1; i < argc; ++i) {
        uint32_t tunnels = 0;
        const std::string_view text = argv[i];
        std::from_chars(text.data(), text.data() + text.size(), tunnels);
        if (tunnels == 0 || tunnels > 1 << 20) {
            std::fprintf(stderr, "usage: spd_bench [tunnels ...]\n");
            return 2;
        }
        sizes.push_back(tunnels);
    }
    if (sizes.empty()) sizes = {1000, 10000, 50000, 100000};
    for (const uint32_t tunnels : sizes) Bench(tunnels).run();
}
