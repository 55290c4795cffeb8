// SPDX-License-Identifier: Apache-2.0
#pragma once

// The `in` and `fwd` policies as one list, and what an SA may carry past it
// (control/adoption/decide.h, "Selectors of an inbound SA").

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "control/adoption/policies.h"
#include "control/adoption/selectors.h"
#include "dataplane/spd/place.h"

namespace sallyport::control::adoption {

// Of two entries with one key the second never decides.
inline auto selector_key(const SpdEntry& entry) {
    const SpdEntry& e = entry;
    return std::tuple(e.source.address, e.source.bits, e.destination.address, e.destination.bits,
                      e.protocol, e.has_ports, e.source_port_lo, e.source_port_hi,
                      e.destination_port_lo, e.destination_port_hi, e.ct_mark, e.ct_mark_mask);
}
using SelectorKey = decltype(selector_key(SpdEntry{}));

// One line of a direction's list.
struct Row {
    JudgedPolicy judged;
    std::optional<uint32_t> template_class;
    uint32_t view = 0;  // in Adoption::policies
};

// The list, by what its lines are called.
class InboundList {
  public:
    using Line = uint32_t;
    struct View {
        const SpdEntry* entry = nullptr;
        bool forward = false;  // `fwd`, else `in`
        SpdPlace place;        // see names.h
        std::optional<uint32_t> template_class;
        bool of_interface = false;              // does not apply to SAs without one
        const std::string* obstacle = nullptr;  // it may pass on packets of its entry; null: not
    };
    [[nodiscard]] virtual View view(Line line) const = 0;
    // Those whose entries share packets with that of `line`, itself included, in no order.
    [[nodiscard]] virtual std::vector<Line> overlapping(Line line) const = 0;

    InboundList() = default;
    InboundList(const InboundList&) = delete;
    InboundList& operator=(const InboundList&) = delete;
    virtual ~InboundList() = default;
};

// What an SA may carry that fits the template classes `fitting` (ascending), whose lines are
// `lines`. Fails with the reason why it stays with the kernel.
std::expected<std::vector<Selector>, std::string> selectors_past_others(
    const InboundList& list, std::span<const uint32_t> fitting,
    std::span<const InboundList::Line> lines);

// Rows as such a list; a line is a position.
class ListedRows final : public InboundList {
  public:
    // `rows` outlives the object.
    explicit ListedRows(std::span<const Row> rows);

    [[nodiscard]] View view(Line line) const override;
    [[nodiscard]] std::vector<Line> overlapping(Line line) const override {
        return index_.overlapping(line);
    }

  private:
    std::span<const Row> rows_;
    std::vector<SpdEntry> entries_;
    OverlapIndex index_;
};

}  // namespace sallyport::control::adoption
