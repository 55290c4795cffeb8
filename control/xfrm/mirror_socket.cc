// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/mirror_socket.h"

#include <linux/xfrm.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <iterator>
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
    return std::move(get_all({&name, 1}).front());
}

std::expected<void, netlink::Error> RegisterSocket::write_counters(const KernelSa& state,
                                                                   const CounterUpdate& update) {
    const CounterWrite write{.state = &state, .update = update};
    return std::move(write_all({&write, 1}).front());
}

std::vector<std::expected<KernelSa, netlink::Error>> RegisterSocket::get_all(
    std::span<const SaName> names) {
    std::vector<std::expected<KernelSa, netlink::Error>> out;
    out.reserve(names.size());
    while (!names.empty()) {
        const auto some = names.first(std::min(names.size(), netlink::Socket::kAtOnce));
        names = names.subspan(some.size());
        get_some(some, out);
    }
    return out;
}

void RegisterSocket::get_some(std::span<const SaName> names,
                              std::vector<std::expected<KernelSa, netlink::Error>>& out) {
    const size_t first = out.size();
    std::vector<netlink::RequestBuffer> requests;
    for (const SaName& name : names) {
        requests.push_back(encode_get_sa(name, requests_.next_sequence()));
        out.emplace_back(
            std::unexpected(netlink::Error{EPROTO, "the kernel acknowledged but did not answer"}));
    }
    auto done =
        requests_.exchange_all(std::move(requests), [&](size_t request, const Message& message) {
            if (message.type != kMessageState) return;
            auto decoded = decode_kernel_sa(message.payload);
            if (decoded) {
                out[first + request] = std::move(*decoded);
            } else {
                out[first + request] = std::unexpected(netlink::Error{EPROTO, decoded.error()});
            }
        });
    for (size_t i = 0; i < done.size(); ++i) {
        if (!done[i]) out[first + i] = std::unexpected(std::move(done[i].error()));
    }
}

template <typename Write, typename Encode>
std::vector<std::expected<void, netlink::Error>> RegisterSocket::send_all(
    std::span<const Write> writes, Encode encode) {
    std::vector<std::expected<void, netlink::Error>> out;
    out.reserve(writes.size());
    while (!writes.empty()) {
        const auto some = writes.first(std::min(writes.size(), netlink::Socket::kAtOnce));
        writes = writes.subspan(some.size());
        std::vector<netlink::RequestBuffer> requests;
        for (const Write& write : some) {
            requests.push_back(encode(write, requests_.next_sequence()));
        }
        std::ranges::move(requests_.exchange_all(std::move(requests)), std::back_inserter(out));
    }
    return out;
}

std::vector<std::expected<void, netlink::Error>> RegisterSocket::write_all(
    std::span<const CounterWrite> writes) {
    return send_all(writes, [](const CounterWrite& write, uint32_t sequence) {
        return encode_counters(*write.state, write.update, sequence);
    });
}

std::vector<std::expected<void, netlink::Error>> RegisterSocket::limit_all(
    std::span<const LimitWrite> writes) {
    return send_all(writes, [](const LimitWrite& write, uint32_t sequence) {
        return encode_limits(*write.state, write.limits, sequence);
    });
}

std::expected<void, netlink::Error> RegisterSocket::expire(const KernelSa& state, bool hard) {
    return requests_.exchange(encode_expire(state, hard, requests_.next_sequence()));
}

}  // namespace sallyport::xfrm
