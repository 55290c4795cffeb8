// SPDX-License-Identifier: Apache-2.0
#include "tests/control/sa/kernel/handover_simulation.h"

#include <cstdio>

namespace sallyport::control::model {

namespace {

using xfrm::StateDirection;

constexpr PolicyId kPolicy{0};
constexpr size_t kSlots = 6;

IpAddress address(uint8_t last) {
    IpAddress out;
    out.bytes = {192, 0, 2, last};
    return out;
}

bool is_outbound(const xfrm::SaName& name) {
    return to_index(name.spi) < 0x2000;
}

}  // namespace

// ---- the daemon, and what stands between it and the models -------------------------------------

struct Simulation::Daemon {
    // Forwards, but for the mistake that was asked for.
    struct Requests final : OneByOne {
        RegisterModel& model;
        Kernel& kernel;
        const SlotTable& slots;
        Mistake mistake;
        std::vector<std::pair<xfrm::SaName, xfrm::CounterUpdate>> debts;
        std::map<xfrm::SaName, uint64_t> claims;  // what was not done looks as if it were

        Requests(RegisterModel& to, Kernel& of, const SlotTable& with, Mistake made)
            : model(to), kernel(of), slots(with), mistake(made) {}
        const xfrm::KernelSa* find(const xfrm::SaName& name) const override {
            return model.find(name);
        }
        std::expected<xfrm::KernelSa, netlink::Error> get(const xfrm::SaName& name) override {
            auto state = model.get(name);
            if (!state) return state;
            if (mistake == Mistake::kernel_looks_quiet) state->usage = {};
            if (mistake == Mistake::replaced_unnoticed) state->usage.add_time = 0;
            const auto claim = claims.find(name);
            if (claim != claims.end()) {
                state->replay.sent = std::max(state->replay.sent, claim->second);
            }
            return state;
        }
        void note(const xfrm::KernelSa& state) override { model.note(state); }
        std::expected<void, netlink::Error> write_counters(
            const xfrm::KernelSa& state, const xfrm::CounterUpdate& update) override {
            const bool reserves = update.replay && is_outbound(state.name);
            if (reserves && mistake == Mistake::no_reservation) {
                claims[state.name] = update.replay->sent;
                return model.write_counters(state, {.replay = std::nullopt, .usage = update.usage});
            }
            if (reserves && mistake == Mistake::reservation_after_install) {
                claims[state.name] = update.replay->sent;
                debts.emplace_back(state.name, update);
                return {};
            }
            if (reserves && mistake == Mistake::replaced_unnoticed) {
                claims[state.name] = update.replay->sent;
            }
            if (mistake == Mistake::kernel_left_behind && !has_slot(state.name)) return {};
            return model.write_counters(state, update);
        }
        bool has_slot(const xfrm::SaName& name) const {
            bool found = false;
            slots.for_each([&](const Slot& slot) { found |= slot.name == name; });
            return found;
        }
        std::expected<void, netlink::Error> expire(const xfrm::KernelSa& state,
                                                   bool hard) override {
            return model.expire(state, hard);
        }
        void pay_debts() {
            if (mistake == Mistake::reservation_after_install) claims.clear();
            for (const auto& [name, update] : std::exchange(debts, {})) {
                const auto found = kernel.states.find(name);
                if (found == kernel.states.end()) continue;
                if (found->second.sent <= update.replay->sent) kernel.write(name, update);
            }
        }
    };

    struct Owners final : Steering {
        Simulation& world;
        explicit Owners(Simulation& to) : world(to) {}
        std::expected<void, std::string> insert(const xfrm::SaName& name,
                                                WorkerId worker) override {
            const auto found = world.steered_.find(name);
            // On its way to another worker is not on its way to the kernel.
            const auto since = found == world.steered_.end() ? world.now_ : found->second.second;
            world.steered_[name] = {worker, since};
            return {};
        }
        void remove(const xfrm::SaName& name) override { world.steered_.erase(name); }
    };

    struct Orders final : Commands {
        Simulation& world;
        explicit Orders(Simulation& to) : world(to) {}
        void send(WorkerId id, const Command& command) override {
            WorkerModel& worker = *world.workers_[to_index(id)];
            worker.waiting.push_back(command);
            worker.flush();
            if (world.options_.mistake != Mistake::written_back_too_early) return;
            Handover& told = world.daemon_->handover;
            if (const auto* in = std::get_if<command::RetireInbound>(&command)) {
                told.take(event::InboundRetired{.id = in->sa->id, .sa = in->sa});
            } else if (const auto* out = std::get_if<command::RetireOutbound>(&command)) {
                told.take(event::OutboundRetired{.id = out->sa->id, .sa = out->sa});
            }
        }
    };

    struct Time final : Clock {
        const Simulation& world;
        explicit Time(const Simulation& of) : world(of) {}
        std::chrono::steady_clock::time_point now() const override { return world.now_; }
        uint64_t seconds() const override { return 1; }
    };
    struct Masks final : Random {
        std::expected<uint64_t, std::string> bits() override { return 0; }
    };
    struct Unread final : Notices {
        Simulation& world;
        explicit Unread(Simulation& of) : world(of) {}
        void warning(const std::string& text) override {
            world.tell("    warning: " + text);
            if (!world.options_.quiet_host || !text.contains("traffic of this host")) return;
            world.judge_.broken("a quiet host is blamed: " + text);
        }
        void error(const std::string& text) override { world.tell("    error: " + text); }
    };

    explicit Daemon(Simulation& world)
        : model(world.kernel_, world.dice_),
          requests(model, world.kernel_, slots, world.options_.mistake),
          owners(world),
          orders(world),
          time(world),
          unread(world),
          handover(around, {slots, memory, feedback}, world.aead_),
          reconciler(around, slots, handover, 1 + world.dice_.below(kSlots)) {
        model.forgotten = [this, &world](const xfrm::KernelSa& last) {
            if (world.options_.mistake == Mistake::last_counters_forgotten) return;
            remember(memory, last);
        };
    }

    RegisterModel model;
    Requests requests;
    Owners owners;
    Orders orders;
    Time time;
    Masks masks;
    Unread unread;
    Surroundings around{.kernel = requests,
                        .steering = owners,
                        .workers = orders,
                        .clock = time,
                        .random = masks,
                        .notices = unread,
                        .another_round = [](std::chrono::milliseconds) {}};
    SlotTable slots{kSlots};
    SequenceMemory memory;
    RekeyPacer pacer{kWorkers};
    Feedback feedback{around, pacer};
    Handover handover;
    Reconciler reconciler;
    Tour tour{time, slots, handover, feedback};
    Reconciler::Decisions decided;  // in the last round
};

Simulation::Simulation(uint64_t seed, const crypto::Aead& aead, Options options)
    : options_(options), dice_(seed), aead_(aead) {
    for (size_t i = 0; i < kWorkers; ++i) {
        workers_.push_back(std::make_unique<WorkerModel>(judge_, wire_));
    }
}

Simulation::~Simulation() = default;

std::optional<std::string> Simulation::run() {
    faulty_ = dice_.one_in(2) && !options_.quiet_host;  // what fails is seen again later
    ike_adds();
    start();
    for (int i = 0; i < kSteps && !judge_.verdict(); ++i) {
        const auto& step = steps().next(dice_);
        tell(step.name);
        (this->*step.act)();
    }
    if (!judge_.verdict()) calm_down();
    if (judge_.verdict()) tell("BROKEN: " + *judge_.verdict());
    return judge_.verdict();
}

void Simulation::tell(std::string_view text) const {
    if (options_.tell) std::printf("%.*s\n", static_cast<int>(text.size()), text.data());
}

void Simulation::tell(const State& state) const {
    if (!options_.tell) return;
    tell("    " + control::to_text(state.name) + " key " + std::to_string(state.key) + " sent " +
         std::to_string(state.sent) + " top " + std::to_string(state.top) +
         (state.behind ? " (behind)" : ""));
}

const Steps<Simulation>& Simulation::steps() {
    static const Steps<Simulation> all = {
        {"IKE adds", 4, &Simulation::ike_adds},
        {"IKE deletes", 2, &Simulation::ike_deletes},
        {"IKE looks", 2, &Simulation::ike_looks},
        {"IKE moves", 3, &Simulation::ike_moves},
        {"worker sends", 8, &Simulation::worker_sends},
        {"worker sends much", 4, &Simulation::worker_sends_much},
        {"kernel forwards", 6, &Simulation::kernel_forwards},
        {"host sends", 2, &Simulation::host_sends},
        {"the kernel's queue comes out", 2, &Simulation::queue_comes_out},
        {"peer sends", 14, &Simulation::peer_sends},
        {"worker takes a command", 14, &Simulation::worker_takes_command},
        {"worker receives", 10, &Simulation::worker_receives},
        {"worker tells", 10, &Simulation::worker_tells},
        {"control hears", 10, &Simulation::control_hears},
        {"control misses", 1, &Simulation::control_misses},
        {"control: round", 8, &Simulation::control_round},
        {"control: goes on", 8, &Simulation::control_goes_on},
        {"control: tick", 4, &Simulation::control_ticks},
        {"a second passes", 3, &Simulation::a_second_passes},
        {"time passes", 10, &Simulation::time_passes},
        {"owners move", 1, &Simulation::owners_move},
        {"policies change", 2, &Simulation::policies_change},
        {"the kernel keeps some", 2, &Simulation::kernel_keeps_some},
        {"crash", 2, &Simulation::crash},
        {"clean stop", 1, &Simulation::stop_cleanly},
        {"start", 6, &Simulation::start},
    };
    return all;
}

// ---- the IKE daemon ----------------------------------------------------------------------------

// Few SPIs, so that names come again with other keys.
void Simulation::ike_adds() {
    for (const uint32_t base : {0x1000u, 0x2000u}) {
        State state;
        state.name.spi = Spi{base + static_cast<uint32_t>(dice_.below(3))};
        state.name.destination = address(1);
        if (kernel_.states.contains(state.name)) continue;
        state.outbound = is_outbound(state.name);
        state.source = address(9);
        state.key = ++keys_;
        state.esn = dice_.one_in(4);
        // Now and then one that is nearly used up.
        if (state.outbound && !state.esn && dice_.one_in(8)) {
            state.sent = 0xffffffff - (uint64_t{3} << 19) - dice_.below(100);
        }
        tell(state);
        kernel_.add(state);
    }
}

State* Simulation::some_state(bool outbound) {
    std::vector<State*> found;
    for (auto& [name, state] : kernel_.states) {
        if (state.outbound == outbound) found.push_back(&state);
    }
    return found.empty() ? nullptr : dice_.one_of(found);
}

void Simulation::ike_deletes() {
    State* state = some_state(dice_.one_in(2));
    if (state == nullptr) return;
    tell(*state);
    kernel_.remove(state->name);
}

// Before it moves an SA it asks for its counters.
void Simulation::ike_looks() {
    for (const auto& [name, state] : kernel_.states) {
        looked_at_[state.key] = state.outbound ? state.sent : state.top;
    }
}

// Same SPI, same key, an address that may be another one, and the counters that it knows, or none.
// Who looks right before has in them what the kernel itself has used. Where nobody looks, only the
// message about the deletion tells of that: it takes somebody who reads it.
void Simulation::ike_moves() {
    if (options_.quiet_host) return;  // older numbers look like another sender's
    const State* before = some_state(dice_.one_in(2));
    if (before == nullptr) return;
    State state = *before;
    const uint64_t own = daemon_ != nullptr && dice_.one_in(2) ? 0 : before->own;
    const auto looked = looked_at_.find(state.key);
    uint64_t known = looked == looked_at_.end() ? 0 : looked->second;
    if (dice_.one_in(3)) known = state.outbound ? before->sent : before->top;
    if (dice_.one_in(6)) known = 0;
    (state.outbound ? state.sent : state.top) = std::max(known, own);
    state.packets = std::max(known, own);
    state.seen = ~uint64_t{0};
    // What a worker has accepted since the last feedback the kernel never knew.
    state.behind = before->behind || state.sent < before->sent || state.top < before->top ||
                   (!state.outbound && daemon_ != nullptr);
    switch (dice_.below(3)) {
        case 0:
            state.name.destination = address(state.name.destination.bytes[3] == 1 ? 2 : 1);
            break;
        case 1:
            state.source = address(state.source.bytes[3] == 9 ? 8 : 9);
            break;
        default:
            break;
    }
    kernel_.remove(before->name);
    if (kernel_.states.contains(state.name)) return;
    tell(state);
    kernel_.add(state);
}

// ---- traffic -----------------------------------------------------------------------------------

void Simulation::worker_sends() {
    if (!daemon_) return;
    workers_[dice_.below(kWorkers)]->send(kPolicy, 1 + dice_.below(3));
}

void Simulation::worker_sends_much() {
    if (!daemon_) return;
    const uint64_t block = kSequenceBlock32 << (dice_.one_in(2) ? 0 : 4);
    workers_[dice_.below(kWorkers)]->send(kPolicy, block / 2 + dice_.below(block / 2));
}

State* Simulation::newest_outbound() {
    State* newest = nullptr;
    for (auto& [name, state] : kernel_.states) {
        if (state.outbound && (newest == nullptr || state.arrival > newest->arrival)) {
            newest = &state;
        }
    }
    return newest;
}

bool Simulation::on_its_way(std::chrono::steady_clock::time_point steered) const {
    return now_ < steered + Handover::kSettle;
}

bool Simulation::kernel_may_serve(const State& state) const {
    return !state.behind || options_.gap == KnownGap::kernel_serves_before_counters_are_raised;
}

// Traffic of the policy that reaches the kernel: no worker is named for it, or it was on its way,
// maybe with an SA that is not the newest any more.
void Simulation::kernel_forwards() {
    const bool steered = !owners_.empty();
    if (steered && !on_its_way(owners_since_)) return;
    State* state = steered && dice_.one_in(2) ? some_state(true) : newest_outbound();
    if (state == nullptr || !kernel_may_serve(*state)) return;
    kernel_.send(*state, 1 + dice_.below(3), "the kernel");
    tell(*state);
}

void Simulation::host_sends() {
    if (options_.quiet_host) return;
    State* state = newest_outbound();
    if (state == nullptr || !kernel_may_serve(*state)) return;
    constexpr const char* kHost = "the kernel, for the host";
    if (dice_.one_in(4)) {
        kernel_.send_segments(*state, 1 + dice_.below(3000), kHost);
    } else {
        kernel_.send(*state, 1 + dice_.below(dice_.one_in(8) ? 5000 : 3), kHost);
    }
    tell(*state);
}

// What waited for an SA, once it is there: whoever serves it by then.
void Simulation::queue_comes_out() {
    State* state = newest_outbound();
    if (state == nullptr || !kernel_may_serve(*state)) return;
    if (!let_out_.insert(state->key).second) return;
    if (daemon_) daemon_->handover.note_acquire(state->source, state->name.destination);
    kernel_.send(*state, 1 + dice_.below(101), "the kernel, of its queue");
    tell(*state);
}

void Simulation::peer_sends() {
    State* state = some_state(false);
    if (state == nullptr) return;
    uint64_t& next = peer_next_[state->key];
    for (uint64_t count = 1 + dice_.below(3); count > 0; --count) {
        uint64_t number = next + 1;
        if (next > 1 && dice_.one_in(2)) {  // somebody sends an old one again
            number = next - std::min(next - 1, dice_.below(20));
        } else {
            next = number = next + 1 + (dice_.one_in(4) ? dice_.below(70) : 0);
        }
        deliver(*state, number);
    }
}

void Simulation::deliver(State& state, uint64_t number) {
    const auto found = steered_.find(state.name);
    const bool to_kernel = found == steered_.end() ||
                           (on_its_way(found->second.second) && dice_.one_in(2)) ||
                           (options_.gap == KnownGap::device_that_is_no_port && dice_.one_in(4));
    if (options_.tell) {
        tell("    number " + std::to_string(number) + " of key " + std::to_string(state.key) +
             (to_kernel ? " to the kernel" : " to a worker"));
    }
    if (!to_kernel) {
        workers_[to_index(found->second.first)]->arrivals.push_back(
            {.name = state.name, .key = state.key, .number = number});
    } else if (kernel_may_serve(state)) {
        kernel_.receive(state, number);
    }
}

// ---- workers -----------------------------------------------------------------------------------

void Simulation::worker_takes_command() {
    WorkerModel& worker = *workers_[dice_.below(kWorkers)];
    for (uint64_t count = 1 + dice_.below(3); count > 0; --count) worker.take_command();
}

void Simulation::worker_receives() {
    WorkerModel& worker = *workers_[dice_.below(kWorkers)];
    for (uint64_t count = 1 + dice_.below(4); count > 0; --count) worker.receive();
}

// False: it had nothing to say.
bool Simulation::tell_one(WorkerModel& worker) {
    if (worker.events.empty()) return false;
    const Event event = worker.events.front();
    worker.events.pop_front();
    // A request may be lost; the numbers themselves tell.
    if (std::holds_alternative<event::SequenceLow>(event) && dice_.one_in(3)) return true;
    Handover& handover = daemon_->handover;
    std::visit(
        [&handover](const auto& news) {
            if constexpr (requires { handover.take(news); }) handover.take(news);
        },
        event);
    if (!dice_.one_in(4)) handover.extend_some();
    return true;
}

void Simulation::worker_tells() {
    if (daemon_) tell_one(*workers_[dice_.below(kWorkers)]);
}

// ---- control -----------------------------------------------------------------------------------

void Simulation::hear(size_t at_most) {
    RegisterModel& model = daemon_->model;
    for (size_t i = 0; i < at_most && !kernel_.notices.empty(); ++i) model.hear_one();
    for (const xfrm::SaName& name : std::exchange(model.changes.used, {})) {
        if (Slot* slot = daemon_->slots.find(name)) daemon_->handover.kernel_used({&slot, 1});
    }
}

void Simulation::control_hears() {
    if (!daemon_) return;
    daemon_->requests.pay_debts();
    hear(1 + dice_.below(6));
}

void Simulation::control_misses() {
    if (!daemon_) return;
    const bool loses_numbers =
        std::ranges::any_of(kernel_.notices, [this](const Kernel::Notice& notice) {
            return notice.kind == Kernel::Notice::Kind::removed && is_behind(notice.state) &&
                   !is_known(notice.state);
        });
    if (loses_numbers && options_.gap != KnownGap::deletion_is_missed) return;
    daemon_->model.read_again();
    if (options_.mistake == Mistake::replaced_unnoticed) return;
    for (const auto& [name, slot] : daemon_->slots.by_name()) {
        if (const auto* state = daemon_->model.find(name)) daemon_->handover.compare(*slot, *state);
    }
}

// What the kernel itself has used of `gone` is known without the message about its deletion.
bool Simulation::is_known(const State& gone) const {
    const SequenceMemory::Name name = memory_name_of(to_kernel_sa(gone));
    const SequenceMemory::State used = daemon_->memory.find(name);
    uint64_t last = gone.outbound ? used.outbound_next - 1 : used.inbound_top;
    daemon_->slots.for_each([&](const Slot& slot) {
        if (slot.memory_name != name || slot.inbound() == nullptr) return;
        last = std::max({last, work_of(slot).top, slot.inbound()->written_top});
    });
    return gone.own <= last;
}

Reconciler::Decisions Simulation::decide() const {
    Reconciler::Decisions out;
    for (const auto& [name, state] : daemon_->model.known()) {
        SaDecision decision;
        decision.direction = is_outbound(name) ? StateDirection::outbound : StateDirection::inbound;
        decision.group = kPolicy;
        decision.owner = WorkerId{static_cast<uint16_t>((to_index(name.spi) + owner_turn_) % 2)};
        decision.suite = crypto::find_suite("aes-gcm-16-128");
        decision.rank = to_index(name.spi);
        if (kernel_keeps_some_ && to_index(name.spi) % 2 == 0) decision.reason = "not for workers";
        decision.selectors.resize(wide_selectors_ ? 1 : 2);
        out.emplace(name, std::move(decision));
    }
    return out;
}

// As KernelSas::round().
void Simulation::control_round() {
    if (!daemon_) return;
    daemon_->requests.pay_debts();
    const xfrm::RegisterChanges changes = std::exchange(daemon_->model.changes, {});
    for (const xfrm::SaName& name : changes.used) {
        if (Slot* slot = daemon_->slots.find(name)) daemon_->handover.kernel_used({&slot, 1});
    }
    const Reconciler::Decisions before = std::exchange(daemon_->decided, decide());
    const Reconciler::Decisions& now = daemon_->decided;
    const auto plan =
        daemon_->reconciler.plan(now, difference(before, now), changes, to_index(kPolicy) + 1);
    name_owners(plan);
    daemon_->reconciler.carry_out(plan, now, changes);
    go_on();
}

void Simulation::name_owners(const Reconciler::Plan& plan) {
    const bool was_steered = !owners_.empty();
    if (plan.owners.contains(kPolicy)) owners_ = plan.owners.at(kPolicy);
    daemon_->reconciler.owners_published(plan);
    if (!was_steered && !owners_.empty()) owners_since_ = now_;
}

// As Rounds::go_on().
void Simulation::go_on() {
    daemon_->reconciler.go_on();
    const auto plan = daemon_->reconciler.plan_batch(daemon_->decided);
    if (plan.coming.empty()) return;
    name_owners(plan);
    daemon_->reconciler.carry_out_batch(plan, daemon_->decided);
}

void Simulation::control_goes_on() {
    if (!daemon_) return;
    daemon_->requests.pay_debts();
    go_on();
}

// As KernelSas::on_tick().
void Simulation::tick() {
    daemon_->requests.pay_debts();
    for (auto& worker : workers_) worker->flush();
    daemon_->tour.begin();
    while (daemon_->tour.go_on()) {
    }
}

void Simulation::control_ticks() {
    if (daemon_) tick();
}

void Simulation::everybody_has_a_turn() {
    hear(kernel_.notices.size());
    control_round();
    for (auto& worker : workers_) {
        for (int i = 0; i < 20; ++i) {
            worker->flush();
            worker->take_command();
        }
        for (size_t i = worker->arrivals.size(); i > 0; --i) worker->receive();
        while (tell_one(*worker)) {
        }
    }
}

void Simulation::a_second_passes() {
    now_ += std::chrono::seconds(1);
    if (!daemon_) return;
    daemon_->model.failed = false;
    const uint64_t known = kernel_.arrivals();
    everybody_has_a_turn();
    control_round();  // what the workers have told makes one due
    for (uint32_t turn = 0; turn < Tour::kTurns; ++turn) tick();
    daemon_->feedback.send_rekey_requests(RekeyPacer::kPerSecond);
    if (daemon_->model.failed) return;
    wire_.feedback_done();
    for (auto& [name, state] : kernel_.states) {
        const Slot* slot = daemon_->slots.find(name);
        // Raised by now, also where no worker has it.
        if ((slot == nullptr || slot->phase == Phase::installed) && state.arrival <= known) {
            state.behind = false;
        }
    }
}

void Simulation::time_passes() {
    now_ += std::chrono::milliseconds(1 + dice_.below(3));
}

// Per-CPU SAs come and go, and a fallback moves.
void Simulation::owners_move() {
    ++owner_turn_;
}

void Simulation::policies_change() {
    wide_selectors_ = !wide_selectors_;
}

void Simulation::kernel_keeps_some() {
    kernel_keeps_some_ = !kernel_keeps_some_;
}

// ---- life and death ----------------------------------------------------------------------------

// A state with the key of `gone` is there with lower numbers.
bool Simulation::is_behind(const State& gone) const {
    return std::ranges::any_of(kernel_.states, [&gone](const auto& item) {
        const State& state = item.second;
        return state.key == gone.key && (state.sent < gone.sent || state.top < gone.top);
    });
}

bool Simulation::some_are_behind() const {
    return std::ranges::any_of(kernel_.states,
                               [this](const auto& item) { return !kernel_may_serve(item.second); });
}

// The sockets close, the kernel takes everything.
void Simulation::nobody_is_there() {
    daemon_.reset();
    for (auto& worker : workers_) worker = std::make_unique<WorkerModel>(judge_, wire_);
    steered_.clear();
    owners_.clear();
    kernel_.notices.clear();
    // Nobody but the kernel knows now.
    for (auto& [name, state] : kernel_.states) state.own = state.outbound ? state.sent : state.top;
}

void Simulation::crash() {
    if (!daemon_ || some_are_behind()) return;
    wire_.lost();
    nobody_is_there();
}

// What goes on while SAs go back. An SA that is moved meanwhile is served by the kernel before its
// counters are raised: a known gap.
const Steps<Simulation>& Simulation::steps_of_the_way_back() {
    static const Steps<Simulation> all = {
        {"worker sends", 8, &Simulation::worker_sends},
        {"worker sends much", 1, &Simulation::worker_sends_much},
        {"kernel forwards", 6, &Simulation::kernel_forwards},
        {"host sends", 1, &Simulation::host_sends},
        {"the kernel's queue comes out", 1, &Simulation::queue_comes_out},
        {"peer sends", 10, &Simulation::peer_sends},
        {"worker takes a command", 12, &Simulation::worker_takes_command},
        {"worker receives", 10, &Simulation::worker_receives},
        {"worker tells", 10, &Simulation::worker_tells},
        {"control hears", 6, &Simulation::control_hears},
        {"control: round", 4, &Simulation::control_round},
        {"control: goes on", 4, &Simulation::control_goes_on},
        {"control: tick", 2, &Simulation::control_ticks},
        {"time passes", 10, &Simulation::time_passes},
    };
    return all;
}

// As KernelSas::go_back(), which gives up after a while.
void Simulation::wind_down() {
    WayBack way_back(daemon_->time, daemon_->slots, daemon_->handover, daemon_->reconciler,
                     1 + dice_.below(3));
    way_back.begin();
    for (uint64_t left = dice_.below(60); left > 0 && !way_back.is_done(); --left) {
        way_back.retire();
        if (way_back.name()) name_owners(daemon_->reconciler.plan_owners());
        if (options_.mistake == Mistake::steered_back_too_early) steered_.clear();
        const auto& step = steps_of_the_way_back().next(dice_);
        tell(step.name);
        (this->*step.act)();
    }
}

// Workers that have not given all back stop where they are.
void Simulation::stop_cleanly() {
    if (!daemon_ || faulty_ || some_are_behind()) return;
    daemon_->model.faults.before_write = daemon_->model.faults.before_look = nullptr;
    daemon_->requests.pay_debts();
    wind_down();
    daemon_->slots.for_each([this](Slot& slot) { daemon_->handover.write_back(slot); });
    wire_.feedback_done();
    nobody_is_there();
}

void Simulation::start() {
    if (daemon_) return;
    daemon_ = std::make_unique<Daemon>(*this);
    RegisterModel::Faults& faults = daemon_->model.faults;
    faults.one_in = faulty_ ? 25 : 0;
    faults.failed = [this](const xfrm::SaName& name) {
        const auto found = kernel_.states.find(name);
        if (found != kernel_.states.end()) wire_.lost(found->second.key);
    };
    faults.before_write = [this] {
        if (dice_.one_in(4)) host_sends();
        if (options_.quiet_host || !dice_.one_in(30)) return;
        tell("    and between a look and a write:");
        dice_.one_in(3) ? ike_deletes() : ike_moves();
    };
    faults.before_look = [this] {
        if (dice_.one_in(8)) host_sends();
    };
    daemon_->model.read_again();
    daemon_->reconciler.take_over();
    control_round();
}

// All that is under way ends; then all SAs go.
void Simulation::calm_down() {
    tell("calm down");
    start();
    daemon_->model.faults = {};
    faulty_ = false;
    a_second_passes();
    tell("all SAs go");
    while (!kernel_.states.empty()) kernel_.remove(kernel_.states.begin()->first);
    for (int i = 0; i < 2; ++i) a_second_passes();
    if (daemon_->slots.size() != 0) judge_.broken("a slot is left at the end");
    for (const auto& worker : workers_) {
        if (!worker->is_empty()) judge_.broken("a worker has an SA left at the end");
    }
}

}  // namespace sallyport::control::model
