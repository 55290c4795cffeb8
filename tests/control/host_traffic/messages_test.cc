// SPDX-License-Identifier: Apache-2.0
#include "control/host_traffic/messages.h"

#include <gtest/gtest.h>
#include <linux/netlink.h>

namespace sallyport::host_traffic {
namespace {

const WayName kName{.source = parse_ip_address("10.1.0.1").value(),
                    .to = parse_ip_prefix("10.2.0.0/24").value()};
const WayName kName6{.source = {.family = Family::v6},
                     .to = parse_ip_prefix("fd00:2::/64").value()};

netlink::Bytes payload(const netlink::RequestBuffer& request) {
    return request.bytes().subspan(sizeof(nlmsghdr));
}

TEST(HostTrafficMessages, RoutesAreReadAsTheyAreWritten) {
    for (const WayName& name : {kName, kName6}) {
        for (const Leads leads : {Leads::as_without_us, Leads::into_tunnel, Leads::refused}) {
            const Way way{.leads = leads, .from = name.source};
            const auto request = encode_new_route(name, way, kTableFirst + 7, 3, 1);
            const auto read = decode_route(payload(request));
            ASSERT_TRUE(read && *read);
            EXPECT_EQ((*read)->table, kTableFirst + 7);
            EXPECT_EQ((*read)->name.to, name.to);
            EXPECT_EQ((*read)->way.leads, leads);
        }
    }
}

TEST(HostTrafficMessages, RulesAreReadAsTheyAreWritten) {
    for (const WayName& name : {kName, kName6}) {
        const auto request = encode_new_rule(name.source, kTableLast, 1);
        const auto read = decode_rule(payload(request));
        ASSERT_TRUE(read && *read);
        EXPECT_EQ((*read)->table, kTableLast);
        EXPECT_EQ((*read)->priority, kRulePriority);
        EXPECT_EQ((*read)->source, name.source);
    }
}

TEST(HostTrafficMessages, WhatIsCutOffIsNoReasonToReadFurther) {
    const auto rule = encode_new_rule(kName.source, kTableFirst, 1);
    const auto route = encode_new_route(kName, {.leads = Leads::into_tunnel, .from = kName.source},
                                        kTableFirst, 3, 1);
    for (size_t size = 0; size < payload(rule).size(); ++size) {
        const auto read = decode_rule(payload(rule).first(size));
        EXPECT_TRUE(!read || !*read || (*read)->table == 0 || (*read)->table == kTableFirst);
    }
    for (size_t size = 0; size < payload(route).size(); ++size) {
        const auto read = decode_route(payload(route).first(size));
        EXPECT_TRUE(!read || !*read || (*read)->table == 0 || (*read)->table == kTableFirst);
    }
    EXPECT_FALSE(decode_rule({}));
    EXPECT_FALSE(decode_route({}));
}

}  // namespace
}  // namespace sallyport::host_traffic
