// SPDX-License-Identifier: Apache-2.0
#pragma once

// Addresses that no router forwards, each beside one that is fine; nullptr: any that fits the test.

#include <string>
#include <utility>
#include <vector>

#include "tests/bpf/packet_builder.h"

namespace sallyport::packet {

struct Ends {
    const char* source;
    const char* destination;
};

inline const std::vector<Ends> kMartians4 = {
    {"0.1.2.3", nullptr},         {"127.0.0.1", nullptr},       {"127.255.255.254", nullptr},
    {"224.0.0.1", nullptr},       {"239.255.255.255", nullptr}, {"240.0.0.1", nullptr},
    {"255.255.255.255", nullptr}, {nullptr, "0.0.0.1"},         {nullptr, "127.0.0.1"},
    {nullptr, "240.1.2.3"},
};
inline const std::vector<Ends> kMartians6 = {
    {"::", nullptr},
    {"::1", nullptr},
    {"ff02::1", nullptr},
    {"fe80::1", nullptr},
    {"febf::1", nullptr},
    {nullptr, "::1"},
    {nullptr, "::"},
    {"::ffff:10.1.0.10", nullptr},
    {nullptr, "::ffff:10.1.0.10"},
};
// Their neighbours, which are forwarded.
inline const std::vector<Ends> kNoMartians4 = {{"1.0.0.1", nullptr},
                                               {"126.255.255.255", nullptr},
                                               {"128.0.0.1", nullptr},
                                               {"223.255.255.255", nullptr}};
inline const std::vector<Ends> kNoMartians6 = {
    {"::2", nullptr}, {"::1:0:0:1", nullptr}, {"::fffe:10.1.0.10", nullptr}, {"fec0::1", nullptr}};

// Packets of all of these, on `link`; what is fine in them is `source` and `destination`.
template <typename Packet>
std::vector<std::pair<std::string, Bytes>> packets_of(const std::vector<Ends>& all,
                                                      const char* source, const char* destination,
                                                      const Link& link, Packet packet) {
    std::vector<std::pair<std::string, Bytes>> out;
    for (const Ends& ends : all) {
        const char* from = ends.source != nullptr ? ends.source : source;
        const char* to = ends.destination != nullptr ? ends.destination : destination;
        out.emplace_back(std::string(from) + " to " + to, eth(packet(from, to), link));
    }
    return out;
}
inline auto packets4(const std::vector<Ends>& all, const char* source, const char* destination,
                     const Link& link = {}) {
    return packets_of(all, source, destination, link, [](const char* from, const char* to) {
        return ip4({.src = from, .dst = to}, tcp({.dst = 80}));
    });
}
inline auto packets6(const std::vector<Ends>& all, const char* source, const char* destination,
                     const Link& link = {}) {
    return packets_of(all, source, destination, link, [](const char* from, const char* to) {
        return ip6({.src = from, .dst = to}, tcp({.dst = 80}));
    });
}

}  // namespace sallyport::packet
