// SPDX-License-Identifier: Apache-2.0
#pragma once

// The `in` and `fwd` policies as one list, and what an SA may carry past it
// (control/adoption/decide.h, "Selectors of an inbound SA").

#include <cstdint>
#include <expected>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "control/adoption/policies.h"
#include "control/adoption/selectors.h"

namespace sallyport::control::adoption {

inline auto selector_key(const SpdEntry& entry) {
    const SpdEntry& e = entry;
    return std::tuple(e.source.address, e.source.bits, e.destination.address, e.destination.bits,
                      e.protocol, e.has_ports, e.source_port_lo, e.source_port_hi,
                      e.destination_port_lo, e.destination_port_hi);
}
using SelectorKey = decltype(selector_key(SpdEntry{}));

// One line of a direction's list, in kernel order.
struct Row {
    JudgedPolicy judged;
    std::optional<uint32_t> template_class;
    size_t view = 0;  // in Adoption::policies
};

class InboundSelectors {
  public:
    // `rows` outlives the object.
    explicit InboundSelectors(std::span<const Row> rows);
    InboundSelectors(const InboundSelectors&) = delete;  // the index refers to the entries
    InboundSelectors& operator=(const InboundSelectors&) = delete;

    // Of an SA that fits the template classes `fitting` (ascending), whose rows are `positions`.
    // Fails with the reason why it stays with the kernel.
    [[nodiscard]] std::expected<std::vector<Selector>, std::string> of(
        std::span<const uint32_t> fitting, std::span<const uint32_t> positions) const;

  private:
    // Where a selector stands first in either list.
    struct Places {
        static constexpr uint32_t kNowhere = std::numeric_limits<uint32_t>::max();
        uint32_t in = kNowhere;
        uint32_t forward = kNowhere;
    };
    [[nodiscard]] bool is_forward(uint32_t position) const {
        return rows_[position].judged.policy->row.direction == xfrm::PolicyDirection::forward;
    }
    // Positions of those that may be asked before the policies at `places`, wide ones first.
    [[nodiscard]] std::vector<uint32_t> before(const Places& places) const;
    // What a packet by the SA may be to pass the policies at `places`.
    [[nodiscard]] std::expected<std::vector<Selector>, std::string> past(
        std::span<const uint32_t> fitting, const Places& places) const;

    std::span<const Row> rows_;
    std::vector<SpdEntry> entries_;
    OverlapIndex index_;
};

}  // namespace sallyport::control::adoption
