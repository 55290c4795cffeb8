// SPDX-License-Identifier: Apache-2.0
#include "control/host_traffic/host_traffic.h"

#include <linux/rtnetlink.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <utility>
#include <vector>

#include "control/host_traffic/messages.h"
#include "control/netlink/addresses.h"
#include "control/netlink/link.h"

namespace sallyport::control {

using namespace host_traffic;
using ErrorCode = boost::system::error_code;

namespace {

constexpr std::array<int, 7> kGroups = {
    RTNLGRP_LINK,       RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_RULE,   RTNLGRP_IPV6_RULE};

// What there was to remove has gone already, or what there was to add is there.
bool is_done(const std::expected<void, netlink::Error>& result) {
    if (result) return true;
    const int number = result.error().number;
    return number == ESRCH || number == ENOENT || number == ENODEV || number == EEXIST;
}

std::string describe(const WayName& name) {
    return to_string(name.to) + " from " + to_string(name.source);
}

}  // namespace

HostTraffic::HostTraffic(boost::asio::io_context& context, Log& log)
    : log_(log), timer_(context), context_(context) {}

HostTraffic::~HostTraffic() {
    close();
}

std::expected<void, std::string> HostTraffic::open(uint32_t ifindex) {
    ifindex_ = ifindex;
    auto requests = netlink::Socket::open(netlink::Protocol::route);
    if (!requests) return std::unexpected(requests.error());
    requests_.emplace(std::move(*requests));
    for (const Family family : {Family::v4, Family::v6}) {
        if (auto done = remove_leftovers(family); !done) return done;
    }
    auto news = netlink::Notifications::open(netlink::Protocol::route, kGroups);
    if (!news) return std::unexpected(news.error());
    news_.emplace(std::move(*news));
    readable_.emplace(context_, dup(news_->fd()));
    wait();
    return {};
}

// Routes also where no rule leads to them any more: who has removed the rules has left them behind,
// and a table that is used again would have them.
std::expected<void, std::string> HostTraffic::remove_leftovers(Family family) {
    std::vector<RuleInfo> rules;
    const auto listed = requests_->exchange(
        encode_dump_rules(family, requests_->next_sequence()), [&](const netlink::Message& each) {
            const auto rule = decode_rule(each.payload);
            if (rule && *rule && (*rule)->priority == kRulePriority &&
                is_table_of_ours((*rule)->table)) {
                rules.push_back(**rule);
            }
        });
    // A kernel without policy routing or without IPv6 has none.
    if (!listed && listed.error().number != EOPNOTSUPP && listed.error().number != EAFNOSUPPORT) {
        return std::unexpected("cannot list routing rules: " + listed.error().text);
    }
    for (const RuleInfo& rule : rules) {
        (void)requests_->exchange(
            encode_delete_rule(rule.source, rule.table, requests_->next_sequence()));
    }
    std::vector<RouteInfo> routes;
    const auto read = requests_->exchange(
        encode_dump_routes(family, requests_->next_sequence()), [&](const netlink::Message& each) {
            const auto route = decode_route(each.payload);
            if (route && *route && is_table_of_ours((*route)->table)) routes.push_back(**route);
        });
    if (!read && read.error().number != EAGAIN) {
        return std::unexpected("cannot list routes: " + read.error().text);
    }
    for (const RouteInfo& route : routes) {
        // Those into sp0 went with the device of the killed run.
        if (route.way.leads == Leads::into_tunnel) continue;
        (void)requests_->exchange(encode_delete_route(route.name, route.way, route.table, ifindex_,
                                                      requests_->next_sequence()));
    }
    return {};
}

void HostTraffic::close() {
    ErrorCode ignored;
    if (readable_) readable_->close(ignored);
    readable_.reset();
    news_.reset();
    timer_.cancel();
    if (!requests_) return;
    ways_ = Ways({}, {});
    put_right();
    requests_.reset();
}

void HostTraffic::follow(Policies now) {
    if (now == ways_.policies()) return;
    plan(std::move(now));
    if (requests_) put_right();
}

void HostTraffic::serve(std::span<const std::pair<PolicyId, bool>> groups) {
    std::set<WayName> names;
    for (const auto& [group, served] : groups) names.merge(ways_.serve(group, served));
    if (!names.empty() && requests_) put_right(names);
}

// With the addresses of the host as they are now.
void HostTraffic::plan(Policies policies) {
    if (auto own = netlink::local_addresses()) {
        own_ = std::move(*own);
    } else {
        repair_later();
    }
    ways_ = Ways(std::move(policies), own_);
}

// ---- news --------------------------------------------------------------------------------------

void HostTraffic::wait() {
    readable_->async_wait(
        boost::asio::posix::stream_descriptor::wait_read, [this](ErrorCode error) {
            if (error || !news_) return;
            const auto received =
                news_->receive([this](const netlink::Message& message) { take(message); },
                               [this] { doubt_all(); });
            if (!received) doubt_all();
            wait();
        });
}

// Our own requests come back as news, too.
void HostTraffic::take(const netlink::Message& message) {
    switch (message.type) {
        case RTM_DELROUTE:
            if (message.port != requests_->port()) take_removed_route(message);
            return;
        case RTM_DELRULE: {
            const auto rule = decode_rule(message.payload);
            if (!rule || !*rule || message.port == requests_->port()) return;
            if ((*rule)->priority != kRulePriority || !is_table_of_ours((*rule)->table)) return;
            std::erase_if(rules_, [&](const auto& item) { return item.second == (*rule)->table; });
            return repair_later();
        }
        case RTM_NEWADDR:
            if (told_) told_();
            return repair_later();
        case RTM_DELADDR:
            if (told_) told_();
            // IPv4 says nothing of the routes that go with it.
            return doubt_all();
        case RTM_NEWLINK: {
            // Nor of those that go while the device is down.
            const auto link = netlink::decode_link(message.payload);
            if (link && link->ifindex == ifindex_) doubt_all();
            return;
        }
        default:
            return;
    }
}

void HostTraffic::take_removed_route(const netlink::Message& message) {
    const auto route = decode_route(message.payload);
    if (!route || !*route || !is_table_of_ours((*route)->table)) return;
    for (auto& [name, there] : installed_) {
        const auto table = tables_.find(name.source);
        if (table != tables_.end() && table->second == (*route)->table &&
            name.to == (*route)->name.to) {
            there.sure = false;
        }
    }
    repair_later();
}

// What is there is not known any more: all is added again.
void HostTraffic::doubt_all() {
    for (auto& [name, there] : installed_) there.sure = false;
    rules_.clear();
    repair_later();
}

void HostTraffic::repair_later(std::chrono::milliseconds in) {
    const auto due = std::chrono::steady_clock::now() + in;
    if (repair_due_ && *repair_due_ <= due) return;
    repair_due_ = due;
    timer_.expires_at(due);
    timer_.async_wait([this](ErrorCode error) {
        if (error || !requests_) return;
        repair_due_.reset();
        plan(ways_.policies());
        put_right();
    });
}

// ---- putting right -----------------------------------------------------------------------------

// All that is there, or should be.
void HostTraffic::put_right() {
    std::set<WayName> names;
    for (const auto& [name, there] : installed_) names.insert(name);
    for (const auto& [name, way] : ways_.plan().ways) names.insert(name);
    for (const auto& [source, table] : tables_) names.insert({source, {}});
    put_right(names);
}

void HostTraffic::put_right(const std::set<WayName>& names) {
    failed_ = false;
    const auto& planned = ways_.plan().ways;
    const auto has_ways = [&](const IpAddress& source) {
        const auto first = planned.lower_bound({source, {}});
        return first != planned.end() && first->first.source == source;
    };
    std::set<IpAddress> sources;
    for (const WayName& name : names) sources.insert(name.source);

    // Rules lead only into tables that are complete.
    for (const IpAddress& source : sources) {
        if (tables_.contains(source) && !has_ways(source)) remove_rule(source);
    }
    for (const WayName& name : names) {
        const auto there = installed_.find(name);
        if (there != installed_.end() && !planned.contains(name)) {
            remove(name, Way(there->second.way));
        }
    }
    bool refuses = false;
    for (const WayName& name : names) {
        const auto wanted = planned.find(name);
        if (wanted == planned.end()) continue;
        refuses = refuses || wanted->second.leads == Leads::refused;
        const auto there = installed_.find(name);
        if (there == installed_.end() || !there->second.sure ||
            there->second.way != wanted->second) {
            add(name, wanted->second);
        }
    }
    for (const IpAddress& source : sources) {
        if (!has_ways(source)) {
            tables_.erase(source);
        } else if (!rules_.contains(source)) {
            add_rule(source);
        }
    }
    if (refuses && !std::exchange(said_refused_, true)) {
        log_.note(
            "IPv6 between this host's own addresses and the networks of tunnels that workers serve "
            "is blocked (the kernel cannot exempt it per device); IPv6 in transit is not affected");
    }
    if (failed_) {
        repair_later(retry_);
        retry_ = std::min(2 * retry_, kRetryMax);
    } else {
        said_failed_ = false;
        retry_ = kRepair;
    }
}

size_t HostTraffic::count(Leads leads) const {
    return static_cast<size_t>(std::ranges::count_if(
        installed_, [leads](const auto& item) { return item.second.way.leads == leads; }));
}

uint32_t HostTraffic::table_of(const IpAddress& source) {
    if (const auto known = tables_.find(source); known != tables_.end()) return known->second;
    uint32_t table = kTableFirst;
    if (source != IpAddress{.family = source.family}) {
        std::set<uint32_t> used;
        for (const auto& [other, number] : tables_) used.insert(number);
        do {
            ++table;
        } while (used.contains(table));
    }
    tables_.emplace(source, table);
    return table;
}

void HostTraffic::add(const WayName& name, const Way& way) {
    const auto done = requests_->exchange(
        encode_new_route(name, way, table_of(name.source), ifindex_, requests_->next_sequence()));
    if (!done)
        return refused("the route of this host's own packets to " + describe(name), done.error());
    installed_[name] = {.way = way};
}

void HostTraffic::remove(const WayName& name, const Way& way) {
    const auto done = requests_->exchange(encode_delete_route(
        name, way, table_of(name.source), ifindex_, requests_->next_sequence()));
    if (!is_done(done)) refused("an earlier route to " + describe(name), done.error());
    installed_.erase(name);
}

void HostTraffic::add_rule(const IpAddress& source) {
    const uint32_t table = table_of(source);
    const auto done =
        requests_->exchange(encode_new_rule(source, table, requests_->next_sequence()));
    if (!is_done(done)) {
        return refused("the rule for packets from " + to_string(source), done.error());
    }
    rules_[source] = table;
}

void HostTraffic::remove_rule(const IpAddress& source) {
    const auto done = requests_->exchange(
        encode_delete_rule(source, table_of(source), requests_->next_sequence()));
    if (!is_done(done)) refused("an earlier rule for " + to_string(source), done.error());
    rules_.erase(source);
}

void HostTraffic::refused(const std::string& what, const netlink::Error& error) {
    failed_ = true;
    if (std::exchange(said_failed_, true)) return;  // until all is right again
    log_.error(what + " is refused: " + error.text +
               ": the kernel sends by workers' SAs, and hands their numbers on; tried again");
}

}  // namespace sallyport::control
