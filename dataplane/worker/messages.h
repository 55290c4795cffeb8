// SPDX-License-Identifier: Apache-2.0
#pragma once

// What control and a worker say to each other. Plain values through SPSC rings.

#include <cstdint>

#include "dataplane/base/drop_reason.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"

namespace sallyport {

struct InboundSa;
struct OutboundSa;
class Spd;
class NextHops;

// writer: control; reader: worker. The worker answers where it says so.
struct Command {
    enum class Kind : uint8_t {
        install_inbound,   // inbound: now owned by the worker
        install_outbound,  // outbound: now owned by the worker; carries its policy's traffic
        retire_inbound,    // inbound; answered by inbound_retired
        retire_outbound,   // outbound; answered by outbound_retired
        // The second takes the place of the first, with its replay window or sequence numbers and
        // IV mask, counters and drops; the first is answered by *_retired. Where the first is not
        // (or no longer) installed, the second is installed as it is; the first has had its answer
        // then and is not looked at, so control may have freed it since it sent the command. Where
        // the second finds no place (an SA with its SPI and destination, a policy beyond the
        // table), all stays as it was and the second is answered.
        replace_inbound,   // old_inbound, inbound
        replace_outbound,  // old_outbound, outbound
        // outbound, number: new sequence_reserved, number2: new low water, number3: sequence_next
        // is raised to it where it is lower (another sender has used numbers below)
        extend_sequence,
        publish_spd,        // spd; answered by spd_released with the one used before, if any
        publish_next_hops,  // next_hops; answered by next_hops_released likewise
    };
    Kind kind{};
    uint64_t number = 0;
    uint64_t number2 = 0;
    uint64_t number3 = 0;
    InboundSa* inbound = nullptr;
    OutboundSa* outbound = nullptr;
    InboundSa* old_inbound = nullptr;
    OutboundSa* old_outbound = nullptr;
    const Spd* spd = nullptr;
    const NextHops* next_hops = nullptr;
};

// writer: worker; reader: control.
struct Event {
    enum class Kind : uint8_t {
        inbound_retired,     // inbound may be freed; also when it could not be installed
        outbound_retired,    // outbound likewise
        sequence_low,        // id: reserve more sequence numbers
        sequence_exhausted,  // id: the SA has stopped
        spd_released,        // spd may be freed
        next_hops_released,  // next_hops may be freed
        audit,               // a packet that RFC 4303 4 wants on record; rate limited
    };
    Kind kind{};
    DropReason reason{};  // audit
    SaId id{};
    Spi spi{};            // audit
    uint64_t number = 0;  // sequence number
    IpAddress source;     // audit: outer addresses (inner for selector_mismatch)
    IpAddress destination;
    InboundSa* inbound = nullptr;
    OutboundSa* outbound = nullptr;
    const Spd* spd = nullptr;
    const NextHops* next_hops = nullptr;
};

}  // namespace sallyport
