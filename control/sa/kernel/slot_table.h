// SPDX-License-Identifier: Apache-2.0
#pragma once

// The slots, by id (what a worker says) and by name (what the register says).
//
//   create() ---> has its name ---> leave() ---> has its id only ---> release() ---> its place is
//                                                                                   free
// A name may be taken again while one that had it is still on its way out, so that its frames are
// steered at once; but is_clear() says no until nobody of the same name or key is: what the one
// before has sent or accepted is not known earlier. An id is never given twice: a place that is
// given again has another generation.
//
// Knows no kernel. Owner: control thread.

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "control/sa/kernel/slot.h"

namespace sallyport::control {

class SlotTable {
  public:
    // `capacity`: of a worker's table, which never refuses an SA: those on their way out count too.
    explicit SlotTable(size_t capacity) : capacity_(capacity) {}

    [[nodiscard]] bool full() const { return count_ >= capacity_; }
    // For so many more.
    [[nodiscard]] size_t room() const { return capacity_ - count_; }
    // `name` is free.
    Slot& create(const xfrm::SaName& name, const SequenceMemory::Name& memory_name);
    // Outbound, when its decision is known: it counts for its group until it gives up its name.
    void join_group(Slot& slot);
    // It counts for its group no more, before it gives up its name or as it does.
    void leave_group(const Slot& slot);
    // It gives up its name.
    void leave(Slot& slot);
    // With or without leave(). The slot is gone afterwards.
    void release(Slot& slot);

    // Null: that one has gone, whoever has its place now.
    [[nodiscard]] Slot* find(SaId id) const;
    // Null: none, or on its way out.
    [[nodiscard]] Slot* find(const xfrm::SaName& name) const;
    // One of this key is on its way out.
    [[nodiscard]] bool is_leaving(const SequenceMemory::Name& key) const {
        return leaving_keys_.contains(key);
    }
    // Nobody of its name or key is on its way out. Of one that has its name.
    [[nodiscard]] bool is_clear(const Slot& slot) const;
    // No other has its name, or is on its way out with it.
    [[nodiscard]] bool is_only_one_of_name(const Slot& slot) const;

    // Of one group: those that count for it.
    template <typename Visit>
    void for_each_of_group(PolicyId group, Visit visit) const {
        for (auto it = by_group_.lower_bound({group, SaId{}});
             it != by_group_.end() && it->first == group; ++it) {
            visit(*find(it->second));
        }
    }
    // Groups that some have joined or left since their owners were published last.
    [[nodiscard]] const std::set<PolicyId>& changed_groups() const { return changed_groups_; }
    void owners_published() { changed_groups_.clear(); }

    // Of this name the next round must think again, though neither the register nor the decision
    // is another.
    void doubt(const xfrm::SaName& name) { doubtful_.insert(name); }
    [[nodiscard]] const std::set<xfrm::SaName>& doubtful() const { return doubtful_; }
    void forget_doubts() { doubtful_.clear(); }

    // Steered or installed.
    [[nodiscard]] const std::map<xfrm::SaName, Slot*>& by_name() const { return by_name_; }
    // All, those on their way out too.
    template <typename Visit>
    void for_each(Visit visit) const {
        for (const Place& place : places_) {
            if (place.slot) visit(*place.slot);
        }
    }
    [[nodiscard]] size_t size() const { return count_; }
    // By index of the id, for a walk that takes breaks: below places(), which may grow meanwhile.
    // Null: free.
    [[nodiscard]] Slot* at(size_t index) const { return places_[index].slot.get(); }
    [[nodiscard]] size_t places() const { return places_.size(); }

  private:
    struct Place {
        std::unique_ptr<Slot> slot;  // null: free
        uint32_t generation = 0;     // of the slot, or of the next one
    };
    template <typename Name>
    using Counts = std::map<Name, size_t>;

    size_t capacity_;
    size_t count_ = 0;
    std::vector<Place> places_;  // by index of the id
    std::vector<uint32_t> free_;
    std::map<xfrm::SaName, Slot*> by_name_;
    std::set<std::pair<PolicyId, SaId>> by_group_;
    std::set<PolicyId> changed_groups_;
    std::set<xfrm::SaName> doubtful_;
    Counts<xfrm::SaName> leaving_names_;
    Counts<SequenceMemory::Name> leaving_keys_;
};

}  // namespace sallyport::control
