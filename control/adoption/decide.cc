// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/decide.h"

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>
#include <utility>

#include "control/adoption/coarse.h"
#include "control/adoption/inbound_selectors.h"
#include "control/adoption/names.h"
#include "control/adoption/owners.h"
#include "control/adoption/policies.h"
#include "control/adoption/rivals.h"
#include "control/adoption/sas.h"
#include "control/adoption/selectors.h"
#include "control/adoption/suites.h"
#include "control/adoption/templates.h"
#include "control/policy/compile.h"

namespace sallyport::control {

namespace {

using namespace adoption;

// Beyond this many, every later group counts as within reach of one of them.
constexpr size_t kPassingOnMax = 256;

// A list of SPD entries; of two with the same selector the first decides, so the second is waste.
class ClaimList {
  public:
    void add(const SpdEntry& entry, uint32_t party, const SpdPlace& place) {
        if (!known_.insert(selector_key(entry)).second) return;
        claims_.push_back({.entry = entry, .party = party, .place = place});
    }
    // Where the next one would stand.
    [[nodiscard]] size_t size() const { return claims_.size(); }
    [[nodiscard]] std::span<const Claim> claims() const { return claims_; }

  private:
    std::vector<Claim> claims_;
    std::set<SelectorKey> known_;
};

// Of the first region that takes all of the entry's packets; empty: there is none.
std::string hidden_by(std::span<const Region> regions, const SpdEntry& entry, size_t place) {
    for (const Region& region : regions) {
        if (region.hides(entry, place)) return region.reason;
    }
    return {};
}

class Decider {
  public:
    Decider(const std::map<xfrm::SaName, xfrm::KernelSa>& states, const AdoptionSetup& setup,
            GroupNumbers& numbers)
        : states_(states), setup_(setup), numbers_(numbers) {}

    Adoption decide(const std::map<uint32_t, xfrm::KernelPolicy>& policies) {
        numbers_.begin();
        beyond_capacity_ = numbers_.number(name_beyond_capacity()).value_or(PolicyId{});
        read_policies(policies);
        make_outbound_list();
        make_inbound_list();
        decide_sas();
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
    void add_config_policies(ClaimList& list, SpdDirection direction);
    uint32_t party_of(const Row& row);
    void leave_rivals_to_kernel();
    void leave_to_kernel(std::span<const Region> regions, std::span<const size_t> places);

    // ---- SAs ----
    void decide_sas();
    void decide_outbound(const xfrm::KernelSa& sa, std::span<const uint32_t> fitting,
                         SaDecision& decision);
    void decide_inbound(std::span<const uint32_t> fitting, SaDecision& decision);
    void choose_owners();

    const std::map<xfrm::SaName, xfrm::KernelSa>& states_;
    const AdoptionSetup& setup_;
    GroupNumbers& numbers_;
    PolicyId beyond_capacity_{};

    TemplateClasses outbound_classes_{xfrm::StateDirection::outbound};
    TemplateClasses inbound_classes_{xfrm::StateDirection::inbound};
    std::vector<Row> outbound_rows_;
    std::vector<Row> inbound_rows_;
    std::optional<ListedRows> inbound_list_;    // of inbound_rows_
    std::vector<std::vector<Member>> members_;  // by group
    std::map<std::pair<IpAddress, IpAddress>, uint32_t> parties_;

    Adoption out_;
};

void Decider::read_policies(const std::map<uint32_t, xfrm::KernelPolicy>& policies) {
    std::vector<JudgedPolicy> ordered = judge_in_order(policies);
    // Where all out policies of a group begin to name an SPI, they take its number with them, and
    // the in and fwd policies, whose SAs do not care, get another.
    std::vector<GroupNumbers::Name> outbound;
    for (const JudgedPolicy& judged : ordered) {
        if (judged.policy->row.direction != xfrm::PolicyDirection::out) continue;
        outbound.push_back(group_name(judged));
        numbers_.note(outbound.back(), judged.policy->row.index);
    }
    for (const GroupNumbers::Name& name : outbound) (void)numbers_.number(name);
    for (JudgedPolicy& judged : ordered) read_policy(std::move(judged));
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

    const GroupNumbers::Name name = group_name(judged);
    std::string obstacle = judged.obstacle;
    if (obstacle.empty() && policy.if_id != 0) {
        obstacle = "xfrm interface " + std::to_string(policy.if_id);
    }
    judged.entry.policy = number(name, policy.if_id, obstacle);
    if (outbound && !judged.exact()) judged.entry.action = SpdAction::protect;

    // Needs no group, so it may be beyond capacity.
    const bool is_exact_filter = !protects && judged.exact();
    auto& rows = outbound ? outbound_rows_ : inbound_rows_;
    Row row{.judged = std::move(judged), .template_class = {}, .view = policy.row.index};
    TemplateClasses& classes = outbound ? outbound_classes_ : inbound_classes_;
    if (protects) {
        // More than one is an obstacle, but SAs have to know.
        for (const xfrm::Template& wanted : policy.templates) {
            const uint32_t index =
                classes.obtain(class_name(wanted, policy.if_id, name.own), wanted);
            TemplateClass& its_class = classes[index];
            its_class.group = row.judged.entry.policy;
            its_class.obstacle = obstacle;
            its_class.rows.push_back(static_cast<uint32_t>(rows.size()));
            row.template_class = index;
        }
    }
    out_.policies[row.view] = {.index = policy.row.index,
                               .group = row.judged.entry.policy,
                               .action = row.judged.entry.action,
                               .reason = is_exact_filter ? std::string() : std::move(obstacle)};
    rows.push_back(std::move(row));
}

// Whose entries these are where there is no room for all: those of one peer, however many children
// it has, are one party's. Filters are one party too.
uint32_t Decider::party_of(const Row& row) {
    std::pair<IpAddress, IpAddress> ends;
    const xfrm::KernelPolicy& policy = *row.judged.policy;
    if (!policy.templates.empty()) {
        const xfrm::Template& wanted = policy.templates.front();
        ends = std::minmax(wanted.source, wanted.destination);
    }
    return parties_.try_emplace(ends, static_cast<uint32_t>(parties_.size())).first->second;
}

void Decider::leave_rivals_to_kernel() {
    const std::vector<bool> rivals = find_rivals(outbound_rows_);
    for (size_t i = 0; i < outbound_rows_.size(); ++i) {
        Row& row = outbound_rows_[i];
        if (!rivals[i] || !row.judged.exact()) continue;
        if (row.template_class) {
            std::string& obstacle = outbound_classes_[*row.template_class].obstacle;
            if (obstacle.empty()) obstacle = has_rivals();
            continue;
        }
        row.judged.entry.action = SpdAction::protect;
        PolicyView& view = out_.policies[row.view];
        view.action = SpdAction::protect;
        view.reason = has_rivals();
    }
}

void Decider::make_outbound_list() {
    leave_rivals_to_kernel();
    ClaimList list;
    std::vector<const SpdEntry*> passing_on;
    std::vector<size_t> places;
    for (const Row& row : outbound_rows_) {
        const SpdEntry& entry = row.judged.entry;
        places.push_back(list.size());
        list.add(entry, party_of(row), place_of(row.judged));
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
    add_config_policies(list, SpdDirection::outbound);
    const auto regions = regions_of(list.claims(), setup_.entries_max);
    leave_to_kernel(regions, places);
    for (const Row& row : outbound_rows_) {
        std::string& reason = out_.policies[row.view].reason;
        if (row.template_class && reason.empty()) {
            reason = outbound_classes_[*row.template_class].obstacle;
        }
    }
    for (const Region& region : regions) {
        out_.left_open.push_back({.source = region.source, .destination = region.destination});
    }
    SpdList with = with_regions(list.claims(), regions, SpdDirection::outbound, beyond_capacity_);
    out_.outbound = std::move(with.entries);
    out_.outbound_places = std::move(with.places);
}

// What stands behind a region and shares packets with it: the kernel may send by an SA of its
// group, so no worker does. `places`: of the rows, in the list.
void Decider::leave_to_kernel(std::span<const Region> regions, std::span<const size_t> places) {
    for (size_t i = 0; i < places.size() && !regions.empty(); ++i) {
        const Row& row = outbound_rows_[i];
        const SpdEntry& entry = row.judged.entry;
        const auto takes_some = [&](const Region& region) {
            return region.hides_some_of(entry, places[i]);
        };
        const auto region = std::ranges::find_if(regions, takes_some);
        if (region == regions.end()) continue;
        std::string& reason = row.template_class ? outbound_classes_[*row.template_class].obstacle
                                                 : out_.policies[row.view].reason;
        if (!reason.empty()) continue;
        reason = row.template_class ? region->reason : hidden_by(regions, entry, places[i]);
    }
}

void Decider::make_inbound_list() {
    // A `fwd` policy that allows vouches for an `in` policy with the same selector.
    ClaimList list;
    std::vector<const Row*> behind;
    std::vector<std::pair<const Row*, size_t>> places;
    const auto add = [&](const Row& row, const SpdPlace& place) {
        places.emplace_back(&row, list.size());
        list.add(row.judged.entry, party_of(row), place);
    };
    for (const Row& row : inbound_rows_) {
        // Those of an xfrm interface say nothing about what arrives by a port.
        if (row.judged.policy->if_id != 0) continue;
        const SpdPlace place = place_of(row.judged);
        if (row.judged.entry.action != SpdAction::bypass) {
            add(row, place);
        } else if (row.judged.exact()) {
            if (row.judged.policy->row.direction == xfrm::PolicyDirection::forward) {
                add(row, place);
            } else {
                behind.push_back(&row);
            }
        }
    }
    for (const Row* row : behind) {
        add(*row, behind_others(place_of(row->judged)));
    }
    add_config_policies(list, SpdDirection::inbound);
    const auto regions = regions_of(list.claims(), setup_.entries_max);
    for (const auto& [row, place] : places) {
        std::string& reason = out_.policies[row->view].reason;
        if (reason.empty()) reason = hidden_by(regions, row->judged.entry, place);
    }
    SpdList with = with_regions(list.claims(), regions, SpdDirection::inbound, beyond_capacity_);
    out_.inbound = std::move(with.entries);
    out_.inbound_places = std::move(with.places);
    inbound_list_.emplace(inbound_rows_);
}

void Decider::add_config_policies(ClaimList& list, SpdDirection direction) {
    SpdPlace place{.tier = kTierConfiguration};
    for (SpdEntry entry : spd_entries(setup_.policies, direction)) {
        std::string unused;
        entry.policy = number(config_group_name(entry.policy), 0, unused);
        list.add(entry, Claim::kConfiguration, place);
        ++place.index;
    }
}

void Decider::decide_sas() {
    out_.group_count = std::max(numbers_.upper_bound(), 1u);  // beyond_capacity_ at least
    out_.if_id_by_group.resize(out_.group_count);
    members_.resize(out_.group_count);
    const xfrm::SaName* previous = nullptr;
    SaDecision* previous_decision = nullptr;
    for (const auto& [name, sa] : states_) {
        SaDecision& decision = out_.sas.try_emplace(out_.sas.end(), name)->second;
        const auto fitting_out = outbound_classes_.fitting(sa);
        const auto fitting_in = inbound_classes_.fitting(sa);
        // An optional template wants no SA of its own, so it says nothing.
        const auto wants = [](TemplateClasses& classes) {
            return [&](uint32_t index) { return !classes[index].wanted.optional; };
        };
        judge_alone(sa,
                    {.outbound = std::ranges::any_of(fitting_out, wants(outbound_classes_)),
                     .inbound = std::ranges::any_of(fitting_in, wants(inbound_classes_))},
                    setup_, decision);
        if (decision.direction == xfrm::StateDirection::outbound) {
            decide_outbound(sa, fitting_out, decision);
        } else if (decision.direction == xfrm::StateDirection::inbound) {
            decide_inbound(fitting_in, decision);
        }
        if (decision.adopted()) take_form(sa, setup_.suites, decision);
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
        const std::string& obstacle = outbound_classes_[index].obstacle;
        if (!obstacle.empty()) refuse("its policy: " + obstacle);
    }
    for (const uint32_t index : fitting) {
        const TemplateClass& one = outbound_classes_[index];
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
    const auto name = [this](uint32_t index) { return inbound_classes_[index].name; };
    decision.group = inbound_classes_[std::ranges::max(fitting, {}, name)].group;
    std::vector<uint32_t> rows;
    for (const uint32_t index : fitting) {
        const TemplateClass& one = inbound_classes_[index];
        if (!one.obstacle.empty()) refuse("its policy: " + one.obstacle);
        rows.insert(rows.end(), one.rows.begin(), one.rows.end());
    }
    if (!decision.adopted()) return;
    // `in` and `fwd` policies with one selector are one selector.
    auto selectors = selectors_past_others(*inbound_list_, fitting, rows);
    if (!selectors) return refuse(selectors.error());
    decision.selectors = std::move(*selectors);
}

void Decider::choose_owners() {
    for (const auto& group : members_) hold_back(group);
    auto state = states_.begin();
    for (auto& [name, decision] : out_.sas) {
        const xfrm::KernelSa& sa = (state++)->second;  // both have all SAs, in the same order
        if (decision.adopted() && decision.direction == xfrm::StateDirection::inbound) {
            decision.owner = inbound_owner(sa, setup_.cpus);
        }
    }
    for (const auto& group : members_) choose_outbound_owners(group, setup_.cpus);
}

}  // namespace

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
