// SPDX-License-Identifier: Apache-2.0
#pragma once

// The pieces of decide_adoption() (control/adoption/decide.h): what one policy and one SA are by
// themselves, and selectors as sets of packets. Pure functions.

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "control/xfrm/values.h"
#include "dataplane/crypto/suite.h"
#include "dataplane/sa/sa.h"
#include "dataplane/spd/spd.h"

namespace sallyport::control::adoption {

// ---- one policy (policies.cc) ------------------------------------------------------------------

struct JudgedPolicy {
    const xfrm::KernelPolicy* policy = nullptr;
    SpdEntry entry;            // covers at least what the policy covers; its PolicyId is not set
    std::string obstacle;      // why only the kernel can judge it; empty: the entry is exact
    bool may_pass_on = false;  // does not apply to all packets that the entry covers
    [[nodiscard]] bool exact() const { return obstacle.empty(); }
};

JudgedPolicy judge(const xfrm::KernelPolicy& policy);

// In the order in which the kernel asks them.
std::vector<JudgedPolicy> judge_in_order(const std::map<uint32_t, xfrm::KernelPolicy>& policies);

// "mark 0x10", with its mask where that is not all ones.
std::string describe(const xfrm::Mark& mark);

// ---- one SA (sas.cc) ---------------------------------------------------------------------------

// Why the state by itself, whatever the policies are, is not for workers; empty: it is.
std::string obstacle_of(const xfrm::KernelSa& sa, std::optional<xfrm::StateDirection> direction,
                        std::span<const crypto::Suite> suites);

// Does the kernel send by `wanted` with this SA; may a packet that came by the SA pass `wanted`.
bool fits_outbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa);
bool fits_inbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa);

bool is_any(const IpAddress& address);

// ---- selectors as sets of packets (selectors.cc) -----------------------------------------------

Selector selector_of(const SpdEntry& entry);

// Is there a packet that both match.
bool overlap(const SpdEntry& a, const SpdEntry& b);

// What is left of `selector` without the packets of `taken`, in disjoint parts. nullopt: selectors
// cannot say it ("every protocol but one").
std::optional<std::vector<Selector>> without(const Selector& selector, const SpdEntry& taken);

// Finds the entries of a list that share packets with one of it, in time that depends on how many
// there are and not on the length of the list.
class OverlapIndex {
  public:
    // `entries` outlives the index.
    explicit OverlapIndex(std::span<const SpdEntry> entries);
    // Positions of all that do, itself included, in no order.
    [[nodiscard]] std::vector<uint32_t> overlapping(uint32_t position) const;

  private:
    // Positions ordered by one of the two prefixes: those inside a prefix are neighbours, those
    // around it are found by trying the lengths there are.
    struct Side {
        IpPrefix SpdEntry::* member = nullptr;
        std::vector<uint32_t> sorted;
        std::vector<uint8_t> lengths;
    };
    struct Run {
        uint32_t first = 0;
        uint32_t last = 0;  // exclusive
    };
    [[nodiscard]] Side side(IpPrefix SpdEntry::* member) const;
    [[nodiscard]] std::vector<Run> candidates(const Side& side, const IpPrefix& prefix) const;

    std::span<const SpdEntry> entries_;
    Side by_source_;
    Side by_destination_;
};

}  // namespace sallyport::control::adoption
