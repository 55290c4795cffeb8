// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/guard.h"

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "control/xfrm/messages.h"

namespace sallyport::xfrm {

namespace {

constexpr uint32_t kIndexMask = 0xff000000;
constexpr uint32_t kIndexMarker = 0x53000000;

bool is_row_of_ours(const PolicyRow& row) {
    return (row.index & kIndexMask) == kIndexMarker;
}

// What the kernel takes as the same policy.
auto identity(const PolicyRow& row) {
    const PolicySelector& s = row.selector;
    return std::tuple(row.direction, s.source.address.family, s.source.address.bytes, s.source.bits,
                      s.destination.address.bytes, s.destination.bits, s.protocol, s.source_port,
                      s.source_port_mask, s.destination_port, s.destination_port_mask, s.ifindex,
                      s.user);
}
using Identity = decltype(identity(PolicyRow{}));

std::string describe(const PolicyRow& row) {
    return to_string(row.selector.source) + " to " + to_string(row.selector.destination);
}

// Collects rows; of two with the same identity the first decides, as in the SPD.
class RowList {
  public:
    void add(PolicyDirection direction, PolicyAction action, uint32_t priority,
             const PolicySelector& selector) {
        PolicyRow row{
            .selector = selector,
            .direction = direction,
            .action = action,
            .priority = priority,
            .index = 0,
            .icmp_errors = direction == PolicyDirection::out && action == PolicyAction::block};
        if (known_.insert(identity(row)).second) rows_.push_back(row);
    }
    [[nodiscard]] size_t size() const { return rows_.size(); }
    std::vector<PolicyRow> take() { return std::move(rows_); }

  private:
    std::vector<PolicyRow> rows_;
    std::set<Identity> known_;
};

PolicySelector reversed(const PolicySelector& s) {
    return {.source = s.destination,
            .destination = s.source,
            .protocol = s.protocol,
            .source_port = s.destination_port,
            .source_port_mask = s.destination_port_mask,
            .destination_port = s.source_port,
            .destination_port_mask = s.source_port_mask};
}

std::vector<PortMask> masks_of(const std::optional<std::pair<uint16_t, uint16_t>>& range) {
    return range ? cover_port_range(range->first, range->second) : std::vector<PortMask>{{0, 0}};
}

// The selectors of one entry as packets towards the remote side have them.
std::vector<PolicySelector> outbound_selectors(const config::Policy& policy, const IpPrefix& local,
                                               const IpPrefix& remote) {
    std::vector<PolicySelector> out;
    for (const PortMask& near : masks_of(policy.local_ports)) {
        for (const PortMask& far : masks_of(policy.remote_ports)) {
            out.push_back({.source = local,
                           .destination = remote,
                           .protocol = policy.protocol.value_or(0),
                           .source_port = near.value,
                           .source_port_mask = near.mask,
                           .destination_port = far.value,
                           .destination_port_mask = far.mask});
        }
    }
    const bool has_ports = policy.local_ports || policy.remote_ports;
    if (has_ports && policy.action == config::SpdAction::protect) {
        out.push_back({.source = local,
                       .destination = remote,
                       .protocol = policy.protocol.value_or(0),
                       .source_port = 0,
                       .source_port_mask = 0xffff,
                       .destination_port = 0,
                       .destination_port_mask = 0xffff});
    }
    return out;
}

// ICMP errors, which quote the packet that they are about, by their types as xfrm compares them
// (the type stands in place of the source port): destination unreachable, source quench and
// redirect, time exceeded, parameter problem. ICMPv6: all below 128 (RFC 4443 2.1).
constexpr PortMask kIcmpErrors[] = {{3, 0xffff}, {4, 0xfffe}, {11, 0xffff}, {12, 0xffff}};
constexpr PortMask kIcmpv6Errors[] = {{0, 0x0080}};

// The errors that this host makes about packets of a policy that does not cover ICMP itself. The
// kernel asks for the policy of the packet in question too (XFRM_POLICY_ICMP), but not where that
// packet was for this host and came in by a device without xfrm, as all decrypted ones do.
std::vector<PolicySelector> errors_about(const config::Policy& policy, const IpPrefix& local,
                                         const IpPrefix& remote) {
    const bool is_v6 = local.address.family == Family::v6;
    const auto protocol = static_cast<uint8_t>(is_v6 ? int{IPPROTO_ICMPV6} : int{IPPROTO_ICMP});
    if (policy.action != config::SpdAction::protect || !policy.protocol ||
        *policy.protocol == protocol) {
        return {};
    }
    std::vector<PolicySelector> out;
    for (const PortMask& type : is_v6 ? std::span<const PortMask>(kIcmpv6Errors)
                                      : std::span<const PortMask>(kIcmpErrors)) {
        out.push_back({.source = local,
                       .destination = remote,
                       .protocol = protocol,
                       .source_port = type.value,
                       .source_port_mask = type.mask,
                       .destination_port = 0,
                       .destination_port_mask = 0});
    }
    return out;
}

// Neighbour discovery (RFC 4861: solicitations and advertisements of routers and neighbours), by
// types as above. Not redirects: they quote what they are about, and a router heeds none.
constexpr PortMask kNeighbourDiscovery[] = {{133, 0xffff}, {134, 0xfffe}, {136, 0xffff}};

// A wide PROTECT entry covers it too, and then no host of the LAN and no next hop towards the peer
// would find this host. It goes from station to station on a link, so nothing of it is ever
// forwarded: what would be so has only the looks of it.
void let_neighbour_discovery_pass(RowList& rows, uint32_t priority) {
    const IpPrefix any{{.family = Family::v6}, 0};
    for (const PortMask& type : kNeighbourDiscovery) {
        const PolicySelector selector{.source = any,
                                      .destination = any,
                                      .protocol = IPPROTO_ICMPV6,
                                      .source_port = type.value,
                                      .source_port_mask = type.mask};
        rows.add(PolicyDirection::out, PolicyAction::allow, priority, selector);
        rows.add(PolicyDirection::in, PolicyAction::allow, priority, selector);
        rows.add(PolicyDirection::forward, PolicyAction::block, priority, selector);
    }
}

bool has_ipv6_entry(std::span<const config::Policy> policies) {
    return std::ranges::any_of(policies, [](const config::Policy& policy) {
        return std::ranges::any_of(policy.local, [](const IpPrefix& prefix) {
            return prefix.address.family == Family::v6;
        });
    });
}

bool is_ipv6_connection(const config::Policy& policy) {
    return policy.if_id != 0 && policy.local.front().address.family == Family::v6;
}

IpPrefix host_prefix(const IpAddress& address) {
    return {address, static_cast<uint8_t>(address.bit_count())};
}

// All policies but those of sockets.
std::expected<std::vector<PolicyRow>, std::string> dump(netlink::Socket& socket) {
    std::vector<PolicyRow> out;
    const auto done =
        socket.exchange(encode_dump_policies(socket.next_sequence()), [&](const Message& message) {
            const auto policy = decode_kernel_policy(message.payload);
            if (policy && *policy) out.push_back((*policy)->row);
        });
    if (!done) return std::unexpected("cannot list xfrm policies: " + done.error().text);
    return out;
}

void remove(netlink::Socket& socket, uint32_t index) {
    const auto removed = socket.exchange(encode_delete_policy(index, socket.next_sequence()));
    static_cast<void>(removed);  // gone already: that is as good
}

}  // namespace

std::vector<PortMask> cover_port_range(uint16_t lo, uint16_t hi) {
    std::vector<PortMask> out;
    uint32_t next = lo;
    while (next <= hi) {
        uint32_t size = next == 0 ? 0x10000 : next & (~next + 1);  // largest aligned block
        while (next + size - 1 > hi) size /= 2;
        out.push_back({static_cast<uint16_t>(next), static_cast<uint16_t>(~(size - 1))});
        next += size;
    }
    return out;
}

std::expected<std::vector<PolicyRow>, std::string> guard_rows(
    std::span<const config::Policy> policies, std::span<const config::StaticSa> sas,
    uint32_t interface_ifindex) {
    RowList rows;
    size_t mirrored_count = policies.size();
    while (mirrored_count > 0 &&
           policies[mirrored_count - 1].action != config::SpdAction::protect) {
        --mirrored_count;
    }
    if (mirrored_count == 0) return rows.take();

    uint32_t priority = kGuardPriorityFirst;
    for (const config::StaticSa& sa : sas) {
        const PolicySelector outer{.source = host_prefix(sa.source),
                                   .destination = host_prefix(sa.destination),
                                   .protocol = IPPROTO_ESP};
        if (sa.direction == config::SaDirection::outbound) {
            rows.add(PolicyDirection::out, PolicyAction::allow, priority, outer);
        } else {
            rows.add(PolicyDirection::in, PolicyAction::allow, priority, outer);
        }
    }
    if (interface_ifindex != 0 && std::ranges::any_of(policies, is_ipv6_connection)) {
        const IpPrefix any{{.family = Family::v6}, 0};
        rows.add(PolicyDirection::out, PolicyAction::allow, priority,
                 {.source = any, .destination = any, .ifindex = interface_ifindex});
    }
    if (has_ipv6_entry(policies.first(mirrored_count))) {
        let_neighbour_discovery_pass(rows, priority);
    }
    for (const config::Policy& policy : policies.first(mirrored_count)) {
        ++priority;
        const PolicyAction action =
            policy.action == config::SpdAction::bypass ? PolicyAction::allow : PolicyAction::block;
        for (const IpPrefix& local : policy.local) {
            for (const IpPrefix& remote : policy.remote) {
                for (const PolicySelector& selector : outbound_selectors(policy, local, remote)) {
                    rows.add(PolicyDirection::out, action, priority, selector);
                    rows.add(PolicyDirection::in, action, priority, reversed(selector));
                    rows.add(PolicyDirection::forward, action, priority, reversed(selector));
                }
                for (const PolicySelector& selector : errors_about(policy, local, remote)) {
                    rows.add(PolicyDirection::out, action, priority, selector);
                }
                if (rows.size() > kGuardRowsMax) {
                    return std::unexpected("policy '" + policy.name +
                                           "': its prefixes and port ranges make too many xfrm "
                                           "policies (more than " +
                                           std::to_string(kGuardRowsMax) +
                                           " in all): use fewer or rounder port ranges");
                }
            }
        }
    }
    return rows.take();
}

std::vector<PolicyRow> outer_esp_rows(std::span<const std::pair<IpAddress, IpAddress>> tunnels) {
    RowList rows;
    for (const auto& [source, destination] : tunnels) {
        rows.add(PolicyDirection::out, PolicyAction::allow, kGuardPriorityFirst,
                 {.source = host_prefix(source),
                  .destination = host_prefix(destination),
                  .protocol = IPPROTO_ESP});
    }
    return rows.take();
}

namespace {

// nullopt: they have nothing in common.
std::optional<IpPrefix> both(const IpPrefix& a, const IpPrefix& b) {
    if (a.contains(b)) return b;
    if (b.contains(a)) return a;
    return std::nullopt;
}

// The kernel sees no marks of connections here: a BYPASS that asks for one does not open, a DISCARD
// holds for all.
bool holds_without_mark(const config::Policy& policy) {
    return !policy.ct_mark || policy.action != config::SpdAction::bypass;
}

}  // namespace

std::expected<std::vector<PolicyRow>, std::string> left_open_rows(
    std::span<const LeftOpen> left_open, std::span<const config::Policy> policies) {
    constexpr uint32_t kUser = 0x53500000;
    RowList rows;
    uint32_t priority = kGuardPriorityLast;
    for (const config::Policy& policy : policies) {
        if (!holds_without_mark(policy)) continue;
        ++priority;
        const PolicyAction action =
            policy.action == config::SpdAction::bypass ? PolicyAction::allow : PolicyAction::block;
        for (const LeftOpen& open : left_open) {
            for (const IpPrefix& local : policy.local) {
                for (const IpPrefix& remote : policy.remote) {
                    const auto source = both(open.source, local);
                    const auto destination = both(open.destination, remote);
                    if (!source || !destination) continue;
                    for (PolicySelector row : outbound_selectors(policy, *source, *destination)) {
                        row.user = kUser;
                        rows.add(PolicyDirection::out, action, priority, row);
                    }
                    if (rows.size() > kGuardRowsMax) {
                        return std::unexpected("more than " + std::to_string(kGuardRowsMax) +
                                               " xfrm policies");
                    }
                }
            }
        }
    }
    ++priority;
    for (const LeftOpen& open : left_open) {
        rows.add(PolicyDirection::out, PolicyAction::block, priority,
                 {.source = open.source, .destination = open.destination, .user = kUser});
    }
    return rows.take();
}

std::expected<PolicyGuard, std::string> PolicyGuard::install(std::vector<PolicyRow> rows) {
    auto socket = netlink::Socket::open(netlink::Protocol::xfrm);
    if (!socket) return std::unexpected(socket.error());
    const auto before = dump(*socket);
    if (!before) return std::unexpected(before.error());
    PolicyGuard guard(std::move(*socket));
    // Fail closed: what is in place stays when this start fails half way.
    guard.at_end_ = AtEnd::keep;
    guard.wanted_ = std::move(rows);
    if (auto done = guard.write(*before, Beside::nothing_foreign); !done) {
        return std::unexpected(done.error());
    }
    const bool has_leftovers = std::ranges::any_of(*before, is_row_of_ours);
    guard.at_end_ = has_leftovers ? AtEnd::keep : AtEnd::remove;
    return guard;
}

std::expected<void, std::string> PolicyGuard::replace(std::vector<PolicyRow> rows) {
    const auto before = dump(socket_);
    if (!before) return std::unexpected(before.error());
    std::vector<PolicyRow> earlier = std::exchange(wanted_, std::move(rows));
    auto done = write(*before, Beside::nothing_foreign);
    if (!done) wanted_ = std::move(earlier);  // tried again by the caller
    return done;
}

std::expected<size_t, std::string> PolicyGuard::restore() {
    if (wanted_.empty()) return 0;
    const auto before = dump(socket_);
    if (!before) return std::unexpected(before.error());
    std::map<Identity, const PolicyRow*> there;
    for (const PolicyRow& row : *before) there.emplace(identity(row), &row);
    const auto is_lost = [&](PolicyRow row) {
        const auto found = there.find(identity(row));
        if (found == there.end() || !is_row_of_ours(*found->second)) return true;
        row.index = found->second->index;  // the kernel may have kept an earlier one
        return *found->second != row;
    };
    const auto lost = static_cast<size_t>(std::ranges::count_if(wanted_, is_lost));
    if (lost == 0) return 0;
    if (auto done = write(*before, Beside::what_is_there); !done) {
        return std::unexpected(done.error());
    }
    return lost;
}

bool PolicyGuard::concerns(const netlink::Message& message) const {
    if (message.port == socket_.port()) return false;
    constexpr auto is_ours = [](uint32_t index) { return (index & kIndexMask) == kIndexMarker; };
    if (message.type == kMessageFlushPolicies) return true;
    if (message.type == kMessageDeletePolicy) {
        const auto index = decode_deleted_policy(message.payload);
        return !index || is_ours(*index);
    }
    if (message.type == kMessagePolicyExpire) {
        const auto expiry = decode_policy_expire(message.payload);
        return !expiry || is_ours(expiry->index);
    }
    if (message.type == kMessagePolicy || message.type == kMessageUpdatePolicy) {
        const auto policy = decode_kernel_policy(message.payload);
        return policy && *policy && is_ours((*policy)->row.index);
    }
    return false;
}

std::expected<void, std::string> PolicyGuard::write(std::span<const PolicyRow> before,
                                                    Beside beside) {
    std::vector<PolicyRow>& rows = wanted_;
    std::set<Identity> foreign;
    std::map<Identity, const PolicyRow*> ours;
    std::set<uint32_t> used;
    for (const PolicyRow& row : before) {
        used.insert(row.index);
        if (is_row_of_ours(row)) {
            ours.emplace(identity(row), &row);
        } else {
            foreign.insert(identity(row));
        }
    }
    std::set<Identity> wanted;
    std::string failure;
    for (const PolicyRow& row : rows) {
        wanted.insert(identity(row));
        if (!foreign.contains(identity(row))) continue;
        failure =
            "an xfrm policy for " + describe(row) +
            " exists already and is not ours: stop the program that made it (an IKE daemon?), "
            "or remove it with 'ip xfrm policy'";
        if (beside == Beside::nothing_foreign) return std::unexpected(failure);
    }

    uint32_t next = 0;
    for (PolicyRow& row : rows) {
        if (foreign.contains(identity(row))) continue;
        // One that is there as it is to be needs no message: rows are many, and few change. That it
        // would go behind others of its priority means nothing, since these decide the same.
        if (const auto there = ours.find(identity(row)); there != ours.end()) {
            row.index = there->second->index;
            if (*there->second == row) continue;
        }
        do {
            row.index = kIndexMarker | (next++ << 3) | static_cast<uint32_t>(row.direction);
        } while (used.contains(row.index));
        const auto done = socket_.exchange(encode_update_policy(row, socket_.next_sequence()));
        if (!done) {
            return std::unexpected("cannot install the xfrm policy for " + describe(row) + ": " +
                                   done.error().text +
                                   ". Those installed so far stay and block, so that nothing "
                                   "leaves in clear (their index in 'ip xfrm policy' begins with "
                                   "0x53); the next start replaces them");
        }
    }
    if (!failure.empty()) return std::unexpected(failure);
    for (const PolicyRow& row : before) {
        if (is_row_of_ours(row) && !wanted.contains(identity(row))) remove(socket_, row.index);
    }
    return {};
}

PolicyGuard::PolicyGuard(PolicyGuard&& other) noexcept
    : socket_(std::move(other.socket_)),
      wanted_(std::move(other.wanted_)),
      at_end_(std::exchange(other.at_end_, AtEnd::keep)) {}

PolicyGuard::~PolicyGuard() {
    if (at_end_ == AtEnd::keep) return;
    const auto present = dump(socket_);
    if (!present) return;
    for (const PolicyRow& row : *present) {
        if (is_row_of_ours(row)) remove(socket_, row.index);
    }
}

}  // namespace sallyport::xfrm
