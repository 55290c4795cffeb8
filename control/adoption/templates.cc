// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/templates.h"

#include <algorithm>
#include <cstring>

#include "control/adoption/sas.h"

namespace sallyport::control::adoption {

size_t TemplateClasses::EndHash::operator()(const End& end) const {
    uint64_t words[2];
    std::memcpy(words, end.address.bytes.data(), sizeof words);
    uint64_t hash = (words[0] ^ end.reqid) * 0x9e3779b97f4a7c15u;
    hash = (hash ^ hash >> 29 ^ words[1]) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 32;
}

const IpAddress& TemplateClasses::far_end(const IpAddress& source,
                                          const IpAddress& destination) const {
    return direction_ == xfrm::StateDirection::outbound ? destination : source;
}

uint32_t TemplateClasses::obtain(const GroupNumbers::Name& name, const xfrm::Template& wanted) {
    const auto [known, is_new] = by_name_.try_emplace(name, static_cast<uint32_t>(classes_.size()));
    if (!is_new) return known->second;
    classes_.push_back(
        {.name = name, .wanted = wanted, .if_id = name.if_id, .obstacle = {}, .rows = {}});
    const IpAddress& end = far_end(wanted.source, wanted.destination);
    by_end_[{wanted.reqid, end}].push_back(known->second);
    if (is_any(end)) some_name_no_end_ = true;
    if (wanted.reqid == 0) some_name_no_reqid_ = true;
    return known->second;
}

void TemplateClasses::look(const End& end, const xfrm::KernelSa& sa,
                           std::vector<uint32_t>& found) const {
    const auto bucket = by_end_.find(end);
    if (bucket == by_end_.end()) return;
    for (const uint32_t index : bucket->second) {
        const TemplateClass& one = classes_[index];
        if (direction_ == xfrm::StateDirection::outbound
                ? fits_outbound(one.wanted, one.if_id, sa)
                : fits_inbound(one.wanted, one.if_id, sa)) {
            found.push_back(index);
        }
    }
}

std::vector<uint32_t> TemplateClasses::fitting(const xfrm::KernelSa& sa) const {
    const IpAddress end = far_end(sa.source, sa.name.destination);
    const IpAddress any{.family = end.family};
    std::vector<uint32_t> found;
    const bool ask_any_end = some_name_no_end_ && end != any;
    look({sa.reqid, end}, sa, found);
    if (ask_any_end) look({sa.reqid, any}, sa, found);
    if (direction_ == xfrm::StateDirection::inbound && some_name_no_reqid_ && sa.reqid != 0) {
        look({0, end}, sa, found);
        if (ask_any_end) look({0, any}, sa, found);
    }
    std::ranges::sort(found);
    return found;
}

}  // namespace sallyport::control::adoption
