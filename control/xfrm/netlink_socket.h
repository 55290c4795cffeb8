// SPDX-License-Identifier: Apache-2.0
#pragma once

// A blocking NETLINK_XFRM (or rtnetlink) socket: one request at a time, each answered before the
// next is sent. Owner: control. Used at start, at exit and when SAs change, never per packet.

#include <cstdint>
#include <expected>
#include <functional>
#include <string>

#include "control/xfrm/messages.h"

namespace sallyport::xfrm {

struct NetlinkError {
    int number = 0;  // errno
    std::string text;
};

class NetlinkSocket {
  public:
    // In the network namespace of the calling thread.
    enum class Protocol : uint8_t { xfrm, route };
    static std::expected<NetlinkSocket, std::string> open(Protocol protocol = Protocol::xfrm);
    NetlinkSocket(NetlinkSocket&& other) noexcept;
    NetlinkSocket& operator=(NetlinkSocket&&) = delete;
    ~NetlinkSocket();

    [[nodiscard]] uint32_t next_sequence() { return ++sequence_; }
    // Netlink port; notifications that our requests cause carry it (Message::port).
    [[nodiscard]] uint32_t port() const { return port_; }

    // Sends `request` (and wipes it) and waits for its acknowledgement or for the end of the dump.
    // EAGAIN: the tables changed during the dump, which may miss something.
    // `visit` sees every other message of the answer. What was received is wiped afterwards,
    // because the kernel's answers about states contain keys.
    std::expected<void, NetlinkError> exchange(
        RequestBuffer request, const std::function<void(const Message&)>& visit = {});

  private:
    explicit NetlinkSocket(int fd) : fd_(fd) {}

    int fd_ = -1;
    uint32_t port_ = 0;
    uint32_t sequence_ = 0;
};

}  // namespace sallyport::xfrm
