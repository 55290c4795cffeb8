// SPDX-License-Identifier: Apache-2.0
//
// Route messages: any bytes as a datagram from the kernel, followed by any bytes as the changes
// after it; then the snapshot is built and asked.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "control/route/mirror.h"

using namespace sallyport;

namespace {

// Calls `take` for each well-formed message; returns how many there were.
template <typename Take>
size_t for_each_message(std::span<const std::byte> rest, Take take) {
    size_t count = 0;
    while (true) {
        const auto message = netlink::next_message(rest);
        if (!message || !*message) return count;
        const auto parsed = route::parse_message(**message);
        if (!parsed) continue;
        take(*parsed);
        ++count;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    const size_t first_bytes = size == 0 ? 0 : data[0] * size_t{4} % (size + 1);
    route::RouteMirror mirror({1, 2, 3});
    // Without the initial rules everything is left to the kernel.
    for (const Family family : {Family::v4, Family::v6}) {
        for (const uint32_t table : {255u, 254u}) {
            mirror.load(
                route::RuleChange{.rule = {.family = family, .ordinary = true, .table = table}});
        }
    }
    const size_t messages =
        for_each_message(bytes.first(first_bytes),
                         [&](const route::Message& message) { mirror.load(message); }) +
        for_each_message(bytes.subspan(first_bytes), [&](const route::Message& message) {
            static_cast<void>(mirror.apply(message));
        });
    if (messages == 0) return 0;
    const auto snapshot = mirror.build({});
    for (size_t offset = 0; offset + 16 <= size; offset += 16) {
        for (const Family family : {Family::v4, Family::v6}) {
            const NextHop* hop = snapshot->lookup(family, bytes.data() + offset);
            // A hop leads to one of our ports.
            if (hop != nullptr && to_index(hop->port) >= 3) std::abort();
        }
    }
    return 0;
}
