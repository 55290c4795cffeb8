// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which SAs of the kernel's register the workers take over, and what the SPD is: a pure function of
// the register, computed anew whenever it changed. control/sa/kernel carries it out.
//
// Policies
// --------
// `out` policies by priority are the outbound SPD, `in` and `fwd` policies the inbound one. Which
// of one priority the kernel asks first is not known (rivals.h). A policy with a template is
// PROTECT, one without is BYPASS (allow) or DISCARD (block). Policies of the configuration (BYPASS
// and DISCARD only) stand behind them. All policies with the same template (reqid, tunnel
// addresses, mode, SPI, if_id) belong to one *group*, and the PolicyId of their entries is the
// group: an SA serves a group, so a child SA with several traffic selectors needs no more than one
// entry in a worker's table. Where templates name the SPI (strongSwan: of all out policies, but not
// of traps), each SA has a group of its own, and while policies are changed from one SA to the
// next, each goes by the SA that its template names. Entries that can never decide, because an
// earlier one has the same selector, are left out.
//
// What the workers cannot judge (a mark, a device in the selector, several or optional templates,
// ports by a mask that is no range, ICMP types) fails closed, each time by an entry that covers at
// least what the policy covers:
//   out, any action      PROTECT in a group of its own that no worker serves: the kernel decides
//   in, fwd, template    PROTECT: cleartext that it may cover does not enter
//   in, fwd, block       DISCARD
//   in, fwd, allow       none: what nothing else lets in stays out
//   out, with rivals     allow, block: PROTECT in a group of its own; the kernel decides
// Entries that one address pair, or the maps, have no room for become coarse (coarse.h): PROTECT
// that the kernel decides, and no worker sends with an SA of theirs. An `out` policy of an xfrm
// interface is PROTECT in its group, which no worker serves; if_id_by_group tells the kernel's path
// which interface it is. Its `in` and `fwd` policies apply to that interface only, not to what
// arrives by a port.
//
// The kernel asks `in` for packets to the host and `fwd` for what it forwards; here is one list,
// and XDP forwards what it lets in. So an `in` policy that allows and has no `fwd` twin stands
// behind all others of the register: it cannot let through what `fwd` forbids. What the host
// itself takes in is judged again by the kernel. `fwd` policies do not judge cleartext from the
// protected side, `out` policies do.
//
// SAs
// ---
// Direction: XFRMA_SA_DIR; else the policies whose template fits; else which end is an address of
// this host. A template fits as in the kernel: outbound reqid, destination and source are equal
// (source 0: any); inbound reqid and source are equal (0: any) and the destination is not asked.
// An SA that a worker cannot serve stays with the kernel, and `reason` says why, in words that
// follow "kernel: " in `show sa`: "no keys yet", "its keys are hidden (lockdown)", "AH", "IPComp",
// "offloaded to a device", "UDP encapsulation", "transport mode", "cipher cbc(aes) + hmac(sha256)",
// "ICV of 64 bits", "xfrm interface 7", "mark 0x10", "no policy for it yet", ...
//
// One SA has one sender. Outbound SAs stay with the kernel where it would send with them as well:
// - The newest outbound SA of a group must stay: the kernel sends for the whole group.
// - A policy that only the kernel can judge has the SA's template, or may hand packets on to the
//   SA's group because it stands before one of its entries and does not apply to all it covers.
// - A policy of its group has rivals, and the kernel may choose either.
// - The SA serves several groups: templates without an SPI beside those that name it, for one.
//
// Selectors of an inbound SA are those of the policies whose template fits, without what earlier
// policies with other templates or without any take away from them: the kernel drops a decrypted
// packet whose first policy does not fit the SA that it came by (RFC 4301 4.4.1: decorrelated). A
// worker cannot know whether `in` or `fwd` would be asked, so neither may forbid it; one suffices.
// Where that takes more than kSelectorsMax selectors, or another policy of the same priority may be
// asked before its own, the SA stays with the kernel. Of several
// templates that fit it, its group is that of one that says most (GroupNumbers::Name, the
// greatest).
//
// Owner: the worker whose CPU is the SA's pcpu, where it runs one; else by hash of peer and reqid,
// so that a rekeyed SA stays where its predecessor was. RFC 9611: outbound SAs without a CPU are
// the fallback: they rank behind the owner's own per-CPU SA, and newer ranks before older. Last
// rank those of a CPU without a worker. A fallback is owned by a worker that has no per-CPU SA in
// the group, if there is one, so it may move when per-CPU SAs come and go.
//
// XFRM_STATE_ flags: NOPMTUDISC clears DF, DONT_ENCAP_DSCP leaves DSCP alone, ESN is ESN;
// AF_UNSPEC, ALIGN4 (an AH matter) and ICMP (workers are stricter: they look at the packet alone)
// change nothing; the others keep the SA with the kernel.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "control/adoption/groups.h"
#include "control/xfrm/mirror.h"
#include "dataplane/crypto/suite.h"
#include "dataplane/sa/sa.h"
#include "dataplane/spd/place.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control {

struct AdoptionSetup {
    std::span<const uint16_t> cpus;  // of the workers, by WorkerId
    std::span<const IpAddress> local_addresses;
    std::span<const config::Policy> policies;  // of the configuration: BYPASS and DISCARD
    std::span<const crypto::Suite> suites = crypto::suites();  // that workers speak
    // Entries of a direction; where there are more, those of the largest peers are left to the
    // kernel in the large (coarse.h).
    size_t entries_max = std::numeric_limits<size_t>::max();
};

struct SaDecision {
    std::optional<xfrm::StateDirection> direction;  // unknown: stays with the kernel
    std::string reason;  // why the kernel keeps it; empty: a worker takes it
    PolicyId group{};    // meaningful when adopted
    WorkerId owner{};
    const crypto::Suite* suite = nullptr;  // when adopted
    DfPolicy df = DfPolicy::copy;          // outbound
    bool copy_dscp = true;                 // outbound
    uint64_t rank = 0;                     // outbound: greater goes first among those of one group
    std::vector<Selector> selectors;       // inbound
    [[nodiscard]] bool adopted() const { return reason.empty(); }
    friend bool operator==(const SaDecision&, const SaDecision&) = default;
};

// What `show policy` tells of one policy of the register.
struct PolicyView {
    uint32_t index = 0;
    PolicyId group{};
    SpdAction action = SpdAction::discard;
    std::string reason;  // why its traffic is left to the kernel, if it is
};

// Packets from and to these addresses, outbound.
struct AddressPair {
    IpPrefix source;
    IpPrefix destination;
    friend bool operator==(const AddressPair&, const AddressPair&) = default;
};

struct Adoption {
    std::vector<SpdEntry> outbound;  // SPD order
    std::vector<SpdEntry> inbound;
    std::vector<SpdPlace> outbound_places;  // of each entry
    std::vector<SpdPlace> inbound_places;
    // What makes the lists in force (those published last) into these. nullopt: it is not known,
    // and they are compared.
    std::optional<SpdEdits> edits;
    std::map<xfrm::SaName, SaDecision> sas;
    std::map<uint32_t, PolicyView> policies;  // by index
    uint32_t group_count = 0;
    std::vector<uint32_t> if_id_by_group;  // 0: none
    // Left to the kernel as a whole: what none of its policies covers there is not meant to leave.
    std::vector<AddressPair> left_open;
};

// Asks `numbers` between its begin() and its commit() or roll_back(), which are the caller's.
// Uses capacity for one group more than there are: that of the policies beyond it, which the
// kernel serves.
Adoption decide_adoption(const std::map<xfrm::SaName, xfrm::KernelSa>& states,
                         const std::map<uint32_t, xfrm::KernelPolicy>& policies,
                         const AdoptionSetup& setup, GroupNumbers& numbers);
Adoption decide_adoption(const xfrm::RegisterMirror& mirror, const AdoptionSetup& setup,
                         GroupNumbers& numbers);

}  // namespace sallyport::control
