// SPDX-License-Identifier: Apache-2.0
#include "ctl/client.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace sallyport::ctl {

namespace {

// `show sa` of 4096 SAs is about 2 MiB.
constexpr size_t kAnswerBytesMax = size_t{64} << 20;

std::string connect_error(const std::filesystem::path& socket, int error) {
    const std::string at = socket.string();
    switch (error) {
        case ENOENT:
            return "nothing at " + at +
                   ": is sallyportd running? Its control_socket may be set to another path; name "
                   "it "
                   "with --socket PATH";
        case ECONNREFUSED:
            return "nobody answers at " + at + ": sallyportd has ended. Start it again";
        case EACCES:
            return "no permission for " + at + ": run as root or as a member of its group";
        default:
            return "cannot connect to " + at + ": " + std::strerror(error);
    }
}

struct Connection {
    int fd = -1;
    ~Connection() {
        if (fd >= 0) close(fd);
    }
};

}  // namespace

std::expected<boost::json::value, std::string> ask(const std::filesystem::path& socket,
                                                   const rpc::Request& request) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (socket.native().size() >= sizeof address.sun_path) {
        return std::unexpected("the socket path is too long: at most 107 bytes");
    }
    std::strncpy(address.sun_path, socket.c_str(), sizeof address.sun_path - 1);

    const Connection connection{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    if (connection.fd < 0) {
        return std::unexpected(std::string("cannot open a socket: ") + std::strerror(errno));
    }
    const timeval patience{.tv_sec = 5, .tv_usec = 0};
    setsockopt(connection.fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(connection.fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(connection.fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        return std::unexpected(connect_error(socket, errno));
    }
    const std::string line = rpc::encode_request(request);
    const ssize_t sent = send(connection.fd, line.data(), line.size(), MSG_NOSIGNAL);
    // A daemon that refuses us says why and closes, perhaps before it was asked: read that.
    if (sent != static_cast<ssize_t>(line.size()) && errno != EPIPE) {
        return std::unexpected("the daemon does not take the request: " +
                               std::string(std::strerror(errno)));
    }
    std::string answer;
    std::array<char, 65536> chunk;
    while (!answer.ends_with('\n')) {
        const ssize_t got = recv(connection.fd, chunk.data(), chunk.size(), 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return std::unexpected(
                "the daemon gave no answer for 5 seconds: it hangs or is "
                "starved of CPU; see its log");
        }
        if (got < 0) {
            return std::unexpected("the connection broke: " + std::string(std::strerror(errno)));
        }
        if (got == 0) return std::unexpected("the daemon closed the connection without an answer");
        answer.append(chunk.data(), static_cast<size_t>(got));
        if (answer.size() > kAnswerBytesMax) return std::unexpected("the answer is too long");
    }
    answer.pop_back();
    return rpc::parse_answer(answer);
}

}  // namespace sallyport::ctl
