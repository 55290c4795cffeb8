// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/mirror_socket.h"

#include <linux/xfrm.h>

#include <array>
#include <cerrno>
#include <optional>
#include <utility>

namespace sallyport::xfrm {

namespace {

constexpr int kDumpAttempts = 5;
constexpr std::array<int, 7> kGroups = {XFRMNLGRP_SA,      XFRMNLGRP_EXPIRE,  XFRMNLGRP_POLICY,
                                        XFRMNLGRP_ACQUIRE, XFRMNLGRP_MAPPING, XFRMNLGRP_MIGRATE,
                                        XFRMNLGRP_AEVENTS};

}  // namespace

std::expected<RegisterSocket, std::string> RegisterSocket::open() {
    auto notifications = netlink::Notifications::open(netlink::Protocol::xfrm, kGroups);
    if (!notifications) return std::unexpected(notifications.error());
    auto requests = netlink::Socket::open(netlink::Protocol::xfrm);
    if (!requests) return std::unexpected(requests.error());
    return RegisterSocket(std::move(*notifications), std::move(*requests));
}

std::expected<void, std::string> RegisterSocket::dump(RegisterMirror& mirror,
                                                      RegisterChanges& changes) {
    const auto load = [&mirror](const Message& message) { mirror.load(message); };
    std::expected<void, netlink::Error> result;
    for (int attempt = 0; attempt < kDumpAttempts; ++attempt) {
        mirror.begin_dump();
        result = requests_.exchange(encode_dump_states(requests_.next_sequence()), load);
        if (result) {
            result = requests_.exchange(encode_dump_policies(requests_.next_sequence()), load);
        }
        if (result) {
            mirror.end_dump(changes);
            return {};
        }
        if (result.error().number != EAGAIN) break;
    }
    mirror.begin_dump();  // forgets the keys of an incomplete one
    return std::unexpected("cannot read the kernel's SAs and policies: " + result.error().text);
}

std::expected<void, std::string> RegisterSocket::receive(RegisterMirror& mirror,
                                                         RegisterChanges& changes) {
    return notifications_.receive([&](const Message& message) { mirror.apply(message, changes); },
                                  [&] { mirror.request_resync(changes); });
}

std::expected<KernelSa, netlink::Error> RegisterSocket::get(const SaName& name) {
    std::optional<KernelSa> state;
    std::string malformed = "the kernel acknowledged but did not answer";
    const auto result = requests_.exchange(encode_get_sa(name, requests_.next_sequence()),
                                           [&](const Message& message) {
                                               if (message.type != kMessageState) return;
                                               auto decoded = decode_kernel_sa(message.payload);
                                               if (decoded) {
                                                   state = std::move(*decoded);
                                               } else {
                                                   malformed = decoded.error();
                                               }
                                           });
    if (!result) return std::unexpected(result.error());
    if (!state) return std::unexpected(netlink::Error{EPROTO, malformed});
    return std::move(*state);
}

std::expected<void, netlink::Error> RegisterSocket::write_counters(const KernelSa& state,
                                                                   const CounterUpdate& update) {
    return requests_.exchange(encode_counters(state, update, requests_.next_sequence()));
}

std::expected<void, netlink::Error> RegisterSocket::expire(const KernelSa& state, bool hard) {
    return requests_.exchange(encode_expire(state, hard, requests_.next_sequence()));
}

}  // namespace sallyport::xfrm
