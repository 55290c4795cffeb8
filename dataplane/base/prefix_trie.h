// SPDX-License-Identifier: Apache-2.0
#pragma once

// Longest-prefix match that is cheap to change: versions of a table share what is equal in them.
//
// A slot says all about the addresses of one block (all of them, or those with the same first one,
// two, ... bytes): a value for the whole block, a *leaf* with a few ranges of addresses (as in
// prefix_table.h), or an *inner* node with a slot for each value of the next byte. A change makes
// new nodes on the way to the blocks that it meets and shares all others with the version before,
// which stays as it is: somebody may be reading it.
//
//   top -> inner 10. -> inner 10.1. -> value             a /24: three loads
//                    -> leaf 10.2. (three ranges)
//
// Nodes count their holders without atomics: versions are made and destroyed by one thread (the
// control thread), however many read them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "dataplane/base/ip.h"
#include "dataplane/base/prefix_table.h"

namespace sallyport {

// A prefix, those inside it, and then what follows.
struct OutsideFirst {
    bool operator()(const IpPrefix& a, const IpPrefix& b) const {
        return std::tie(a.address.family, a.address.bytes, a.bits) <
               std::tie(b.address.family, b.address.bytes, b.bits);
    }
};

// `Range` names the family: RangeV4 or RangeV6.
template <typename Range>
class PrefixTrie {
    static constexpr bool kIsV4 = sizeof(Range) == sizeof(RangeV4);

  public:
    static constexpr Family kFamily = kIsV4 ? Family::v4 : Family::v6;
    static constexpr uint8_t kWidth = kIsV4 ? 32 : 128;
    // A block with as many prefixes inside gets an inner node (2 KB). More: longer searches. Fewer:
    // more memory, and of IPv6, whose first bytes rarely differ, longer ways.
    static constexpr size_t kInnerFrom = kIsV4 ? 8 : 64;

    PrefixTrie() = default;
    PrefixTrie(const PrefixTrie& other) : top_(held(other.top_)) {}
    PrefixTrie(PrefixTrie&& other) noexcept : top_(std::exchange(other.top_, kNothing)) {}
    PrefixTrie& operator=(PrefixTrie other) noexcept {
        std::swap(top_, other.top_);
        return *this;
    }
    ~PrefixTrie() { let_go(top_); }

    // `address`: network order, need not be aligned. kPrefixMiss: none covers it.
    [[nodiscard]] uint32_t lookup(const std::byte* address) const {
        Slot slot = top_;
        for (const std::byte* next = address; (slot & kTags) == 0; ++next) {
            slot = inner_of(slot)->slots[std::to_integer<size_t>(*next)];
        }
        if ((slot & kIsValue) != 0) return static_cast<uint32_t>(slot >> 32);
        const Leaf* leaf = leaf_of(slot);
        const std::span ranges(leaf->ranges(), leaf->count);
        if constexpr (kIsV4) {
            return find_range(ranges, load_v4(address)).value;
        } else {
            return find_range(ranges, load_v6(address)).value;
        }
    }

    // `items`: all prefixes in OutsideFirst, each with its value: begin(), end(), lower_bound() and
    // find() by prefix, elements with `first` and `second`. Those of the other family do not
    // count. `changed`: where they differ from what this was made of.
    template <typename Items>
    void change(const Items& items, const IpPrefix& changed) {
        if (changed.address.family != kFamily) return;
        const Slot next = build(items, everything(), kPrefixMiss, top_, &changed);
        let_go(std::exchange(top_, next));
    }
    template <typename Items>
    void build(const Items& items) {
        const Slot next = build(items, everything(), kPrefixMiss, kNothing, nullptr);
        let_go(std::exchange(top_, next));
    }

  private:
    using Slot = uint64_t;
    static constexpr Slot kIsValue = 1;
    static constexpr Slot kIsLeaf = 2;
    static constexpr Slot kTags = kIsValue | kIsLeaf;
    static constexpr Slot value_slot(uint32_t value) { return Slot{value} << 32 | kIsValue; }
    static constexpr Slot kNothing = Slot{kPrefixMiss} << 32 | kIsValue;

    struct Inner {
        Slot slots[256];
        uint32_t holders = 1;
    };
    struct alignas(16) Leaf {
        uint32_t holders = 1;
        uint32_t count = 0;
        [[nodiscard]] const Range* ranges() const {
            return reinterpret_cast<const Range*>(this + 1);
        }
    };
    static Inner* inner_of(Slot slot) { return reinterpret_cast<Inner*>(slot); }
    static Leaf* leaf_of(Slot slot) { return reinterpret_cast<Leaf*>(slot & ~kTags); }

    static Slot held(Slot slot) {
        if ((slot & kTags) == 0) ++inner_of(slot)->holders;
        if ((slot & kIsLeaf) != 0 && (slot & kIsValue) == 0) ++leaf_of(slot)->holders;
        return slot;
    }
    static void let_go(Slot slot) {
        if ((slot & kIsValue) != 0) return;
        if ((slot & kIsLeaf) != 0) {
            Leaf* leaf = leaf_of(slot);
            if (--leaf->holders == 0) ::operator delete(leaf, std::align_val_t{alignof(Leaf)});
            return;
        }
        Inner* inner = inner_of(slot);
        if (--inner->holders != 0) return;
        for (const Slot each : inner->slots) let_go(each);
        delete inner;
    }

    static IpPrefix everything() { return {.address = {.family = kFamily}, .bits = 0}; }
    static IpPrefix child_of(const IpPrefix& block, size_t byte) {
        IpPrefix child = block;
        child.address.bytes[block.bits / 8u] = static_cast<uint8_t>(byte);
        child.bits = static_cast<uint8_t>(block.bits + 8);
        return child;
    }
    static bool meet(const IpPrefix& a, const IpPrefix& b) {
        return a.contains(b) || b.contains(a);
    }

    template <typename Iterator>
    static Slot leaf(const IpPrefix& block, uint32_t cover, Iterator item, size_t count) {
        std::vector<PrefixEntry> entries;
        for (size_t i = 0; i < count; ++i, ++item) {
            entries.push_back({.prefix = item->first, .value = item->second});
        }
        if (cover != kPrefixMiss) entries.push_back({.prefix = block, .value = cover});
        std::vector<Range> ranges;
        if constexpr (kIsV4) {
            ranges = flatten_v4(entries);
        } else {
            ranges = flatten_v6(entries);
        }
        void* memory = ::operator new(sizeof(Leaf) + ranges.size() * sizeof(Range),
                                      std::align_val_t{alignof(Leaf)});
        Leaf* made = new (memory) Leaf;
        made->count = static_cast<uint32_t>(ranges.size());
        std::ranges::copy(ranges, reinterpret_cast<Range*>(made + 1));
        return reinterpret_cast<Slot>(made) | kIsLeaf;
    }

    // Of `block`, whose addresses have the value `cover` but for what is inside. `changed` null:
    // `old` is of no use.
    template <typename Items>
    static Slot build(const Items& items, const IpPrefix& block, uint32_t cover, Slot old,
                      const IpPrefix* changed) {
        auto item = items.lower_bound(block);
        const auto inside = [&] { return item != items.end() && block.contains(item->first); };
        if (inside() && item->first == block) cover = (item++)->second;
        const auto first = item;
        size_t count = 0;
        const bool may_split = block.bits < kWidth - 8;
        for (; inside() && (!may_split || count < kInnerFrom); ++item) ++count;
        if (count == 0) return value_slot(cover);
        if (!may_split || count < kInnerFrom) return leaf(block, cover, first, count);

        auto* made = new Inner;
        if (changed != nullptr && (old & kTags) == 0) {
            for (size_t byte = 0; byte < 256; ++byte) {
                const IpPrefix child = child_of(block, byte);
                const Slot was = inner_of(old)->slots[byte];
                made->slots[byte] =
                    meet(child, *changed)
                        ? build(items, child, cover_of(items, child, block.bits, cover), was,
                                changed)
                        : held(was);
            }
        } else {
            build_all(items, block, cover, first, *made);
        }
        return reinterpret_cast<Slot>(made);
    }

    // The value around `child`, of prefixes longer than `bits`.
    template <typename Items>
    static uint32_t cover_of(const Items& items, const IpPrefix& child, uint8_t bits,
                             uint32_t otherwise) {
        for (auto length = static_cast<uint8_t>(child.bits - 1); length > bits; --length) {
            const auto found = items.find(shortened(child, length));
            if (found != items.end()) return found->second;
        }
        return otherwise;
    }

    template <typename Items, typename Iterator>
    static void build_all(const Items& items, const IpPrefix& block, uint32_t cover, Iterator item,
                          Inner& made) {
        std::vector<std::pair<IpPrefix, uint32_t>> open;  // longer than `block`, not than a child
        for (size_t byte = 0; byte < 256; ++byte) {
            const IpPrefix child = child_of(block, byte);
            while (!open.empty() && !open.back().first.contains(child)) open.pop_back();
            const auto is_wider = [&] {
                return item != items.end() && item->first.bits < child.bits &&
                       item->first.contains(child);
            };
            for (; is_wider(); ++item) open.emplace_back(item->first, item->second);
            const uint32_t around = open.empty() ? cover : open.back().second;
            if (item == items.end() || !child.contains(item->first)) {
                made.slots[byte] = value_slot(around);
                continue;
            }
            made.slots[byte] = build(items, child, around, kNothing, nullptr);
            if (byte == 255) break;
            // With what is wider and begins there.
            IpPrefix next = child_of(block, byte + 1);
            next.bits = static_cast<uint8_t>(block.bits + 1);
            item = items.lower_bound(next);
        }
    }

    Slot top_ = kNothing;
};

}  // namespace sallyport
