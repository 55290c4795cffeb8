// SPDX-License-Identifier: Apache-2.0
#pragma once

// What both pipeline tables share: a row is frames in, a verdict for each, and every counter that
// moves. Counters that a row's verdicts do not name must stand still.

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "tests/support/tunnel_world.h"

namespace sallyport::test {

// Why a frame must be dropped, or the packet that must come out.
using Verdict = std::variant<DropReason, Bytes>;

struct Step {
    Bytes frame;
    Verdict verdict;
};
using StepBurst = std::vector<Step>;

inline bool is_drop(const Verdict& verdict) {
    return std::holds_alternative<DropReason>(verdict);
}
inline DropReason reason_of(const Verdict& verdict) {
    return is_drop(verdict) ? std::get<DropReason>(verdict) : DropReason::none;
}

// Bytes of an inner packet by its own header, which is what SAs count.
inline uint64_t ip_bytes(const Bytes& packet) {
    return get8(packet, 0) >> 4 == 6 ? 40u + get16(packet, 4) : get16(packet, 2);
}

// Names for four combinations: "4in6" is an IPv4 packet in an IPv6 tunnel.
inline std::string combination(Family inner, Family outer) {
    return std::string(inner == Family::v4 ? "4" : "6") + "in" + (outer == Family::v4 ? "4" : "6");
}

template <typename Row>
std::string row_name(const ::testing::TestParamInfo<Row>& info) {
    return info.param.name;
}

inline constexpr Family kFamilies[] = {Family::v4, Family::v6};

}  // namespace sallyport::test
