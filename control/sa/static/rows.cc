// SPDX-License-Identifier: Apache-2.0
#include "control/sa/static/rows.h"

#include <string>

namespace sallyport::control {

namespace {

// Counts of a running SA. The plain fields belong to its worker; an aligned 64-bit load gives some
// value it had, which is all a display needs.
template <typename Sa>
void add_counters(SaRow& row, const Sa& sa) {
    row.packets = sa.packets.read();
    row.bytes = sa.bytes.read();
    for (size_t i = 0; i < row.drops.size(); ++i) row.drops[i] = sa.drops[i].read();
}

}  // namespace

SaRow row_of(const ManagedSa& sa) {
    const config::StaticSa& config = *sa.config;
    SaRow row{.name = config.name,
              .direction =
                  sa.is_outbound() ? xfrm::StateDirection::outbound : xfrm::StateDirection::inbound,
              .spi = config.spi,
              .source = config.source,
              .destination = config.destination,
              .suite = std::string(config.suite->name),
              .esn = config.esn,
              .policy = config.policy,
              .worker = sa.owner,
              .state = sa.active() ? SaRow::State::active : SaRow::State::refused,
              .reason = sa.refusal,
              .replay_window = sa.is_outbound() ? 0 : config.replay_window};
    if (sa.outbound) {
        add_counters(row, *sa.outbound);
        row.sequence = sa.outbound->sequence_next.read() - 1;
        row.sequence_reserved = sa.sequence_reserved - 1;
    } else if (sa.inbound) {
        add_counters(row, *sa.inbound);
        row.sequence = sa.inbound->replay.top();
    }
    return row;
}

}  // namespace sallyport::control
