// SPDX-License-Identifier: Apache-2.0
#include "control/adoption.h"

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "control/adoption_parts.h"
#include "control/policy_control.h"

namespace sallyport::control {

namespace {

using namespace adoption;

constexpr uint8_t kFlagNoPathMtuDiscovery = 4;
constexpr uint8_t kFlagEsn = 128;
constexpr uint32_t kExtraDontEncapDscp = 1;

constexpr uint32_t kConfigOwn = 0x80000000;
constexpr uint8_t kOwnModeConfig = 0xfe;  // what is no group of the register
constexpr uint8_t kOwnModeKernel = 0xff;
// Beyond this many, every later group counts as within reach of one of them.
constexpr size_t kPassingOnMax = 256;

// What SAs are compared with: the policies of one direction that have one template. Policies that
// only the kernel can judge are each for themselves.
struct TemplateClass {
    xfrm::Template wanted;
    uint32_t if_id = 0;
    PolicyId group{};
    std::string obstacle;        // why no worker may serve it
    std::vector<uint32_t> rows;  // positions in the list of its direction
};

// Finds the classes that may fit an SA by its reqid and the address that templates of the
// direction always name, or leave out on purpose.
class TemplateClasses {
  public:
    explicit TemplateClasses(xfrm::StateDirection direction) : direction_(direction) {}

    uint32_t obtain(const GroupNumbers::Name& name, const xfrm::KernelPolicy& policy) {
        const auto [known, is_new] =
            by_name_.try_emplace(name, static_cast<uint32_t>(classes_.size()));
        if (!is_new) return known->second;
        const xfrm::Template& wanted = policy.templates.front();
        classes_.push_back({.wanted = wanted, .if_id = policy.if_id, .obstacle = {}, .rows = {}});
        by_end_[{wanted.reqid, end_of(wanted.source, wanted.destination)}].push_back(known->second);
        return known->second;
    }
    TemplateClass& operator[](uint32_t index) { return classes_[index]; }

    // Ascending, so in the order of their first policies.
    [[nodiscard]] std::vector<uint32_t> fitting(const xfrm::KernelSa& sa) const {
        const bool outbound = direction_ == xfrm::StateDirection::outbound;
        const IpAddress end = end_of(sa.source, sa.name.destination);
        const IpAddress any{.family = end.family};
        std::vector<uint32_t> found;
        const auto look = [&](uint32_t reqid, const IpAddress& address) {
            const auto bucket = by_end_.find({reqid, address});
            if (bucket == by_end_.end()) return;
            for (const uint32_t index : bucket->second) {
                const TemplateClass& one = classes_[index];
                if (outbound ? fits_outbound(one.wanted, one.if_id, sa)
                             : fits_inbound(one.wanted, one.if_id, sa)) {
                    found.push_back(index);
                }
            }
        };
        look(sa.reqid, end);
        if (end != any) look(sa.reqid, any);
        if (!outbound && sa.reqid != 0) {
            look(0, end);
            if (end != any) look(0, any);
        }
        std::ranges::sort(found);
        return found;
    }

  private:
    struct End {
        uint32_t reqid = 0;
        IpAddress address;
        friend bool operator==(const End&, const End&) = default;
    };
    struct EndHash {
        size_t operator()(const End& end) const {
            uint64_t words[2];
            std::memcpy(words, end.address.bytes.data(), sizeof words);
            uint64_t hash = (words[0] ^ end.reqid) * 0x9e3779b97f4a7c15u;
            hash = (hash ^ hash >> 29 ^ words[1]) * 0x9e3779b97f4a7c15u;
            return hash ^ hash >> 32;
        }
    };
    // Of an outbound SA the far end, of an inbound one too.
    [[nodiscard]] const IpAddress& end_of(const IpAddress& source,
                                          const IpAddress& destination) const {
        return direction_ == xfrm::StateDirection::outbound ? destination : source;
    }

    xfrm::StateDirection direction_;
    std::vector<TemplateClass> classes_;
    std::map<GroupNumbers::Name, uint32_t> by_name_;
    std::unordered_map<End, std::vector<uint32_t>, EndHash> by_end_;
};

// One line of a direction's list, in kernel order.
struct Row {
    JudgedPolicy judged;
    std::optional<uint32_t> template_class;
    size_t view = 0;  // in Adoption::policies
};

auto selector_key(const SpdEntry& entry) {
    const SpdEntry& e = entry;
    return std::tuple(e.source.address, e.source.bits, e.destination.address, e.destination.bits,
                      e.protocol, e.has_ports, e.source_port_lo, e.source_port_hi,
                      e.destination_port_lo, e.destination_port_hi);
}
using SelectorKey = decltype(selector_key(SpdEntry{}));

// A list of SPD entries; of two with the same selector the first decides, so the second is waste.
class EntryList {
  public:
    void add(const SpdEntry& entry) {
        if (known_.insert(selector_key(entry)).second) entries_.push_back(entry);
    }
    std::vector<SpdEntry> take() { return std::move(entries_); }

  private:
    std::vector<SpdEntry> entries_;
    std::set<SelectorKey> known_;
};

// Stable across rekeying and restarts, and different for different peers.
uint64_t owner_hash(const IpAddress& peer, uint32_t reqid) {
    uint64_t hash = 0xcbf29ce484222325u ^ reqid;
    for (const uint8_t byte : peer.bytes) hash = (hash ^ byte) * 0x100000001b3u;
    hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15u;
    return hash >> 32;
}

class Decider {
  public:
    Decider(const std::map<xfrm::SaName, xfrm::KernelSa>& states, const AdoptionSetup& setup,
            GroupNumbers& numbers)
        : states_(states), setup_(setup), numbers_(numbers) {}

    Adoption decide(const std::map<uint32_t, xfrm::KernelPolicy>& policies) {
        numbers_.begin();
        beyond_capacity_ =
            numbers_.number({.mode = kOwnModeKernel, .own = std::numeric_limits<uint32_t>::max()})
                .value_or(PolicyId{});
        read_policies(policies);
        make_outbound_list();
        make_inbound_list();
        numbers_.end();
        decide_sas();
        hold_back_groups();
        choose_owners();
        return std::move(out_);
    }

  private:
    // ---- policies ----
    void read_policies(const std::map<uint32_t, xfrm::KernelPolicy>& policies);
    PolicyId number(const GroupNumbers::Name& name, uint32_t if_id, std::string& obstacle);
    void read_policy(JudgedPolicy&& judged);
    void make_outbound_list();
    void make_inbound_list();
    void add_config_policies(EntryList& list, SpdDirection direction);

    // ---- SAs ----
    void decide_sas();
    std::optional<xfrm::StateDirection> direction_of(const xfrm::KernelSa& sa,
                                                     std::span<const uint32_t> fitting_out,
                                                     std::span<const uint32_t> fitting_in);
    void decide_outbound(const xfrm::KernelSa& sa, std::span<const uint32_t> fitting,
                         SaDecision& decision);
    void decide_inbound(std::span<const uint32_t> fitting, SaDecision& decision);
    bool select(std::span<const uint32_t> fitting, uint32_t position, SaDecision& decision);
    void hold_back_groups();
    void choose_owners();
    std::optional<WorkerId> worker_of_cpu(std::optional<uint32_t> cpu) const;
    void choose_owners_of_group(size_t group);

    bool is_local(const IpAddress& address) const {
        return std::ranges::find(setup_.local_addresses, address) != setup_.local_addresses.end();
    }

    struct Member {  // an outbound SA that the kernel may use for a group
        const xfrm::KernelSa* sa;
        SaDecision* decision;
    };

    const std::map<xfrm::SaName, xfrm::KernelSa>& states_;
    const AdoptionSetup& setup_;
    GroupNumbers& numbers_;
    PolicyId beyond_capacity_{};

    TemplateClasses outbound_classes_{xfrm::StateDirection::outbound};
    TemplateClasses inbound_classes_{xfrm::StateDirection::inbound};
    std::vector<Row> outbound_rows_;
    std::vector<Row> inbound_rows_;
    std::vector<SpdEntry> inbound_entries_;  // of inbound_rows_
    std::optional<OverlapIndex> inbound_index_;
    std::vector<std::vector<Member>> members_;  // by group

    Adoption out_;
};

void Decider::read_policies(const std::map<uint32_t, xfrm::KernelPolicy>& policies) {
    out_.policies.reserve(policies.size());
    for (JudgedPolicy& judged : judge_in_order(policies)) read_policy(std::move(judged));
}

PolicyId Decider::number(const GroupNumbers::Name& name, uint32_t if_id, std::string& obstacle) {
    const auto group = numbers_.number(name);
    if (!group) {
        if (obstacle.empty()) {
            obstacle = "more than " + std::to_string(numbers_.capacity()) + " groups of policies";
        }
        return beyond_capacity_;
    }
    if (to_index(*group) >= out_.if_id_by_group.size()) {
        out_.if_id_by_group.resize(to_index(*group) + size_t{1});
    }
    out_.if_id_by_group[to_index(*group)] = if_id;
    return *group;
}

void Decider::read_policy(JudgedPolicy&& judged) {
    const xfrm::KernelPolicy& policy = *judged.policy;
    const bool outbound = policy.row.direction == xfrm::PolicyDirection::out;
    const bool protects = judged.entry.action == SpdAction::protect;

    GroupNumbers::Name name{.own = policy.row.index};
    if (protects && judged.exact()) {
        const xfrm::Template& wanted = policy.templates.front();
        name = {.source = outbound ? wanted.source : wanted.destination,
                .destination = outbound ? wanted.destination : wanted.source,
                .reqid = wanted.reqid,
                .mode = static_cast<uint8_t>(wanted.mode),
                .protocol = wanted.protocol,
                .if_id = policy.if_id,
                .own = to_index(wanted.spi) != 0 ? policy.row.index : 0};
    }
    std::string obstacle = judged.obstacle;
    if (obstacle.empty() && policy.if_id != 0) {
        obstacle = "xfrm interface " + std::to_string(policy.if_id);
    }
    judged.entry.policy = number(name, policy.if_id, obstacle);
    if (outbound && !judged.exact()) judged.entry.action = SpdAction::protect;

    auto& rows = outbound ? outbound_rows_ : inbound_rows_;
    Row row{.judged = std::move(judged), .template_class = {}, .view = out_.policies.size()};
    if (protects) {
        TemplateClasses& classes = outbound ? outbound_classes_ : inbound_classes_;
        row.template_class = classes.obtain(name, policy);
        TemplateClass& its_class = classes[*row.template_class];
        its_class.group = row.judged.entry.policy;
        its_class.obstacle = obstacle;
        its_class.rows.push_back(static_cast<uint32_t>(rows.size()));
    }
    out_.policies.push_back({.index = policy.row.index,
                             .group = row.judged.entry.policy,
                             .action = row.judged.entry.action,
                             .reason = std::move(obstacle)});
    rows.push_back(std::move(row));
}

void Decider::make_outbound_list() {
    EntryList list;
    std::vector<const SpdEntry*> passing_on;
    for (const Row& row : outbound_rows_) {
        const SpdEntry& entry = row.judged.entry;
        list.add(entry);
        if (row.judged.exact() && row.template_class) {
            TemplateClass& its_class = outbound_classes_[*row.template_class];
            const auto hands_over = [&](const SpdEntry* other) { return overlap(*other, entry); };
            if (its_class.obstacle.empty() && (passing_on.size() > kPassingOnMax ||
                                               std::ranges::any_of(passing_on, hands_over))) {
                its_class.obstacle = "behind one that only the kernel can judge";
            }
        }
        if (row.judged.may_pass_on) passing_on.push_back(&entry);
    }
    for (const Row& row : outbound_rows_) {
        std::string& reason = out_.policies[row.view].reason;
        if (row.template_class && reason.empty()) {
            reason = outbound_classes_[*row.template_class].obstacle;
        }
    }
    add_config_policies(list, SpdDirection::outbound);
    out_.outbound = list.take();
}

void Decider::make_inbound_list() {
    // A `fwd` policy that allows vouches for an `in` policy with the same selector.
    EntryList list;
    std::vector<const SpdEntry*> behind;
    for (const Row& row : inbound_rows_) {
        const SpdEntry& entry = row.judged.entry;
        inbound_entries_.push_back(entry);
        if (entry.action != SpdAction::bypass) {
            list.add(entry);
        } else if (row.judged.exact()) {
            if (row.judged.policy->row.direction == xfrm::PolicyDirection::forward) {
                list.add(entry);
            } else {
                behind.push_back(&entry);
            }
        }
    }
    for (const SpdEntry* entry : behind) list.add(*entry);
    add_config_policies(list, SpdDirection::inbound);
    out_.inbound = list.take();
    inbound_index_.emplace(inbound_entries_);
}

void Decider::add_config_policies(EntryList& list, SpdDirection direction) {
    for (SpdEntry entry : spd_entries(setup_.policies, direction)) {
        std::string unused;
        entry.policy =
            number({.mode = kOwnModeConfig, .own = kConfigOwn + to_index(entry.policy)}, 0, unused);
        list.add(entry);
    }
}

std::optional<xfrm::StateDirection> Decider::direction_of(const xfrm::KernelSa& sa,
                                                          std::span<const uint32_t> fitting_out,
                                                          std::span<const uint32_t> fitting_in) {
    if (sa.direction) return sa.direction;
    // An optional template wants no SA of its own, so it says nothing.
    const auto wants = [](TemplateClasses& classes) {
        return [&](uint32_t index) { return !classes[index].wanted.optional; };
    };
    bool outbound = std::ranges::any_of(fitting_out, wants(outbound_classes_));
    bool inbound = std::ranges::any_of(fitting_in, wants(inbound_classes_));
    if (outbound == inbound) {
        outbound = is_local(sa.source);
        inbound = is_local(sa.name.destination);
    }
    if (outbound == inbound) return std::nullopt;
    return outbound ? xfrm::StateDirection::outbound : xfrm::StateDirection::inbound;
}

void Decider::decide_sas() {
    out_.group_count = numbers_.upper_bound();
    out_.if_id_by_group.resize(out_.group_count);
    out_.owners.resize(out_.group_count);
    members_.resize(out_.group_count);
    const xfrm::SaName* previous = nullptr;
    SaDecision* previous_decision = nullptr;
    for (const auto& [name, sa] : states_) {
        SaDecision& decision = out_.sas.try_emplace(out_.sas.end(), name)->second;
        const auto fitting_out = outbound_classes_.fitting(sa);
        const auto fitting_in = inbound_classes_.fitting(sa);
        decision.direction = direction_of(sa, fitting_out, fitting_in);
        decision.reason = obstacle_of(sa, decision.direction);
        if (!decision.direction) {
            if (decision.adopted()) decision.reason = "direction not known";
        } else if (*decision.direction == xfrm::StateDirection::outbound) {
            decide_outbound(sa, fitting_out, decision);
        } else {
            decide_inbound(fitting_in, decision);
        }
        if (decision.adopted()) {
            decision.suite = suite_of(sa).value_or(crypto::Suite{});
            decision.copy_dscp = (sa.extra_flags & kExtraDontEncapDscp) == 0;
            if ((sa.flags & kFlagNoPathMtuDiscovery) != 0) decision.df = DfPolicy::clear;
        }
        // Only marks tell them apart, which no worker and no XDP program sees.
        if (previous != nullptr && previous->spi == name.spi &&
            previous->destination == name.destination && previous->protocol == name.protocol) {
            for (SaDecision* one : {previous_decision, &decision}) {
                if (one->adopted()) one->reason = "another SA with its SPI has a mark";
            }
        }
        previous = &name;
        previous_decision = &decision;
    }
}

void Decider::decide_outbound(const xfrm::KernelSa& sa, std::span<const uint32_t> fitting,
                              SaDecision& decision) {
    const auto refuse = [&](const std::string& reason) {
        if (decision.adopted()) decision.reason = reason;
    };
    if (fitting.empty()) return refuse("no policy for it yet");
    decision.group = outbound_classes_[fitting.front()].group;
    for (const uint32_t index : fitting) {
        const TemplateClass& one = outbound_classes_[index];
        if (!one.obstacle.empty()) refuse("its policy: " + one.obstacle);
        if (one.group != decision.group) refuse("several groups of policies use it");
        // The kernel does not send with a larval SA.
        if (!sa.larval) members_[to_index(one.group)].push_back({.sa = &sa, .decision = &decision});
    }
}

void Decider::decide_inbound(std::span<const uint32_t> fitting, SaDecision& decision) {
    const auto refuse = [&](const std::string& reason) {
        if (decision.adopted()) decision.reason = reason;
    };
    if (fitting.empty()) return refuse("no policy for it yet");
    decision.group = inbound_classes_[fitting.front()].group;
    std::vector<uint32_t> rows;
    for (const uint32_t index : fitting) {
        const TemplateClass& one = inbound_classes_[index];
        if (!one.obstacle.empty()) refuse("its policy: " + one.obstacle);
        rows.insert(rows.end(), one.rows.begin(), one.rows.end());
    }
    if (!decision.adopted()) return;
    std::ranges::sort(rows);
    std::set<SelectorKey> known;  // `in` and `fwd` policies have the same selectors
    for (const uint32_t position : rows) {
        if (!known.insert(selector_key(inbound_entries_[position])).second) continue;
        if (!select(fitting, position, decision)) break;
    }
    if (decision.adopted() && decision.selectors.empty()) {
        refuse("other policies stand before its own");
    }
    if (!decision.adopted()) decision.selectors.clear();
}

// Adds what a packet by the SA may be to pass the policy at `position`.
bool Decider::select(std::span<const uint32_t> fitting, uint32_t position, SaDecision& decision) {
    std::vector<Selector> parts{selector_of(inbound_entries_[position])};
    for (const uint32_t earlier : inbound_index_->earlier(position)) {
        const Row& row = inbound_rows_[earlier];
        if (row.template_class && std::ranges::binary_search(fitting, *row.template_class))
            continue;
        // Policies of interfaces do not apply to SAs without one.
        if (row.judged.policy->if_id != 0) continue;
        if (row.judged.may_pass_on) {
            decision.reason = "a policy before its own: " + row.judged.obstacle;
            return false;
        }
        std::vector<Selector> left;
        for (const Selector& part : parts) {
            const auto rest = without(part, row.judged.entry);
            if (!rest) {
                decision.reason = "a policy before its own has a protocol";
                return false;
            }
            left.insert(left.end(), rest->begin(), rest->end());
        }
        parts = std::move(left);
        if (parts.size() > kSelectorsMax) break;
    }
    decision.selectors.insert(decision.selectors.end(), parts.begin(), parts.end());
    if (decision.selectors.size() <= kSelectorsMax) return true;
    decision.reason = "more than " + std::to_string(kSelectorsMax) + " selectors";
    return false;
}

void Decider::hold_back_groups() {
    for (const auto& members : members_) {
        const auto newest = std::ranges::max_element(
            members, {}, [](const Member& member) { return member.sa->arrival; });
        if (newest == members.end() || newest->decision->adopted()) continue;
        for (const Member& member : members) {
            if (member.decision->adopted()) {
                member.decision->reason = "a newer SA of its policy is with the kernel";
            }
        }
    }
}

std::optional<WorkerId> Decider::worker_of_cpu(std::optional<uint32_t> cpu) const {
    if (!cpu) return std::nullopt;
    const auto found = std::ranges::find(setup_.cpus, *cpu);
    if (found == setup_.cpus.end()) return std::nullopt;
    return WorkerId{static_cast<uint16_t>(found - setup_.cpus.begin())};
}

void Decider::choose_owners() {
    const uint64_t workers = std::max<uint64_t>(setup_.cpus.size(), 1);
    auto state = states_.begin();
    for (auto& [name, decision] : out_.sas) {
        const xfrm::KernelSa& sa = (state++)->second;
        if (!decision.adopted() || decision.direction == xfrm::StateDirection::outbound) continue;
        const uint64_t hashed = owner_hash(sa.source, sa.reqid) % workers;
        decision.owner = worker_of_cpu(sa.pcpu).value_or(WorkerId{static_cast<uint16_t>(hashed)});
    }
    for (size_t group = 0; group < members_.size(); ++group) choose_owners_of_group(group);
}

void Decider::choose_owners_of_group(size_t group) {
    constexpr uint64_t kRankOwnCpu = uint64_t{1} << 63;
    constexpr uint64_t kRankFallback = uint64_t{1} << 62;
    std::set<WorkerId> owners;
    for (const Member& member : members_[group]) {
        if (!member.decision->adopted()) continue;
        if (const auto worker = worker_of_cpu(member.sa->pcpu)) {
            member.decision->owner = *worker;
            member.decision->rank = kRankOwnCpu | member.sa->arrival;
            owners.insert(*worker);
        }
    }
    std::vector<WorkerId> free;
    for (size_t i = 0; i < setup_.cpus.size(); ++i) {
        const WorkerId worker{static_cast<uint16_t>(i)};
        if (!owners.contains(worker)) free.push_back(worker);
    }
    for (const Member& member : members_[group]) {
        if (!member.decision->adopted() || worker_of_cpu(member.sa->pcpu)) continue;
        const uint64_t hash = owner_hash(member.sa->name.destination, member.sa->reqid);
        const uint64_t workers = std::max<uint64_t>(setup_.cpus.size(), 1);
        member.decision->owner = free.empty() ? WorkerId{static_cast<uint16_t>(hash % workers)}
                                              : free[hash % free.size()];
        member.decision->rank = (member.sa->pcpu ? 0 : kRankFallback) | member.sa->arrival;
        owners.insert(member.decision->owner);
    }
    out_.owners[group].assign(owners.begin(), owners.end());
}

}  // namespace

void GroupNumbers::begin() {
    previous_ = std::move(numbers_);
    numbers_.clear();
}

std::optional<PolicyId> GroupNumbers::number(const Name& name) {
    if (const auto known = numbers_.find(name); known != numbers_.end()) {
        return PolicyId{known->second};
    }
    if (auto known = previous_.extract(name)) {
        return PolicyId{numbers_.insert(std::move(known)).position->second};
    }
    uint32_t number = 0;
    if (!free_.empty()) {
        number = free_.front();
        free_.pop_front();
    } else if (upper_bound_ < capacity_) {
        number = upper_bound_++;
    } else {
        return std::nullopt;
    }
    numbers_.emplace(name, number);
    return PolicyId{number};
}

void GroupNumbers::end() {
    for (const auto& [name, number] : previous_) free_.push_back(number);
    previous_.clear();
}

Adoption decide_adoption(const std::map<xfrm::SaName, xfrm::KernelSa>& states,
                         const std::map<uint32_t, xfrm::KernelPolicy>& policies,
                         const AdoptionSetup& setup, GroupNumbers& numbers) {
    return Decider(states, setup, numbers).decide(policies);
}

Adoption decide_adoption(const xfrm::RegisterMirror& mirror, const AdoptionSetup& setup,
                         GroupNumbers& numbers) {
    return decide_adoption(mirror.states(), mirror.policies(), setup, numbers);
}

}  // namespace sallyport::control
