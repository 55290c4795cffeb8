// SPDX-License-Identifier: Apache-2.0
#pragma once

// What policies go by: the place in their list, the group that they are of, and the class of
// templates that SAs are compared with (control/adoption/decide.h, "Policies").

#include <cstdint>

#include "control/adoption/groups.h"
#include "control/adoption/policies.h"
#include "control/xfrm/values.h"
#include "dataplane/spd/place.h"

namespace sallyport::control::adoption {

// SpdPlace::tier, in the order of the list.
enum Tier : uint8_t {
    kTierSub,  // sub policies
    kTierMain,
    kTierLastSub,  // `in` policies without a `fwd` twin
    kTierLast,
    kTierConfiguration,
};

// Where a policy stands in the list of its direction. The kernel asks by priority; which of one
// priority it asks first nobody can tell (rivals.h). Here those stand first that may keep a packet
// from leaving or entering: what selects by ports, of which fragments show none, and inbound what
// does not allow.
SpdPlace place_of(const JudgedPolicy& judged);
// The kernel may ask either of two such before the other.
inline bool of_one_priority(const SpdPlace& a, const SpdPlace& b) {
    return a.tier == b.tier && a.priority == b.priority;
}
// In the list of the inbound SPD, of one that has `place` among the kernel's: without a `fwd` twin.
SpdPlace behind_others(SpdPlace place);

// Of a policy with templates; addresses as its own packets have them.
GroupNumbers::Name class_name(const xfrm::Template& wanted, uint32_t if_id, uint32_t own);
// The group that a policy is of.
GroupNumbers::Name group_name(const JudgedPolicy& judged);
// Of a policy of the configuration, by its number there.
GroupNumbers::Name config_group_name(PolicyId number);
// Of all policies that there is no number for.
GroupNumbers::Name name_beyond_capacity();

}  // namespace sallyport::control::adoption
