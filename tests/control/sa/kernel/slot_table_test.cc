// SPDX-License-Identifier: Apache-2.0
#include "control/sa/kernel/slot_table.h"

#include <gtest/gtest.h>

#include <set>

namespace sallyport::control {
namespace {

xfrm::SaName name(uint32_t spi, uint8_t host = 1) {
    xfrm::SaName out;
    out.spi = Spi{spi};
    out.destination.bytes = {192, 0, 2, host};
    return out;
}

SequenceMemory::Name key(uint8_t number) {
    SequenceMemory::Name out;
    out.key.bytes[0] = number;
    return out;
}

TEST(SlotTable, FindsByIdAndByName) {
    SlotTable table(2);
    Slot& first = table.create(name(0x100), key(1));
    Slot& second = table.create(name(0x200), key(2));
    EXPECT_TRUE(table.full());
    EXPECT_EQ(table.find(first.id), &first);
    EXPECT_EQ(table.find(second.id), &second);
    EXPECT_EQ(table.find(name(0x200)), &second);
    EXPECT_EQ(table.find(name(0x300)), nullptr);
    EXPECT_EQ(table.find(make_sa_id(2, 0)), nullptr);
}

TEST(SlotTable, ALateEventDoesNotMeetTheNextSaInItsPlace) {
    SlotTable table(1);
    Slot& first = table.create(name(0x100), key(1));
    const SaId old = first.id;
    table.leave(first);
    EXPECT_EQ(table.find(old), &first);  // its end is still to be heard of
    table.release(first);
    EXPECT_EQ(table.find(old), nullptr);

    Slot& next = table.create(name(0x200), key(2));
    EXPECT_EQ(to_index(next.id), to_index(old));
    EXPECT_NE(next.id, old);
    EXPECT_EQ(table.find(old), nullptr);
    EXPECT_EQ(table.find(next.id), &next);
}

TEST(SlotTable, NoIdIsGivenTwice) {
    SlotTable table(4);
    std::set<SaId> ids;
    std::vector<Slot*> there;
    for (uint32_t i = 0; i < 1000; ++i) {
        Slot& slot = table.create(name(0x100 + i), key(static_cast<uint8_t>(i)));
        EXPECT_TRUE(ids.insert(slot.id).second);
        EXPECT_LT(to_index(slot.id), 4u);
        there.push_back(&slot);
        if (!table.full()) continue;
        const size_t victim = i % there.size();
        if (i % 3 == 0) table.leave(*there[victim]);
        table.release(*there[victim]);
        there.erase(there.begin() + static_cast<std::ptrdiff_t>(victim));
    }
}

TEST(SlotTable, ANameIsFreeAtOnceAndClearWhenTheOneBeforeHasGone) {
    SlotTable table(4);
    Slot& before = table.create(name(0x100), key(1));
    EXPECT_TRUE(table.is_clear(before));
    table.leave(before);
    EXPECT_EQ(before.phase, Phase::retiring);
    EXPECT_EQ(table.find(name(0x100)), nullptr);

    Slot& same_name = table.create(name(0x100), key(2));
    Slot& same_key = table.create(name(0x100, 2), key(1));
    Slot& other = table.create(name(0x100, 3), key(3));
    EXPECT_FALSE(table.is_clear(same_name));
    EXPECT_FALSE(table.is_clear(same_key));
    EXPECT_TRUE(table.is_clear(other));
    EXPECT_EQ(table.find(name(0x100)), &same_name);
    EXPECT_FALSE(table.is_only_one_of_name(before));
    EXPECT_FALSE(table.is_only_one_of_name(same_name));
    EXPECT_TRUE(table.is_only_one_of_name(same_key));

    table.release(before);
    EXPECT_TRUE(table.is_clear(same_name));
    EXPECT_TRUE(table.is_clear(same_key));
    EXPECT_TRUE(table.is_only_one_of_name(same_name));
}

TEST(SlotTable, SeveralOfANameMayBeOnTheirWayOut) {
    SlotTable table(4);
    Slot& first = table.create(name(0x100), key(1));
    table.leave(first);
    Slot& second = table.create(name(0x100), key(1));
    table.leave(second);
    Slot& third = table.create(name(0x100), key(1));
    table.release(first);
    EXPECT_FALSE(table.is_clear(third));
    table.release(second);
    EXPECT_TRUE(table.is_clear(third));
}

TEST(SlotTable, CountsThoseOnTheirWayOut) {
    SlotTable table(2);
    Slot& first = table.create(name(0x100), key(1));
    table.create(name(0x200), key(2));
    table.leave(first);
    EXPECT_TRUE(table.full());
    size_t visited = 0;
    table.for_each([&visited](const Slot&) { ++visited; });
    EXPECT_EQ(visited, 2u);
    EXPECT_EQ(table.by_name().size(), 1u);
    table.release(first);
    EXPECT_FALSE(table.full());
    EXPECT_EQ(table.size(), 1u);
}

}  // namespace
}  // namespace sallyport::control
