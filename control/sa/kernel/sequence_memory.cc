// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/sequence_memory.h"

#include <algorithm>

namespace sallyport::control {

SequenceMemory::State SequenceMemory::find(const Name& name) const {
    const auto found = names_.find(name);
    return found == names_.end() ? State{} : found->second.state;
}

bool SequenceMemory::knows(Spi spi, uint8_t protocol) const {
    const auto found = names_.lower_bound({.spi = spi, .protocol = protocol, .key = {}});
    return found != names_.end() && found->first.spi == spi && found->first.protocol == protocol;
}

void SequenceMemory::raise(const Name& name, const State& used) {
    const auto [found, is_new] = names_.try_emplace(name);
    Entry& entry = found->second;
    entry.state.outbound_next = std::max(entry.state.outbound_next, used.outbound_next);
    entry.state.inbound_top = std::max(entry.state.inbound_top, used.inbound_top);
    if (!is_new) by_age_.erase(entry.noted);
    entry.noted = ++clock_;
    by_age_.emplace(entry.noted, name);
    if (names_.size() > kNamesMax) {
        const auto oldest = by_age_.begin();
        names_.erase(oldest->second);
        by_age_.erase(oldest);
    }
}

}  // namespace sallyport::control
