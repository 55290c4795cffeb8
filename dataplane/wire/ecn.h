// SPDX-License-Identifier: Apache-2.0
#pragma once

// Explicit congestion notification through a tunnel (RFC 6040). The field is the low two bits of
// the traffic class: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE.

#include <array>
#include <cstdint>

namespace sallyport::wire {

inline constexpr uint8_t kEcnMask = 3;
inline constexpr uint8_t kEcnDrop = 0xff;

// What the decapsulated packet carries (RFC 6040 4.2, figure 4): [inner][outer].
// CE outside a flow that cannot carry it is a drop; ECT(1) outside ECT(0) is taken over.
inline constexpr std::array<std::array<uint8_t, 4>, 4> kEcnDecapsulation = {{
    {0, 0, 0, kEcnDrop},  // inner Not-ECT
    {1, 1, 1, 3},         // inner ECT(1)
    {2, 1, 2, 3},         // inner ECT(0)
    {3, 3, 3, 3},         // inner CE
}};

}  // namespace sallyport::wire
