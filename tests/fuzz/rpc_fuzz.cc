// SPDX-License-Identifier: Apache-2.0
//
// Request lines of the control socket, answers to the client, and netlink messages: whatever the
// bytes are, parsing ends with a value or an error.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "control/netlink/link.h"
#include "control/operator/request.h"
#include "control/xfrm/messages.h"
#include "ctl/tables.h"

namespace {

void parse_netlink(std::span<const std::byte> rest) {
    using namespace sallyport;
    while (true) {
        const auto message = netlink::next_message(rest);
        if (!message || !*message) return;
        static_cast<void>(xfrm::decode_kernel_sa((*message)->payload));
        static_cast<void>(xfrm::decode_kernel_policy((*message)->payload));
        static_cast<void>(netlink::decode_link((*message)->payload));
        static_cast<void>(netlink::decode_acknowledgement(**message));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace sallyport;
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    if (const auto request = rpc::parse_request(text)) {
        if (rpc::encode_request(*request).empty()) __builtin_trap();
    }
    if (const auto result = rpc::parse_answer(text)) {
        for (size_t i = 0; i < rpc::kShowNames.size(); ++i) {
            ctl::format_table(static_cast<rpc::Show>(i), *result, ctl::DropRows::all);
        }
        ctl::format_json(*result);
    }
    parse_netlink(std::as_bytes(std::span(data, size)));
    return 0;
}
