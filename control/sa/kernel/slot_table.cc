// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/slot_table.h"

#include <cassert>

namespace sallyport::control {
namespace {

template <typename Name>
void count_down(std::map<Name, size_t>& counts, const Name& name) {
    const auto found = counts.find(name);
    if (found != counts.end() && --found->second == 0) counts.erase(found);
}

}  // namespace

Slot& SlotTable::create(const xfrm::SaName& name, const SequenceMemory::Name& memory_name) {
    auto index = static_cast<uint32_t>(places_.size());
    if (free_.empty()) {
        places_.emplace_back();
    } else {
        index = free_.back();
        free_.pop_back();
    }
    Place& place = places_[index];
    place.slot = std::make_unique<Slot>();
    place.slot->id = make_sa_id(index, place.generation);
    place.slot->name = name;
    place.slot->memory_name = memory_name;
    by_name_.emplace(name, place.slot.get());
    ++count_;
    return *place.slot;
}

void SlotTable::join_group(Slot& slot) {
    by_group_.emplace(slot.decision.group, slot.id);
    changed_groups_.insert(slot.decision.group);
}

void SlotTable::leave_group(const Slot& slot) {
    if (by_group_.erase({slot.decision.group, slot.id}) != 0) {
        changed_groups_.insert(slot.decision.group);
    }
}

void SlotTable::leave(Slot& slot) {
    assert(slot.phase != Phase::retiring);
    leave_group(slot);
    by_name_.erase(slot.name);
    slot.phase = Phase::retiring;
    ++leaving_names_[slot.name];
    ++leaving_keys_[slot.memory_name];
}

void SlotTable::release(Slot& slot) {
    if (slot.phase == Phase::retiring) {
        count_down(leaving_names_, slot.name);
        count_down(leaving_keys_, slot.memory_name);
    } else {
        leave_group(slot);
        by_name_.erase(slot.name);
    }
    const uint32_t index = to_index(slot.id);
    Place& place = places_[index];
    place.slot.reset();
    --count_;
    // After 2^32 turns the place rests for good: an id is never given twice.
    if (++place.generation != 0) free_.push_back(index);
}

Slot* SlotTable::find(SaId id) const {
    const uint32_t index = to_index(id);
    if (index >= places_.size()) return nullptr;
    Slot* slot = places_[index].slot.get();
    return slot != nullptr && slot->id == id ? slot : nullptr;
}

Slot* SlotTable::find(const xfrm::SaName& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
}

bool SlotTable::is_clear(const Slot& slot) const {
    return !leaving_names_.contains(slot.name) && !leaving_keys_.contains(slot.memory_name);
}

bool SlotTable::is_only_one_of_name(const Slot& slot) const {
    const Slot* named = find(slot.name);
    if (named != nullptr && named != &slot) return false;
    const auto leaving = leaving_names_.find(slot.name);
    const size_t others = leaving == leaving_names_.end() ? 0 : leaving->second;
    return others == (slot.phase == Phase::retiring ? 1 : 0);
}

}  // namespace sallyport::control
