// SPDX-License-Identifier: Apache-2.0
#pragma once

// One direction's list, kept compiled: what compile_spd() makes of a list, changed entry by entry.
//
// A change of one entry touches its destination's class, there the cells of its source and of those
// inside it, and of classes inside only what they know of those around them: nothing wider, neither
// of destinations nor of sources. So the rows of one change can be put one by one into maps that
// are in use, in this order, and each lookup meanwhile gives the verdict of before or of after:
//
//   entry comes     a row that is new says all that is known there; it is put before any other goes
//   entry goes      its row is taken away last; what is wider answers then, and has not changed
//   class is held   alone or not any more: all its rows anew under another number, and one write of
//                   its destination leads there
//
// Several changes are made one after another, in the order that keeps this true for all of them
// together: first what comes, in SPD order; then what goes, the last first. With what has come in
// SPD order, an entry that decides is either that of before or has all new ones in front of it in
// place, so it is that of after; and the same backwards for what goes. Two changes that share
// packets and not their addresses stand in different rows, which a lookup does not read at one
// time: between those it is waited until no program runs that began before (Wait), also where the
// first of them was made by an earlier call.
//
// Where that does not do (too many changes at once, no number left between two entries), the list
// is compiled anew as a whole.
//
// Owner: control thread.

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bpf/abi.h"
#include "dataplane/base/ip.h"
#include "dataplane/base/prefix_trie.h"
#include "dataplane/spd/place.h"
#include "dataplane/spd/spd.h"

namespace sallyport {

// An entry in its list.
struct SpdListed {
    SpdPlace place;
    SpdEntry entry;
    uint32_t order = 0;  // ascending as the places do, with room between
};

// Which of the indices of entries are in use: runs of 1 .. SP_CELL_ENTRIES_MAX. Both directions
// share one.
class SpdRuns {
  public:
    explicit SpdRuns(uint32_t room) : room_(room) {}
    void set_room(uint32_t room) { room_ = room; }
    // nullopt: no run of so many is left, though there may be room in pieces.
    std::optional<uint32_t> take(uint32_t count);
    void give_back(uint32_t first, uint32_t count);
    [[nodiscard]] uint32_t end() const { return end_; }
    // What stands there; meaningless where nothing is.
    [[nodiscard]] const SpdListed*& at(uint32_t index) { return listed_[index]; }
    [[nodiscard]] const SpdListed* at(uint32_t index) const { return listed_[index]; }

  private:
    uint32_t room_;
    uint32_t end_ = 0;  // nobody has had what follows
    std::array<std::vector<uint32_t>, SP_CELL_ENTRIES_MAX + 1> free_;  // by length
    std::vector<const SpdListed*> listed_;
};

// The way from the rows of one list to those of the next.
struct SpdChanges {
    struct Run {
        uint32_t first = 0;
        uint32_t count = 0;  // 0: there is none
        friend bool operator==(const Run&, const Run&) = default;
    };
    struct Source {
        uint32_t number;  // of the class
        IpPrefix source;
        Run was;
        Run now;
        std::vector<CompiledSpd::Candidate> entries;  // of `now`
    };
    struct Class {
        uint32_t number;
        uint32_t order_above;
    };
    struct Destination {
        IpPrefix destination;
        std::optional<Class> was;
        std::optional<Class> now;
    };
    struct Wait {};  // until no program runs that began before
    using Step = std::variant<Source, Destination, Wait>;
    std::vector<Step> steps;    // in this order
    std::vector<Source> later;  // rows that nothing leads to: away, once no program can be there
};

// Of both directions.
struct SpdRowChanges {
    SpdChanges outbound;
    SpdChanges inbound;
    // Much is out of use: afterwards it is waited until nobody can be reading it, and it goes.
    bool rest = false;
};

class SpdClasses {
  public:
    // Beyond these one change is better made as a whole: what it takes is known, and bounded.
    static constexpr size_t kEditsMax = 512;
    static constexpr size_t kTouchedMax = 2048;
    static constexpr size_t kVisitsMax = 1 << 14;
    static constexpr size_t kWaitsMax = 4;
    // Changed entries that are remembered until all programs have ended that began before.
    static constexpr size_t kSinceMax = 512;

    // More cells of one class are not made anew.
    static constexpr size_t kCellsAnewMax = 1024;

    // Of one source in a class.
    struct Cell {
        std::vector<const SpdListed*> own;  // entries of this source, in SPD order
        SpdChanges::Run run;                // none: those around it say what holds
    };
    using BySource = std::map<IpPrefix, Cell, OutsideFirst>;
    // What a class knows of itself and those around it.
    struct Derived {
        uint32_t entries = 0;  // that cover it, at most one more than kAloneEntriesMax
        uint32_t earliest = CompiledSpd::kNone;
        uint32_t steps = 1;  // classes that a lookup may visit
        uint32_t above = CompiledSpd::kNone;
        uint32_t order_above = CompiledSpd::kNone;
        bool alone = true;
        bool too_deep = false;  // alone for that only
        friend bool operator==(const Derived&, const Derived&) = default;
    };
    struct Head {
        uint32_t number = CompiledSpd::kNone;
        Derived derived;
        uint32_t own_count = 0;
        uint32_t own_earliest = CompiledSpd::kNone;
        std::bitset<129> lengths;  // of own entries' sources, or of earlier ones
    };
    struct Class {
        Head head;
        BySource cells;
    };
    // As a class was before a change. Only cells that the change has touched; nullopt: there was
    // none.
    struct Before {
        std::optional<Head> head;
        std::map<IpPrefix, std::optional<Cell>, OutsideFirst> cells;
    };
    using ByDestination = std::map<IpPrefix, Class, OutsideFirst>;

    explicit SpdClasses(SpdRuns& runs) : runs_(runs) {}
    SpdClasses(const SpdClasses&) = delete;  // classes point into the list
    SpdClasses& operator=(const SpdClasses&) = delete;

    // All of it, into an empty object. Fails as compile_spd() does.
    std::expected<void, std::string> build(const std::vector<std::pair<SpdPlace, SpdEntry>>& list);
    // What build() made.
    [[nodiscard]] CompiledSpd compiled() const;

    // Until commit() or roll_back() the object is that of after. nullopt: not in this way, and it
    // is as it was. `edits`: by place.
    std::optional<SpdChanges> apply(std::span<const SpdEdit> edits);
    // `rested`: no program can be reading what earlier changes, or this one, took out of use.
    void commit(bool rested);
    void roll_back();
    // Rows and numbers out of use that have not rested yet, with those of an open change.
    [[nodiscard]] size_t resting() const { return resting_.runs.size() + dropped_.runs.size(); }

    [[nodiscard]] const ByDestination& classes() const { return classes_; }
    // Of classes that apply() has touched. Without a head: there was none.
    [[nodiscard]] const std::map<IpPrefix, Before, OutsideFirst>& before() const { return before_; }
    [[nodiscard]] const std::map<SpdPlace, SpdListed>& list() const { return list_; }
    [[nodiscard]] size_t source_count() const { return source_count_; }
    [[nodiscard]] size_t entry_count() const { return entry_count_; }
    [[nodiscard]] const SpdRuns& runs() const { return runs_; }

  private:
    struct OutOfUse {
        std::vector<SpdChanges::Run> runs;
        std::vector<uint32_t> numbers;
        void move_to(OutOfUse& other);
    };
    using Iterator = ByDestination::iterator;
    using List = std::map<SpdPlace, SpdListed>;

    // ---- the list
    std::optional<uint32_t> order_for(const SpdPlace& place) const;
    bool add(const SpdEdit& edit);
    bool remove(const SpdPlace& place);
    void give_orders();

    // ---- classes
    Iterator class_of(const IpPrefix& destination);
    Class* around(const IpPrefix& destination);
    void erase(Iterator it);
    Before& touch(Iterator it);
    Cell& touch_cell(Iterator it, const IpPrefix& source);
    void put_own(Iterator it, const SpdListed& listed);
    void erase_own(Iterator it, const SpdListed& listed);
    [[nodiscard]] Derived derive(const Class& one, const Class* parent) const;
    Iterator visit(Iterator it, const Class* parent, const IpPrefix* within);
    bool refresh(Iterator it, const Class* parent, const Derived& now, const IpPrefix* within);
    void visit_inside(const IpPrefix& destination, Class* parent);
    // The class, and where it holds their entries too, those around it.
    std::vector<const Class*> held_by(Iterator it, bool alone) const;
    bool renew(Iterator it, const Derived& now);
    bool update(Iterator it, const IpPrefix* within);
    std::optional<SpdChanges::Run> put_run(std::span<const SpdListed* const> run);
    void drop_run(SpdChanges::Run run);
    void abandon(Iterator it);
    uint32_t take_number();
    SpdChanges::Source source_step(uint32_t number, const IpPrefix& source, SpdChanges::Run was,
                                   SpdChanges::Run now) const;

    SpdRuns& runs_;
    List list_;
    ByDestination classes_;
    std::array<std::array<uint32_t, 129>, 2> lengths_{};  // of destinations, by family
    uint32_t next_number_ = 0;
    std::vector<uint32_t> free_numbers_;
    size_t source_count_ = 0;
    size_t entry_count_ = 0;
    uint32_t first_entry_ = 0;
    bool too_deep_ = false;

    // ---- of an open change
    SpdChanges changes_;
    std::map<IpPrefix, Before, OutsideFirst> before_;
    std::vector<std::pair<SpdPlace, List::node_type>> list_before_;  // empty: there was none
    OutOfUse taken_;
    OutOfUse dropped_;
    OutOfUse resting_;
    std::vector<SpdEntry> since_;  // came or went, and a program may run that began before
    std::vector<SpdEntry> since_next_;
    std::vector<SpdEntry> changing_;
    size_t source_count_before_ = 0;
    size_t entry_count_before_ = 0;
    size_t visits_ = 0;
    bool stopped_ = false;
};

}  // namespace sallyport
