// SPDX-License-Identifier: Apache-2.0
#include "control/xfrm/netlink_socket.h"

#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace sallyport::xfrm {

namespace {

// The kernel packs up to 32 KiB of a dump into one datagram.
constexpr size_t kReceiveBytes = 64 * 1024;

NetlinkError system_error(const std::string& what) {
    const int number = errno;
    return {number, what + ": " + std::strerror(number)};
}

// Outcome of one received message: more to come, or the answer is complete.
enum class Progress : uint8_t { more, complete };

std::expected<Progress, NetlinkError> take_message(
    const Message& message, const std::function<void(const Message&)>& visit) {
    if (message.type == kMessageDone) {
        const int number = decode_dump_end(message.payload);
        if (number == 0) return Progress::complete;
        return std::unexpected(
            NetlinkError{number, std::string("the dump ended early: ") + std::strerror(number)});
    }
    if (message.type == kMessageError) {
        const auto acknowledgement = decode_acknowledgement(message);
        if (!acknowledgement) {
            return std::unexpected(NetlinkError{EPROTO, acknowledgement.error()});
        }
        if (acknowledgement->number == 0) return Progress::complete;
        std::string text = std::strerror(acknowledgement->number);
        if (!acknowledgement->text.empty()) text += " (" + acknowledgement->text + ")";
        return std::unexpected(NetlinkError{acknowledgement->number, text});
    }
    if (visit) visit(message);
    return Progress::more;
}

}  // namespace

std::expected<NetlinkSocket, std::string> NetlinkSocket::open(Protocol protocol) {
    const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC,
                          protocol == Protocol::xfrm ? NETLINK_XFRM : NETLINK_ROUTE);
    if (fd < 0) {
        return std::unexpected(std::string("cannot open NETLINK_XFRM: ") + std::strerror(errno) +
                               "; the kernel needs CONFIG_XFRM_USER");
    }
    NetlinkSocket out(fd);
    const int on = 1;
    setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);  // error texts, where offered
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);  // do not echo keys back
    const timeval patience{.tv_sec = 5, .tv_usec = 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        return std::unexpected(std::string("cannot bind NETLINK_XFRM: ") + std::strerror(errno));
    }
    socklen_t bytes = sizeof address;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &bytes) != 0) {
        return std::unexpected(std::string("cannot name NETLINK_XFRM: ") + std::strerror(errno));
    }
    out.port_ = address.nl_pid;
    return out;
}

NetlinkSocket::NetlinkSocket(NetlinkSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), port_(other.port_), sequence_(other.sequence_) {}

NetlinkSocket::~NetlinkSocket() {
    if (fd_ >= 0) close(fd_);
}

std::expected<void, NetlinkError> NetlinkSocket::exchange(
    RequestBuffer request, const std::function<void(const Message&)>& visit) {
    sign_request(request, port_);
    const ssize_t sent = send(fd_, request.bytes().data(), request.size(), 0);
    request.clear();
    if (sent < 0) return std::unexpected(system_error("cannot send to NETLINK_XFRM"));

    const auto buffer = std::make_unique_for_overwrite<std::byte[]>(kReceiveBytes);
    bool interrupted = false;
    while (true) {
        sockaddr_nl from{};
        socklen_t from_bytes = sizeof from;
        const ssize_t received = recvfrom(fd_, buffer.get(), kReceiveBytes, MSG_TRUNC,
                                          reinterpret_cast<sockaddr*>(&from), &from_bytes);
        if (received < 0) {
            if (errno == EINTR) continue;
            return std::unexpected(system_error("no answer from NETLINK_XFRM"));
        }
        const size_t bytes = static_cast<size_t>(received);
        if (bytes > kReceiveBytes) {
            wipe(buffer.get(), kReceiveBytes);
            return std::unexpected(NetlinkError{EMSGSIZE, "a NETLINK_XFRM answer is too long"});
        }
        if (from.nl_pid != 0) continue;  // only the kernel is believed
        std::span<const std::byte> rest(buffer.get(), bytes);
        std::expected<Progress, NetlinkError> progress = Progress::more;
        while (progress && *progress == Progress::more) {
            const auto message = next_message(rest);
            if (!message) {
                progress = std::unexpected(NetlinkError{EPROTO, message.error()});
            } else if (!*message) {
                break;
            } else if ((*message)->sequence == sequence_) {  // else: of an exchange that timed out
                interrupted |= ((*message)->flags & NLM_F_DUMP_INTR) != 0;
                progress = take_message(**message, visit);
            }
        }
        wipe(buffer.get(), bytes);
        if (!progress) return std::unexpected(progress.error());
        if (*progress == Progress::complete) {
            if (!interrupted) return {};
            return std::unexpected(NetlinkError{EAGAIN, "the tables changed during the dump"});
        }
    }
}

}  // namespace sallyport::xfrm
