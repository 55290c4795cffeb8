// SPDX-License-Identifier: Apache-2.0
#include "dataplane/spd/classes.h"

#include <algorithm>
#include <iterator>
#include <ranges>
#include <tuple>
#include <utility>

namespace sallyport {
namespace {

using Run = SpdChanges::Run;
using Listed = std::vector<const SpdListed*>;

// New entries mostly come behind their neighbour in front, so that most of the room is left behind.
constexpr uint32_t kOrderStep = 1 << 12;
constexpr uint32_t kOrderFirst = 1u << 30;
constexpr uint32_t kOrderRange = 1u << 31;

constexpr size_t index_of(Family family) {
    return family == Family::v4 ? 0 : 1;
}

bool same_addresses(const SpdEntry& a, const SpdEntry& b) {
    return a.source == b.source && a.destination == b.destination;
}

// But for what becomes of it.
bool matches_the_same(SpdEntry a, const SpdEntry& b) {
    a.policy = b.policy;
    a.action = b.action;
    return a == b;
}

bool may_meet(const IpPrefix& a, const IpPrefix& b) {
    return a.contains(b) || b.contains(a);
}

// Some packet is one of both.
bool share_packets(const SpdEntry& a, const SpdEntry& b) {
    if (!may_meet(a.source, b.source) || !may_meet(a.destination, b.destination)) return false;
    return a.protocol == 0 || b.protocol == 0 || a.protocol == b.protocol;
}

// Entries of `classes` that cover `source`, in SPD order, up to the first that takes all.
Listed around_source(std::span<const SpdClasses::Class* const> classes, const IpPrefix& source) {
    Listed found;
    for (const SpdClasses::Class* one : classes) {
        for (uint32_t bits = 0; bits <= source.bits; ++bits) {
            if (!one->head.lengths.test(bits)) continue;
            const auto cell = one->cells.find(shortened(source, static_cast<uint8_t>(bits)));
            if (cell == one->cells.end()) continue;
            found.insert(found.end(), cell->second.own.begin(), cell->second.own.end());
        }
    }
    std::ranges::sort(found, {}, &SpdListed::order);
    const auto all =
        std::ranges::find_if(found, [](const SpdListed* each) { return each->entry.takes_all(); });
    if (all != found.end()) found.erase(std::next(all), found.end());
    return found;
}

// Each source of their entries inside `within` (null: each), ascending.
std::vector<IpPrefix> sources_of(std::span<const SpdClasses::Class* const> classes,
                                 const IpPrefix* within) {
    std::vector<IpPrefix> out;
    for (const SpdClasses::Class* one : classes) {
        auto it = within == nullptr ? one->cells.begin() : one->cells.lower_bound(*within);
        for (; it != one->cells.end(); ++it) {
            if (within != nullptr && !within->contains(it->first)) break;
            if (!it->second.own.empty()) out.push_back(it->first);
        }
    }
    if (classes.size() > 1) {
        std::ranges::sort(out, OutsideFirst{});
        const auto twice = std::ranges::unique(out);
        out.erase(twice.begin(), twice.end());
    }
    return out;
}

}  // namespace

// ---- runs -----------------------------------------------------------------------------------

std::optional<uint32_t> SpdRuns::take(uint32_t count) {
    for (uint32_t length = count; length < free_.size(); ++length) {
        if (length > count && end_ + count <= room_) break;  // rather than break up a longer one
        if (free_[length].empty()) continue;
        const uint32_t first = free_[length].back();
        free_[length].pop_back();
        if (length > count) free_[length - count].push_back(first + count);
        return first;
    }
    if (end_ + count > room_) {
        return std::nullopt;
    }
    const uint32_t first = end_;
    end_ += count;
    listed_.resize(end_);
    return first;
}

void SpdRuns::give_back(uint32_t first, uint32_t count) {
    free_[count].push_back(first);
}

// ---- the list -------------------------------------------------------------------------------

void SpdClasses::OutOfUse::move_to(OutOfUse& other) {
    other.runs.insert(other.runs.end(), runs.begin(), runs.end());
    other.numbers.insert(other.numbers.end(), numbers.begin(), numbers.end());
    runs.clear();
    numbers.clear();
}

void SpdClasses::give_orders() {
    const auto step =
        static_cast<uint32_t>(std::min<size_t>(kOrderStep, kOrderRange / (list_.size() + 1)));
    uint32_t order = kOrderFirst;
    for (auto& [place, listed] : list_) {
        listed.order = order;
        order += step;
    }
}

std::optional<uint32_t> SpdClasses::order_for(const SpdPlace& place) const {
    if (list_.empty()) return CompiledSpd::kNone / 2;
    const auto next = list_.lower_bound(place);
    const uint32_t end = next == list_.end() ? CompiledSpd::kNone : next->second.order;
    if (next == list_.begin()) {
        if (end == 0) return std::nullopt;
        return end - std::min<uint32_t>(kOrderStep, end / 2 + 1);
    }
    const uint32_t begin = std::prev(next)->second.order;
    const uint32_t gap = (end - begin) / 2;
    if (gap == 0) return std::nullopt;
    return begin + std::min<uint32_t>(kOrderStep / 16, gap);
}

// ---- classes --------------------------------------------------------------------------------

SpdClasses::Iterator SpdClasses::class_of(const IpPrefix& destination) {
    const auto [it, is_new] = classes_.try_emplace(destination);
    if (is_new) ++lengths_[index_of(destination.address.family)][destination.bits];
    return it;
}

void SpdClasses::erase(Iterator it) {
    --lengths_[index_of(it->first.address.family)][it->first.bits];
    classes_.erase(it);
}

// The class of the next wider destination; null: there is none.
SpdClasses::Class* SpdClasses::around(const IpPrefix& destination) {
    const auto& lengths = lengths_[index_of(destination.address.family)];
    for (uint32_t bits = destination.bits; bits-- > 0;) {
        if (lengths[bits] == 0) continue;
        const auto found = classes_.find(shortened(destination, static_cast<uint8_t>(bits)));
        if (found != classes_.end()) return &found->second;
    }
    return nullptr;
}

SpdClasses::Derived SpdClasses::derive(const Class& one, const Class* parent) const {
    Derived now;
    now.entries = one.head.own_count;
    now.earliest = one.head.own_earliest;
    if (parent != nullptr) {
        const Derived& above = parent->head.derived;
        now.entries += above.entries;
        now.earliest = std::min(now.earliest, above.earliest);
        now.alone = now.entries <= kAloneEntriesMax;
        now.too_deep = !now.alone && above.steps == SP_SPD_CLASSES_MAX;
        now.alone = now.alone || now.too_deep;
        if (!now.alone) {
            now.steps = above.steps + 1;
            now.above = parent->head.number;
            now.order_above = above.earliest;
        }
    }
    now.entries = std::min<uint32_t>(now.entries, kAloneEntriesMax + 1);
    return now;
}

std::vector<const SpdClasses::Class*> SpdClasses::held_by(Iterator it, bool alone) const {
    std::vector<const Class*> classes = {&it->second};
    if (!alone) return classes;
    const auto& lengths = lengths_[index_of(it->first.address.family)];
    for (uint32_t bits = 0; bits < it->first.bits; ++bits) {
        if (lengths[bits] == 0) continue;
        const auto found = classes_.find(shortened(it->first, static_cast<uint8_t>(bits)));
        if (found != classes_.end()) classes.push_back(&found->second);
    }
    return classes;
}

void SpdClasses::put_own(Iterator it, const SpdListed& listed) {
    auto& own = touch_cell(it, listed.entry.source).own;
    own.insert(std::ranges::upper_bound(own, listed.order, {}, &SpdListed::order), &listed);
    Head& head = it->second.head;
    ++head.own_count;
    head.own_earliest = std::min(head.own_earliest, listed.order);
    head.lengths.set(listed.entry.source.bits);
}

void SpdClasses::erase_own(Iterator it, const SpdListed& listed) {
    std::erase(touch_cell(it, listed.entry.source).own, &listed);
    Head& head = it->second.head;
    --head.own_count;
    if (head.own_earliest != listed.order) return;
    head.own_earliest = CompiledSpd::kNone;
    for (const auto& [source, cell] : it->second.cells) {
        if (cell.own.empty()) continue;
        head.own_earliest = std::min(head.own_earliest, cell.own.front()->order);
    }
}

uint32_t SpdClasses::take_number() {
    uint32_t number = 0;
    if (free_numbers_.empty()) {
        number = next_number_++;
    } else {
        number = free_numbers_.back();
        free_numbers_.pop_back();
    }
    taken_.numbers.push_back(number);
    return number;
}

std::optional<Run> SpdClasses::put_run(std::span<const SpdListed* const> run) {
    const auto count = static_cast<uint32_t>(run.size());
    if (count > SP_CELL_ENTRIES_MAX) return std::nullopt;
    const auto first = runs_.take(count);
    if (!first) return std::nullopt;
    for (uint32_t i = 0; i < count; ++i) runs_.at(*first + i) = run[i];
    taken_.runs.push_back({.first = *first, .count = count});
    entry_count_ += count;
    ++source_count_;
    return taken_.runs.back();
}

SpdChanges::Source SpdClasses::source_step(uint32_t number, const IpPrefix& source, Run was,
                                           Run now) const {
    SpdChanges::Source step{
        .number = number, .source = source, .was = was, .now = now, .entries = {}};
    for (uint32_t i = 0; i < now.count; ++i) {
        const SpdListed& listed = *std::as_const(runs_).at(now.first + i);
        step.entries.push_back({.entry = listed.entry, .order = listed.order});
    }
    return step;
}

// A class has no number until its rows are made, and is known to be new by that.
SpdClasses::Before& SpdClasses::touch(Iterator it) {
    const auto [before, is_new] = before_.try_emplace(it->first);
    if (is_new && it->second.head.number != CompiledSpd::kNone) {
        before->second.head = it->second.head;
    }
    if (before_.size() > kTouchedMax) stopped_ = true;
    return before->second;
}

SpdClasses::Cell& SpdClasses::touch_cell(Iterator it, const IpPrefix& source) {
    Before& before = touch(it);
    const auto [cell, is_new] = it->second.cells.try_emplace(source);
    before.cells.try_emplace(source, is_new ? std::nullopt : std::optional(cell->second));
    return cell->second;
}

void SpdClasses::drop_run(Run run) {
    dropped_.runs.push_back(run);
    entry_count_ -= run.count;
    --source_count_;
}

// Its rows stay where they are, and nothing leads to them any more.
void SpdClasses::abandon(Iterator it) {
    const uint32_t number = it->second.head.number;
    std::vector<IpPrefix> sources;
    for (const auto& [source, cell] : it->second.cells) {
        if (cell.run.count != 0) sources.push_back(source);
    }
    for (const IpPrefix& source : sources) {
        const Run run = std::exchange(touch_cell(it, source).run, {});
        changes_.later.push_back(source_step(number, source, run, {}));
        drop_run(run);
    }
    std::erase_if(it->second.cells, [](const auto& item) { return item.second.own.empty(); });
    dropped_.numbers.push_back(number);
}

bool SpdClasses::renew(Iterator it, const Derived& now) {
    Class& one = it->second;
    if (one.head.own_count > kCellsAnewMax) return false;
    std::optional<SpdChanges::Class> was;
    if (one.head.number != CompiledSpd::kNone) {
        was = {.number = one.head.number, .order_above = one.head.derived.order_above};
        abandon(it);
    }
    one.head.number = take_number();
    one.head.derived = now;
    const auto holds = held_by(it, now.alone);
    for (const IpPrefix& source : sources_of(holds, nullptr)) {
        const auto run = put_run(around_source(holds, source));
        if (!run) return false;
        touch_cell(it, source).run = *run;
        changes_.steps.emplace_back(source_step(one.head.number, source, {}, *run));
    }
    changes_.steps.emplace_back(SpdChanges::Destination{
        .destination = it->first,
        .was = was,
        .now = SpdChanges::Class{.number = one.head.number, .order_above = now.order_above}});
    return true;
}

// What comes, what changes, what goes.
bool SpdClasses::update(Iterator it, const IpPrefix* within) {
    Class& one = it->second;
    const auto holds = held_by(it, one.head.derived.alone);
    std::vector<SpdChanges::Step> changed;
    const std::vector<IpPrefix> sources = sources_of(holds, within);
    for (const IpPrefix& source : sources) {
        const Listed wanted = around_source(holds, source);
        const auto found = one.cells.find(source);
        const Run was = found == one.cells.end() ? Run{} : found->second.run;
        const auto is_same = [&](uint32_t i) { return runs_.at(was.first + i) == wanted[i]; };
        if (was.count == wanted.size()) {
            uint32_t same = 0;
            while (same < was.count && is_same(same)) ++same;
            if (same == was.count) continue;
        }
        const auto run = put_run(wanted);
        if (!run) return false;
        touch_cell(it, source).run = *run;
        SpdChanges::Source step = source_step(one.head.number, source, was, *run);
        if (was.count == 0) {
            changes_.steps.emplace_back(std::move(step));
        } else {
            drop_run(was);
            changed.emplace_back(std::move(step));
        }
    }
    std::ranges::move(changed, std::back_inserter(changes_.steps));
    auto cell = within == nullptr ? one.cells.begin() : one.cells.lower_bound(*within);
    while (cell != one.cells.end() && (within == nullptr || within->contains(cell->first))) {
        if (std::ranges::binary_search(sources, cell->first, OutsideFirst{})) {
            ++cell;
            continue;
        }
        const Run was = touch_cell(it, cell->first).run;
        if (was.count != 0) {
            changes_.steps.emplace_back(source_step(one.head.number, cell->first, was, {}));
            drop_run(was);
        }
        cell = one.cells.erase(cell);
    }
    return true;
}

bool SpdClasses::refresh(Iterator it, const Class* parent, const Derived& now,
                         const IpPrefix* within) {
    touch(it);
    Head& head = it->second.head;
    const Derived was = head.derived;
    if (head.number == CompiledSpd::kNone || now.alone != was.alone) return renew(it, now);
    head.derived = now;
    // One that holds what is around it is small.
    if (now.alone && (parent != nullptr || within == nullptr)) within = nullptr;
    if ((now.alone || within != nullptr) && !update(it, within)) return false;
    if (now.order_above != was.order_above) {
        changes_.steps.emplace_back(SpdChanges::Destination{
            .destination = it->first,
            .was = SpdChanges::Class{.number = head.number, .order_above = was.order_above},
            .now = SpdChanges::Class{.number = head.number, .order_above = now.order_above}});
    }
    return true;
}

// Returns what stands behind it and all inside it.
SpdClasses::Iterator SpdClasses::visit(Iterator it, const Class* parent, const IpPrefix* within) {
    if (++visits_ > kVisitsMax) stopped_ = true;
    if (stopped_) return classes_.end();
    Class& one = it->second;
    const Derived was = one.head.derived;
    const bool is_new = one.head.number == CompiledSpd::kNone;
    const Derived now = derive(one, parent);
    if (now.too_deep) stopped_ = true;
    if (within != nullptr || is_new || now.alone || was.alone || now != was) {
        if (stopped_ || !refresh(it, parent, now, within)) {
            stopped_ = true;
            return classes_.end();
        }
    }
    // Those inside know of it: how many entries, the earliest, how deep, its number; and hold its
    // entries where all together are few.
    const auto seen = [](const Derived& derived) {
        return std::tuple(derived.entries, derived.earliest, derived.steps);
    };
    const bool goes_deeper = is_new || seen(now) != seen(was) || now.alone != was.alone ||
                             std::min(now.entries, was.entries) < kAloneEntriesMax;
    const IpPrefix destination = it->first;
    ++it;
    if (goes_deeper) {
        while (!stopped_ && it != classes_.end() && destination.contains(it->first)) {
            it = visit(it, &one, nullptr);
        }
        return it;
    }
    if (it == classes_.end() || !destination.contains(it->first)) return it;
    IpPrefix last = destination;
    for (unsigned bit = destination.bits; bit < last.address.bit_count(); ++bit) {
        last.address.bytes[bit / 8] |= static_cast<uint8_t>(0x80u >> (bit % 8));
    }
    last.bits = static_cast<uint8_t>(last.address.bit_count());
    return classes_.upper_bound(last);
}

void SpdClasses::visit_inside(const IpPrefix& destination, Class* parent) {
    auto it = classes_.lower_bound(destination);
    while (!stopped_ && it != classes_.end() && destination.contains(it->first)) {
        it = visit(it, parent, nullptr);
    }
}

bool SpdClasses::add(const SpdEdit& edit) {
    const auto found = list_.find(edit.place);
    if (found == list_.end()) {
        const auto order = order_for(edit.place);
        if (!order) return false;
        list_before_.emplace_back(edit.place, List::node_type{});
        SpdListed& listed = list_[edit.place];
        listed = {.place = edit.place, .entry = *edit.entry, .order = *order};
        const auto it = class_of(listed.entry.destination);
        put_own(it, listed);
        const IpPrefix source = listed.entry.source;
        visit(it, around(it->first), &source);
        return !stopped_;
    }
    // The same addresses: one entry for another, in each cell by one write.
    const auto it = classes_.find(edit.entry->destination);
    const SpdListed* const before = &found->second;
    list_before_.emplace_back(edit.place, list_.extract(found));
    SpdListed& listed = list_[edit.place];
    listed = {.place = edit.place, .entry = *edit.entry, .order = before->order};
    auto& own = touch_cell(it, listed.entry.source).own;
    std::ranges::replace(own, before, &std::as_const(listed));
    const IpPrefix source = listed.entry.source;
    visit(it, around(it->first), &source);
    return !stopped_;
}

bool SpdClasses::remove(const SpdPlace& place) {
    const auto found = list_.find(place);
    const SpdEntry entry = found->second.entry;
    const auto it = classes_.find(entry.destination);
    erase_own(it, found->second);
    list_before_.emplace_back(place, list_.extract(found));
    if (it->second.head.own_count != 0) {
        visit(it, around(it->first), &entry.source);
        return !stopped_;
    }
    const Head& head = it->second.head;
    changes_.steps.emplace_back(SpdChanges::Destination{
        .destination = it->first,
        .was = SpdChanges::Class{.number = head.number, .order_above = head.derived.order_above},
        .now = std::nullopt});
    abandon(it);
    erase(it);
    visit_inside(entry.destination, around(entry.destination));
    return !stopped_;
}

std::optional<SpdChanges> SpdClasses::apply(std::span<const SpdEdit> edits) {
    changes_ = {};
    visits_ = 0;
    stopped_ = too_deep_ || edits.size() > kEditsMax;
    source_count_before_ = source_count_;
    entry_count_before_ = entry_count_;
    std::vector<const SpdEdit*> come;
    std::vector<std::pair<SpdPlace, SpdEntry>> go;
    for (const SpdEdit& edit : edits) {
        if (stopped_) break;
        const auto found = list_.find(edit.place);
        if (found == list_.end()) {
            if (edit.entry) come.push_back(&edit);
        } else if (!edit.entry) {
            go.emplace_back(edit.place, found->second.entry);
        } else if (found->second.entry != *edit.entry) {
            if (!matches_the_same(found->second.entry, *edit.entry)) stopped_ = true;
            come.push_back(&edit);
        }
    }
    since_next_ = since_;
    changing_.clear();
    size_t waits = 0;
    const auto before = [&](const SpdEntry& entry) {
        const auto is_apart = [&](const SpdEntry& other) {
            return !same_addresses(other, entry) && share_packets(other, entry);
        };
        if (since_next_.size() >= kSinceMax || std::ranges::any_of(since_next_, is_apart)) {
            changes_.steps.emplace_back(SpdChanges::Wait{});
            since_next_.clear();
            if (++waits > kWaitsMax) stopped_ = true;
        }
        since_next_.push_back(entry);
        changing_.push_back(entry);
    };
    for (const SpdEdit* edit : come) {
        if (stopped_) break;
        before(*edit->entry);
        if (!add(*edit)) stopped_ = true;
    }
    for (auto& [place, entry] : std::views::reverse(go)) {
        if (stopped_) break;
        before(entry);
        if (!remove(place)) stopped_ = true;
    }
    if (stopped_) {
        roll_back();
        return std::nullopt;
    }
    return std::move(changes_);
}

void SpdClasses::commit(bool rested) {
    before_.clear();
    list_before_.clear();
    taken_ = {};
    dropped_.move_to(resting_);
    since_ = std::move(since_next_);
    since_next_.clear();
    changing_.clear();
    if (!rested) return;
    since_.clear();
    for (const Run& run : resting_.runs) runs_.give_back(run.first, run.count);
    free_numbers_.insert(free_numbers_.end(), resting_.numbers.begin(), resting_.numbers.end());
    resting_ = {};
}

void SpdClasses::roll_back() {
    for (auto& [destination, was] : before_) {
        const auto it = class_of(destination);
        if (!was.head) {
            erase(it);
            continue;
        }
        it->second.head = *was.head;
        for (auto& [source, cell] : was.cells) {
            if (cell) {
                it->second.cells[source] = std::move(*cell);
            } else {
                it->second.cells.erase(source);
            }
        }
    }
    for (auto& [place, node] : std::views::reverse(list_before_)) {
        list_.erase(place);
        if (!node.empty()) list_.insert(std::move(node));
    }
    before_.clear();
    list_before_.clear();
    // Programs may have seen them.
    taken_.move_to(resting_);
    since_.insert(since_.end(), changing_.begin(), changing_.end());
    changing_.clear();
    dropped_ = {};
    source_count_ = source_count_before_;
    entry_count_ = entry_count_before_;
}

// ---- as a whole -----------------------------------------------------------------------------

std::expected<void, std::string> SpdClasses::build(
    const std::vector<std::pair<SpdPlace, SpdEntry>>& list) {
    for (const auto& [place, entry] : list) {
        list_.emplace_hint(list_.end(), place,
                           SpdListed{.place = place, .entry = entry, .order = 0});
    }
    give_orders();
    for (const auto& [place, listed] : list_) {
        Class& one = class_of(listed.entry.destination)->second;
        one.cells[listed.entry.source].own.push_back(&listed);
        ++one.head.own_count;
        one.head.own_earliest = std::min(one.head.own_earliest, listed.order);
        one.head.lengths.set(listed.entry.source.bits);
    }
    first_entry_ = runs_.end();
    std::vector<std::pair<IpPrefix, const Class*>> open;
    for (auto it = classes_.begin(); it != classes_.end(); ++it) {
        Class& one = it->second;
        while (!open.empty() && !open.back().first.contains(it->first)) open.pop_back();
        one.head.derived = derive(one, open.empty() ? nullptr : open.back().second);
        too_deep_ = too_deep_ || one.head.derived.too_deep;
        one.head.number = next_number_++;
        open.emplace_back(it->first, &one);
        const auto holds = held_by(it, one.head.derived.alone);
        for (const IpPrefix& source : sources_of(holds, nullptr)) {
            const Listed wanted = around_source(holds, source);
            if (wanted.size() > SP_CELL_ENTRIES_MAX) {
                return std::unexpected(too_many_in_cell(source, it->first));
            }
            const auto run = put_run(wanted);
            if (!run || entry_count_ > kSpdRowsMax) {
                return std::unexpected(too_many_rows(it->first));
            }
            one.cells[source].run = *run;
        }
    }
    taken_ = {};
    return {};
}

CompiledSpd SpdClasses::compiled() const {
    CompiledSpd out;
    out.first_entry = first_entry_;
    out.class_count = next_number_;
    out.destinations.reserve(classes_.size());
    out.sources.reserve(source_count_);
    out.entries.reserve(entry_count_);
    for (const auto& [destination, one] : classes_) {
        const Head& head = one.head;
        out.destinations.push_back({.destination = destination,
                                    .destination_class = head.number,
                                    .above = head.derived.above,
                                    .order_above = head.derived.order_above});
        for (const auto& [source, cell] : one.cells) {
            out.sources.push_back({.destination_class = head.number,
                                   .source = source,
                                   .cell_first = static_cast<uint32_t>(out.entries.size()),
                                   .cell_count = cell.run.count});
            for (uint32_t i = 0; i < cell.run.count; ++i) {
                const SpdListed& listed = *std::as_const(runs_).at(cell.run.first + i);
                out.entries.push_back({.entry = listed.entry, .order = listed.order});
            }
        }
    }
    return out;
}

}  // namespace sallyport
