// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/names.h"

#include <limits>
#include <utility>

namespace sallyport::control::adoption {

namespace {

constexpr uint32_t kConfigOwn = 0x80000000;
constexpr uint8_t kOwnModeConfig = 0xfe;  // what is no group of the register
constexpr uint8_t kOwnModeKernel = 0xff;

}  // namespace

SpdPlace place_of(const JudgedPolicy& judged) {
    const xfrm::KernelPolicy& policy = *judged.policy;
    const bool lets_in = policy.row.direction != xfrm::PolicyDirection::out &&
                         judged.entry.action == SpdAction::bypass;
    const uint32_t shows = judged.entry.has_ports ? 0 : judged.entry.protocol != 0 ? 1 : 2;
    return {.tier = policy.main_type ? kTierMain : kTierSub,
            .priority = policy.row.priority,
            .rank = (lets_in ? 3 : 0) + shows,
            .index = policy.row.index};
}

SpdPlace behind_others(SpdPlace place) {
    place.tier = place.tier == kTierMain ? kTierLast : kTierLastSub;
    return place;
}

GroupNumbers::Name class_name(const xfrm::Template& wanted, uint32_t if_id, uint32_t own) {
    return {.source = wanted.source,
            .destination = wanted.destination,
            .reqid = wanted.reqid,
            .mode = static_cast<uint8_t>(wanted.mode),
            .protocol = wanted.protocol,
            .if_id = if_id,
            .own = own,
            .spi = wanted.spi};
}

GroupNumbers::Name group_name(const JudgedPolicy& judged) {
    const xfrm::KernelPolicy& policy = *judged.policy;
    if (judged.entry.action != SpdAction::protect || !judged.exact()) {
        return {.own = policy.row.index};
    }
    GroupNumbers::Name name = class_name(policy.templates.front(), policy.if_id, 0);
    if (policy.row.direction != xfrm::PolicyDirection::out) {
        std::swap(name.source, name.destination);
    }
    return name;
}

GroupNumbers::Name config_group_name(PolicyId number) {
    return {.mode = kOwnModeConfig, .own = kConfigOwn + to_index(number)};
}

GroupNumbers::Name name_beyond_capacity() {
    return {.mode = kOwnModeKernel, .own = std::numeric_limits<uint32_t>::max()};
}

}  // namespace sallyport::control::adoption
