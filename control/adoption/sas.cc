// SPDX-License-Identifier: Apache-2.0
#include "control/adoption/sas.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "control/adoption/policies.h"
#include "control/adoption/suites.h"
#include "dataplane/sa/replay_window.h"

namespace sallyport::control::adoption {

namespace {

// xfrm_usersa_info.flags and XFRMA_SA_EXTRA_FLAGS. Those not named here change nothing for workers
// or are honoured (control/adoption/decide.h).
constexpr uint8_t kFlagNoEcn = 1;
constexpr uint8_t kFlagDecapDscp = 2;
constexpr uint8_t kFlagNoPathMtuDiscovery = 4;
constexpr uint8_t kFlagWildcardReceive = 8;
constexpr uint32_t kExtraDontEncapDscp = 1;
constexpr uint32_t kExtraSequenceMayWrap = 2;

constexpr uint32_t kReplayWindowMin = 32;

bool is_multicast(const IpAddress& address) {
    return address.family == Family::v4 ? (address.bytes[0] & 0xf0) == 0xe0
                                        : address.bytes[0] == 0xff;
}

// fe80::/10 and 169.254/16.
bool is_link_local(const IpAddress& address) {
    if (address.family == Family::v4) return address.bytes[0] == 169 && address.bytes[1] == 254;
    return address.bytes[0] == 0xfe && (address.bytes[1] & 0xc0) == 0x80;
}

std::string obstacle_of_flags(const xfrm::KernelSa& sa) {
    if ((sa.flags & kFlagNoEcn) != 0) return "flag noecn";
    if ((sa.flags & kFlagDecapDscp) != 0) return "flag decap-dscp";
    if ((sa.flags & kFlagWildcardReceive) != 0) return "flag wildrecv";
    if ((sa.extra_flags & kExtraSequenceMayWrap) != 0) return "flag oseq-may-wrap";
    const uint32_t unknown = sa.extra_flags & ~(kExtraDontEncapDscp | kExtraSequenceMayWrap);
    if (unknown == 0) return {};
    std::array<char, 40> text{};
    std::snprintf(text.data(), text.size(), "unknown extra flags 0x%x", unknown);
    return text.data();
}

std::string obstacle_of_form(const xfrm::KernelSa& sa) {
    if (sa.name.protocol == xfrm::kProtocolAh) return "AH";
    if (sa.name.protocol == xfrm::kProtocolIpcomp) return "IPComp";
    if (sa.name.protocol != xfrm::kProtocolEsp) {
        return "protocol " + std::to_string(sa.name.protocol);
    }
    if (sa.larval) return "no keys yet";
    switch (sa.mode) {
        case xfrm::Mode::tunnel:
            break;
        case xfrm::Mode::transport:
            return "transport mode";
        case xfrm::Mode::other:
            return "neither tunnel nor transport mode";
    }
    if (sa.offloaded) return "offloaded to a device";
    if (sa.encapsulated) return "UDP encapsulation";
    return {};
}

std::string obstacle_of_addresses(const xfrm::KernelSa& sa) {
    if (to_index(sa.name.spi) < 256) return "reserved SPI";
    if (is_any(sa.source)) return "no source address";
    if (sa.source.family != sa.name.destination.family) return "addresses of two families";
    if (is_multicast(sa.name.destination)) return "multicast";
    // XDP leaves what stays on its link to the kernel before it looks for an SA.
    if (is_link_local(sa.name.destination)) return "link-local address";
    return {};
}

}  // namespace

bool is_any(const IpAddress& address) {
    return std::ranges::all_of(address.bytes, [](uint8_t byte) { return byte == 0; });
}

std::string obstacle_of(const xfrm::KernelSa& sa, std::optional<xfrm::StateDirection> direction,
                        std::span<const crypto::Suite> suites) {
    if (std::string obstacle = obstacle_of_form(sa); !obstacle.empty()) return obstacle;
    if (std::string obstacle = obstacle_of_cipher(sa, suites); !obstacle.empty()) return obstacle;
    for (const auto& question : {obstacle_of_addresses, obstacle_of_flags}) {
        if (std::string obstacle = question(sa); !obstacle.empty()) return obstacle;
    }
    if (sa.if_id != 0) return "xfrm interface " + std::to_string(sa.if_id);
    if (sa.name.mark != xfrm::Mark{}) return describe(sa.name.mark);
    if (sa.output_mark != xfrm::Mark{}) return "output " + describe(sa.output_mark);
    if (sa.has_selector) return "selector of its own";
    if (sa.has_security_context) return "security context";
    if (sa.has_care_of_address) return "care-of address";
    if (direction == xfrm::StateDirection::inbound) {
        const uint32_t window = sa.replay.window;
        if (window != 0 && (window < kReplayWindowMin || window > kReplayWindowMax)) {
            return "replay window of " + std::to_string(window);
        }
    } else if (sa.tfc_pad != 0) {
        return "TFC padding";
    }
    return {};
}

void judge_alone(const xfrm::KernelSa& sa, Wanted wanted, const AdoptionSetup& setup,
                 SaDecision& decision) {
    const auto is_local = [&setup](const IpAddress& address) {
        return std::ranges::find(setup.local_addresses, address) != setup.local_addresses.end();
    };
    decision.direction = sa.direction;
    if (!decision.direction) {
        if (wanted.outbound == wanted.inbound) {
            wanted = {.outbound = is_local(sa.source), .inbound = is_local(sa.name.destination)};
        }
        if (wanted.outbound != wanted.inbound) {
            decision.direction =
                wanted.outbound ? xfrm::StateDirection::outbound : xfrm::StateDirection::inbound;
        }
    }
    decision.reason = obstacle_of(sa, decision.direction, setup.suites);
    if (!decision.direction && decision.adopted()) decision.reason = "direction not known";
}

void take_form(const xfrm::KernelSa& sa, std::span<const crypto::Suite> suites,
               SaDecision& decision) {
    decision.suite = suite_of(sa, suites);
    decision.copy_dscp = (sa.extra_flags & kExtraDontEncapDscp) == 0;
    if ((sa.flags & kFlagNoPathMtuDiscovery) != 0) decision.df = DfPolicy::clear;
}

bool fits_outbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa) {
    if (wanted.protocol != sa.name.protocol || wanted.mode != sa.mode || wanted.reqid != sa.reqid ||
        if_id != sa.if_id || (to_index(wanted.spi) != 0 && wanted.spi != sa.name.spi)) {
        return false;
    }
    // In transport mode the packet's own addresses count, which no template knows.
    if (wanted.mode == xfrm::Mode::transport) return true;
    return wanted.destination == sa.name.destination &&
           (wanted.source == sa.source || is_any(wanted.source) || is_any(sa.source));
}

bool fits_inbound(const xfrm::Template& wanted, uint32_t if_id, const xfrm::KernelSa& sa) {
    if (wanted.protocol != sa.name.protocol || wanted.mode != sa.mode ||
        (wanted.reqid != 0 && wanted.reqid != sa.reqid) || (if_id != 0 && if_id != sa.if_id) ||
        (to_index(wanted.spi) != 0 && wanted.spi != sa.name.spi)) {
        return false;
    }
    return wanted.mode == xfrm::Mode::transport || is_any(wanted.source) ||
           wanted.source == sa.source;
}

}  // namespace sallyport::control::adoption
