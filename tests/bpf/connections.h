// SPDX-License-Identifier: Apache-2.0
#pragma once

// Connections in the kernel's table, put there by ctnetlink: each exactly as a row needs it.

#include <linux/netfilter/nf_conntrack_common.h>

#include <cstdint>
#include <string>

namespace sallyport::packet {

struct Connection {
    std::string source;  // of the original direction
    std::string destination;
    uint8_t protocol = 6;
    uint16_t source_port = 0;
    uint16_t destination_port = 0;
    uint32_t status = IPS_SEEN_REPLY | IPS_ASSURED;
    uint32_t life_seconds = 300;
    uint32_t mark = 0;
    std::string translated_source{};  // IPv4: the kernel does source NAT
};

// Replaces what is there. Ends the test process when the kernel refuses.
void set_connection(const Connection& connection);
void forget_connections();

}  // namespace sallyport::packet
