// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a worker tells control: plain values through an SPSC ring.
//
// writer: one worker; reader: control. Answers and requests are never lost: they wait in the worker
// while the ring is full (exchange/event_channel.h). Records are what an attacker can cause at
// will: they are limited in rate, and those that find the ring full are lost and counted.

#include <cstdint>
#include <type_traits>
#include <variant>

#include "dataplane/base/drop_reason.h"
#include "dataplane/base/ids.h"
#include "dataplane/base/ip.h"

namespace sallyport {

struct InboundSa;
struct OutboundSa;
class Spd;
class NextHops;

namespace event {

// --- answers: what is named may be freed

// Also when it could not be installed.
struct InboundRetired {
    SaId id{};
    InboundSa* sa = nullptr;
};
struct OutboundRetired {
    SaId id{};
    OutboundSa* sa = nullptr;
};
struct SpdReleased {
    const Spd* spd = nullptr;
};
struct NextHopsReleased {
    const NextHops* next_hops = nullptr;
};

// --- requests

// Reserve more sequence numbers: its next one is at the low water.
struct SequenceLow {
    SaId id{};
    uint64_t next = 0;
};

// --- records (RFC 4303 4)

// The SA has stopped; each packet that it should have carried says so again.
struct SequenceExhausted {
    SaId id{};
    Spi spi{};
    uint64_t next = 0;
};
// A packet that was dropped and that an auditor wants to know of.
struct Audit {
    DropReason reason{};
    Spi spi{};
    uint64_t sequence = 0;
    IpAddress source;  // outer addresses (inner for selector_mismatch)
    IpAddress destination;
};

}  // namespace event

using Event = std::variant<event::InboundRetired, event::OutboundRetired, event::SpdReleased,
                           event::NextHopsReleased, event::SequenceLow, event::SequenceExhausted,
                           event::Audit>;
static_assert(std::is_trivially_copyable_v<Event>);

// Limited in rate, and lost where the ring is full.
inline bool is_record(const Event& event) {
    return std::holds_alternative<event::SequenceExhausted>(event) ||
           std::holds_alternative<event::Audit>(event);
}

// Where stages report what control must hear of. Called on rare paths only.
class EventSink {
  public:
    virtual void post(const Event& event) = 0;

  protected:
    ~EventSink() = default;
};

// Nobody listens: benches and tests that look at counters only.
class NullEventSink final : public EventSink {
  public:
    void post(const Event& /*event*/) override {}
};

}  // namespace sallyport
