// SPDX-License-Identifier: Apache-2.0
#pragma once

// What control tells a worker: plain values through an SPSC ring, taken in order.
//
// writer: control; reader: one worker. What a pointer names is control's to free, and not before
// the worker has answered (exchange/events.h).

#include <cstdint>
#include <type_traits>
#include <variant>

#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"

namespace sallyport {

struct InboundSa;
struct OutboundSa;
class Spd;
class NextHops;

namespace command {

// The SA is the worker's from now on. One that finds no place is answered by InboundRetired.
struct InstallInbound {
    InboundSa* sa = nullptr;
};
// It carries its policy's traffic. One that finds no place is answered by OutboundRetired.
struct InstallOutbound {
    OutboundSa* sa = nullptr;
};

// Answered by InboundRetired.
struct RetireInbound {
    InboundSa* sa = nullptr;
};
// Answered by OutboundRetired.
struct RetireOutbound {
    OutboundSa* sa = nullptr;
};

// `sa` takes the place of `old`, with its replay window, counters and drops; `old` is answered by
// InboundRetired. Where `old` is not (or no longer) installed, `sa` is installed as it is; `old`
// has had its answer then and is not looked at, so control may have freed it since it sent the
// command. Where `sa` finds no place (an SA with its SPI and destination), all stays as it was and
// `sa` is answered.
struct ReplaceInbound {
    InboundSa* old = nullptr;
    InboundSa* sa = nullptr;
};

// The kernel has accepted numbers of the SA up to `last`: they count as received. By its name, so
// that nothing is asked of an SA that found no place.
struct SkipReplay {
    SaId id{};
    Spi spi{};
    IpAddress destination;
    uint64_t last = 0;
};

// More sequence numbers for an SA that is installed.
struct ExtendSequence {
    OutboundSa* sa = nullptr;
    uint64_t reserved = 0;       // first number that is not reserved
    uint64_t low_water = 0;      // reaching it asks for more
    uint64_t next_at_least = 0;  // another sender has used the numbers below; 0: nobody has
};

// Answered by SpdReleased with the one used before, if any.
struct PublishSpd {
    const Spd* spd = nullptr;
};
// Answered by NextHopsReleased with those used before, if any.
struct PublishNextHops {
    const NextHops* next_hops = nullptr;
};

// The largest outer packet of SAs without a limit of their own from now on, IP bytes.
struct SetOuterMtu {
    uint16_t bytes = 1500;
};

}  // namespace command

using Command = std::variant<command::InstallInbound, command::InstallOutbound,
                             command::RetireInbound, command::RetireOutbound,
                             command::ReplaceInbound, command::SkipReplay, command::ExtendSequence,
                             command::PublishSpd, command::PublishNextHops, command::SetOuterMtu>;
static_assert(std::is_trivially_copyable_v<Command> && sizeof(Command) <= 64);

}  // namespace sallyport
