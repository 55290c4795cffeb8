// SPDX-License-Identifier: Apache-2.0
#pragma once

// Models of what stands around the hand-over of SAs: the wire, the kernel's register, workers.
// Nothing here knows how the hand-over works; each says what the real thing does, as far as it
// matters for who sends and who accepts which number.

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "control/sa/kernel/reconcile.h"
#include "control/sa/kernel/surroundings.h"
#include "control/xfrm/mirror.h"
#include "dataplane/exchange/events.h"
#include "dataplane/sa/sa_tables.h"

namespace sallyport::control::model {

using KeyNumber = uint32_t;  // names a key and the numbers that were used under it

// splitmix64: one word of state, and every seed is a good one.
class Dice {
  public:
    explicit Dice(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    uint64_t below(uint64_t end) { return bits() % end; }
    bool one_in(uint64_t n) { return below(n) == 0; }
    template <typename T>
    T& one_of(std::vector<T>& items) {
        return items[below(items.size())];
    }

  private:
    uint64_t state_;
};

// What may happen next in a simulation, each as often as its weight says.
template <typename World>
class Steps {
  public:
    struct Step {
        const char* name;
        uint64_t weight;
        void (World::*act)();
    };
    Steps(std::initializer_list<Step> all) : all_(all) {
        for (const Step& step : all_) total_ += step.weight;
    }
    [[nodiscard]] const Step& next(Dice& dice) const {
        uint64_t left = dice.below(total_);
        auto step = all_.begin();
        for (; left >= step->weight; ++step) left -= step->weight;
        return *step;
    }

  private:
    std::vector<Step> all_;
    uint64_t total_ = 0;
};

// The first broken promise of a run.
class Judge {
  public:
    void broken(const std::string& promise) {
        if (!verdict_) verdict_ = promise;
    }
    [[nodiscard]] const std::optional<std::string>& verdict() const { return verdict_; }

  private:
    std::optional<std::string> verdict_;
};

// ---- the wire ----------------------------------------------------------------------------------

// What was sent under each key, and which numbers of the peer were accepted.
class Wire {
  public:
    explicit Wire(Judge& judge) : judge_(judge) {}

    // Numbers first .. first + count - 1 leave.
    void sent(KeyNumber key, uint64_t first, uint64_t count, const char* sender) {
        std::vector<Sent>& all = of(sent_, key);
        for (const Sent& before : all) {
            if (first < before.end && before.first < first + count) {
                judge_.broken("key " + std::to_string(key) + " has sent number " +
                              std::to_string(std::max(first, before.first)) +
                              " twice: " + before.sender + ", then " + sender);
            }
        }
        all.push_back({.first = first, .end = first + count, .sender = sender});
    }

    void accepted(KeyNumber key, uint64_t number, bool by_worker) {
        std::vector<Accepted>& all = of(accepted_, key);
        for (Accepted& before : all) {
            if (before.number != number) continue;
            if (!std::exchange(before.may_come_again, false)) {
                judge_.broken("number " + std::to_string(number) + " of key " +
                              std::to_string(key) + " was accepted twice, then by " +
                              (by_worker ? "a worker" : "the kernel"));
            }
            before.period = period_;
            before.by_worker = by_worker;
            return;
        }
        all.push_back({.number = number, .period = period_, .by_worker = by_worker});
    }

    // What was accepted so far is in the kernel's states.
    void feedback_done() { ++period_; }
    // What workers have accepted since the last feedback is not in the kernel's state, and will not
    // come there: all keys, or one.
    void lost(std::optional<KeyNumber> key = std::nullopt) {
        for (KeyNumber number = 0; number < accepted_.size(); ++number) {
            if (key && number != *key) continue;
            for (Accepted& one : accepted_[number]) {
                if (one.by_worker && one.period == period_) one.may_come_again = true;
            }
        }
    }

  private:
    struct Sent {
        uint64_t first;
        uint64_t end;
        const char* sender;
    };
    struct Accepted {
        uint64_t number;
        uint64_t period;
        bool by_worker;
        bool may_come_again = false;
    };
    Judge& judge_;
    uint64_t period_ = 0;  // between two feedbacks
    template <typename T>
    static std::vector<T>& of(std::vector<std::vector<T>>& by_key, KeyNumber key) {
        if (by_key.size() <= key) by_key.resize(key + 1);
        return by_key[key];
    }
    std::vector<std::vector<Sent>> sent_;  // by key
    std::vector<std::vector<Accepted>> accepted_;
};

// ---- the kernel --------------------------------------------------------------------------------

struct State {
    xfrm::SaName name;
    IpAddress source;
    KeyNumber key = 0;
    bool outbound = false;
    bool esn = false;
    uint64_t sent = 0;
    uint64_t top = 0;
    uint64_t seen = 0;  // bit i: top - i was accepted
    uint64_t packets = 0;
    uint64_t bytes = 0;
    uint64_t arrival = 0;
    uint64_t add_time = 0;
    uint64_t own = 0;  // last number that the kernel itself has used, or alone knows to be used
    // It came with counters older than those that it had before it was deleted, and nobody has
    // raised them since: until then the kernel itself would repeat numbers.
    bool behind = false;
};

inline std::array<std::byte, 20> key_bytes(KeyNumber key) {
    std::array<std::byte, 20> bytes{};
    std::memcpy(bytes.data(), &key, sizeof key);
    std::memcpy(bytes.data() + 16, &key, sizeof key);  // the salt, by which a worker's SA is known
    return bytes;
}

inline xfrm::KernelSa to_kernel_sa(const State& state) {
    xfrm::KernelSa sa;
    sa.name = state.name;
    sa.source = state.source;
    sa.esn = state.esn;
    sa.key = SecretBytes(key_bytes(state.key));
    sa.arrival = state.arrival;
    sa.usage.packets = state.packets;
    sa.usage.bytes = state.bytes;
    sa.usage.add_time = state.add_time;
    sa.replay = {.window = 64, .sent = state.sent, .top = state.top};
    return sa;
}

class Kernel {
  public:
    Kernel(Judge& judge, Wire& wire) : judge_(judge), wire_(wire) {}

    struct Notice {
        enum class Kind : uint8_t { added, removed, used } kind{};
        State state;
    };

    std::map<xfrm::SaName, State> states;
    std::deque<Notice> notices;  // on their way to whoever listens

    void add(State state) {
        state.arrival = state.add_time = ++arrivals_;
        notices.push_back({Notice::Kind::added, state});
        states.insert_or_assign(state.name, state);
    }
    void remove(const xfrm::SaName& name) {
        const auto found = states.find(name);
        if (found == states.end()) return;
        notices.push_back({Notice::Kind::removed, found->second});
        states.erase(found);
    }

    // Encrypts up to `count` packets.
    void send(State& state, uint64_t count, const char* why) {
        const uint64_t done = take_numbers(state, count, why);
        state.packets += done;
        state.bytes += done * 84;
    }
    // One packet that is segmented when it has passed the SA: it counts once, each segment takes a
    // number. With as few bytes for each as there may be.
    void send_segments(State& state, uint64_t count, const char* why) {
        const uint64_t done = take_numbers(state, count, why);
        state.packets += done == 0 ? 0 : 1;
        state.bytes += done > 128 ? done * 8 : done;
    }

    void receive(State& state, uint64_t number) {
        if (number > state.top) {
            const uint64_t step = number - state.top;
            state.seen = step > 63 ? 1 : state.seen << step | 1;
            state.top = number;
        } else if (state.top - number > 63 || (state.seen >> (state.top - number) & 1) != 0) {
            return;
        } else {
            state.seen |= uint64_t{1} << (state.top - number);
        }
        ++state.packets;
        state.own = std::max(state.own, number);
        wire_.accepted(state.key, number, false);
        notices.push_back({Notice::Kind::used, state});
    }

    // XFRM_MSG_NEWAE. The window is written full, see xfrm::CounterUpdate.
    bool write(const xfrm::SaName& name, const xfrm::CounterUpdate& update) {
        const auto found = states.find(name);
        if (found == states.end()) return false;
        State& state = found->second;
        if (update.usage) {
            state.packets = update.usage->packets;
            state.bytes = update.usage->bytes;
            if (update.usage->add_time != 0) state.add_time = update.usage->add_time;
        }
        if (!update.replay) return true;
        const uint64_t now = state.outbound ? state.sent : state.top;
        const uint64_t next = state.outbound ? update.replay->sent : update.replay->top;
        if (next < now) {
            judge_.broken("the kernel's number of key " + std::to_string(state.key) +
                          " goes down from " + std::to_string(now) + " to " + std::to_string(next));
        }
        state.sent = update.replay->sent;
        state.top = update.replay->top;
        state.seen = ~uint64_t{0};
        state.behind = false;
        return true;
    }

    [[nodiscard]] uint64_t arrivals() const { return arrivals_; }

  private:
    uint64_t take_numbers(State& state, uint64_t count, const char* why) {
        const uint64_t last = state.esn ? ~uint64_t{0} - 1 : 0xffffffff;
        count = std::min(count, last - std::min(last, state.sent));
        if (count == 0) return 0;
        wire_.sent(state.key, state.sent + 1, count, why);
        state.own = state.sent += count;
        notices.push_back({Notice::Kind::used, state});
        return count;
    }

    Judge& judge_;
    Wire& wire_;
    uint64_t arrivals_ = 0;
};

// Many requests are as many single ones.
class OneByOne : public Register {
  public:
    std::vector<std::expected<xfrm::KernelSa, netlink::Error>> get_all(
        std::span<const xfrm::SaName> names) override {
        std::vector<std::expected<xfrm::KernelSa, netlink::Error>> out;
        for (const xfrm::SaName& name : names) out.push_back(get(name));
        return out;
    }
    std::vector<std::expected<void, netlink::Error>> write_all(
        std::span<const xfrm::CounterWrite> writes) override {
        std::vector<std::expected<void, netlink::Error>> out;
        for (const xfrm::CounterWrite& each : writes) {
            out.push_back(write_counters(*each.state, each.update));
        }
        return out;
    }
    std::vector<std::expected<void, netlink::Error>> limit_all(
        std::span<const xfrm::LimitWrite> writes) override {
        for (const xfrm::LimitWrite& each : writes) limits[each.state->name] = each.limits;
        return std::vector<std::expected<void, netlink::Error>>(writes.size());
    }
    std::map<xfrm::SaName, xfrm::Limits> limits;  // as they were written last

  protected:
    ~OneByOne() = default;
};

// The register as the gateway sees it: what it has heard, late, and what it asks.
class RegisterModel final : public OneByOne {
  public:
    // What may go wrong with a request; and what may happen before a look and before a write.
    struct Faults {
        uint64_t one_in = 0;  // 0: never
        std::function<void(const xfrm::SaName&)> failed;
        std::function<void()> before_write;
        std::function<void()> before_look;
    };
    RegisterModel(Kernel& kernel, Dice& dice) : kernel_(kernel), dice_(dice) {}

    Faults faults;
    std::function<void(const xfrm::KernelSa& last)> forgotten;
    xfrm::RegisterChanges changes;
    bool failed = false;  // a request, since the flag was taken away

    [[nodiscard]] const std::map<xfrm::SaName, xfrm::KernelSa>& known() const { return known_; }
    [[nodiscard]] const xfrm::KernelSa* find(const xfrm::SaName& name) const override {
        const auto found = known_.find(name);
        return found == known_.end() ? nullptr : &found->second;
    }
    std::expected<xfrm::KernelSa, netlink::Error> get(const xfrm::SaName& name) override {
        if (faults.before_look) faults.before_look();
        if (fails(name)) return std::unexpected(netlink::Error{ENOBUFS, "no buffers"});
        // What was told before the answer is heard before it.
        while (!kernel_.notices.empty()) hear_one();
        const auto found = kernel_.states.find(name);
        if (found == kernel_.states.end()) {
            return std::unexpected(netlink::Error{ESRCH, "no such state"});
        }
        return to_kernel_sa(found->second);
    }
    void note(const xfrm::KernelSa& state) override {
        const auto found = known_.find(state.name);
        if (found == known_.end()) return;
        if (state.replay.sent < found->second.replay.sent ||
            state.replay.top < found->second.replay.top) {
            forgotten(found->second);
        }
        found->second.usage = state.usage;
        found->second.replay.sent = state.replay.sent;
        found->second.replay.top = state.replay.top;
    }
    std::expected<void, netlink::Error> write_counters(const xfrm::KernelSa& state,
                                                       const xfrm::CounterUpdate& update) override {
        if (faults.before_write) faults.before_write();
        const bool fails_now = fails(state.name);
        const bool done = (!fails_now || dice_.one_in(2)) && kernel_.write(state.name, update);
        if (fails_now) {  // with or without having done it: an answer can be lost too
            return std::unexpected(netlink::Error{ENOBUFS, "no buffers"});
        }
        if (!done) return std::unexpected(netlink::Error{ESRCH, "no such state"});
        return {};
    }
    std::expected<void, netlink::Error> expire(const xfrm::KernelSa& state, bool hard) override {
        if (fails(state.name)) return std::unexpected(netlink::Error{ENOBUFS, "no buffers"});
        if (hard) kernel_.remove(state.name);
        return {};
    }

    // Takes the next notice, by the rules of xfrm::RegisterMirror.
    void hear_one() {
        const Kernel::Notice notice = kernel_.notices.front();
        kernel_.notices.pop_front();
        const xfrm::SaName& name = notice.state.name;
        const auto found = known_.find(name);
        switch (notice.kind) {
            case Kernel::Notice::Kind::added:
                if (found != known_.end() && is_same(found->second, notice.state)) {
                    return raise(found->second, notice.state);
                }
                if (found != known_.end()) forgotten(found->second);
                known_.insert_or_assign(name, to_kernel_sa(notice.state));
                changes.added.insert(name);
                changes.used.erase(name);
                return;
            case Kernel::Notice::Kind::removed:
                forgotten(to_kernel_sa(notice.state));
                if (found != known_.end()) forget(name);
                return;
            case Kernel::Notice::Kind::used:
                if (found == known_.end()) return;
                raise(found->second, notice.state);
                if (!changes.added.contains(name)) changes.used.insert(name);
                return;
        }
    }
    // They came too fast: all that waited are lost, and the register is read again.
    void read_again() {
        kernel_.notices.clear();
        std::vector<xfrm::SaName> gone;
        for (const auto& [name, sa] : known_) {
            if (!kernel_.states.contains(name)) gone.push_back(name);
        }
        for (const xfrm::SaName& name : gone) forget(name);
        for (const auto& [name, state] : kernel_.states) {
            const auto found = known_.find(name);
            if (found == known_.end() || !is_same(found->second, state)) changes.added.insert(name);
            if (found != known_.end()) {
                forgotten(found->second);
                const xfrm::Replay& before = found->second.replay;
                if (state.sent < before.sent || state.top < before.top) changes.moved.insert(name);
            }
            known_.insert_or_assign(name, to_kernel_sa(state));
        }
    }

  private:
    bool fails(const xfrm::SaName& name) {
        if (faults.one_in == 0 || !dice_.one_in(faults.one_in)) return false;
        failed = true;
        faults.failed(name);
        return true;
    }
    static bool is_same(const xfrm::KernelSa& sa, const State& state) {
        return std::ranges::equal(sa.key.bytes(), key_bytes(state.key)) &&
               sa.source == state.source && sa.esn == state.esn;
    }
    static void raise(xfrm::KernelSa& sa, const State& state) {
        sa.usage.packets = std::max(sa.usage.packets, state.packets);
        sa.replay.sent = std::max(sa.replay.sent, state.sent);
        sa.replay.top = std::max(sa.replay.top, state.top);
    }
    void forget(const xfrm::SaName& name) {
        forgotten(known_.at(name));
        known_.erase(name);
        changes.added.erase(name);
        changes.used.erase(name);
        changes.removed.insert(name);
    }

    Kernel& kernel_;
    Dice& dice_;
    std::map<xfrm::SaName, xfrm::KernelSa> known_;
};

// ---- a worker ----------------------------------------------------------------------------------

// The tables are the real ones, and so are replay windows and counters of SAs.
class WorkerModel {
  public:
    static constexpr size_t kRing = 2;
    static constexpr size_t kHeldMax = 6;

    WorkerModel(Judge& judge, Wire& wire) : judge_(judge), wire_(wire) {}

    struct Arrival {
        xfrm::SaName name;
        KeyNumber key = 0;
        uint64_t number = 0;
    };
    std::deque<Command> waiting;  // in control, for room in the ring
    std::deque<Command> ring;
    std::deque<Event> events;
    std::deque<Arrival> arrivals;  // steered to it, not yet looked at

    void flush() {
        while (!waiting.empty() && ring.size() < kRing) {
            ring.push_back(waiting.front());
            waiting.pop_front();
        }
    }
    void take_command() {
        if (ring.empty()) return;
        const Command command = ring.front();
        ring.pop_front();
        std::visit([this](const auto& order) { apply(order); }, command);
    }

    // Sends up to `count` packets of a policy; as OutboundPipeline::assign_sequence() does.
    void send(PolicyId policy, uint64_t count) {
        OutboundSa* sa = outbound_.find(policy);
        if (sa == nullptr || !is_alive(sa)) return;
        const uint64_t first = sa->sequence_next.read();
        const uint64_t end = std::min(sa->sequence_reserved, sa->sequence_end);
        const uint64_t sent = std::min(count, end - std::min(end, first));
        if (first + count > sa->sequence_low_water && !sa->low_water_reported) {
            sa->low_water_reported = true;
            events.push_back(event::SequenceLow{.id = sa->id, .next = first + sent});
        }
        if (sent == 0) return;
        sa->sequence_next.set(first + sent);
        sa->packets.add(sent);
        wire_.sent(key_of(sa), first, sent, "a worker");
    }

    // Looks at the oldest arrival; one without an SA is held while there is room.
    void receive() {
        if (arrivals.empty()) return;
        const Arrival arrival = arrivals.front();
        arrivals.pop_front();
        InboundSa* sa = sad_.find(arrival.name.spi, arrival.name.destination);
        if (sa == nullptr) {
            if (arrivals.size() < kHeldMax) arrivals.push_back(arrival);
            return;
        }
        if (!is_alive(sa) || key_of(sa) != arrival.key) return;  // the ICV does not fit
        if (sa->replay.commit(arrival.number) != ReplayVerdict::fresh) return;
        sa->packets.add(1);
        wire_.accepted(arrival.key, arrival.number, true);
    }

    [[nodiscard]] bool is_empty() const { return alive_.empty(); }

  private:
    // An SA that has been freed is wiped, or is another one by now.
    template <typename Sa>
    bool is_alive(const Sa* sa) {
        const auto found = alive_.find(sa);
        if (found != alive_.end() && found->second == sa->id && sa->spi.host() != 0) return true;
        judge_.broken("a worker uses an SA that was freed");
        return false;
    }
    template <typename Sa>
    static KeyNumber key_of(const Sa* sa) {
        return sa->salt;
    }

    void apply(const command::InstallInbound& order) { install(sad_, order.sa); }
    void apply(const command::InstallOutbound& order) { install(outbound_, order.sa); }
    void apply(const command::RetireInbound& order) {
        if (!is_alive(order.sa)) return;
        sad_.remove(order.sa);
        retired(order.sa);
    }
    void apply(const command::RetireOutbound& order) {
        if (!is_alive(order.sa)) return;
        outbound_.remove(order.sa);
        retired(order.sa);
    }
    void apply(const command::ReplaceInbound& order) {
        if (order.old == nullptr || !sad_.contains(order.old, *order.sa)) {
            return install(sad_, order.sa);
        }
        alive_[order.sa] = order.sa->id;
        if (!sad_.replace(order.old, order.sa)) return retired(order.sa);
        order.sa->take_over(*order.old);
        retired(order.old);
    }
    void apply(const command::SkipReplay& order) {
        InboundSa* sa = sad_.find(order.spi, order.destination);
        if (sa != nullptr && sa->id == order.id) sa->replay.skip(order.last);
    }
    void apply(const command::ExtendSequence& order) {
        if (!is_alive(order.sa)) return;
        order.sa->reserve(order.reserved, order.low_water);
        order.sa->raise_sequence(order.next_at_least);
    }
    void apply(const command::PublishSpd& /*order*/) {}
    void apply(const command::PublishNextHops& /*order*/) {}
    void apply(const command::SetOuterMtu& /*order*/) {}

    template <typename Table, typename Sa>
    void install(Table& table, Sa* sa) {
        alive_[sa] = sa->id;
        if (!table.insert(sa)) retired(sa);
    }
    void retired(InboundSa* sa) {
        alive_.erase(sa);
        events.push_back(event::InboundRetired{.id = sa->id, .sa = sa});
    }
    void retired(OutboundSa* sa) {
        alive_.erase(sa);
        events.push_back(event::OutboundRetired{.id = sa->id, .sa = sa});
    }

    Judge& judge_;
    Wire& wire_;
    Sad sad_{8};
    OutboundTable outbound_{2};
    std::map<const void*, SaId> alive_;  // installed, and who they were then
};

// What is another in `now`, as RunningAdoption would say it.
inline RunningAdoption::Change difference(const Reconciler::Decisions& before,
                                          const Reconciler::Decisions& now) {
    RunningAdoption::Change change;
    for (const auto& [name, decision] : now) {
        const auto known = before.find(name);
        if (known == before.end() || known->second != decision) change.sas.insert(name);
    }
    for (const auto& [name, decision] : before) {
        if (!now.contains(name)) change.sas.insert(name);
    }
    return change;
}

}  // namespace sallyport::control::model
