// SPDX-License-Identifier: Apache-2.0
//
// Policies on their way into force, in every order that dice come upon: peers that negotiate
// whatever helps them to be in the way, publications that fail at any step, workers that are late,
// a daemon that stands still. The parts under test are the real ones (Rounds, Publication,
// BypassLease, Reconciler, Handover, GroupNumbers, RunningAdoption, WorkerCommands); around them
// are models of the register, of the XDP programs and of workers.
//
// A schedule is kSteps events in a row, then a time without faults. What must hold in each:
//   - no packet leaves by an SA whose policies never covered it
//   - no packet leaves in clear that the kernel has had a policy for, for longer than the lease
//   - what is left to the kernel in the large ends there as the SPD would have it
//   - at the end what the register has is in force, and every SA that is for workers has one
//
//   PUBLICATION_SEED=4711       only this schedule, step by step
//   PUBLICATION_SCHEDULES=5000  how many
#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <optional>

#include "control/sa/kernel/rounds.h"
#include "dataplane/sa/sa_tables.h"
#include "tests/control/adoption/support.h"
#include "tests/control/sa/kernel/handover_models.h"
#include "tests/support/sanitizers.h"
#include "tests/support/spd_maps.h"

namespace sallyport::control::model {
namespace {

using adoption_test::address;
using adoption_test::prefix;
using adoption_test::Tunnel;
using std::chrono::milliseconds;
using xfrm::KernelPolicy;
using xfrm::PolicyDirection;
using Time = std::chrono::steady_clock::time_point;

constexpr uint32_t kTunnels = 5;
constexpr size_t kWorkers = 2;
constexpr uint32_t kGroups = 64;
constexpr int kSteps = 120;
constexpr PolicyId kNobody{0xffffffff};
constexpr uint32_t kOpenTunnels = 4;  // the configuration lets them pass

enum class Mistake : uint8_t {
    none,
    comes_unpublished,  // SAs and numbers change although the publication failed
    failed_changes_forgotten,
    believes_for_ever,  // the lease has no end
    open_ends,          // what is left to the kernel in the large does not end there
    extends_unheard,    // without having listened
};

struct Packet {
    uint32_t tunnel = 0;
    uint16_t port = 0;
    IpAddress source;
    IpAddress destination;
};

Tunnel tunnel_of(uint32_t number) {
    Tunnel tunnel;
    tunnel.reqid = number + 1;
    tunnel.remote.bytes[3] = static_cast<uint8_t>(number + 1);
    tunnel.local_net = prefix("10.1.0.0/24");
    tunnel.local_net.address.bytes[2] = static_cast<uint8_t>(number);
    tunnel.remote_net = prefix("10.2.0.0/24");
    tunnel.remote_net.address.bytes[2] = static_cast<uint8_t>(number);
    return tunnel;
}

// What the kernel has of one child: its policies and SAs.
struct Child {
    uint32_t tunnel = 0;
    uint16_t port = 0;  // 0: any protocol; else narrowed to it
    [[nodiscard]] bool covers(const Packet& packet) const {
        return tunnel == packet.tunnel && (port == 0 || port == packet.port);
    }
    [[nodiscard]] uint32_t reqid() const { return tunnel + 1 + port * 1000u; }
};

struct SaSpec {
    Child child;
    uint32_t key = 0;
    uint64_t arrival = 0;
    uint64_t sent = 0;
};

xfrm::KernelSa kernel_sa(const xfrm::SaName& name, const SaSpec& spec) {
    Tunnel tunnel = tunnel_of(spec.child.tunnel);
    tunnel.reqid = spec.child.reqid();
    xfrm::KernelSa sa = adoption_test::outbound_sa(tunnel, to_index(name.spi));
    sa.key = SecretBytes(key_bytes(spec.key));
    sa.arrival = spec.arrival;
    sa.replay.sent = spec.sent;
    return sa;
}

// ---- the world ----------------------------------------------------------------------------------

class World {
  public:
    World(uint64_t seed, const crypto::Aead& aead, Mistake mistake, bool tell);
    std::optional<std::string> run();
    [[nodiscard]] int by_rows() const { return by_rows_; }
    [[nodiscard]] int whole() const { return whole_; }

  private:
    using Policies = std::map<uint32_t, KernelPolicy>;

    // --- the kernel's register
    struct Kernel {
        std::map<xfrm::SaName, SaSpec> sas;
        Policies policies;
        std::map<std::pair<uint32_t, uint16_t>, std::vector<uint32_t>> indices;  // of a child
        uint64_t arrivals = 0;
    };
    struct RegisterModel final : model::OneByOne {
        World& world;
        std::map<xfrm::SaName, xfrm::KernelSa> known;
        Policies policies;
        explicit RegisterModel(World& of) : world(of) {}
        const xfrm::KernelSa* find(const xfrm::SaName& name) const override {
            const auto found = known.find(name);
            return found == known.end() ? nullptr : &found->second;
        }
        std::expected<xfrm::KernelSa, netlink::Error> get(const xfrm::SaName& name) override {
            const auto found = world.kernel_.sas.find(name);
            if (found == world.kernel_.sas.end()) {
                return std::unexpected(netlink::Error{ESRCH, "no such state"});
            }
            return kernel_sa(name, found->second);
        }
        void note(const xfrm::KernelSa& state) override {
            const auto found = known.find(state.name);
            if (found != known.end()) found->second.replay = state.replay;
        }
        std::expected<void, netlink::Error> write_counters(
            const xfrm::KernelSa& state, const xfrm::CounterUpdate& update) override {
            const auto found = world.kernel_.sas.find(state.name);
            if (found == world.kernel_.sas.end()) {
                return std::unexpected(netlink::Error{ESRCH, "no such state"});
            }
            if (update.replay) found->second.sent = update.replay->sent;
            return {};
        }
        std::expected<void, netlink::Error> expire(const xfrm::KernelSa&, bool) override {
            return {};
        }
    };

    // --- the programs and the kernel's path
    struct ProgramsModel final : Programs {
        World& world;
        test::SpdMaps maps;  // outbound
        bool in_use = false;
        std::vector<SpdChanges::Source> resting;
        GroupOwners owners;
        Time bypass_until;
        explicit ProgramsModel(World& of) : world(of) {}
        SpdRoom room() const override {
            return {.destinations = 1000, .sources = 1000, .entries = 44};
        }
        std::expected<void, std::string> publish(const SpdUpdate& made, const GroupOwners& by,
                                                 std::span<const PolicyId>,
                                                 std::span<const uint32_t>,
                                                 const std::function<void()>& switched) override {
            world.packets();
            const PolicyId earlier = world.kernels_;
            world.kernels_ = kNobody;  // until adoption() says so
            const auto* rows = std::get_if<SpdRowChanges>(&made.rows);
            if (rows != nullptr ? !change(rows->outbound, by) : world.fails()) {
                world.kernels_ = earlier;
                return std::unexpected("no memory for rows");
            }
            if (rows == nullptr) {
                maps = test::SpdMaps(std::get<SpdUpdate::Whole>(made.rows).outbound);
                resting.clear();
                ++world.whole_;
            } else {
                ++world.by_rows_;
                const auto& later = rows->outbound.later;
                resting.insert(resting.end(), later.begin(), later.end());
            }
            in_use = true;
            owners = by;
            world.packets();
            switched();
            if (rows != nullptr && rows->rest && !maps.erase(std::exchange(resting, {}))) {
                world.judge_.broken("a row that should rest was not there");
            }
            world.packets();
            return {};
        }
        // Rows come with the owners of their groups, and others keep theirs until all is done.
        bool change(const SpdChanges& changes, const GroupOwners& by) {
            const GroupOwners before = owners;
            size_t done = 0;
            for (; done < changes.steps.size() && !(world.dice_.one_in(4) && world.fails());
                 ++done) {
                if (!maps.take(changes.steps[done])) {
                    world.judge_.broken("a row was not what it was before");
                }
                const auto* source = std::get_if<SpdChanges::Source>(&changes.steps[done]);
                for (size_t i = 0; source != nullptr && i < source->entries.size(); ++i) {
                    const uint32_t group = to_index(source->entries[i].entry.policy);
                    if (group >= by.size()) continue;
                    if (group >= owners.size()) owners.resize(group + size_t{1});
                    owners[group] = by[group];
                }
                world.packets();
            }
            if (done == changes.steps.size()) return true;
            while (done-- > 0) maps.take_back(changes.steps[done]);
            owners = before;
            return false;
        }
        std::expected<void, std::string> update_owners(const GroupOwners& by,
                                                       std::span<const PolicyId>) override {
            if (world.fails()) return std::unexpected("no owner could be written");
            owners = by;
            return {};
        }
        std::expected<void, std::string> set_bypass_until(Time until) override {
            bypass_until = until;
            return {};
        }
    };
    struct PathModel final : KernelPath {
        World& world;
        std::vector<xfrm::PolicyRow> rows;
        explicit PathModel(World& of) : world(of) {}
        std::expected<void, std::string> replace(std::vector<xfrm::PolicyRow> now) override {
            if (world.fails()) return std::unexpected("no policy could be written");
            if (world.mistake_ == Mistake::open_ends) now.clear();
            rows = std::move(now);
            std::ranges::sort(rows, {}, &xfrm::PolicyRow::priority);
            return {};
        }
    };

    // --- workers
    struct Worker {
        static constexpr size_t kRing = 4;
        std::deque<Command> ring;
        std::deque<Event> events;
        std::deque<Packet> packets;  // steered to it
        const Spd* spd = nullptr;
        OutboundTable sas{kGroups};

        void take_command() {
            if (ring.empty()) return;
            const Command command = ring.front();
            ring.pop_front();
            if (const auto* published = std::get_if<command::PublishSpd>(&command)) {
                const Spd* before = std::exchange(spd, published->spd);
                if (before != nullptr) events.push_back(event::SpdReleased{before});
            } else if (const auto* install = std::get_if<command::InstallOutbound>(&command)) {
                if (!sas.insert(install->sa)) {
                    events.push_back(event::OutboundRetired{install->sa->id, install->sa});
                }
            } else if (const auto* retire = std::get_if<command::RetireOutbound>(&command)) {
                sas.remove(retire->sa);
                events.push_back(event::OutboundRetired{retire->sa->id, retire->sa});
            }
        }
    };

    // --- what the parts under test touch
    struct Nowhere final : Steering {
        std::expected<void, std::string> insert(const xfrm::SaName&, WorkerId) override {
            return {};
        }
        void remove(const xfrm::SaName&) override {}
    };
    struct Orders final : Commands {
        World& world;
        explicit Orders(World& of) : world(of) {}
        void send(WorkerId worker, const Command& command) override {
            world.commands_.send(worker, command);
        }
    };
    struct WorldClock final : Clock {
        const World& world;
        explicit WorldClock(const World& of) : world(of) {}
        Time now() const override { return world.now_; }
        uint64_t seconds() const override { return 1; }
    };
    struct NoMasks final : Random {
        std::expected<uint64_t, std::string> bits() override { return 0; }
    };
    struct Unread final : Notices {
        void warning(const std::string&) override {}
        void error(const std::string&) override {}
    };

    // --- steps
    void child_comes();
    void child_goes();
    void child_is_rekeyed();
    void greedy_peer();
    void trap_comes();
    void control_hears();
    void control_round();
    void control_ticks();
    void worker_turns();
    void time_passes();
    void daemon_stands_still();
    void trouble() { in_trouble_ = !in_trouble_; }
    void packets();
    void calm_down();

    bool fails() { return in_trouble_ && dice_.one_in(2); }
    void add_policies(const Child& child);
    void remove_policies(const Child& child);
    void add_sa(const Child& child);
    void add_child(const Child& child);
    void remember_policies();
    void leaves(const Packet& packet);
    void goes_to_kernel(const Packet& packet, PolicyId group);
    void find_kernels_group();
    void worker_sends(Worker& worker, const Packet& packet);
    void give_events(Worker& worker);
    [[nodiscard]] bool kernel_lets_pass(const Policies& policies, const Packet& packet) const;
    [[nodiscard]] Child any_child();
    void tell(const std::string& text) const {
        if (tell_) std::printf("%s\n", text.c_str());
    }

    Dice dice_;
    Judge judge_;
    Mistake mistake_;
    bool tell_;
    bool in_trouble_ = false;
    int by_rows_ = 0;  // publications
    int whole_ = 0;
    PolicyId kernels_ = kNobody;  // group of what is left to the kernel in the large
    Time now_{std::chrono::hours(1)};
    Kernel kernel_;
    uint32_t keys_ = 0;
    xfrm::RegisterChanges unheard_;
    xfrm::RegisterChanges heard_;
    std::deque<std::pair<Time, Policies>> policies_since_;  // the last is that of now
    std::map<uint32_t, Child> child_of_key_;

    std::vector<config::Policy> config_;
    std::array<Worker, kWorkers> workers_;
    boost::asio::io_context context_;
    WorkerCommands commands_{context_, kWorkers, [this](WorkerId worker, const Command& command) {
                                 auto& ring = workers_[to_index(worker)].ring;
                                 if (ring.size() >= Worker::kRing) return false;
                                 ring.push_back(command);
                                 return true;
                             }};
    RegisterModel register_{*this};
    ProgramsModel programs_{*this};
    PathModel path_{*this};
    Nowhere nowhere_;
    Orders orders_{*this};
    WorldClock clock_{*this};
    NoMasks masks_;
    Unread unread_;
    Surroundings around_{.kernel = register_,
                         .steering = nowhere_,
                         .workers = orders_,
                         .clock = clock_,
                         .random = masks_,
                         .notices = unread_,
                         .another_round = [](milliseconds) {}};
    GroupNumbers groups_{kGroups};
    RunningAdoption adoption_{groups_};
    SlotTable slots_{kGroups};
    SequenceMemory memory_;
    RekeyPacer pacer_{kWorkers};
    Feedback feedback_{around_, pacer_};
    Handover handover_;
    Reconciler reconciler_{around_, slots_, handover_, 3};
    Publication publication_{path_, commands_, unread_, {.policies = config_}};
    BypassLease lease_{clock_, unread_};
    Rounds rounds_;
};

config::Policy bypass_some() {
    config::Policy policy;
    policy.action = SpdAction::bypass;
    policy.local = {prefix("10.1.0.0/22")};
    policy.remote = {prefix("10.2.0.0/22")};
    return policy;
}

World::World(uint64_t seed, const crypto::Aead& aead, Mistake mistake, bool tell)
    : dice_(seed),
      mistake_(mistake),
      tell_(tell),
      config_{bypass_some()},
      handover_(around_, {slots_, memory_, feedback_}, aead),
      rounds_(around_, {groups_, adoption_, reconciler_, publication_, lease_, commands_},
              [this](const xfrm::RegisterChanges& changes, size_t entries_max) {
                  static constexpr uint16_t kCpus[] = {0, 1};
                  static const std::vector<IpAddress> kLocal = {address("192.0.2.1")};
                  adoption_.decide({register_.known, register_.policies}, changes,
                                   {.cpus = kCpus,
                                    .local_addresses = kLocal,
                                    .policies = config_,
                                    .entries_max = entries_max});
              }) {
    publication_.open(programs_);
    lease_.open(programs_);
    remember_policies();
    EXPECT_TRUE(rounds_.run({}));
    reconciler_.take_over();
}

std::optional<std::string> World::run() {
    static const Steps<World> steps = {
        {"a child comes", 6, &World::child_comes},
        {"a child goes", 5, &World::child_goes},
        {"a child is rekeyed", 2, &World::child_is_rekeyed},
        {"a greedy peer", 2, &World::greedy_peer},
        {"a trap comes", 3, &World::trap_comes},
        {"control hears", 14, &World::control_hears},
        {"control: round", 14, &World::control_round},
        {"control: tick", 14, &World::control_ticks},
        {"workers", 24, &World::worker_turns},
        {"time passes", 14, &World::time_passes},
        {"the daemon stands still", 3, &World::daemon_stands_still},
        {"trouble", 4, &World::trouble},
        {"packets", 20, &World::packets},
    };
    for (int i = 0; i < kSteps && !judge_.verdict(); ++i) {
        const auto& step = steps.next(dice_);
        tell(step.name);
        (this->*step.act)();
    }
    if (!judge_.verdict()) calm_down();
    return judge_.verdict();
}

// ---- peers --------------------------------------------------------------------------------------

void World::remember_policies() {
    policies_since_.emplace_back(now_, kernel_.policies);
}

void World::add_policies(const Child& child) {
    auto& indices = kernel_.indices[{child.tunnel, child.port}];
    if (!indices.empty()) return;
    Tunnel tunnel = tunnel_of(child.tunnel);
    KernelPolicy policy;
    policy.row.direction = PolicyDirection::out;
    policy.row.action = xfrm::PolicyAction::allow;
    policy.row.priority = child.port == 0 ? 1000 : 900;
    policy.row.selector.source = tunnel.local_net;
    policy.row.selector.destination = tunnel.remote_net;
    if (child.port != 0) {
        policy.row.selector.protocol = 6;
        policy.row.selector.destination_port = child.port;
        policy.row.selector.destination_port_mask = 0xffff;
    }
    policy.templates.push_back(
        {.source = tunnel.local, .destination = tunnel.remote, .reqid = child.reqid()});
    policy.row.index = static_cast<uint32_t>(++kernel_.arrivals * 8 + 1);
    indices.push_back(policy.row.index);
    kernel_.policies.emplace(policy.row.index, policy);
    unheard_.policies.insert(policy.row.index);
    remember_policies();
}

void World::remove_policies(const Child& child) {
    auto& indices = kernel_.indices[{child.tunnel, child.port}];
    for (const uint32_t index : std::exchange(indices, {})) {
        kernel_.policies.erase(index);
        unheard_.policies.insert(index);
    }
    remember_policies();
}

// Few SPIs, so that names come again with other keys.
void World::add_sa(const Child& child) {
    const xfrm::SaName name{
        .spi = Spi{0x1000 + child.reqid() * 4 + static_cast<uint32_t>(dice_.below(3))},
        .destination = tunnel_of(child.tunnel).remote};
    if (kernel_.sas.contains(name)) return;
    const uint32_t key = ++keys_;
    kernel_.sas.emplace(name, SaSpec{.child = child, .key = key, .arrival = ++kernel_.arrivals});
    child_of_key_[key] = child;
    unheard_.added.insert(name);
}

void World::add_child(const Child& child) {
    tell("    " + std::to_string(child.tunnel) + " port " + std::to_string(child.port));
    add_sa(child);
    add_policies(child);
}

Child World::any_child() {
    return {.tunnel = static_cast<uint32_t>(dice_.below(kTunnels)),
            .port = static_cast<uint16_t>(dice_.one_in(4) ? 1 + dice_.below(3) : 0)};
}

void World::child_comes() {
    add_child(any_child());
}

void World::child_goes() {
    const Child child = any_child();
    tell("    " + std::to_string(child.tunnel) + " port " + std::to_string(child.port));
    if (!dice_.one_in(4)) remove_policies(child);
    std::erase_if(kernel_.sas, [&](const auto& item) {
        if (item.second.child.reqid() != child.reqid()) return false;
        unheard_.removed.insert(item.first);
        return true;
    });
}

void World::child_is_rekeyed() {
    const Child child = any_child();
    if (kernel_.indices[{child.tunnel, child.port}].empty()) return;
    child_goes();
    add_sa(child);
}

// All ports of a tunnel, one child each, or none of them.
void World::greedy_peer() {
    const auto tunnel = static_cast<uint32_t>(dice_.below(kTunnels));
    const bool come = dice_.one_in(2);
    for (uint16_t port = 1; port <= 18; ++port) {
        if (come) {
            add_child({.tunnel = tunnel, .port = port});
        } else {
            remove_policies({.tunnel = tunnel, .port = port});
        }
    }
}

void World::trap_comes() {
    add_policies(any_child());
}

// ---- control ------------------------------------------------------------------------------------

void World::control_hears() {
    register_.policies = kernel_.policies;
    register_.known.clear();
    for (const auto& [name, spec] : kernel_.sas)
        register_.known.emplace(name, kernel_sa(name, spec));
    heard_.policies.merge(std::exchange(unheard_.policies, {}));
    heard_.added.merge(std::exchange(unheard_.added, {}));
    heard_.removed.merge(std::exchange(unheard_.removed, {}));
    rounds_.heard(heard_);
}

void World::control_round() {
    control_hears();
    xfrm::RegisterChanges changes = std::exchange(heard_, {});
    if (mistake_ == Mistake::failed_changes_forgotten && in_trouble_) {
        // As a round that fails before it looks at them.
        changes.added.clear();
    }
    const xfrm::RegisterChanges again = changes;
    const auto done = rounds_.run(std::move(changes));
    find_kernels_group();
    if (!done) tell("    failed: " + done.error());
    if (!done && mistake_ == Mistake::comes_unpublished) {
        const Adoption now = decide_adoption(
            register_.known, register_.policies,
            {.cpus = std::vector<uint16_t>{0, 1}, .local_addresses = {}, .policies = config_},
            groups_);
        groups_.commit();
        groups_.rested();
        reconciler_.carry_out(
            reconciler_.plan(now.sas, {.whole = true, .sas = {}}, again, groups_.upper_bound()),
            now.sas, again);
        reconciler_.carry_out_batch(reconciler_.plan_batch(now.sas), now.sas);
    }
    rounds_.go_on();
    rounds_.in_step(unheard_);
}

// As KernelSas::on_tick().
void World::control_ticks() {
    commands_.flush();
    if (mistake_ != Mistake::extends_unheard) control_hears();
    rounds_.in_step(heard_);
    rounds_.go_on();
}

void World::time_passes() {
    now_ += milliseconds(1 + dice_.below(60));
    while (policies_since_.size() > 1 && policies_since_[1].first + BypassLease::kFor < now_) {
        policies_since_.pop_front();
    }
}

void World::daemon_stands_still() {
    now_ += milliseconds(dice_.below(3000));
    time_passes();
}

// ---- workers and packets ------------------------------------------------------------------------

void World::give_events(Worker& worker) {
    while (!worker.events.empty()) {
        const Event event = worker.events.front();
        worker.events.pop_front();
        if (const auto* spd = std::get_if<event::SpdReleased>(&event)) commands_.released(spd->spd);
        if (const auto* sa = std::get_if<event::OutboundRetired>(&event)) handover_.take(*sa);
    }
}

void World::worker_turns() {
    Worker& worker = workers_[dice_.below(kWorkers)];
    for (uint64_t count = 1 + dice_.below(4); count > 0; --count) worker.take_command();
    while (!worker.packets.empty()) {
        const Packet packet = worker.packets.front();
        worker.packets.pop_front();
        worker_sends(worker, packet);
        if (dice_.one_in(3)) worker.take_command();
    }
    if (dice_.one_in(2)) give_events(worker);
}

SpdKey key_of(const Packet& packet) {
    return {.source = std::as_bytes(std::span(packet.source.bytes)).data(),
            .destination = std::as_bytes(std::span(packet.destination.bytes)).data(),
            .protocol = 6,
            .ports_known = true,
            .source_port = 9,
            .destination_port = packet.port};
}

void World::worker_sends(Worker& worker, const Packet& packet) {
    if (worker.spd == nullptr) return;
    const SpdVerdict verdict = worker.spd->lookup(SpdDirection::outbound, key_of(packet));
    if (verdict.kind != SpdVerdict::Kind::matched || verdict.action != SpdAction::protect) return;
    const OutboundSa* sa = worker.sas.find(verdict.policy);
    if (sa == nullptr) return;
    uint32_t key = 0;
    const Slot* slot = slots_.find(sa->id);
    if (slot == nullptr) return judge_.broken("a worker uses an SA that was freed");
    for (const auto& [number, child] : child_of_key_) {
        if (digest_of_key(key_bytes(number)) == slot->memory_name.key) key = number;
    }
    if (!child_of_key_.at(key).covers(packet)) {
        judge_.broken("a packet of tunnel " + std::to_string(packet.tunnel) + " port " +
                      std::to_string(packet.port) + " left by an SA of tunnel " +
                      std::to_string(child_of_key_.at(key).tunnel) + " port " +
                      std::to_string(child_of_key_.at(key).port));
    }
}

bool World::kernel_lets_pass(const Policies& policies, const Packet& packet) const {
    return std::ranges::none_of(policies, [&](const auto& item) {
        const auto& selector = item.second.row.selector;
        return selector.source.contains(packet.source) &&
               selector.destination.contains(packet.destination) &&
               (selector.protocol == 0 || selector.destination_port == packet.port);
    });
}

void World::leaves(const Packet& packet) {
    for (const auto& [since, policies] : policies_since_) {
        if (kernel_lets_pass(policies, packet)) return;
    }
    judge_.broken("a packet of tunnel " + std::to_string(packet.tunnel) +
                  " left in clear, and the kernel has had a policy for it all the time");
}

void World::find_kernels_group() {
    const Adoption& now = adoption_.adoption();
    kernels_ = kNobody;
    for (const SpdEntry& entry : now.outbound) {
        const bool is_open = std::ranges::any_of(now.left_open, [&](const AddressPair& pair) {
            return pair.source == entry.source && pair.destination == entry.destination;
        });
        const bool is_wide = entry.protocol == 0 && !entry.has_ports;
        const bool is_of_a_policy = std::ranges::any_of(
            now.policies, [&](const auto& item) { return item.second.group == entry.policy; });
        if (is_open && is_wide && !is_of_a_policy) kernels_ = entry.policy;
    }
}

// What none of its policies has covered all the time was never meant to leave.
void World::goes_to_kernel(const Packet& packet, PolicyId group) {
    if (group != kernels_) return;
    for (const auto& [since, policies] : policies_since_) {
        if (!kernel_lets_pass(policies, packet)) return;
    }
    const auto meets = [&](const xfrm::PolicyRow& row) {
        return row.selector.source.contains(packet.source) &&
               row.selector.destination.contains(packet.destination) && row.selector.protocol == 0;
    };
    const auto row = std::ranges::find_if(path_.rows, meets);
    const bool is_open = packet.tunnel < kOpenTunnels;  // BYPASS of the configuration
    if (row == path_.rows.end() || (row->action == xfrm::PolicyAction::allow) != is_open) {
        judge_.broken("a packet of tunnel " + std::to_string(packet.tunnel) +
                      " that no policy covers was left to the kernel, and there was no end to it");
    }
}

void World::packets() {
    for (int i = 0; i < 6; ++i) {
        Packet packet{.tunnel = static_cast<uint32_t>(dice_.below(kTunnels)),
                      .port = static_cast<uint16_t>(dice_.below(5))};
        packet.source = tunnel_of(packet.tunnel).local_net.address;
        packet.destination = tunnel_of(packet.tunnel).remote_net.address;
        if (!programs_.in_use) return;
        const SpdVerdict verdict =
            programs_.maps.lookup(packet.source, packet.destination, key_of(packet));
        if (verdict.kind != SpdVerdict::Kind::matched) continue;
        if (verdict.action == SpdAction::bypass) {
            if (now_ < programs_.bypass_until || mistake_ == Mistake::believes_for_ever) {
                leaves(packet);
            }
        } else if (verdict.action == SpdAction::protect) {
            const uint32_t group = to_index(verdict.policy);
            if (group >= programs_.owners.size() || programs_.owners[group].empty()) {
                goes_to_kernel(packet, verdict.policy);
                continue;
            }
            workers_[to_index(dice_.one_of(programs_.owners[group]))].packets.push_back(packet);
        }
    }
}

// ---- the end ------------------------------------------------------------------------------------

void World::calm_down() {
    tell("calm down");
    in_trouble_ = false;
    for (int i = 0; i < 14; ++i) {
        control_round();
        for (int turn = 0; turn < 30; ++turn) {
            commands_.flush();
            for (Worker& worker : workers_) {
                worker.take_command();
                give_events(worker);
            }
        }
        now_ += milliseconds(10);
        control_ticks();
    }
    if (judge_.verdict()) return;
    if (!rounds_.not_published().empty()) {
        return judge_.broken("at the end: " + rounds_.not_published());
    }
    if (programs_.bypass_until < now_) return judge_.broken("at the end BYPASS is not believed");
    for (const auto& [name, spec] : kernel_.sas) {
        const auto decided = adoption_.adoption().sas.find(name);
        if (decided == adoption_.adoption().sas.end()) {
            judge_.broken("an SA has none, and nobody has decided so: " + control::to_text(name));
            return;
        }
        const SaDecision& decision = decided->second;
        const Slot* slot = slots_.find(name);
        if (!decision.adopted()) {
            if (slot != nullptr) judge_.broken("a worker has an SA that is not for workers");
            continue;
        }
        if (slot == nullptr || slot->phase != Phase::installed) {
            judge_.broken("an SA that is for workers has none: " + control::to_text(name));
        } else if (!same_key(*slot, kernel_sa(name, kernel_.sas.at(name)))) {
            judge_.broken("a worker has an earlier key of " + control::to_text(name));
        }
    }
    packets();
}

// ---- what a peer can have refused ---------------------------------------------------------------

// Takes everything but policies that an IKE daemon has too.
struct RefusingPath final : KernelPath {
    std::vector<xfrm::PolicyRow> rows;
    bool refuses_all = false;
    std::expected<void, std::string> replace(std::vector<xfrm::PolicyRow> now) override {
        for (const xfrm::PolicyRow& row : now) {
            if (refuses_all || row.priority == xfrm::kGuardPriorityFirst) {
                return std::unexpected("it exists already and is not ours");
            }
        }
        rows = std::move(now);
        return {};
    }
};

struct UsedPrograms final : Programs {
    bool in_use = false;
    SpdRoom room() const override { return {.destinations = 9, .sources = 9, .entries = 9}; }
    std::expected<void, std::string> publish(const SpdUpdate&, const GroupOwners&,
                                             std::span<const PolicyId>, std::span<const uint32_t>,
                                             const std::function<void()>& switched) override {
        in_use = true;
        switched();
        return {};
    }
    std::expected<void, std::string> update_owners(const GroupOwners&,
                                                   std::span<const PolicyId>) override {
        return {};
    }
    std::expected<void, std::string> set_bypass_until(Time) override { return {}; }
};

struct CountedNotices final : Notices {
    int errors = 0;
    void warning(const std::string&) override {}
    void error(const std::string&) override { ++errors; }
};

struct OneState final : model::OneByOne {
    xfrm::KernelSa state;
    const xfrm::KernelSa* find(const xfrm::SaName&) const override { return &state; }
    std::expected<xfrm::KernelSa, netlink::Error> get(const xfrm::SaName&) override {
        return std::unexpected(netlink::Error{ESRCH, "no such state"});
    }
    void note(const xfrm::KernelSa&) override {}
    std::expected<void, netlink::Error> write_counters(const xfrm::KernelSa&,
                                                       const xfrm::CounterUpdate&) override {
        return {};
    }
    std::expected<void, netlink::Error> expire(const xfrm::KernelSa&, bool) override { return {}; }
};

TEST(Publication, APolicyForOuterPacketsThatIsRefusedStopsNobody) {
    boost::asio::io_context context;
    WorkerCommands commands(context, 1, [](WorkerId, const Command&) { return true; });
    RefusingPath path;
    UsedPrograms programs;
    CountedNotices notices;
    Publication publication(path, commands, notices, {.policies = {}});
    publication.open(programs);
    const IpPrefix all = prefix("0.0.0.0/0");
    const xfrm::SaName name{.spi = Spi{0x1000}, .destination = address("198.51.100.1")};
    OneState registered;
    registered.state.name = name;
    registered.state.source = address("192.0.2.1");
    Adoption tunnel;
    tunnel.sas[name].direction = xfrm::StateDirection::outbound;
    OuterTunnels outer(registered);
    outer.update(tunnel, {.whole = true, .sas = {}});
    const auto publish = [&] {
        Adoption now;
        now.outbound.push_back({.action = SpdAction::protect, .source = all, .destination = all});
        now.outbound_places.push_back({});
        now.left_open.push_back({.source = all, .destination = all});
        auto draft = publication.draft(now);
        EXPECT_TRUE(draft);
        return publication.publish(std::move(*draft), now, {}, outer);
    };
    path.refuses_all = true;
    EXPECT_FALSE(publish());
    EXPECT_FALSE(programs.in_use) << "packets are left to the kernel, and nothing ends them there";
    path.refuses_all = false;
    EXPECT_TRUE(publish());
    EXPECT_TRUE(programs.in_use);
    EXPECT_TRUE(publish());
    ASSERT_EQ(path.rows.size(), 1u);
    EXPECT_EQ(path.rows.front().action, xfrm::PolicyAction::block);
    EXPECT_EQ(notices.errors, 1) << "said once";
}

TEST(OuterTunnels, TellsEachFarEndOnceInOrder) {
    OneState registered;
    registered.state.source = address("192.0.2.1");
    Adoption now;
    const std::vector<IpAddress> far = {address("198.51.100.1"), address("198.51.100.9"),
                                        address("255.255.255.255"), address("2001:db8::1"),
                                        address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")};
    for (const IpAddress& destination : far) {
        for (const Spi spi : {Spi{0x1000}, Spi{0x1001}}) {
            now.sas[{.spi = spi, .destination = destination}].direction =
                xfrm::StateDirection::outbound;
        }
    }
    OuterTunnels outer(registered);
    EXPECT_FALSE(outer.far_end_after(std::nullopt));
    outer.update(now, {.whole = true, .sas = {}});
    std::vector<IpAddress> told;
    for (auto last = outer.far_end_after(std::nullopt); last; last = outer.far_end_after(last)) {
        told.push_back(*last);
    }
    EXPECT_EQ(told, far);
    // One that has gone meanwhile is no obstacle.
    EXPECT_EQ(outer.far_end_after(address("198.51.100.5")), far[1]);
}

// ---- tests --------------------------------------------------------------------------------------

#if SP_TEST_WITH_ASAN || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr uint64_t kSchedules = 300;
#else
constexpr uint64_t kSchedules = 3'000;
#endif

std::optional<std::string> search(uint64_t schedules, Mistake mistake) {
    static const crypto::Aead aead = *crypto::Aead::create();
    uint64_t first = 1;
    int by_rows = 0;
    int whole = 0;
    const char* seed = std::getenv("PUBLICATION_SEED");
    if (seed != nullptr) {
        first = std::strtoull(seed, nullptr, 10);
        schedules = 1;
    }
    for (uint64_t i = first; i < first + schedules; ++i) {
        World world(i, aead, mistake, seed != nullptr);
        if (auto broken = world.run()) {
            return *broken + " (PUBLICATION_SEED=" + std::to_string(i) + ")";
        }
        by_rows += world.by_rows();
        whole += world.whole();
    }
    std::printf("%d publications by rows, %d as a whole\n", by_rows, whole);
    return std::nullopt;
}

TEST(PublicationSimulation, KeepsItsPromises) {
    const char* schedules = std::getenv("PUBLICATION_SCHEDULES");
    const auto broken = search(
        schedules == nullptr ? kSchedules : std::strtoull(schedules, nullptr, 10), Mistake::none);
    EXPECT_FALSE(broken) << *broken;
}

void expect_found(Mistake mistake, const std::string& what) {
    const auto broken = search(2000, mistake);
    ASSERT_TRUE(broken) << "the simulation did not notice";
    std::printf("%s\n", broken->c_str());
    EXPECT_NE(broken->find(what), std::string::npos) << "not what was expected: " << what;
}

TEST(PublicationSimulation, NoticesThatSasComeThatWereNotPublished) {
    expect_found(Mistake::comes_unpublished, "left by an SA of");
}

TEST(PublicationSimulation, NoticesThatChangesOfAFailedRoundAreForgotten) {
    expect_found(Mistake::failed_changes_forgotten, "has none");
}

TEST(PublicationSimulation, NoticesThatBypassIsBelievedForEver) {
    expect_found(Mistake::believes_for_ever, "left in clear");
}

TEST(PublicationSimulation, NoticesThatWhatIsLeftToTheKernelHasNoEnd) {
    expect_found(Mistake::open_ends, "there was no end to it");
}

TEST(PublicationSimulation, NoticesThatTheLeaseIsExtendedUnheard) {
    expect_found(Mistake::extends_unheard, "left in clear");
}

}  // namespace
}  // namespace sallyport::control::model
