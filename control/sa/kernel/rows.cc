// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/rows.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <string>

#include "control/adoption/suites.h"
#include "dataplane/base/single_writer.h"

namespace sallyport::control {

namespace {

uint64_t seconds_since_epoch() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(now).count());
}

std::optional<uint64_t> ago(uint64_t then) {
    if (then == 0) return std::nullopt;
    const uint64_t now = seconds_since_epoch();
    return now > then ? now - then : 0;
}

std::string reqid_text(uint32_t reqid) {
    return "reqid " + std::to_string(reqid);
}

void set_usage(SaRow& row, const xfrm::Usage& usage) {
    row.packets = usage.packets;
    row.bytes = usage.bytes;
    if (row.life) row.life->idle_s = ago(usage.use_time);
}

void set_drops(SaRow& row, const std::array<Counter, kDropReasonCount>& drops) {
    for (size_t i = 0; i < drops.size(); ++i) row.drops[i] = drops[i].read();
}

}  // namespace

void set_slot(SaRow& row, const Slot& slot) {
    row.state = SaRow::State::active;
    row.reason.clear();
    row.worker = slot.owner();
    const Work work = work_of(slot);
    set_usage(row, usage_of(slot, work));
    if (const OutboundSide* side = slot.outbound()) {
        row.sequence = side->sa->sequence_next.read() - 1;
        row.sequence_reserved = side->reserved - 1;
        set_drops(row, side->sa->drops);
    } else {
        row.sequence = work.top;
        set_drops(row, slot.inbound()->counting()->drops);
    }
}

SaRow row_of(const xfrm::KernelSa& state, const SaDecision* decision) {
    SaRow row{.name = reqid_text(state.reqid),
              .spi = state.name.spi,
              .source = state.source,
              .destination = state.name.destination,
              .suite = adoption::shown_suite(state),
              .esn = state.esn,
              .policy = reqid_text(state.reqid),
              .state = SaRow::State::with_kernel,
              .sequence = std::max(state.replay.sent, state.replay.top),
              .life = SaRow::Life{.limits = state.limits, .age_s = ago(state.usage.add_time)}};
    if (decision != nullptr) {
        row.direction = decision->direction;
        row.reason = decision->reason;
    }
    if (row.direction == xfrm::StateDirection::inbound) row.replay_window = state.replay.window;
    set_usage(row, state.usage);
    return row;
}

PolicyRow row_of(const xfrm::KernelPolicy& policy, const PolicyView& view) {
    const xfrm::PolicySelector& selector = policy.row.selector;
    const bool outbound = policy.row.direction == xfrm::PolicyDirection::out;
    const PolicyRow::Ports source{.value = selector.source_port, .mask = selector.source_port_mask};
    const PolicyRow::Ports destination{.value = selector.destination_port,
                                       .mask = selector.destination_port_mask};
    PolicyRow row{.name = policy.templates.empty() ? "index " + std::to_string(view.index)
                                                   : reqid_text(policy.templates.front().reqid),
                  .direction = policy.row.direction,
                  .priority = policy.row.priority,
                  .action = view.action,
                  .local = outbound ? selector.source : selector.destination,
                  .remote = outbound ? selector.destination : selector.source,
                  .local_ports = outbound ? source : destination,
                  .remote_ports = outbound ? destination : source,
                  .if_id = policy.if_id,
                  .reason = view.reason};
    if (selector.protocol != 0) row.protocol = selector.protocol;
    return row;
}

}  // namespace sallyport::control
