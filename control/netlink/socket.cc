// SPDX-License-Identifier: Apache-2.0
#include "control/netlink/socket.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace sallyport::netlink {

namespace {

// The kernel packs up to 32 KiB of a dump into one datagram. A notification is one message; the
// largest are links with many attributes.
constexpr size_t kDatagramBytes = 32 * 1024;
constexpr unsigned kDatagramsAtOnce = 16;
// After so many the owner's event loop gets its turn; the socket is still readable then.
constexpr size_t kDatagramsMax = 64 * 1024;
constexpr int kNotificationBuffer = 16 << 20;  // some ten thousand notifications
constexpr int kAnswerBuffer = 1 << 20;         // of Socket::kAtOnce requests: some 6 KiB each
constexpr timeval kPatience{.tv_sec = 10, .tv_usec = 0};

const char* name_of(Protocol protocol) {
    switch (protocol) {
        case Protocol::xfrm:
            return "NETLINK_XFRM";
        case Protocol::route:
            return "NETLINK_ROUTE";
        case Protocol::sock_diag:
            return "NETLINK_SOCK_DIAG";
    }
    return "";
}

int number_of(Protocol protocol) {
    switch (protocol) {
        case Protocol::xfrm:
            return NETLINK_XFRM;
        case Protocol::route:
            return NETLINK_ROUTE;
        case Protocol::sock_diag:
            return NETLINK_SOCK_DIAG;
    }
    return -1;
}

Error system_error(const std::string& what) {
    const int number = errno;
    return {number, what + ": " + std::strerror(number)};
}

// Room for several datagrams, filled by one call.
class Datagrams {
  public:
    explicit Datagrams(unsigned count)
        : bytes_(std::make_unique_for_overwrite<std::byte[]>(kDatagramBytes * count)),
          parts_(count),
          senders_(count),
          headers_(count) {
        for (unsigned i = 0; i < count; ++i) {
            parts_[i] = {.iov_base = bytes_.get() + i * kDatagramBytes, .iov_len = kDatagramBytes};
        }
    }

    // How many were received; -1 and errno as recvmmsg().
    int receive(int fd, int flags) {
        for (size_t i = 0; i < headers_.size(); ++i) {
            senders_[i] = {};
            headers_[i] = {};
            headers_[i].msg_hdr.msg_name = &senders_[i];
            headers_[i].msg_hdr.msg_namelen = sizeof senders_[i];
            headers_[i].msg_hdr.msg_iov = &parts_[i];
            headers_[i].msg_hdr.msg_iovlen = 1;
        }
        return recvmmsg(fd, headers_.data(), static_cast<unsigned>(headers_.size()), flags,
                        nullptr);
    }
    // Anybody may send to us: what does not come from the kernel is empty.
    [[nodiscard]] Bytes at(size_t i) const {
        if (!from_kernel(i)) return {};
        return {bytes_.get() + i * kDatagramBytes, headers_[i].msg_len};
    }
    [[nodiscard]] bool is_cut_off(size_t i) const {
        return from_kernel(i) && (headers_[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
    }
    void wipe_received(size_t i) { wipe(bytes_.get() + i * kDatagramBytes, headers_[i].msg_len); }

  private:
    [[nodiscard]] bool from_kernel(size_t i) const { return senders_[i].nl_pid == 0; }

    std::unique_ptr<std::byte[]> bytes_;
    std::vector<iovec> parts_;
    std::vector<sockaddr_nl> senders_;
    std::vector<mmsghdr> headers_;
};

// What has come of the answer to one request.
class Answer {
  public:
    Answer(uint32_t sequence, const Visit& visit) : sequence_(sequence), visit_(visit) {}

    // True when the answer is complete.
    std::expected<bool, Error> take(Bytes datagram) {
        while (true) {
            const auto message = next_message(datagram);
            if (!message) return std::unexpected(Error{EPROTO, message.error()});
            if (!*message) return false;
            if ((*message)->sequence != sequence_) continue;  // of an exchange that timed out
            interrupted_ |= ((*message)->flags & NLM_F_DUMP_INTR) != 0;
            const auto complete = take(**message);
            if (!complete || *complete) return complete;
        }
    }

    std::expected<bool, Error> take(const Message& message) {
        if (message.type == NLMSG_DONE) {
            const int number = decode_dump_end(message.payload);
            if (number == 0) return end();
            return std::unexpected(
                Error{number, std::string("the dump ended early: ") + std::strerror(number)});
        }
        if (message.type == NLMSG_ERROR) {
            const auto acknowledgement = decode_acknowledgement(message);
            if (!acknowledgement) return std::unexpected(Error{EPROTO, acknowledgement.error()});
            if (acknowledgement->number == 0) return end();
            std::string text = std::strerror(acknowledgement->number);
            if (!acknowledgement->text.empty()) text += " (" + acknowledgement->text + ")";
            return std::unexpected(Error{acknowledgement->number, text});
        }
        if (visit_) visit_(message);
        return false;
    }

  private:
    [[nodiscard]] std::expected<bool, Error> end() const {
        if (!interrupted_) return true;
        return std::unexpected(Error{EAGAIN, "the tables changed during the dump"});
    }

    uint32_t sequence_;
    const Visit& visit_;
    bool interrupted_ = false;
};

// The answers to requests that were sent at once; each says which one it is of.
class Answers {
  public:
    Answers(uint32_t first, size_t count, const Socket::VisitOne& visit)
        : first_(first), visit_(visit), results_(count), left_(count) {}

    [[nodiscard]] bool are_complete() const { return left_ == 0; }
    std::vector<std::expected<void, Error>> results() {
        std::vector<std::expected<void, Error>> out;
        for (auto& result : results_) out.push_back(std::move(*result));
        return out;
    }
    void take(Bytes datagram) {
        while (true) {
            const auto message = next_message(datagram);
            if (!message) return give_up({EPROTO, message.error()});
            if (!*message) return;
            const uint32_t request = (*message)->sequence - first_;
            if (request >= results_.size() || results_[request]) continue;  // of earlier ones
            const Visit visit = [&](const Message& each) {
                if (visit_) visit_(request, each);
            };
            auto complete = Answer((*message)->sequence, visit).take(**message);
            if (!complete) {
                fail(request, std::move(complete.error()));
            } else if (*complete) {
                results_[request].emplace();
                --left_;
            }
        }
    }
    // Nothing more will come.
    void give_up(const Error& error) {
        for (size_t i = 0; i < results_.size(); ++i) {
            if (!results_[i]) fail(i, error);
        }
    }

  private:
    void fail(size_t request, Error error) {
        results_[request].emplace(std::unexpect, std::move(error));
        --left_;
    }

    uint32_t first_;
    const Socket::VisitOne& visit_;
    std::vector<std::optional<std::expected<void, Error>>> results_;
    size_t left_;
};

// What nobody may exceed counts where it is less.
void set_receive_buffer(int fd, int bytes) {
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) != 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    }
}

std::expected<UniqueFd, std::string> open_and_bind(Protocol protocol, int flags) {
    UniqueFd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, number_of(protocol)));
    if (!fd) {
        return std::unexpected(
            system_error(std::string("cannot open ") + name_of(protocol)).text +
            (protocol == Protocol::xfrm ? "; the kernel needs CONFIG_XFRM_USER" : ""));
    }
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        return std::unexpected(system_error(std::string("cannot bind ") + name_of(protocol)).text);
    }
    return fd;
}

}  // namespace

std::expected<Socket, std::string> Socket::open(Protocol protocol) {
    auto fd = open_and_bind(protocol, 0);
    if (!fd) return std::unexpected(fd.error());
    const int on = 1;
    // Error texts, where offered; and keys are not echoed back.
    setsockopt(fd->get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
    setsockopt(fd->get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
    setsockopt(fd->get(), SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
    set_receive_buffer(fd->get(), kAnswerBuffer);
    sockaddr_nl address{};
    socklen_t bytes = sizeof address;
    if (getsockname(fd->get(), reinterpret_cast<sockaddr*>(&address), &bytes) != 0) {
        return std::unexpected(system_error(std::string("cannot name ") + name_of(protocol)).text);
    }
    return Socket(std::move(*fd), protocol, address.nl_pid);
}

std::expected<void, Error> Socket::exchange(RequestBuffer request, const Visit& visit) {
    const std::string name = name_of(protocol_);
    sign_request(request, port_);
    const ssize_t sent = send(fd_.get(), request.bytes().data(), request.size(), 0);
    request.clear();
    if (sent < 0) return std::unexpected(system_error("cannot send to " + name));

    Datagrams datagrams(1);
    Answer answer(sequence_, visit);
    while (true) {
        if (datagrams.receive(fd_.get(), 0) < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN) errno = ETIMEDOUT;  // kPatience is over
            return std::unexpected(system_error("no answer from " + name));
        }
        const bool cut_off = datagrams.is_cut_off(0);
        const auto complete = cut_off ? false : answer.take(datagrams.at(0));
        datagrams.wipe_received(0);
        if (cut_off)
            return std::unexpected(Error{EMSGSIZE, "an answer of " + name + " is too long"});
        if (!complete) return std::unexpected(complete.error());
        if (*complete) return {};
    }
}

std::vector<std::expected<void, Error>> Socket::exchange_all(std::vector<RequestBuffer> requests,
                                                             const VisitOne& visit) {
    const std::string name = name_of(protocol_);
    const size_t count = requests.size();
    if (count == 0) return {};
    std::vector<iovec> parts;
    for (RequestBuffer& request : requests) {
        sign_request(request, port_);
        parts.push_back({.iov_base = request.data(), .iov_len = request.size()});
    }
    msghdr all{};
    all.msg_iov = parts.data();
    all.msg_iovlen = parts.size();
    const ssize_t sent = sendmsg(fd_.get(), &all, 0);
    if (sent < 0) {
        return {count, std::unexpected(system_error("cannot send to " + name))};
    }
    requests.clear();

    Answers answers(sequence_ - static_cast<uint32_t>(count) + 1, count, visit);
    const auto datagrams_max = static_cast<unsigned>(2 * count);
    Datagrams datagrams(std::min(kDatagramsAtOnce, datagrams_max));
    while (!answers.are_complete()) {
        const int received = datagrams.receive(fd_.get(), MSG_WAITFORONE);
        if (received < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN) errno = ETIMEDOUT;  // kPatience is over
            answers.give_up(system_error("no answer from " + name));
            continue;
        }
        for (size_t i = 0; i < static_cast<size_t>(received); ++i) {
            if (datagrams.is_cut_off(i)) {
                answers.give_up({EMSGSIZE, "an answer of " + name + " is too long"});
            } else {
                answers.take(datagrams.at(i));
            }
            datagrams.wipe_received(i);
        }
    }
    return answers.results();
}

std::expected<Notifications, std::string> Notifications::open(Protocol protocol,
                                                              std::span<const int> groups) {
    auto fd = open_and_bind(protocol, SOCK_NONBLOCK);
    if (!fd) return std::unexpected(fd.error());
    set_receive_buffer(fd->get(), kNotificationBuffer);
    for (const int group : groups) {
        if (setsockopt(fd->get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0) {
            return std::unexpected(
                system_error(std::string("cannot subscribe to ") + name_of(protocol)).text);
        }
    }
    return Notifications(std::move(*fd));
}

std::expected<void, std::string> Notifications::receive(const Visit& visit,
                                                        const std::function<void()>& lost) {
    const auto take = [&](Bytes datagram) {
        while (true) {
            const auto message = next_message(datagram);
            if (!message) return lost();
            if (!*message) return;
            visit(**message);
        }
    };
    Datagrams datagrams(kDatagramsAtOnce);
    // After an overrun the kernel drops silently until all was read: a dump helps only then.
    bool overrun = false;
    for (size_t taken = 0; taken < kDatagramsMax || overrun;) {
        const int count = datagrams.receive(fd(), MSG_DONTWAIT);
        if (count < 0) {
            if (errno == EAGAIN) break;
            if (errno == EINTR) continue;
            if (errno != ENOBUFS) return std::unexpected(system_error("cannot read changes").text);
            lost();
            overrun = true;
            continue;
        }
        for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
            if (datagrams.is_cut_off(i)) {
                lost();
            } else {
                take(datagrams.at(i));
            }
            datagrams.wipe_received(i);
        }
        taken += static_cast<size_t>(count);
    }
    return {};
}

}  // namespace sallyport::netlink
