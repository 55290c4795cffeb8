// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which ways this host's own packets take, so that what a policy covers meets the worker that sends
// for the policy and nothing else changes its way: a pure function of the SPD and of the host's
// addresses. host_traffic.h carries it out.
//
// An SA has one sender. While a worker has it, what the host itself sends by its policy (echo
// replies, ICMP errors, BGP, SSH, DNS) must come to the worker too: through sp0, where the kernel
// routes it. A route knows destinations only, a policy also the source, so each address of the host
// has a table of its own:
//
//   source of the packet          table of        has
//   an address A of the host      A               the destinations of A's policies
//   not chosen yet                "no source"     those of all addresses, each with a source to
//   take anything else                 -               the ways that there are without us
//
// What a table says of a destination D is what the SPD says of packets from A to D, the entries
// that cover D in their order:
//   PROTECT, and a worker sends         into sp0; in IPv6 nowhere (Leads)
//   BYPASS, DISCARD, the kernel sends   no route; inside of a wider D that leads into sp0, a route
//                                       that says "as without this table" (throw)
// Entries with a protocol or ports decide together with those behind them, up to the first that has
// none. Where all that they leave to others is DISCARD, or nothing, D leads into sp0, and the
// worker drops what it has no policy for. Where some of it is the kernel's, the way cannot tell
// them apart: D stays out, and the kernel sends some packets by a worker's SA (`left`).
//
// Left out as well, because IKE and ESP of the tunnels themselves must not be led into a tunnel:
//   - the outer addresses of peers, each by a throw
//   - the default route, for an outer address of ours: nobody knows the next peer
//   - the default route, for packets without a source: that would be the way of everything
// What no address of the host can be the source of needs no way: the kernel's policies do not
// cover it either, whatever it is about.

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <vector>

#include "dataplane/base/ip.h"
#include "dataplane/base/prefix_map.h"
#include "dataplane/spd/spd.h"

namespace sallyport::host_traffic {

struct Policies {
    std::vector<SpdEntry> outbound;  // in SPD order
    std::vector<bool> served;       // by PolicyId: a worker sends for it; beyond the end: none does
    std::set<IpAddress> near_ends;  // outer addresses of tunnels: ours
    std::set<IpAddress> far_ends;   // and of the peers

    friend bool operator==(const Policies&, const Policies&) = default;
};

struct WayName {
    IpAddress source;  // all zero: not chosen yet
    IpPrefix to;
    friend bool operator==(const WayName&, const WayName&) = default;
    friend bool operator<(const WayName& a, const WayName& b) {
        return std::tie(a.source, a.to.address, a.to.bits) <
               std::tie(b.source, b.to.address, b.to.bits);
    }
};

// `refused`: IPv6. The kernel has no way to spare it xfrm on one device (disable_xfrm is IPv4's,
// and a selector's device is compared only with that of a bound socket or of a forwarded packet),
// so it would encrypt what is routed into sp0, and lets in nothing for itself that a worker has
// decrypted.
enum class Leads : uint8_t { as_without_us, into_tunnel, refused };

struct Way {
    Leads leads = Leads::as_without_us;
    IpAddress from;  // into_tunnel: the source that a packet without one takes
    friend bool operator==(const Way&, const Way&) = default;
};

struct Plan {
    std::map<WayName, Way> ways;
    // Destinations of policies that workers serve for others, while the kernel sends what this host
    // has for them.
    std::set<WayName> left;
    friend bool operator==(const Plan&, const Plan&) = default;
};

// The plan, kept while workers begin and cease to send for groups: what that costs is what the
// policies of these groups cover, however many others there are.
class Ways {
  public:
    // `own`: the host's addresses, preferred ones first; which of them can be sources of tunnel
    // traffic is decided here.
    Ways(Policies policies, std::span<const IpAddress> own);

    [[nodiscard]] const Policies& policies() const { return policies_; }
    [[nodiscard]] const Plan& plan() const { return plan_; }
    // A worker sends for `group` from now on, or none does. The names whose way may have changed.
    std::set<WayName> serve(PolicyId group, bool served);

  private:
    struct Choice {
        std::optional<IpAddress> from;  // into the tunnel, with this source
        bool shared = false;            // a worker and the kernel would send
    };
    using Choices = PrefixMap<Choice>;
    struct Source {
        IpAddress address;
        bool outer = false;
        PrefixPositions entries;  // by destination; of those that it is inside of
        Choices choices;
    };

    void add_source(const IpAddress& address, bool outer);
    [[nodiscard]] bool is_served(const SpdEntry& entry) const;
    [[nodiscard]] Choice judge(const Source& source, const IpPrefix& to) const;
    [[nodiscard]] Choices& without_source(Family family) {
        return without_source_[family == Family::v4 ? 0 : 1];
    }
    [[nodiscard]] Choice first_choice(const IpPrefix& to) const;
    void choose(const IpPrefix& around);
    [[nodiscard]] std::set<WayName> names_inside(const IpPrefix& around);
    void set_way(const WayName& name);
    [[nodiscard]] const Choices& choices_of(const IpAddress& source);

    Policies policies_;
    std::vector<Source> sources_;  // in the order in which a packet without one takes them
    Choices without_source_[2];    // IPv4, IPv6
    std::map<PolicyId, std::vector<uint32_t>> positions_;  // of entries that are about the host
    Plan plan_;
};

inline Plan plan_ways(const Policies& policies, std::span<const IpAddress> own) {
    return Ways(policies, own).plan();
}

}  // namespace sallyport::host_traffic
