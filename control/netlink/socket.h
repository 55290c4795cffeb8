// SPDX-License-Identifier: Apache-2.0
#pragma once

// The two kinds of netlink sockets, each of the network namespace of the thread that opens it:
//
//   Socket         asks the kernel: one request, or some at once, answered before more are sent.
//                  Blocks.
//   Notifications  what the kernel announces to groups. No event loop here: the owner watches fd()
//                  and calls receive() when it is readable. Never blocks.
//
// Both take datagrams in the same way (Datagrams in socket.cc): only the kernel is believed, what
// does not fit the buffer counts as lost, and what was received is wiped, because the kernel's
// messages about states contain keys.
//
// Owner: control thread. Used at start, at exit and when something changes, never per packet.

#include <cstdint>
#include <expected>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "control/netlink/message.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::netlink {

enum class Protocol : uint8_t { xfrm, route, sock_diag };

struct Error {
    int number = 0;  // errno
    std::string text;
};

using Visit = std::function<void(const Message&)>;

class Socket {
  public:
    static std::expected<Socket, std::string> open(Protocol protocol);
    // Over a datagram socket that is there and has the netlink port `port`.
    Socket(UniqueFd fd, Protocol protocol, uint32_t port)
        : fd_(std::move(fd)), protocol_(protocol), port_(port) {}

    [[nodiscard]] uint32_t next_sequence() { return ++sequence_; }
    // Netlink port; notifications that our requests cause carry it (Message::port).
    [[nodiscard]] uint32_t port() const { return port_; }

    // Sends `request` (and wipes it) and waits for its acknowledgement or for the end of the dump.
    // `visit` sees every other message of the answer.
    // EAGAIN: the tables changed during the dump, which may miss something. ETIMEDOUT: no answer.
    std::expected<void, Error> exchange(RequestBuffer request, const Visit& visit = {});

    // So many at once have room for their answers in the socket.
    static constexpr size_t kAtOnce = 64;
    using VisitOne = std::function<void(size_t request, const Message&)>;
    // At most kAtOnce requests that are acknowledged, with the numbers that next_sequence() gave
    // last, in their order, in one system call: the kernel carries them out one after another.
    // Answers are as of exchange(), each of its own; of those that follow one to which none came
    // it is not known whether they were carried out.
    std::vector<std::expected<void, Error>> exchange_all(std::vector<RequestBuffer> requests,
                                                         const VisitOne& visit = {});

  private:
    UniqueFd fd_;
    Protocol protocol_;
    uint32_t port_;
    uint32_t sequence_ = 0;
};

class Notifications {
  public:
    static std::expected<Notifications, std::string> open(Protocol protocol,
                                                          std::span<const int> groups);
    // Over a socket that is there, does not block and has its groups.
    explicit Notifications(UniqueFd fd) : fd_(std::move(fd)) {}

    [[nodiscard]] int fd() const { return fd_.get(); }

    // Takes all that waits, or some ten thousand: then fd() is still readable. Messages can be lost
    // when they come faster than they are read (ENOBUFS), or are unreadable: `lost` is called in
    // their place, and what is known must be read again.
    std::expected<void, std::string> receive(const Visit& visit, const std::function<void()>& lost);

  private:
    UniqueFd fd_;
};

}  // namespace sallyport::netlink
