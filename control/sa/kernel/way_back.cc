// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/way_back.h"

#include <algorithm>
#include <utility>

namespace sallyport::control {

// Both directions of a tunnel go together.
void WayBack::begin() {
    begun_ = true;
    reconciler_.stop_coming();
    handover_.begin_return();
    using Tunnel = std::pair<IpAddress, IpAddress>;
    std::vector<std::pair<Tunnel, SaId>> all;
    for (const auto& [name, slot] : slots_.by_name()) {
        all.emplace_back(Tunnel(std::minmax(slot->source, name.destination)), slot->id);
    }
    std::ranges::sort(all);
    for (const auto& [tunnel, id] : all) left_.push_back(id);
}

bool WayBack::name() {
    if (!named_.empty() || slots_.size() - slots_.by_name().size() > batch_) return false;
    while (named_.size() < batch_ && !left_.empty()) {
        Slot* slot = slots_.find(left_.back());
        left_.pop_back();
        if (slot == nullptr || slot->phase == Phase::retiring) continue;
        slots_.leave_group(*slot);
        slot->going_back = true;
        named_.push_back(slot->id);
    }
    if (named_.empty()) return false;
    named_at_ = clock_.now();
    return true;
}

void WayBack::retire() {
    if (clock_.now() < named_at_ + Handover::kSettle) return;
    std::vector<Slot*> going;
    for (const SaId id : std::exchange(named_, {})) {
        Slot* slot = slots_.find(id);
        if (slot == nullptr || slot->phase == Phase::retiring) continue;
        slots_.leave(*slot);
        going.push_back(slot);
    }
    for (Slot* slot : going) handover_.retire(*slot);
}

}  // namespace sallyport::control
