// SPDX-License-Identifier: Apache-2.0
#pragma once

// The SAs of one worker: inbound ones by SPI and destination (the SAD of RFC 4301 4.4.2), outbound
// ones by the policy whose traffic they carry. Owner: one worker; nothing here is shared.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "bpf/abi.h"
#include "dataplane/sa/sa.h"

namespace sallyport {

// Inbound SAs in an open-addressed table with 16-byte slots, at most half full, so that a lookup
// is one cache line nearly always. Removal moves later slots of a run back, so there are no
// tombstones and a table does not age.
class Sad {
  public:
    // Room for `capacity` SAs; never grows.
    explicit Sad(uint32_t capacity) {
        uint32_t slots = 16;
        while (slots < capacity * 2) slots *= 2;
        slots_.resize(slots);
        mask_ = slots - 1;
    }

    // Where a lookup will start, for prefetching. `daddr_word`: last 32 bits of the destination.
    [[nodiscard]] uint32_t hint(Be32 spi, uint32_t daddr_word) const {
        return sp_sa_hash(spi.raw(), daddr_word) & mask_;
    }
    void prefetch(uint32_t hint) const { __builtin_prefetch(&slots_[hint]); }

    // `daddr`: 4 or 16 bytes of the outer destination. Null: none.
    [[nodiscard]] InboundSa* find(uint32_t hint, Be32 spi, Family family, const std::byte* daddr,
                                  uint32_t daddr_word) const {
        for (uint32_t i = hint;; i = (i + 1) & mask_) {
            const Slot& slot = slots_[i];
            if (slot.sa == nullptr) return nullptr;
            if (slot.spi == spi && slot.daddr_word == daddr_word &&
                matches(*slot.sa, family, daddr)) {
                return slot.sa;
            }
        }
    }

    [[nodiscard]] InboundSa* find(Spi spi, const IpAddress& destination) const {
        const Be32 wire_spi(to_index(spi));
        const uint32_t word = destination.last_word();
        return find(hint(wire_spi, word), wire_spi, destination.family,
                    std::as_bytes(std::span(destination.bytes)).data(), word);
    }

    // False: full, or an SA with this SPI and destination is there already.
    bool insert(InboundSa* sa) {
        if ((count_ + 1) * 2 > slots_.size()) return false;
        const uint32_t i = slot_for(*sa);
        if (slots_[i].sa != nullptr) return false;
        slots_[i] = {.spi = sa->spi, .daddr_word = sa->outer_destination.last_word(), .sa = sa};
        ++count_;
        return true;
    }

    // Whether this object is in the table. An SA that is not may be gone from memory too, so it is
    // not read: the slot of `likely`, which mostly has its SPI and destination, then all others.
    [[nodiscard]] bool contains(const InboundSa* sa, const InboundSa& likely) const {
        return slots_[slot_for(likely)].sa == sa ||
               std::ranges::any_of(slots_, [sa](const Slot& slot) { return slot.sa == sa; });
    }

    // `sa` instead of `old`, which is in the table. False: a third SA has the SPI and destination
    // of `sa`; nothing has changed then.
    bool replace(const InboundSa* old, InboundSa* sa) {
        Slot& slot = slots_[slot_for(*sa)];
        if (slot.sa == old) {
            slot.sa = sa;
            return true;
        }
        if (slot.sa != nullptr) return false;
        remove(old);
        return insert(sa);  // there is room for one now
    }

    void remove(const InboundSa* sa) {
        uint32_t hole = hint(sa->spi, sa->outer_destination.last_word());
        while (slots_[hole].sa != sa) {
            if (slots_[hole].sa == nullptr) return;
            hole = (hole + 1) & mask_;
        }
        for (uint32_t i = (hole + 1) & mask_; slots_[i].sa != nullptr; i = (i + 1) & mask_) {
            const uint32_t home = hint(slots_[i].spi, slots_[i].daddr_word);
            // May slot i move to the hole? Only if its home is not between the two.
            if (((i - home) & mask_) >= ((i - hole) & mask_)) {
                slots_[hole] = slots_[i];
                hole = i;
            }
        }
        slots_[hole] = {};
        --count_;
    }

    [[nodiscard]] uint32_t count() const { return count_; }

    template <typename Visit>
    void for_each(Visit visit) const {
        for (const Slot& slot : slots_) {
            if (slot.sa != nullptr) visit(slot.sa);
        }
    }

  private:
    struct Slot {
        Be32 spi;
        uint32_t daddr_word = 0;
        InboundSa* sa = nullptr;
    };
    static_assert(sizeof(Slot) == 16);

    // The slot of the SA that has the SPI and destination of `sa`, or the free one where it
    // belongs.
    [[nodiscard]] uint32_t slot_for(const InboundSa& sa) const {
        uint32_t i = hint(sa.spi, sa.outer_destination.last_word());
        while (
            slots_[i].sa != nullptr &&
            (slots_[i].spi != sa.spi || slots_[i].sa->outer_destination != sa.outer_destination)) {
            i = (i + 1) & mask_;
        }
        return i;
    }

    static bool matches(const InboundSa& sa, Family family, const std::byte* daddr) {
        if (sa.outer_family != family) return false;
        // The word in the slot is the whole IPv4 address.
        return family == Family::v4 ||
               std::memcmp(sa.outer_destination.bytes.data(), daddr, 16) == 0;
    }

    std::vector<Slot> slots_;
    uint32_t mask_ = 0;
    uint32_t count_ = 0;
};

// Outbound SAs by policy. While an SA is rekeyed, and where a peer keeps several, one policy has
// more than one: the one with the greatest rank sends, and when it is removed the next one does. Of
// equal rank, the one inserted last. An SA that has no numbers left keeps its place; only control
// decides that another is to send.
//
//   by_policy_[policy] -> rank 9 -> rank 7 -> rank 7 -> null
//
// The list runs through the SAs themselves, so nothing is allocated and nothing can run out; a
// lookup is one load of its head.
class OutboundTable {
  public:
    explicit OutboundTable(uint32_t policy_capacity) : by_policy_(policy_capacity) {}

    [[nodiscard]] OutboundSa* find(PolicyId policy) const {
        const auto index = to_index(policy);
        return index < by_policy_.size() ? by_policy_[index] : nullptr;
    }
    // False: the policy number is beyond what there is room for, or the SA is there already.
    bool insert(OutboundSa* sa) {
        const auto index = to_index(sa->policy);
        if (index >= by_policy_.size() || *link_to(index, sa) != nullptr) return false;
        OutboundSa** link = &by_policy_[index];
        while (*link != nullptr && (*link)->rank > sa->rank) link = &(*link)->next_of_policy;
        sa->next_of_policy = *link;
        *link = sa;
        return true;
    }
    void remove(const OutboundSa* sa) {
        const auto index = to_index(sa->policy);
        if (index >= by_policy_.size()) return;
        OutboundSa** link = link_to(index, sa);
        if (*link != nullptr) *link = sa->next_of_policy;
    }

    template <typename Visit>
    void for_each(Visit visit) const {
        for (OutboundSa* head : by_policy_) visit_list(head, visit);
    }

  private:
    template <typename Visit>
    static void visit_list(OutboundSa* head, Visit& visit) {
        for (OutboundSa* sa = head; sa != nullptr; sa = sa->next_of_policy) visit(sa);
    }
    // What points to `sa`, or the null pointer at the end of its policy's list.
    OutboundSa** link_to(size_t index, const OutboundSa* sa) {
        OutboundSa** link = &by_policy_[index];
        while (*link != nullptr && *link != sa) link = &(*link)->next_of_policy;
        return link;
    }

    std::vector<OutboundSa*> by_policy_;
};

}  // namespace sallyport
