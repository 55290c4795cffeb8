// SPDX-License-Identifier: Apache-2.0
#pragma once

// What RunningAdoption knows of the register between steps (control/adoption/running.h), by index
// for all that one thing asks of others.
//
// Owner: control thread.

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "control/adoption/decide.h"
#include "control/adoption/groups.h"
#include "control/adoption/inbound_selectors.h"
#include "control/adoption/running.h"
#include "control/adoption/selectors.h"
#include "control/adoption/undo.h"
#include "dataplane/spd/place.h"

namespace sallyport::control {

class RunningAdoption::Tables final : public adoption::InboundList {
  public:
    // `adoption`: where it goes; outlives the object.
    explicit Tables(Adoption& adoption) : out_(adoption) {}

    // From nothing, in a round of `numbers` that begins here. False: something uncommon is there,
    // and the object is of no use.
    bool fill(const Register& now, const AdoptionSetup& setup, GroupNumbers& numbers);
    // A step, in a round of `numbers` that begins here. False: the same, and undo() is due.
    bool step(const Register& now, const xfrm::RegisterChanges& changes, const AdoptionSetup& setup,
              GroupNumbers& numbers, Change& change);
    void keep() { undo_.forget(); }
    void undo() { undo_.run(); }

    // --- as a list of `in` and `fwd` policies, by index
    [[nodiscard]] View view(Line line) const override;
    [[nodiscard]] std::vector<Line> overlapping(Line line) const override;

  private:
    using ClassId = uint32_t;
    enum Side : uint8_t { kOut, kIn };  // lists: `out`, and `in` with `fwd`

    struct Policy {
        SpdEntry entry;  // with its group
        std::optional<xfrm::Template> wanted;
        xfrm::PolicyDirection direction = xfrm::PolicyDirection::out;
        SpdPlace place;
        std::optional<ClassId> template_class;
        bool has_rivals = false;

        [[nodiscard]] Side side() const {
            return direction == xfrm::PolicyDirection::out ? kOut : kIn;
        }
    };
    struct Group {
        std::optional<PolicyId> number;
        uint64_t marks = 0;  // GroupNumbers::policy_mark() of its `out` policies
        uint32_t out = 0;
        uint32_t in = 0;
    };
    struct TemplateClass {
        GroupNumbers::Name name;
        xfrm::Template wanted;
        Side side = kOut;
        PolicyId group{};
        int with_rivals = 0;  // of its policies
    };
    struct Sa {
        IpAddress source;
        uint32_t reqid = 0;
        std::array<std::vector<ClassId>, 2> fitting;  // by Side, ascending
    };
    // Far end of templates, or of SAs.
    using End = std::tuple<Side, IpAddress, uint32_t>;
    using ClaimKey = std::pair<adoption::SelectorKey, SpdPlace>;

    // A policy that came, went or is another.
    struct Touched {
        std::optional<Policy> before;
        std::optional<Policy> after;
        bool updated = false;  // else only its group has another number, or it has rivals now
    };
    // What a step works on.
    struct Step {
        const Register& now;
        const AdoptionSetup& setup;
        GroupNumbers& numbers;
        std::map<uint32_t, Touched> touched;  // by index
        std::set<GroupNumbers::Name> names;   // that policies left or joined
        std::vector<GroupNumbers::Name> renumbered;
        std::set<uint32_t> rivals;        // policies that gained or lost one
        std::set<uint32_t> shown;         // policies that are shown otherwise
        std::set<ClassId> classes;        // whose SAs are decided anew
        std::set<xfrm::SaName> unfitted;  // whose classes may be others
        std::array<std::map<adoption::SelectorKey, std::optional<std::pair<SpdPlace, SpdEntry>>>, 2>
            first_before;  // of selectors that changed
    };

    bool read_policy(Step& step, uint32_t index);
    bool change_all_policies(Step& step);
    bool decide_touched(Step& step, Change& change);
    bool number_groups(Step& step);
    void touch_renumbered(Step& step);
    void meet_rivals(Step& step);
    void leave_rivals(Step& step, uint32_t index, const Policy& before);
    void join_rivals(Step& step, uint32_t index, const Policy& after);
    void count_rivals(Step& step, uint32_t index, int more);
    void count_in_class(Step& step, const Policy& policy, int more);
    void change_policies(Step& step);
    void change_policy(Step& step, uint32_t index, Touched& touched);
    void remove_policy(Step& step, uint32_t index, const Policy& before);
    void show(uint32_t index);
    void put_into_lists(Step& step, const Policy& policy);
    void take_from_lists(Step& step, const Policy& policy);
    void note_first(Step& step, Side side, const adoption::SelectorKey& key);
    void disturb_inbound(Step& step, const Policy& policy);
    void join_class(Step& step, uint32_t index, Policy& policy);
    void leave_class(Step& step, uint32_t index, const Policy& policy);
    void renumber_classes(Step& step);
    [[nodiscard]] bool pair_has_room(Side side, const SpdEntry& entry) const;
    [[nodiscard]] bool has_room(const Step& step) const;
    void make_edits(Step& step);
    void make_lists();
    void edit_lists();
    std::optional<SpdEntry> put_into_list(Side side, const SpdPlace& place,
                                          const std::optional<SpdEntry>& entry);
    void count_groups(const GroupNumbers& numbers);
    bool add_configuration(Step& step);
    bool read_state(Step& step, const xfrm::SaName& name);
    void fit(Step& step, const xfrm::SaName& name, std::set<xfrm::SaName>& again, Change& change);
    void refit(Step& step, const xfrm::SaName& name, Side side, std::vector<ClassId>& fitting,
               std::vector<ClassId> now);
    [[nodiscard]] std::vector<ClassId> classes_for(const xfrm::KernelSa& sa, Side side) const;
    bool decide_sas(Step& step, std::set<xfrm::SaName> again, Change& change);
    void decide_groups(const Step& step, const std::set<ClassId>& groups,
                       std::map<xfrm::SaName, SaDecision>& fresh) const;
    [[nodiscard]] SaDecision decide_alone(const Step& step, const xfrm::KernelSa& sa,
                                          const Sa& known) const;
    void decide_inbound(const Sa& known, SaDecision& decision) const;

    [[nodiscard]] std::vector<uint32_t> overlapping(Side side, const SpdEntry& entry) const;
    [[nodiscard]] bool fits(ClassId id, const xfrm::KernelSa& sa) const;
    template <typename Visit>
    void for_each_row(ClassId id, Visit visit) const;
    template <typename Visit>
    void for_each_fitting(ClassId id, Visit visit) const;
    static GroupNumbers::Name name_of(uint32_t index, const Policy& policy);
    static bool are_rivals(const Policy& a, const Policy& b);
    static SpdEntry entry_in_list(const Policy& policy);
    static SpdPlace place_in_list(const Policy& policy);
    static End end_of(const TemplateClass& one);

    Adoption& out_;
    adoption::Undo undo_;
    std::map<uint32_t, Policy> policies_;  // by index
    std::map<GroupNumbers::Name, Group> groups_;
    std::array<adoption::OverlapMap, 2> overlaps_;  // by Side, of policies
    std::map<uint32_t, int> rivals_;                // how many, of policies that have any
    // The entries that have a selector: the first is in the list, the others never decide.
    std::array<std::map<ClaimKey, SpdEntry>, 2> claims_;
    std::array<std::map<SpdPlace, SpdEntry>, 2> lists_;
    std::array<std::vector<SpdEntry>, 2> narrow_of_configuration_;

    ClassId next_class_ = 0;
    std::unordered_map<ClassId, TemplateClass> classes_;
    std::map<std::pair<Side, GroupNumbers::Name>, ClassId> class_ids_;
    std::set<std::pair<ClassId, uint32_t>> class_rows_;  // policies
    std::set<std::pair<End, ClassId>> classes_by_end_;

    std::map<xfrm::SaName, Sa> sas_;
    std::set<std::pair<End, xfrm::SaName>> sas_by_end_;
    std::set<std::pair<ClassId, xfrm::SaName>> fitting_sas_;
};

}  // namespace sallyport::control
