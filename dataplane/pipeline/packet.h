// SPDX-License-Identifier: Apache-2.0
#pragma once

// One packet on its way through a pipeline, with what the stages have learnt of it.
//
// Each field says which stage sets it, in and out: from the next stage on it is valid, and before
// it holds what the packet had that used this place in the burst before. Only what says load() can
// be relied on always.

#include <cstddef>
#include <cstdint>

#include "dataplane/base/frame.h"
#include "dataplane/crypto/engine.h"
#include "dataplane/sa/sa_tables.h"
#include "dataplane/wire/ip_packet.h"

namespace sallyport {

// Who had the packet before us, which decides whether its TTL is still to be decremented.
enum class OutboundSource : uint8_t {
    port,    // steered from a protected port: forwarding it is our hop
    kernel,  // read from sp0: the kernel sent or forwarded it and has done its part
};

struct Packet {
    // in, out: load(). The frame as it came; what is dropped or put on hold.
    Frame frame;
    // in: parse_esp, the outer header; from decapsulate on the inner one.
    // out: parse_inner, the inner header; from encapsulate on the outer one.
    std::byte* ip = nullptr;
    InboundSa* inbound_sa = nullptr;    // in: load() null, lookup_sa
    OutboundSa* outbound_sa = nullptr;  // out: load() null, lookup_policy
    uint64_t sequence = 0;              // in: check_replay, out: assign_sequence; extended with ESN
    Be32 spi;                           // in: parse_esp
    uint32_t sad_hint = 0;              // in: parse_esp, where lookup_sa begins
    uint32_t daddr_word = 0;            // in: parse_esp, the last word of the outer destination
    uint32_t esp_bytes = 0;             // in: parse_esp, out: encapsulate; SPI to ICV
    std::byte* esp = nullptr;           // in: parse_esp, out: encapsulate
    uint8_t outer_dscp_ecn = 0;         // in: parse_esp
    Family outer_family = Family::v4;   // in: parse_esp
    wire::IpPacket inner;               // in: decapsulate, out: parse_inner
    crypto::AeadJob job;                // in: check_replay, out: encapsulate; authentic: decrypt
};

}  // namespace sallyport
