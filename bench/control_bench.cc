// SPDX-License-Identifier: Apache-2.0
// What a change of the register costs the control thread when there are many tunnels: rounds with
// the real parts (RunningAdoption, Reconciler, Handover, Publication, OuterTunnels), in CPU time,
// against models of the register, the XDP programs and workers, which cost nothing. A tunnel is two
// SAs and three policies whose `out` template names the SPI, as strongSwan makes them. Measures and
// prints; asserts nothing.

#include <malloc.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <functional>
#include <span>
#include <vector>

#include "control/host_traffic/plan.h"
#include "control/sa/kernel/rounds.h"

namespace sallyport::control {
namespace {

constexpr uint32_t kRekeys = 51;
constexpr uint16_t kCpus[] = {0, 1, 2, 3};

double cpu_ms() {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

double heap_bytes() {
    return static_cast<double>(mallinfo2().uordblks);
}

IpAddress address(uint8_t first, uint32_t rest) {
    return {.bytes = {first, static_cast<uint8_t>(rest >> 16), static_cast<uint8_t>(rest >> 8),
                      static_cast<uint8_t>(rest)}};
}

// xfrm, and the copy of it, which is always right.
struct RegisterModel final : Register {
    std::map<xfrm::SaName, xfrm::KernelSa> states;
    std::map<uint32_t, xfrm::KernelPolicy> policies;
    xfrm::RegisterChanges changes;
    uint64_t arrivals = 0;

    static xfrm::KernelSa copy(const xfrm::KernelSa& state) {
        xfrm::KernelSa out;
        out.name = state.name;
        out.source = state.source;
        out.reqid = state.reqid;
        out.esn = state.esn;
        out.algorithm = state.algorithm;
        out.aead = true;
        out.icv_bits = state.icv_bits;
        out.key = SecretBytes({state.key.bytes().begin(), state.key.bytes().end()});
        out.replay = state.replay;
        out.usage = state.usage;
        out.arrival = state.arrival;
        return out;
    }
    [[nodiscard]] const xfrm::KernelSa* find(const xfrm::SaName& name) const override {
        const auto found = states.find(name);
        return found == states.end() ? nullptr : &found->second;
    }
    std::expected<xfrm::KernelSa, netlink::Error> get(const xfrm::SaName& name) override {
        const xfrm::KernelSa* state = find(name);
        if (state == nullptr) return std::unexpected(netlink::Error{ESRCH, "no such state"});
        return copy(*state);
    }
    void note(const xfrm::KernelSa&) override {}
    std::expected<void, netlink::Error> write_counters(const xfrm::KernelSa& state,
                                                       const xfrm::CounterUpdate& update) override {
        const auto found = states.find(state.name);
        if (found != states.end() && update.replay) found->second.replay = *update.replay;
        return {};
    }
    std::vector<std::expected<xfrm::KernelSa, netlink::Error>> get_all(
        std::span<const xfrm::SaName> names) override {
        std::vector<std::expected<xfrm::KernelSa, netlink::Error>> out;
        for (const xfrm::SaName& name : names) out.push_back(get(name));
        return out;
    }
    std::vector<std::expected<void, netlink::Error>> write_all(
        std::span<const xfrm::CounterWrite> writes) override {
        std::vector<std::expected<void, netlink::Error>> out;
        for (const xfrm::CounterWrite& write : writes) {
            out.push_back(write_counters(*write.state, write.update));
        }
        return out;
    }
    std::vector<std::expected<void, netlink::Error>> limit_all(
        std::span<const xfrm::LimitWrite> writes) override {
        return std::vector<std::expected<void, netlink::Error>>(writes.size());
    }
    std::expected<void, netlink::Error> expire(const xfrm::KernelSa&, bool) override { return {}; }
};

struct NoSteering final : Steering {
    std::expected<void, std::string> insert(const xfrm::SaName&, WorkerId) override { return {}; }
    void remove(const xfrm::SaName&) override {}
};
struct Orders final : Commands {
    std::deque<Command> sent;
    void send(WorkerId, const Command& command) override { sent.push_back(command); }
};
struct SetClock final : Clock {
    std::chrono::steady_clock::time_point at{std::chrono::hours(1)};
    [[nodiscard]] std::chrono::steady_clock::time_point now() const override { return at; }
    [[nodiscard]] uint64_t seconds() const override { return 1; }
};
struct Bits final : Random {
    std::expected<uint64_t, std::string> bits() override { return 1; }
};
struct Printed final : Notices {
    void warning(const std::string&) override {}
    void error(const std::string& text) override { std::printf("%s\n", text.c_str()); }
};
struct NoPrograms final : Programs {
    [[nodiscard]] SpdRoom room() const override {
        return {.destinations = kSpdRowsMax, .sources = kSpdRowsMax, .entries = kSpdRowsMax};
    }
    std::expected<void, std::string> publish(const SpdUpdate&, const GroupOwners&,
                                             std::span<const PolicyId>, std::span<const uint32_t>,
                                             const std::function<void()>& switched) override {
        switched();
        return {};
    }
    std::expected<void, std::string> update_owners(const GroupOwners&,
                                                   std::span<const PolicyId>) override {
        return {};
    }
    std::expected<void, std::string> set_bypass_until(
        std::chrono::steady_clock::time_point) override {
        return {};
    }
};
struct NoPath final : KernelPath {
    std::expected<void, std::string> replace(std::vector<xfrm::PolicyRow>) override { return {}; }
};

class Gateway {
  public:
    explicit Gateway(uint32_t tunnels, const crypto::Aead& aead)
        : groups_(2 * tunnels + 4096),
          slots_(2 * size_t{tunnels} + 4096),
          handover_(around_, {slots_, memory_, feedback_}, aead),
          rounds_(around_, {groups_, adoption_, reconciler_, publication_, lease_, commands_},
                  [this](const xfrm::RegisterChanges& changes, size_t entries_max) {
                      static const std::vector<IpAddress> kLocal = {address(192, 2)};
                      const double begun = cpu_ms();
                      adoption_.decide({register_.states, register_.policies}, changes,
                                       {.cpus = kCpus,
                                        .local_addresses = kLocal,
                                        .policies = {},
                                        .entries_max = entries_max});
                      decide_ms_ += cpu_ms() - begun;
                  }) {
        publication_.open(programs_);
        lease_.open(programs_);
        reconciler_.take_over();
        for (uint32_t i = 0; i < tunnels; ++i) add(i);
        register_.changes = {};
    }

    // --- the register
    void add_sas(uint32_t number, uint32_t generation) {
        for (const bool outbound : {false, true}) {
            xfrm::KernelSa sa;
            const IpAddress here = address(192, 2);
            const IpAddress peer = address(198, number);
            sa.name = {.spi = spi(number, generation, outbound),
                       .destination = outbound ? peer : here};
            sa.source = outbound ? here : peer;
            sa.reqid = number + 1;
            sa.algorithm = "rfc4106(gcm(aes))";
            sa.aead = true;
            sa.icv_bits = 128;
            std::vector<std::byte> key(20);
            std::memcpy(key.data(), &sa.name.spi, sizeof sa.name.spi);
            sa.key = SecretBytes(std::move(key));
            sa.replay.window = 128;
            sa.arrival = ++register_.arrivals;
            register_.changes.added.insert(sa.name);
            register_.states.insert_or_assign(sa.name, std::move(sa));
        }
    }
    void put_policies(uint32_t number, uint32_t generation) {
        for (const auto direction : {xfrm::PolicyDirection::out, xfrm::PolicyDirection::in,
                                     xfrm::PolicyDirection::forward}) {
            const bool outbound = direction == xfrm::PolicyDirection::out;
            const IpPrefix near{.address = address(172, 0x100000), .bits = 12};
            const IpPrefix far{.address = address(10, number << 4), .bits = 28};
            const IpAddress here = address(192, 2);
            const IpAddress peer = address(198, number);
            xfrm::KernelPolicy policy;
            policy.row.direction = direction;
            policy.row.action = xfrm::PolicyAction::allow;
            policy.row.priority = 1000;
            policy.row.index = number * 8 + 8 + static_cast<uint32_t>(direction);
            policy.row.selector.source = outbound ? near : far;
            policy.row.selector.destination = outbound ? far : near;
            policy.templates.push_back({.source = outbound ? here : peer,
                                        .destination = outbound ? peer : here,
                                        .spi = outbound ? spi(number, generation, true) : Spi{},
                                        .reqid = number + 1});
            register_.changes.policies.insert(policy.row.index);
            register_.policies.insert_or_assign(policy.row.index, std::move(policy));
        }
    }
    void add(uint32_t number) {
        add_sas(number, 0);
        put_policies(number, 0);
    }
    void remove_sas(uint32_t number, uint32_t generation) {
        for (const bool outbound : {false, true}) {
            const auto name =
                std::ranges::find_if(register_.states.lower_bound(
                                         xfrm::SaName{.spi = spi(number, generation, outbound)}),
                                     register_.states.end(), [](const auto&) { return true; });
            register_.changes.removed.insert(name->first);
            register_.states.erase(name);
        }
    }
    void remove(uint32_t number, uint32_t generation) {
        remove_sas(number, generation);
        for (uint32_t direction = 0; direction < 3; ++direction) {
            const uint32_t index = number * 8 + 8 + direction;
            register_.policies.erase(index);
            register_.changes.policies.insert(index);
        }
    }

    // --- rounds, and what follows until all has settled
    void round() {
        const auto done = rounds_.run(std::exchange(register_.changes, {}));
        if (!done) std::printf("not published: %s\n", done.error().c_str());
        obey();
        while (rounds_.go_on()) {
            clock_.at += Handover::kSettle;
            obey();
        }
    }
    // Milliseconds of CPU, of them in decide().
    struct Cost {
        double all = 0;
        double decide = 0;
        friend auto operator<=>(const Cost&, const Cost&) = default;
    };
    Cost cost_of(const std::function<void()>& what) {
        decide_ms_ = 0;
        const double begun = cpu_ms();
        what();
        return {.all = cpu_ms() - begun, .decide = decide_ms_};
    }
    [[nodiscard]] size_t installed() const { return slots_.size(); }
    [[nodiscard]] bool decides_all() const { return adoption_.decides_all(); }

  private:
    static Spi spi(uint32_t number, uint32_t generation, bool outbound) {
        return Spi{0x1000 + (generation << 20 | number) * 2 + (outbound ? 1 : 0)};
    }
    void obey() {
        while (!orders_.sent.empty()) {
            const Command command = orders_.sent.front();
            orders_.sent.pop_front();
            if (const auto* out = std::get_if<command::RetireOutbound>(&command)) {
                handover_.take(event::OutboundRetired{.id = out->sa->id, .sa = out->sa});
            } else if (const auto* in = std::get_if<command::RetireInbound>(&command)) {
                handover_.take(event::InboundRetired{.id = in->sa->id, .sa = in->sa});
            }
        }
    }

    RegisterModel register_;
    NoSteering steering_;
    Orders orders_;
    SetClock clock_;
    Bits bits_;
    Printed notices_;
    NoPrograms programs_;
    NoPath path_;
    Surroundings around_{.kernel = register_,
                         .steering = steering_,
                         .workers = orders_,
                         .clock = clock_,
                         .random = bits_,
                         .notices = notices_,
                         .another_round = [](std::chrono::milliseconds) {}};
    boost::asio::io_context context_;
    // Workers release an SPD at once.
    WorkerCommands commands_{
        context_, std::size(kCpus), [this](WorkerId, const Command& command) {
            if (const auto* next = std::get_if<command::PublishSpd>(&command)) {
                if (spd_ != nullptr) commands_.released(spd_);
                spd_ = next->spd;
            }
            return true;
        }};
    const Spd* spd_ = nullptr;
    GroupNumbers groups_;
    RunningAdoption adoption_{groups_};
    SlotTable slots_;
    SequenceMemory memory_;
    RekeyPacer pacer_{std::size(kCpus)};
    Feedback feedback_{around_, pacer_};
    Handover handover_;
    Reconciler reconciler_{around_, slots_, handover_};
    Publication publication_{path_, commands_, notices_, {.policies = {}}};
    BypassLease lease_{clock_, notices_};
    double decide_ms_ = 0;
    Rounds rounds_;
};

Gateway::Cost median(std::vector<Gateway::Cost> costs) {
    std::ranges::sort(costs);
    return costs[costs.size() / 2];
}

void bench(uint32_t tunnels, const crypto::Aead& aead) {
    const double empty = heap_bytes();
    Gateway gateway(tunnels, aead);
    const double registered = heap_bytes() - empty;
    const Gateway::Cost start = gateway.cost_of([&] { gateway.round(); });
    const double all = heap_bytes() - empty;
    std::vector<Gateway::Cost> rekeys;
    std::vector<Gateway::Cost> news;
    std::vector<Gateway::Cost> ends;
    for (uint32_t i = 0; i < kRekeys; ++i) {
        const uint32_t number = static_cast<uint32_t>(uint64_t{i} * tunnels / kRekeys);
        rekeys.push_back(gateway.cost_of([&] {
            gateway.add_sas(number, 1);
            gateway.round();
            gateway.put_policies(number, 1);
            gateway.round();
            gateway.remove_sas(number, 0);
            gateway.round();
        }));
        const uint32_t fresh = tunnels + i;
        news.push_back(gateway.cost_of([&] {
            gateway.add(fresh);
            gateway.round();
        }));
        ends.push_back(gateway.cost_of([&] {
            gateway.remove(fresh, 0);
            gateway.round();
        }));
    }
    const Gateway::Cost rekey = median(rekeys);
    const Gateway::Cost fresh = median(news);
    const Gateway::Cost end = median(ends);
    std::printf("%7u %9.1f %9.1f  %8.3f %8.3f  %8.3f %8.3f  %8.3f %8.3f  %8.0f %8.0f%s\n", tunnels,
                start.all, start.decide, rekey.all, rekey.decide, fresh.all, fresh.decide, end.all,
                end.decide, registered / tunnels, all / tunnels,
                gateway.decides_all() ? "  decides all" : "");
}

// The ways of this host's own packets, where an address of it is inside all policies: the first
// plan, and what a batch of tunnels that a worker begins to send for costs.
void bench_host_traffic(uint32_t tunnels) {
    host_traffic::Policies policies;
    for (uint32_t i = 0; i < tunnels; ++i) {
        SpdEntry entry{.policy = PolicyId{i}, .action = SpdAction::protect};
        entry.source = {.address = address(172, 0x100000), .bits = 12};
        entry.destination = {.address = address(10, i << 4), .bits = 28};
        policies.outbound.push_back(entry);
    }
    const IpAddress own[] = {address(172, 0x100001)};
    double begun = cpu_ms();
    host_traffic::Ways ways(policies, own);
    const double planned = cpu_ms() - begun;
    begun = cpu_ms();
    for (uint32_t i = 0; i < tunnels; ++i) ways.serve(PolicyId{i}, true);
    constexpr uint32_t kBatch = Reconciler::kBatch / 2;
    const uint32_t batches = (tunnels + kBatch - 1) / kBatch;
    std::printf("%7u tunnels: %.1f ms, then %.3f ms for each %u tunnels (%zu ways)\n", tunnels,
                planned, (cpu_ms() - begun) / batches, kBatch, ways.plan().ways.size());
}

}  // namespace
}  // namespace sallyport::control

int main(int argc, char** argv) {
    using namespace sallyport;
    const auto aead = crypto::Aead::create();
    if (!aead) {
        std::printf("SKIP: %s\n", aead.error().c_str());
        return 0;
    }
    std::printf("CPU time in ms, medians of %u; each beside the part of it that decides\n",
                control::kRekeys);
    std::printf("%7s %9s %9s  %8s %8s  %8s %8s  %8s %8s  %8s %8s\n", "tunnels", "start", "",
                "rekey", "", "new", "", "deleted", "", "register", "all");
    std::vector<uint32_t> sizes = {1000, 10'000, 50'000, 100'000};
    if (argc > 1) sizes = {static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10))};
    for (const uint32_t tunnels : sizes) control::bench(tunnels, *aead);
    std::printf("the last two: heap bytes of a tunnel, of the copy of the register and of all\n");
    std::printf("ways of the host's own packets, planned and kept:\n");
    for (const uint32_t tunnels : sizes) control::bench_host_traffic(tunnels);
    return 0;
}
