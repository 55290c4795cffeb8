// SPDX-License-Identifier: Apache-2.0
#pragma once

// The SPD of the register, kept compiled: what changes is compiled, the rest stays. A change is a
// transaction: draft, then commit(), drop() or roll_back(). Owner: control thread.

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>

#include "dataplane/spd/classes.h"
#include "dataplane/spd/place.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control {

// Both lists of a policy set, in rows for the XDP maps; and the object for workers.
struct SpdUpdate {
    struct Whole {
        CompiledSpd outbound;
        CompiledSpd inbound;
    };
    std::variant<Whole, SpdRowChanges> rows;
    std::unique_ptr<const Spd> spd;
};

// What the XDP maps have room for, both directions together.
struct SpdRoom {
    size_t destinations = 0;
    size_t sources = 0;
    size_t entries = 0;
};

class SpdCompiler {
  public:
    struct Misfit {
        std::string text;
        double share = 0;  // of the room there is, more than 1; 0: that is not it
    };

    void open(const SpdRoom& room) { room_ = room; }

    // The lists in force, changed: by rows where that does, else as a whole. Without lists in
    // force it begins with empty ones. nullopt: nothing changes.
    std::expected<std::optional<SpdUpdate>, Misfit> change(const SpdEdits& edits);
    // From the lists in force to these. `places`: of each entry, ascending.
    [[nodiscard]] SpdEdits edits_to(std::span<const SpdPlace> outbound_places,
                                    std::span<const SpdEntry> outbound,
                                    std::span<const SpdPlace> inbound_places,
                                    std::span<const SpdEntry> inbound) const;

    // The draft is in force; drop(): it is not, and nobody has seen it.
    void commit();
    void drop();
    // It has been tried: what comes next does not count on rows that may be half back.
    void roll_back();

  private:
    struct State {
        SpdRuns runs{kSpdRowsMax};
        SpdClasses outbound{runs};
        SpdClasses inbound{runs};
        Spd spd;
        [[nodiscard]] double share_of(const SpdRoom& room) const;
    };
    using Items = std::vector<std::pair<SpdPlace, SpdEntry>>;

    std::expected<SpdUpdate, Misfit> compile_items(const Items& outbound, const Items& inbound);
    std::optional<SpdRowChanges> change_rows(const SpdEdits& edits);
    [[nodiscard]] static Misfit no_room(double share);

    SpdRoom room_;
    std::unique_ptr<State> in_force_;
    std::unique_ptr<State> whole_;  // draft
    std::optional<Spd> next_spd_;   // draft of rows
    bool rest_ = false;             // of that
    bool whole_next_ = false;
};

}  // namespace sallyport::control
