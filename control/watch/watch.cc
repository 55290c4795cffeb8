// SPDX-License-Identifier: Apache-2.0
#include "control/watch/watch.h"

#include <linux/rtnetlink.h>
#include <linux/xfrm.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "control/watch/look.h"

namespace sallyport::watch {

namespace {

using ErrorCode = boost::system::error_code;

constexpr std::array<int, 8> kLinkGroups = {
    RTNLGRP_LINK,      RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF, RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_RULE, RTNLGRP_IPV4_IFADDR,  RTNLGRP_IPV6_IFADDR,  RTNLGRP_TC};
constexpr std::array<int, 1> kPolicyGroups = {XFRMNLGRP_POLICY};

// Nothing was mended of a device that is not there any more.
bool of_what_is_gone(const std::vector<Difference>& now, const std::string& key) {
    constexpr std::string_view kGone = "gone";
    return std::ranges::any_of(now, [&](const Difference& difference) {
        return difference.key.ends_with(kGone) &&
               key.starts_with(difference.key.substr(0, difference.key.size() - kGone.size()));
    });
}

}  // namespace

Watch::Watch(boost::asio::io_context& context, control::Log& log, Host& host, Gate& gate,
             xfrm::PolicyGuard& guard)
    : context_(context), log_(log), host_(host), gate_(gate), guard_(guard), timer_(context) {}

std::expected<void, std::string> Watch::start(std::vector<PortShould> ports, const InnerShould& tap,
                                              const std::optional<InnerShould>& interface) {
    ports_ = std::move(ports);
    inner_.emplace_back(Host::Inner::tap, tap);
    if (interface) inner_.emplace_back(Host::Inner::interface, *interface);

    auto questions = netlink::Socket::open(netlink::Protocol::route);
    if (!questions) return std::unexpected(questions.error());
    questions_.emplace(std::move(*questions));
    auto links = netlink::Notifications::open(netlink::Protocol::route, kLinkGroups);
    if (!links) return std::unexpected(links.error());
    links_.emplace(std::move(*links));
    links_readable_.emplace(context_, dup(links_->fd()));
    auto policies = netlink::Notifications::open(netlink::Protocol::xfrm, kPolicyGroups);
    if (!policies) return std::unexpected(policies.error());
    policies_.emplace(std::move(*policies));
    policies_readable_.emplace(context_, dup(policies_->fd()));
    wait_for_links();
    wait_for_policies();
    audit();
    return {};
}

void Watch::stop() {
    ErrorCode ignored;
    for (auto* readable : {&links_readable_, &policies_readable_}) {
        if (*readable) (void)(*readable)->close(ignored);
        readable->reset();
    }
    links_.reset();
    policies_.reset();
    timer_.cancel();
}

std::vector<std::string> Watch::degraded() const {
    std::vector<std::string> out;
    for (const auto& [subject, differences] : standing_) {
        for (const auto& [key, text] : differences) out.push_back(text);
    }
    return out;
}

// ---- hearing -----------------------------------------------------------------------------------

void Watch::wait_for_links() {
    links_readable_->async_wait(Descriptor::wait_read, [this](ErrorCode error) {
        if (error || !links_) return;
        bool settings = false;
        bool devices = false;
        bool addresses = false;
        const auto received = links_->receive(
            [&](const netlink::Message& message) {
                settings =
                    settings || message.type == RTM_NEWNETCONF || message.type == RTM_DELNETCONF;
                addresses = addresses || message.type == RTM_NEWADDR || message.type == RTM_DELADDR;
                // Of rules only those that close a port matter, while some is closed.
                devices = devices || message.type == RTM_NEWLINK || message.type == RTM_DELLINK ||
                          (message.type == RTM_DELRULE && !closed_.empty()) ||
                          may_take_tc_program(message);
            },
            [&] { settings = devices = addresses = true; });
        if (!received) settings = devices = addresses = true;
        if (devices) look_at_devices();
        if (settings) look_at_settings();
        if (addresses) look_at_addresses();
        wait_for_links();
    });
}

// Filters of our devices, and what holds them.
bool Watch::may_take_tc_program(const netlink::Message& message) const {
    if (message.type != RTM_NEWTFILTER && message.type != RTM_DELTFILTER &&
        message.type != RTM_DELQDISC) {
        return false;
    }
    const auto header = netlink::peek<tcmsg>(message.payload);
    if (!header) return true;
    const auto ifindex = static_cast<uint32_t>(header->tcm_ifindex);
    return std::ranges::any_of(ports_, [&](const auto& p) { return p.ifindex == ifindex; }) ||
           std::ranges::any_of(inner_, [&](const auto& i) { return i.second.ifindex == ifindex; });
}

void Watch::wait_for_policies() {
    policies_readable_->async_wait(Descriptor::wait_read, [this](ErrorCode error) {
        if (error || !policies_) return;
        bool doubt = false;
        const auto received = policies_->receive(
            [&](const netlink::Message& message) { doubt = doubt || guard_.concerns(message); },
            [this] { next_guard_audit_ = {}; });
        if (!received) next_guard_audit_ = {};
        if (doubt) look_at_guard();
        wait_for_policies();
    });
}

void Watch::audit() {
    look_at_devices();
    look_at_settings();
    if (Clock::now() >= next_addresses_audit_) look_at_addresses();
    if (Clock::now() >= next_guard_audit_ || !standing_[Subject::guard].empty()) look_at_guard();
    timer_.expires_after(kAudit);
    timer_.async_wait([this](ErrorCode error) {
        if (!error) audit();
    });
}

// ---- looking and mending -----------------------------------------------------------------------

void Watch::look_at_devices() {
    std::vector<PortVerdict> verdicts = look_at_ports();
    shut(verdicts);
    std::vector<Difference> differences;
    for (const PortVerdict& verdict : verdicts)
        std::ranges::copy(verdict.differences, std::back_inserter(differences));
    hold(Subject::ports, differences);
    const std::vector<Difference> failed = mend_ports(verdicts);
    const auto attaches = [](const PortVerdict& each) { return each.attach || each.attach_out; };
    if (std::ranges::any_of(verdicts, attaches)) {
        verdicts = look_at_ports();
        differences = failed;
        for (const PortVerdict& verdict : verdicts) {
            std::ranges::copy(verdict.differences, std::back_inserter(differences));
        }
        hold(Subject::ports, differences);
    }
    // Open again what need not be closed any more.
    std::set<std::string> closed;
    for (const PortVerdict& verdict : verdicts)
        closed.insert(verdict.closed.begin(), verdict.closed.end());
    std::erase_if(closed_, [&](const std::string& device) {
        return !closed.contains(device) && gate_.open(device).has_value();
    });
    look_at_inner();
}

DeviceNow Watch::look_at_port(const PortShould& port) {
    DeviceNow now = look_at(port.ifindex);
    for (const netlink::LinkInfo& below : port.below) {
        if (DeviceNow device = look_at(below.ifindex); device.ifindex != 0) {
            now.below.insert(std::move(device.name));
        }
    }
    if (now.ifindex == 0) return now;
    now.keeps_tags = host_.keeps_tags(now.name);
    if (auto link = netlink::find_link(*questions_, now.name)) {
        now.slave_kind = std::move(link->slave_kind);
        now.has_carrier = link->running;
    }
    return now;
}

std::vector<PortVerdict> Watch::look_at_ports() {
    std::vector<PortVerdict> out;
    for (size_t i = 0; i < ports_.size(); ++i) {
        PortShould& port = ports_[i];
        DeviceNow now = look_at_port(port);
        now.has_program = now.ifindex != 0 && host_.is_attached(i, Host::Hook::in);
        now.has_kernel_out = now.ifindex != 0 && host_.is_attached(i, Host::Hook::out);
        out.push_back(judge_port(port, now, if_nametoindex(port.device.c_str())));
        port.lost = port.lost || out.back().lost;
        if (now.ifindex == 0) continue;
        if (now.mtu != port.mtu && host_.set_mtu(i, now.mtu)) port.mtu = now.mtu;
        if (now.mac != port.mac && host_.set_mac(i, now.mac)) port.mac = now.mac;
    }
    return out;
}

// Each time, since rules may be removed too.
void Watch::shut(const std::vector<PortVerdict>& verdicts) {
    for (const PortVerdict& verdict : verdicts) {
        for (const std::string& device : verdict.closed) {
            const auto done = gate_.close(device);
            const bool is_new = closed_.insert(device).second;
            if (!done && is_new) log_.error(done.error());
        }
    }
}

std::vector<Difference> Watch::mend_ports(const std::vector<PortVerdict>& verdicts) {
    std::vector<Difference> failed;
    const auto attach = [&](size_t i, Host::Hook hook, const std::string& what) {
        const auto done = host_.attach(i, hook);
        if (done) return;
        const std::string about = "port " + ports_[i].port + ": ";
        failed.push_back({.key = about + "attach " + what,
                          .text = about + "the " + what + " cannot be attached again: " +
                                  done.error() + "; it is tried each second"});
    };
    for (size_t i = 0; i < verdicts.size(); ++i) {
        if (verdicts[i].attach_out) attach(i, Host::Hook::out, "TC program");
        if (verdicts[i].attach) attach(i, Host::Hook::in, "program");
    }
    return failed;
}

void Watch::look_at_inner() {
    std::vector<Difference> differences;
    std::vector<Difference> after;
    for (const auto& [which, should] : inner_) {
        DeviceNow now = look_at(should.ifindex);
        now.has_program = now.ifindex != 0 && host_.is_attached(which);
        const InnerVerdict verdict = judge_inner(should, now);
        std::ranges::copy(verdict.differences, std::back_inserter(differences));
        // Without its program the kernel would forward what workers have decrypted, unjudged.
        if (verdict.close) {
            if (auto closed = gate_.close(should.device); !closed) log_.error(closed.error());
            closed_inner_.insert(should.device);
        }
        std::expected<void, std::string> done;
        if (verdict.set_up) done = host_.set_up(which);
        if (done && verdict.attach) done = host_.attach(which);
        if (!done) {
            std::ranges::copy(verdict.differences, std::back_inserter(after));
            after.push_back(
                {.key = should.device + ": mend",
                 .text = should.device + ": " + done.error() + "; it is tried each second"});
        } else if (!verdict.set_up && !verdict.attach) {
            std::ranges::copy(verdict.differences, std::back_inserter(after));
        }
        if (done && closed_inner_.contains(should.device) && gate_.open(should.device)) {
            closed_inner_.erase(should.device);
        }
    }
    // What stood before the mending is said, but for what stands already with its failure.
    std::erase_if(differences, [&](const Difference& each) {
        return std::ranges::find(after, each) != after.end();
    });
    if (!differences.empty()) {
        std::ranges::copy(after, std::back_inserter(differences));
        hold(Subject::inner, differences);
    }
    hold(Subject::inner, after);
}

void Watch::look_at_guard() {
    const auto began = Clock::now();
    const auto restored = guard_.restore();
    next_guard_audit_ =
        Clock::now() + std::max<Clock::duration>(kGuardAudit, 100 * (Clock::now() - began));
    std::vector<Difference> differences;
    if (!restored) {
        differences.push_back(
            {.key = "not written",
             .text = "xfrm policies of ours were removed or changed and cannot be "
                     "written again: " +
                     restored.error() +
                     "; what the kernel itself sends may leave in clear. It is "
                     "tried each second"});
    } else if (*restored > 0) {
        differences.push_back(
            {.key = "lost",
             .text = std::to_string(*restored) +
                     " xfrm policies of ours were removed or changed by another program; they "
                     "block in the kernel again"});
    }
    hold(Subject::guard, differences);
}

void Watch::look_at_settings() {
    std::vector<Difference> differences;
    for (const Host::ChangedSetting& each : host_.mend_settings()) {
        const std::string text =
            "the setting " + each.name + " was changed to '" + each.found + "' by another program";
        if (each.error.empty()) {
            differences.push_back({.key = each.name, .text = text + "; it has our value again"});
        } else {
            differences.push_back({.key = each.name + " stays",
                                   .text = text + " and cannot be set back: " + each.error +
                                           "; it is tried each second"});
        }
    }
    hold(Subject::settings, differences);
}

void Watch::look_at_addresses() {
    const auto began = Clock::now();
    std::vector<Difference> differences;
    if (auto told = host_.follow_addresses(); !told) {
        differences.push_back(
            {.key = "addresses",
             .text = "the programs do not know all addresses of this host: " + told.error() +
                     "; what is for others is dropped where its device does not forward, and what "
                     "the kernel forwards from them. It is tried each second"});
    }
    next_addresses_audit_ = Clock::now() + 100 * (Clock::now() - began);
    hold(Subject::addresses, differences);
}

// One that comes and goes ever again is said now and then, so that it does not fill the log.
bool Watch::may_say(const std::string& key) {
    const auto now = Clock::now();
    std::erase_if(said_, [&](const auto& each) { return now - each.second.since > kSaidAgain; });
    Said& said = said_.try_emplace(key, Said{.since = now}).first->second;
    return ++said.times <= kSaidMax;
}

// Says what is new and what has gone.
void Watch::hold(Subject subject, const std::vector<Difference>& now) {
    std::map<std::string, std::string>& standing = standing_[subject];
    std::map<std::string, std::string> next;
    for (const Difference& difference : now) next[difference.key] = difference.text;
    for (const auto& [key, text] : next) {
        // Of settings and policies others may change ever more: that is said once.
        const auto before = standing.find(key);
        const bool is_new =
            before == standing.end() || (subject == Subject::ports && before->second != text);
        if (is_new && may_say(key)) log_.warning(text);
    }
    for (const auto& [key, text] : standing) {
        const auto said = said_.find(key);
        const bool often = said != said_.end() && said->second.times > kSaidMax;
        if (next.contains(key) || often || of_what_is_gone(now, key)) continue;
        // What is to be done about it stands behind the first clause.
        log_.info("mended: " + text.substr(0, text.find(';')));
    }
    standing = std::move(next);
}

}  // namespace sallyport::watch
