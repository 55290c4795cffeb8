// SPDX-License-Identifier: Apache-2.0
#include "control/watch/gate.h"

#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace sallyport::watch {

namespace {

using netlink::Attributes;
using netlink::Bytes;
using netlink::Message;
using netlink::number_of;
using netlink::RequestBuffer;
using netlink::Writer;

RequestBuffer encode_rule(uint16_t type, unsigned flags, Family family, const std::string& device,
                          uint32_t sequence) {
    Writer writer(type, NLM_F_ACK | flags, sequence);
    fib_rule_hdr body{};
    body.family = number_of(family);
    body.action = FR_ACT_BLACKHOLE;
    writer.put(body);
    writer.name(FRA_IIFNAME, device);
    writer.attribute(FRA_PRIORITY, kGatePriority);
    writer.attribute(FRA_PROTOCOL, netlink::kMadeByUs);
    return writer.take();
}

RequestBuffer encode_dump(Family family, uint32_t sequence) {
    Writer writer(RTM_GETRULE, NLM_F_DUMP, sequence);
    fib_rule_hdr header{};
    header.family = number_of(family);
    writer.put(header);
    return writer.take();
}

// The kernel has no such family, or no rules in it.
bool is_without(const netlink::Error& error) {
    return error.number == EOPNOTSUPP || error.number == EAFNOSUPPORT;
}

}  // namespace

RequestBuffer encode_close(Family family, const std::string& device, uint32_t sequence) {
    return encode_rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, family, device, sequence);
}

RequestBuffer encode_open(Family family, const std::string& device, uint32_t sequence) {
    return encode_rule(RTM_DELRULE, 0, family, device, sequence);
}

std::expected<std::optional<std::string>, std::string> decode_closed(Bytes payload) {
    const auto header = netlink::peek<fib_rule_hdr>(payload);
    if (!header) return std::unexpected("a rule is shorter than its header");
    uint32_t priority = 0;
    uint8_t made_by = 0;
    Attributes attributes;
    if (!attributes.parse(netlink::behind<fib_rule_hdr>(payload)) ||
        !attributes.exact(FRA_PRIORITY, priority) || !attributes.exact(FRA_PROTOCOL, made_by)) {
        return std::unexpected("a rule is malformed");
    }
    const bool ours = header->action == FR_ACT_BLACKHOLE && priority == kGatePriority &&
                      made_by == netlink::kMadeByUs && attributes.has(FRA_IIFNAME);
    if (!ours) return std::nullopt;
    return netlink::text_of(attributes.value(FRA_IIFNAME));
}

std::expected<Gate, std::string> Gate::make() {
    auto socket = netlink::Socket::open(netlink::Protocol::route);
    if (!socket) return std::unexpected(socket.error());
    Gate gate(std::move(*socket));
    for (const Family family : {Family::v4, Family::v6}) {
        const auto listed =
            gate.socket_->exchange(encode_dump(family, gate.socket_->next_sequence()));
        if (listed || listed.error().number == EAGAIN) {
            gate.families_.push_back(family);
        } else if (!is_without(listed.error())) {
            return std::unexpected("cannot list routing rules: " + listed.error().text);
        }
    }
    return gate;
}

Gate::~Gate() {
    if (socket_ && at_end_ == AtEnd::open) (void)open_all();
}

std::expected<void, std::string> Gate::close(const std::string& device) {
    for (const Family family : families_) {
        const auto done = socket_->exchange(encode_close(family, device, socket_->next_sequence()));
        if (!done && done.error().number != EEXIST) {
            return std::unexpected("cannot close " + device +
                                   " by a routing rule: " + done.error().text);
        }
    }
    return {};
}

std::expected<void, std::string> Gate::open(const std::string& device) {
    for (const Family family : families_) {
        const auto done = socket_->exchange(encode_open(family, device, socket_->next_sequence()));
        if (!done && done.error().number != ENOENT) {
            return std::unexpected("cannot remove the routing rule that closes " + device + ": " +
                                   done.error().text);
        }
    }
    return {};
}

std::expected<void, std::string> Gate::open_all(const std::set<std::string>& but) {
    for (const Family family : families_) {
        const auto devices = closed_of(family);
        if (!devices) return std::unexpected(devices.error());
        for (const std::string& device : *devices) {
            if (but.contains(device)) continue;
            if (auto done = open(device); !done) return done;
        }
    }
    return {};
}

std::expected<std::set<std::string>, std::string> Gate::closed_of(Family family) {
    std::set<std::string> out;
    const auto listed = socket_->exchange(encode_dump(family, socket_->next_sequence()),
                                          [&out](const Message& message) {
                                              const auto device = decode_closed(message.payload);
                                              if (device && *device) out.insert(**device);
                                          });
    if (!listed) return std::unexpected("cannot list routing rules: " + listed.error().text);
    return out;
}

std::expected<std::set<std::string>, std::string> Gate::closed() {
    std::optional<std::set<std::string>> out;
    for (const Family family : families_) {
        auto devices = closed_of(family);
        if (!devices) return devices;
        if (!out) {
            out = std::move(*devices);
        } else {
            std::erase_if(*out, [&](const std::string& each) { return !devices->contains(each); });
        }
    }
    return out.value_or(std::set<std::string>{});
}

}  // namespace sallyport::watch
