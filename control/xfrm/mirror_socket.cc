// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/mirror_socket.h"

#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

namespace sallyport::xfrm {

namespace {

constexpr int kReceiveBuffer = 16 << 20;  // some ten thousand notifications
constexpr int kDumpAttempts = 5;

// A notification is one datagram. The largest is a state with a replay bitmap of 512 bytes, or a
// policy with six templates and a security context.
constexpr size_t kDatagramBytes = 16 * 1024;
constexpr unsigned kDatagramsAtOnce = 16;
// After so many the owner's event loop gets its turn; the socket is still readable then.
constexpr size_t kDatagramsMax = 64 * 1024;

std::unexpected<std::string> failed(const std::string& what) {
    return std::unexpected(what + ": " + std::strerror(errno));
}

// Room for several datagrams at once, wiped when it goes: notifications of states carry keys.
class Datagrams {
  public:
    Datagrams()
        : bytes_(std::make_unique_for_overwrite<std::byte[]>(kDatagramBytes * kDatagramsAtOnce)) {
        for (size_t i = 0; i < kDatagramsAtOnce; ++i) {
            parts_[i] = {.iov_base = bytes_.get() + i * kDatagramBytes, .iov_len = kDatagramBytes};
        }
    }

    // How many were received; -1 and errno as recvmmsg().
    int receive(int fd) {
        for (size_t i = 0; i < kDatagramsAtOnce; ++i) {
            headers_[i] = {};
            headers_[i].msg_hdr.msg_name = &senders_[i];
            headers_[i].msg_hdr.msg_namelen = sizeof senders_[i];
            headers_[i].msg_hdr.msg_iov = &parts_[i];
            headers_[i].msg_hdr.msg_iovlen = 1;
        }
        return recvmmsg(fd, headers_.data(), kDatagramsAtOnce, MSG_DONTWAIT, nullptr);
    }
    // Only the kernel is believed: what somebody else sent is empty.
    [[nodiscard]] std::span<const std::byte> at(size_t i) const {
        if (senders_[i].nl_pid != 0) return {};
        return {bytes_.get() + i * kDatagramBytes, headers_[i].msg_len};
    }
    [[nodiscard]] bool is_cut_off(size_t i) const {
        return (headers_[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
    }
    void wipe_received(size_t i) { wipe(bytes_.get() + i * kDatagramBytes, headers_[i].msg_len); }

  private:
    std::unique_ptr<std::byte[]> bytes_;
    std::array<iovec, kDatagramsAtOnce> parts_{};
    std::array<sockaddr_nl, kDatagramsAtOnce> senders_{};
    std::array<mmsghdr, kDatagramsAtOnce> headers_{};
};

void apply_datagram(std::span<const std::byte> bytes, RegisterMirror& mirror,
                    RegisterChanges& changes) {
    while (true) {
        const auto message = next_message(bytes);
        if (!message) return mirror.request_resync(changes);
        if (!*message) return;
        mirror.apply(**message, changes);
    }
}

}  // namespace

std::expected<RegisterSocket, std::string> RegisterSocket::open() {
    UniqueFd notifications(
        socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_XFRM));
    if (!notifications) return failed("cannot open NETLINK_XFRM");
    const int fd = notifications.get();
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer) != 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &kReceiveBuffer, sizeof kReceiveBuffer);
    }
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        return failed("cannot bind NETLINK_XFRM");
    }
    for (const int group : {XFRMNLGRP_SA, XFRMNLGRP_EXPIRE, XFRMNLGRP_POLICY, XFRMNLGRP_ACQUIRE,
                            XFRMNLGRP_MAPPING, XFRMNLGRP_MIGRATE, XFRMNLGRP_AEVENTS}) {
        if (setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0) {
            return failed("cannot subscribe to the kernel's SAs and policies");
        }
    }
    auto requests = NetlinkSocket::open();
    if (!requests) return std::unexpected(requests.error());
    return RegisterSocket(std::move(notifications), std::move(*requests));
}

uint32_t RegisterSocket::own_port() const {
    return requests_.port();
}

std::expected<void, std::string> RegisterSocket::dump(RegisterMirror& mirror,
                                                      RegisterChanges& changes) {
    const auto load = [&mirror](const Message& message) { mirror.load(message); };
    std::expected<void, NetlinkError> result;
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
    Datagrams datagrams;
    // After an overrun the kernel drops silently until all was read: a dump helps only then.
    bool overrun = false;
    for (size_t taken = 0; taken < kDatagramsMax || overrun;) {
        const int count = datagrams.receive(fd());
        if (count < 0) {
            if (errno == EAGAIN) break;
            if (errno == EINTR) continue;
            if (errno != ENOBUFS) return failed("cannot read changes of SAs and policies");
            mirror.request_resync(changes);
            overrun = true;
            continue;
        }
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            if (datagrams.is_cut_off(i)) {
                mirror.request_resync(changes);
            } else {
                apply_datagram(datagrams.at(i), mirror, changes);
            }
            datagrams.wipe_received(i);
        }
        taken += static_cast<size_t>(count);
    }
    return {};
}

std::expected<KernelSa, NetlinkError> RegisterSocket::get(const SaName& name) {
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
    if (!state) return std::unexpected(NetlinkError{EPROTO, malformed});
    return std::move(*state);
}

std::expected<void, NetlinkError> RegisterSocket::write_counters(const KernelSa& state,
                                                                 const CounterUpdate& update) {
    return requests_.exchange(encode_counters(state, update, requests_.next_sequence()));
}

std::expected<void, NetlinkError> RegisterSocket::expire(const KernelSa& state, bool hard) {
    return requests_.exchange(encode_expire(state, hard, requests_.next_sequence()));
}

}  // namespace sallyport::xfrm
