// SPDX-License-Identifier: Apache-2.0
#pragma once

// The words of the configuration for values that are one of a few: the reader reads by these
// tables, `sallyportctl show` prints by them. The words of suites are in config/suites.h.

#include <array>
#include <span>
#include <string_view>

#include "config/config.h"

namespace sallyport::config {

template <typename T>
struct Choice {
    std::string_view word;
    T value;
};

inline constexpr std::array kEgressModes = {
    Choice<EgressMode>{"devmap", EgressMode::devmap},
    Choice<EgressMode>{"direct", EgressMode::direct},
};
inline constexpr std::array kUnknownSpi = {
    Choice<UnknownSpi>{"drop", UnknownSpi::drop},
    Choice<UnknownSpi>{"punt", UnknownSpi::punt},
};
inline constexpr std::array kAtStop = {
    Choice<AtStop>{"closed", AtStop::closed},
    Choice<AtStop>{"open", AtStop::open},
};
inline constexpr std::array kPortRoles = {
    Choice<PortRole>{"unprotected", PortRole::unprotected_side},
    Choice<PortRole>{"protected", PortRole::protected_side},
};
inline constexpr std::array kXdpModes = {
    Choice<XdpMode>{"auto", XdpMode::automatic},
    Choice<XdpMode>{"native", XdpMode::native},
    Choice<XdpMode>{"generic", XdpMode::generic},
};
inline constexpr std::array kBindModes = {
    Choice<BindMode>{"auto", BindMode::automatic},
    Choice<BindMode>{"copy", BindMode::copy},
    Choice<BindMode>{"zero-copy", BindMode::zero_copy},
};
inline constexpr std::array kConntrackModes = {
    Choice<Conntrack>{"off", Conntrack::off},
    Choice<Conntrack>{"punt", Conntrack::punt},
    Choice<Conntrack>{"drop", Conntrack::drop},
};
inline constexpr std::array kSpdActions = {
    Choice<SpdAction>{"protect", SpdAction::protect},
    Choice<SpdAction>{"bypass", SpdAction::bypass},
    Choice<SpdAction>{"discard", SpdAction::discard},
};
inline constexpr std::array kSaDirections = {
    Choice<SaDirection>{"inbound", SaDirection::inbound},
    Choice<SaDirection>{"outbound", SaDirection::outbound},
};
inline constexpr std::array kDfPolicies = {
    Choice<DfPolicy>{"copy", DfPolicy::copy},
    Choice<DfPolicy>{"set", DfPolicy::set},
    Choice<DfPolicy>{"clear", DfPolicy::clear},
};

template <typename T, size_t N>
constexpr std::string_view word_of(const std::array<Choice<T>, N>& choices, T value) {
    for (const Choice<T>& choice : choices) {
        if (choice.value == value) return choice.word;
    }
    return {};
}

}  // namespace sallyport::config
