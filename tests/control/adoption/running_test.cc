// SPDX-License-Identifier: Apache-2.0
// RunningAdoption against decide_adoption(): whatever happens to a register, step by step both say
// the same of it. Numbers of groups and places in lists may differ where that means nothing: lists
// are compared by their verdicts, numbers by which things have the same one, and keep it.
//
//   RUNNING_SEED=4711      only this sequence
//   RUNNING_SEQUENCES=500  how many

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <random>

#include "control/adoption/running.h"
#include "tests/control/adoption/support.h"
#include "tests/support/sanitizers.h"

namespace sallyport::control {
namespace {

using adoption_test::prefix;
using adoption_test::Register;
using adoption_test::Tunnel;
using xfrm::KernelPolicy;
using xfrm::KernelSa;
using xfrm::PolicyAction;
using xfrm::PolicyDirection;
using xfrm::SaName;

constexpr uint32_t kTunnels = 6;
constexpr PolicyDirection kDirections[] = {PolicyDirection::out, PolicyDirection::in,
                                           PolicyDirection::forward};

// What the harness leaves out on purpose.
enum class Mistake : uint8_t { none, policies_untold, moves_untold, removals_untold };

// One child of an IKE daemon.
struct Child {
    Tunnel tunnel;
    uint16_t port = 0;      // 0: all; else narrowed
    bool names_spi = true;  // its out policies do
    std::vector<uint32_t> policies;
    std::vector<SaName> sas;  // inbound and outbound, of all its keys
    std::optional<SaName> outbound;
};

class Sequence {
  public:
    Sequence(uint32_t seed, Mistake mistake) : random_(seed), mistake_(mistake) {
        config::Policy bypass;
        bypass.action = SpdAction::bypass;
        bypass.local = {prefix("10.1.0.0/24")};
        bypass.remote = {prefix("10.2.0.0/24")};
        if (one_in(2)) bypass.protocol = uint8_t{17};
        if (!one_in(3)) register_.config.push_back(bypass);
        register_.cpus = one_in(2) ? std::vector<uint16_t>{0, 1, 2} : std::vector<uint16_t>{4};
        uncommon_ = one_in(3);
        capacity_ = one_in(8) ? 9 : 256;
        numbers_ = std::make_unique<GroupNumbers>(capacity_);
        oracle_numbers_ = std::make_unique<GroupNumbers>(capacity_);
        running_ = std::make_unique<RunningAdoption>(*numbers_);
    }
    void run(int steps);
    [[nodiscard]] const std::string& broken() const { return broken_; }

    struct Counts {
        uint64_t steps = 0;
        uint64_t whole = 0;
        uint64_t without_edits = 0;
        uint64_t adopted = 0;
        uint64_t rolled_back = 0;
    };
    static Counts counts;

  private:
    uint32_t below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }
    bool one_in(uint32_t bound) { return below(bound) == 0; }
    void fail(const std::string& text) {
        if (broken_.empty()) broken_ = text;
    }

    // --- what an IKE daemon and others do; each is a queue of single messages
    void something_happens();
    void child_comes();
    void child_is_rekeyed();
    void child_goes();
    void child_is_touched();
    void filter_comes();
    void something_uncommon();
    void greedy_child();
    void flush();
    void reads_again();
    KernelPolicy policy_of(const Child& child, PolicyDirection direction);
    void add_policy(KernelPolicy policy, std::vector<uint32_t>* owner);
    void add_sas(Child& child);
    void remove_sa(const SaName& name);
    void remove_policy(uint32_t index);

    // --- deciding and comparing
    void decide();
    void compare(const Adoption& mine, const Adoption& oracle);
    void compare_decisions(const Adoption& mine, const Adoption& oracle);
    void compare_lists(const std::vector<SpdEntry>& mine, const std::vector<SpdEntry>& oracle);
    void check_change(const Adoption& now, const RunningAdoption::Change& change);
    void check_edits(const Adoption& now);
    bool same_group(PolicyId mine, PolicyId oracle);
    SpdEntry packet_near(const std::vector<SpdEntry>& list);

    std::mt19937 random_;
    Mistake mistake_;
    bool uncommon_ = false;
    uint32_t capacity_ = 0;
    Register register_;
    std::vector<std::unique_ptr<Child>> children_;
    std::vector<uint32_t> others_;  // policies of nobody
    std::deque<std::function<void()>> messages_;
    xfrm::RegisterChanges changes_;
    uint32_t spis_ = 0;

    std::unique_ptr<GroupNumbers> numbers_;
    std::unique_ptr<GroupNumbers> oracle_numbers_;
    std::unique_ptr<RunningAdoption> running_;
    Adoption committed_;  // of running_
    Adoption oracle_committed_;
    std::map<SpdPlace, SpdEntry> lists_[2];  // in force, by edits
    std::map<PolicyId, PolicyId> to_oracle_;
    std::map<PolicyId, PolicyId> to_mine_;
    std::string broken_;
};
Sequence::Counts Sequence::counts;

// ---- messages ----------------------------------------------------------------------------------

void Sequence::add_policy(KernelPolicy policy, std::vector<uint32_t>* owner) {
    const uint32_t index = register_.add(std::move(policy));
    (owner != nullptr ? *owner : others_).push_back(index);
    if (mistake_ != Mistake::policies_untold || !one_in(20)) changes_.policies.insert(index);
}

void Sequence::remove_policy(uint32_t index) {
    register_.policies.erase(index);
    changes_.policies.insert(index);
}

void Sequence::remove_sa(const SaName& name) {
    if (register_.states.erase(name) == 0) return;
    changes_.added.erase(name);
    if (mistake_ != Mistake::removals_untold || !one_in(20)) changes_.removed.insert(name);
}

KernelPolicy Sequence::policy_of(const Child& child, PolicyDirection direction) {
    const bool outbound = direction == PolicyDirection::out;
    const Tunnel& tunnel = child.tunnel;
    KernelPolicy policy;
    policy.row.direction = direction;
    policy.row.action = PolicyAction::allow;
    policy.row.priority = tunnel.priority;
    auto& selector = policy.row.selector;
    selector.source = outbound ? tunnel.local_net : tunnel.remote_net;
    selector.destination = outbound ? tunnel.remote_net : tunnel.local_net;
    if (child.port != 0) {
        selector.protocol = 6;
        (outbound ? selector.destination_port : selector.source_port) = child.port;
        (outbound ? selector.destination_port_mask : selector.source_port_mask) = 0xffff;
    }
    policy.templates.push_back(
        {.source = outbound ? tunnel.local : tunnel.remote,
         .destination = outbound ? tunnel.remote : tunnel.local,
         .spi = outbound && child.names_spi && child.outbound ? child.outbound->spi : Spi{},
         .reqid = tunnel.reqid});
    return policy;
}

void Sequence::add_sas(Child& child) {
    for (const bool outbound : {false, true}) {
        const uint32_t spi = 0x1000 + ++spis_;
        KernelSa sa = outbound ? adoption_test::outbound_sa(child.tunnel, spi)
                               : adoption_test::inbound_sa(child.tunnel, spi);
        if (one_in(3)) {
            sa.direction =
                outbound ? xfrm::StateDirection::outbound : xfrm::StateDirection::inbound;
        }
        if (one_in(6)) sa.pcpu = below(5);
        if (one_in(20)) sa.larval = true;
        if (one_in(20)) sa.encapsulated = true;
        if (one_in(8)) sa.flags = 4;
        const SaName name = sa.name;
        child.sas.push_back(name);
        if (outbound) child.outbound = name;
        messages_.emplace_back([this, sa = std::make_shared<KernelSa>(std::move(sa)), name] {
            register_.add(std::move(*sa));
            changes_.added.insert(name);
        });
    }
}

void Sequence::child_comes() {
    if (children_.size() > 12) return;
    auto made = std::make_unique<Child>();
    Child& child = *made;
    const uint32_t number = below(kTunnels);
    child.tunnel.reqid = one_in(6) ? 0 : 1 + number + (one_in(3) ? 100 : 0);
    child.tunnel.remote.bytes[3] = static_cast<uint8_t>(number / 2 + 1);
    constexpr const char* kNets[] = {"10.1.0.0/24", "10.1.0.0/28", "10.1.0.16/28", "0.0.0.0/0",
                                     "10.1.1.0/24"};
    constexpr const char* kFarNets[] = {"10.2.0.0/24", "10.2.0.0/28", "10.2.0.16/28", "10.2.1.0/24",
                                        "10.0.0.0/8"};
    child.tunnel.local_net = prefix(kNets[below(5)]);
    child.tunnel.remote_net = prefix(kFarNets[below(5)]);
    child.tunnel.priority = 1000 + below(2);
    child.port = static_cast<uint16_t>(one_in(3) ? 1 + below(4) : 0);
    child.names_spi = !one_in(4);
    children_.push_back(std::move(made));
    const bool trap = one_in(4);
    if (!trap) add_sas(child);
    for (const PolicyDirection direction : kDirections) {
        if (one_in(15)) continue;
        KernelPolicy policy = policy_of(child, direction);
        messages_.emplace_back([this, &child, policy] { add_policy(policy, &child.policies); });
        if (one_in(4)) {
            policy.row.selector.source = prefix("10.1.2.0/24");
            messages_.emplace_back([this, &child, policy] { add_policy(policy, &child.policies); });
        }
    }
}

// As strongSwan does it: both SAs, then all policies updated, the old SAs go later.
void Sequence::child_is_rekeyed() {
    if (children_.empty()) return;
    Child& child = *children_[below(static_cast<uint32_t>(children_.size()))];
    const std::vector<SaName> old = child.sas;
    child.sas.clear();
    add_sas(child);
    messages_.emplace_back([this, &child, outbound = *child.outbound] {
        for (const uint32_t index : child.policies) {
            messages_.emplace_back([this, &child, index, outbound] {
                if (!register_.policies.contains(index)) return;
                register_.update(index, [&](KernelPolicy& policy) {
                    if (policy.row.direction == PolicyDirection::out && child.names_spi) {
                        policy.templates.front().spi = outbound.spi;
                    }
                });
                changes_.policies.insert(index);
            });
        }
    });
    messages_.emplace_back([this, old] {
        for (const SaName& name : old) {
            messages_.emplace_back([this, name] { remove_sa(name); });
        }
    });
}

void Sequence::child_goes() {
    if (children_.empty() || !messages_.empty()) return;
    const uint32_t which = below(static_cast<uint32_t>(children_.size()));
    const auto child = std::shared_ptr<Child>(std::move(children_[which]));
    children_.erase(children_.begin() + which);
    const bool becomes_trap = one_in(4);
    for (const uint32_t index : child->policies) {
        messages_.emplace_back([this, index, becomes_trap, child] {
            if (!register_.policies.contains(index)) return;
            if (!becomes_trap) return remove_policy(index);
            register_.update(index, [](KernelPolicy& policy) {
                if (!policy.templates.empty()) policy.templates.front().spi = Spi{};
            });
            others_.push_back(index);
            changes_.policies.insert(index);
        });
    }
    for (const SaName& name : child->sas) {
        messages_.emplace_back([this, name] { remove_sa(name); });
    }
}

// An update without a difference, or with another priority; policies of nobody go.
void Sequence::child_is_touched() {
    if (!others_.empty() && one_in(2)) {
        const uint32_t which = below(static_cast<uint32_t>(others_.size()));
        remove_policy(others_[which]);
        others_.erase(others_.begin() + which);
        return;
    }
    if (register_.policies.empty()) return;
    auto policy = register_.policies.begin();
    std::advance(policy, below(static_cast<uint32_t>(register_.policies.size())));
    register_.update(policy->first, [&](KernelPolicy& each) {
        if (one_in(4)) each.row.priority = 1000 + below(2);
    });
    changes_.policies.insert(policy->first);
}

void Sequence::filter_comes() {
    KernelPolicy policy;
    policy.row.direction = kDirections[below(3)];
    policy.row.action = one_in(2) ? PolicyAction::block : PolicyAction::allow;
    policy.row.priority = 1000 + below(2);
    constexpr const char* kNets[] = {"10.1.0.0/28", "10.2.0.0/28", "10.0.0.0/8", "0.0.0.0/0",
                                     "10.2.0.3/32"};
    policy.row.selector.source = prefix(kNets[below(5)]);
    policy.row.selector.destination = prefix(kNets[below(5)]);
    if (one_in(4)) policy.row.selector.protocol = one_in(2) ? 6 : 17;
    add_policy(policy, nullptr);
}

void Sequence::something_uncommon() {
    if (!uncommon_) return;
    switch (below(4)) {
        case 0: {
            filter_comes();
            register_.update(others_.back(), [](KernelPolicy& policy) { policy.mark = {1, 1}; });
            return;
        }
        case 1: {
            if (children_.empty() || children_.front()->policies.empty()) return;
            const uint32_t index = children_.front()->policies.front();
            if (!register_.policies.contains(index)) return;
            register_.update(index, [](KernelPolicy& policy) {
                policy.templates.front().optional = !policy.templates.front().optional;
            });
            changes_.policies.insert(index);
            return;
        }
        case 2: {
            KernelSa sa = adoption_test::outbound_sa(Tunnel{}, 0x1000 + ++spis_);
            if (one_in(2)) sa.name.mark = {1, 1};
            changes_.added.insert(register_.add(std::move(sa)));
            return;
        }
        default:
            greedy_child();
    }
}

// More entries for one address pair than there is room for.
void Sequence::greedy_child() {
    Child child;
    child.tunnel.reqid = 500;
    for (uint16_t port = 1; port <= 18; ++port) {
        child.port = port;
        add_policy(policy_of(child, PolicyDirection::out), nullptr);
    }
}

void Sequence::flush() {
    if (!one_in(4)) return;
    messages_.clear();
    children_.clear();
    others_.clear();
    if (!one_in(3)) {
        for (const auto& [index, policy] : register_.policies) changes_.policies.insert(index);
        register_.policies.clear();
    }
    std::vector<SaName> names;
    for (const auto& [name, sa] : register_.states) names.push_back(name);
    for (const SaName& name : names) remove_sa(name);
    for (const auto& [index, policy] : register_.policies) others_.push_back(index);
}

// A dump that says that a state came later than was thought.
void Sequence::reads_again() {
    if (register_.states.empty()) return;
    auto state = register_.states.begin();
    std::advance(state, below(static_cast<uint32_t>(register_.states.size())));
    register_.move(state->first);
    if (mistake_ != Mistake::moves_untold) changes_.moved.insert(state->first);
}

void Sequence::something_happens() {
    switch (below(16)) {
        case 0:
        case 1:
        case 2:
            return child_comes();
        case 3:
        case 4:
        case 5:
        case 6:
        case 7:
            return child_is_rekeyed();
        case 8:
        case 9:
            return child_goes();
        case 10:
        case 11:
            return child_is_touched();
        case 12:
            return filter_comes();
        case 13:
            return something_uncommon();
        case 14:
            return flush();
        default:
            return reads_again();
    }
}

// ---- deciding ----------------------------------------------------------------------------------

void Sequence::decide() {
    ++counts.steps;
    if (one_in(200)) {
        register_.local.push_back(adoption_test::address("198.51.100.1"));
        if (register_.local.size() > 2) register_.local.resize(1);
    }
    if (one_in(100)) register_.entries_max = one_in(2) ? 4 : std::numeric_limits<size_t>::max();
    const AdoptionSetup setup{.cpus = register_.cpus,
                              .local_addresses = register_.local,
                              .policies = register_.config,
                              .entries_max = register_.entries_max};
    if (one_in(20)) {  // tried, and asked again
        (void)running_->decide({register_.states, register_.policies}, changes_, setup);
    }
    const auto& change = running_->decide({register_.states, register_.policies}, changes_, setup);
    const Adoption oracle =
        decide_adoption(register_.states, register_.policies, setup, *oracle_numbers_);
    const Adoption& mine = running_->adoption();
    if (change.whole) ++counts.whole;
    compare(mine, oracle);
    check_change(mine, change);
    check_edits(mine);
    if (one_in(6)) {
        running_->roll_back();
        oracle_numbers_->roll_back();
        ++counts.rolled_back;
        if (running_->adoption().sas != committed_.sas ||
            running_->adoption().outbound != committed_.outbound ||
            running_->adoption().inbound != committed_.inbound ||
            running_->adoption().inbound_places != committed_.inbound_places ||
            running_->adoption().group_count != committed_.group_count) {
            fail("a step that was rolled back has left something");
        }
        return;
    }
    running_->commit();
    oracle_numbers_->commit();
    if (one_in(3)) {
        numbers_->rested();
        oracle_numbers_->rested();
    }
    changes_ = {};
    committed_ = mine;
    oracle_committed_ = oracle;
    for (const bool outbound : {true, false}) {
        auto& list = lists_[outbound ? 0 : 1];
        list.clear();
        const auto& entries = outbound ? mine.outbound : mine.inbound;
        const auto& places = outbound ? mine.outbound_places : mine.inbound_places;
        for (size_t i = 0; i < entries.size(); ++i) list.emplace(places[i], entries[i]);
    }
}

void Sequence::run(int steps) {
    for (int i = 0; i < steps && broken_.empty(); ++i) {
        if (messages_.size() < 4) something_happens();
        for (uint32_t burst = below(5); burst > 0 && !messages_.empty(); --burst) {
            const auto message = std::move(messages_.front());
            messages_.pop_front();
            message();
        }
        decide();
        if (!broken_.empty()) broken_ += " (step " + std::to_string(i) + ")";
    }
}

// ---- comparing ---------------------------------------------------------------------------------

bool Sequence::same_group(PolicyId mine, PolicyId oracle) {
    return to_oracle_.try_emplace(mine, oracle).first->second == oracle &&
           to_mine_.try_emplace(oracle, mine).first->second == mine;
}

void Sequence::compare(const Adoption& mine, const Adoption& oracle) {
    to_oracle_.clear();
    to_mine_.clear();
    if (mine.policies.size() != oracle.policies.size()) return fail("not the same policies");
    for (const auto& [index, view] : oracle.policies) {
        const auto found = mine.policies.find(index);
        if (found == mine.policies.end()) return fail("a policy is not shown");
        if (found->second.action != view.action || found->second.reason != view.reason ||
            !same_group(found->second.group, view.group)) {
            return fail("policy " + std::to_string(index) + ": " + found->second.reason +
                        " instead of " + view.reason);
        }
        // Who keeps a number in the one keeps it in the other.
        const auto was = committed_.policies.find(index);
        const auto oracle_was = oracle_committed_.policies.find(index);
        if (was == committed_.policies.end() || oracle_was == oracle_committed_.policies.end()) {
            continue;
        }
        if ((was->second.group == found->second.group) !=
            (oracle_was->second.group == view.group)) {
            return fail("policy " + std::to_string(index) + ": its group has another number");
        }
    }
    compare_decisions(mine, oracle);
    compare_lists(mine.outbound, oracle.outbound);
    compare_lists(mine.inbound, oracle.inbound);
    if (mine.left_open != oracle.left_open) fail("not the same is left open");
    for (const auto& [own, other] : to_oracle_) {
        if (mine.if_id_by_group.at(to_index(own)) != oracle.if_id_by_group.at(to_index(other))) {
            fail("not the same interface");
        }
    }
}

bool covered(const std::vector<Selector>& selectors, const SpdEntry& packet) {
    return std::ranges::any_of(selectors, [&](const Selector& selector) {
        return selector.source.contains(packet.source) &&
               selector.destination.contains(packet.destination) &&
               (selector.protocol == 0 || selector.protocol == packet.protocol) &&
               (!selector.has_ports ||
                (packet.source_port_lo >= selector.source_port_lo &&
                 packet.source_port_lo <= selector.source_port_hi &&
                 packet.destination_port_lo >= selector.destination_port_lo &&
                 packet.destination_port_lo <= selector.destination_port_hi));
    });
}

void Sequence::compare_decisions(const Adoption& mine, const Adoption& oracle) {
    if (mine.sas.size() != oracle.sas.size()) return fail("not the same SAs");
    for (const auto& [name, wanted] : oracle.sas) {
        const auto found = mine.sas.find(name);
        if (found == mine.sas.end()) return fail("an SA is not decided");
        const SaDecision& decision = found->second;
        const std::string what = "SA " + std::to_string(to_index(name.spi)) + ": ";
        if (decision.reason != wanted.reason || decision.direction != wanted.direction) {
            return fail(what + "'" + decision.reason + "' instead of '" + wanted.reason + "'");
        }
        if (!wanted.adopted()) continue;
        ++counts.adopted;
        if (decision.owner != wanted.owner || decision.rank != wanted.rank ||
            decision.suite != wanted.suite || decision.df != wanted.df ||
            decision.copy_dscp != wanted.copy_dscp) {
            return fail(what + "decided otherwise");
        }
        if (!same_group(decision.group, wanted.group)) return fail(what + "of another group");
        for (int i = 0; i < 8 && wanted.direction == xfrm::StateDirection::inbound; ++i) {
            const SpdEntry packet = packet_near(oracle.inbound);
            if (covered(decision.selectors, packet) != covered(wanted.selectors, packet)) {
                return fail(what + "other selectors");
            }
        }
    }
}

// A packet as an entry that covers nothing else, with edges of entries.
SpdEntry Sequence::packet_near(const std::vector<SpdEntry>& list) {
    SpdEntry packet{.has_ports = true};
    const auto address_in = [&](const IpPrefix& in) {
        IpAddress address = in.address;
        if (in.bits < 32) address.bytes[3] = static_cast<uint8_t>(address.bytes[3] + below(20));
        if (in.bits < 24) {
            address.bytes = {10, static_cast<uint8_t>(1 + below(2)), static_cast<uint8_t>(below(3)),
                             static_cast<uint8_t>(below(40))};
        }
        return IpPrefix{.address = address, .bits = 32};
    };
    const IpPrefix any = prefix("0.0.0.0/0");
    const bool some = !list.empty();
    const auto size = static_cast<uint32_t>(list.size());
    packet.source = address_in(some ? list[below(size)].source : any);
    packet.destination = address_in(some ? list[below(size)].destination : any);
    constexpr uint8_t kProtocols[] = {1, 6, 17};
    packet.protocol = kProtocols[below(3)];
    packet.source_port_lo = packet.source_port_hi = static_cast<uint16_t>(below(6));
    packet.destination_port_lo = packet.destination_port_hi = static_cast<uint16_t>(below(6));
    return packet;
}

const SpdEntry* first_match(const std::vector<SpdEntry>& list, const SpdEntry& packet) {
    const auto found = std::ranges::find_if(list, [&](const SpdEntry& entry) {
        return covered({{.source = entry.source,
                         .destination = entry.destination,
                         .protocol = entry.protocol,
                         .has_ports = entry.has_ports,
                         .source_port_lo = entry.source_port_lo,
                         .source_port_hi = entry.source_port_hi,
                         .destination_port_lo = entry.destination_port_lo,
                         .destination_port_hi = entry.destination_port_hi}},
                       packet);
    });
    return found == list.end() ? nullptr : &*found;
}

void Sequence::compare_lists(const std::vector<SpdEntry>& mine,
                             const std::vector<SpdEntry>& oracle) {
    if (mine.size() != oracle.size()) return fail("not as many entries");
    for (int i = 0; i < 12; ++i) {
        const SpdEntry packet = packet_near(oracle);
        const SpdEntry* here = first_match(mine, packet);
        const SpdEntry* there = first_match(oracle, packet);
        if ((here == nullptr) != (there == nullptr)) return fail("an entry is missing");
        if (here != nullptr &&
            (here->action != there->action || !same_group(here->policy, there->policy))) {
            return fail("another entry decides");
        }
    }
}

void Sequence::check_change(const Adoption& now, const RunningAdoption::Change& change) {
    if (change.whole) return;
    for (const auto& [name, decision] : committed_.sas) {
        const auto found = now.sas.find(name);
        const bool same = found != now.sas.end() && found->second == decision;
        if (!same && !change.sas.contains(name)) return fail("a decision changed untold");
        if (same && change.sas.contains(name)) return fail("a decision is told that is the same");
    }
    for (const auto& [name, decision] : now.sas) {
        if (!committed_.sas.contains(name) && !change.sas.contains(name)) {
            return fail("a new decision is untold");
        }
    }
}

void Sequence::check_edits(const Adoption& now) {
    if (!now.edits) return;
    if (now.edits->outbound.empty() && now.edits->inbound.empty()) ++counts.without_edits;
    for (const bool outbound : {true, false}) {
        auto list = lists_[outbound ? 0 : 1];
        for (const SpdEdit& edit : outbound ? now.edits->outbound : now.edits->inbound) {
            if (edit.entry) {
                list.insert_or_assign(edit.place, *edit.entry);
            } else if (list.erase(edit.place) == 0) {
                return fail("an entry is taken away that is not there");
            }
        }
        const auto& entries = outbound ? now.outbound : now.inbound;
        const auto& places = outbound ? now.outbound_places : now.inbound_places;
        if (list.size() != entries.size()) return fail("edits leave another list");
        size_t i = 0;
        for (const auto& [place, entry] : list) {
            if (place != places[i] || entry != entries[i]) return fail("edits make another list");
            ++i;
        }
    }
}

// ---- tests -------------------------------------------------------------------------------------

#if SP_TEST_WITH_ASAN || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr uint32_t kSequences = 40;
#else
constexpr uint32_t kSequences = 500;
#endif
constexpr int kStepsOfOne = 200;

std::string look_for_difference(uint32_t sequences, Mistake mistake) {
    uint32_t first = 1;
    if (const char* seed = std::getenv("RUNNING_SEED")) {
        first = static_cast<uint32_t>(std::strtoul(seed, nullptr, 10));
        sequences = 1;
    }
    for (uint32_t seed = first; seed < first + sequences; ++seed) {
        Sequence sequence(seed, mistake);
        sequence.run(kStepsOfOne);
        if (!sequence.broken().empty()) {
            return sequence.broken() + " (RUNNING_SEED=" + std::to_string(seed) + ")";
        }
    }
    return {};
}

TEST(RunningAdoption, SaysWhatTheWholeDecisionSays) {
    const char* sequences = std::getenv("RUNNING_SEQUENCES");
    Sequence::counts = {};
    EXPECT_EQ(look_for_difference(sequences == nullptr
                                      ? kSequences
                                      : static_cast<uint32_t>(std::strtoul(sequences, nullptr, 10)),
                                  Mistake::none),
              "");
    const auto& counts = Sequence::counts;
    std::printf(
        "%llu steps, %llu decided as a whole, %llu without an edit, %llu rolled back, "
        "%llu SAs adopted\n",
        static_cast<unsigned long long>(counts.steps),
        static_cast<unsigned long long>(counts.whole),
        static_cast<unsigned long long>(counts.without_edits),
        static_cast<unsigned long long>(counts.rolled_back),
        static_cast<unsigned long long>(counts.adopted));
    if (std::getenv("RUNNING_SEED") != nullptr) return;
    EXPECT_LT(counts.whole, counts.steps / 2) << "mostly the other way is to be seen";
    EXPECT_GT(counts.without_edits, counts.steps / 10);
    EXPECT_GT(counts.adopted, counts.steps);
}

TEST(RunningAdoption, NoticesThatAPolicyIsNotTold) {
    EXPECT_NE(look_for_difference(kSequences, Mistake::policies_untold), "");
}

TEST(RunningAdoption, NoticesThatADeletedStateIsNotTold) {
    EXPECT_NE(look_for_difference(kSequences, Mistake::removals_untold), "");
}

TEST(RunningAdoption, NoticesThatAnotherOrderIsNotTold) {
    EXPECT_NE(look_for_difference(kSequences, Mistake::moves_untold), "");
}

}  // namespace
}  // namespace sallyport::control
