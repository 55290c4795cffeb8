// SPDX-License-Identifier: Apache-2.0
#include "control/operator/server.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <set>
#include <string_view>
#include <utility>

namespace sallyport::rpc {

namespace asio = boost::asio;
using Protocol = asio::local::stream_protocol;
using ErrorCode = boost::system::error_code;

namespace {

class Session;

// What sessions share. Outlives the server object while handlers are still queued.
struct Registry {
    Server::Handler handler;
    std::set<std::shared_ptr<Session>> sessions;
};

// One client. Kept alive by its pending handlers and by the registry.
class Session : public std::enable_shared_from_this<Session> {
  public:
    Session(Protocol::socket socket, std::weak_ptr<Registry> registry)
        : socket_(std::move(socket)), registry_(std::move(registry)) {}

    void start() { read(); }

    // When it asked last; began, where it never did. What is no request does not count.
    [[nodiscard]] std::chrono::steady_clock::time_point asked_last() const { return asked_last_; }

    // Sends `line` as the last thing.
    void refuse(std::string_view line) {
        closing_ = true;
        answer(line);
    }

    void close() {
        ErrorCode ignored;
        socket_.close(ignored);
        if (const auto registry = registry_.lock()) registry->sessions.erase(shared_from_this());
    }

  private:
    void read() {
        socket_.async_read_some(asio::buffer(chunk_),
                                [self = shared_from_this()](ErrorCode error, size_t bytes) {
                                    self->on_read(error, bytes);
                                });
    }

    void on_read(ErrorCode error, size_t bytes) {
        if (error) {
            // The peer has ended its side; what it still waits for goes out first.
            closing_ = true;
            if (waiting_.empty() && writing_.empty()) close();
            return;
        }
        received_.append(chunk_.data(), bytes);
        size_t begin = 0;
        while (!closing_) {
            const size_t end = received_.find('\n', begin);
            if (end == std::string::npos) break;
            handle_line(std::string_view(received_).substr(begin, end - begin));
            begin = end + 1;
        }
        received_.erase(0, begin);
        if (!closing_ && received_.size() > kRequestBytesMax) refuse_long_line();
        if (!closing_ && socket_.is_open()) read();
    }

    void refuse_long_line() { refuse(encode_error("a request line has at most 65536 bytes")); }

    void handle_line(std::string_view line) {
        if (line.size() > kRequestBytesMax) return refuse_long_line();
        const auto registry = registry_.lock();
        if (!registry) return close();
        const auto request = parse_request(line);
        if (!request) {
            if (request.error().close) return refuse(encode_error(request.error().text));
            return answer(encode_error(request.error().text));
        }
        asked_last_ = std::chrono::steady_clock::now();
        auto result = registry->handler(*request);
        answer(result ? encode_result(std::move(*result)) : encode_error(result.error()));
    }

    void answer(std::string_view line) {
        if (!socket_.is_open()) return;
        // Limit what was left unread before this answer, so that one long answer always fits.
        if (waiting_.size() + writing_.size() > kWaitingBytesMax) {
            closing_ = true;
            return close();
        }
        waiting_ += line;
        if (writing_.empty()) write();
    }

    void write() {
        writing_ = std::exchange(waiting_, {});
        asio::async_write(
            socket_, asio::buffer(writing_),
            [self = shared_from_this()](ErrorCode error, size_t) { self->on_written(error); });
    }

    void on_written(ErrorCode error) {
        writing_.clear();
        if (error) return close();
        if (!waiting_.empty()) return write();
        if (closing_) close();
    }

    Protocol::socket socket_;
    std::weak_ptr<Registry> registry_;
    std::array<char, 4096> chunk_{};
    std::string received_;  // the beginning of a line
    std::string waiting_;   // answers not yet given to the kernel
    std::string writing_;   // the write in progress
    bool closing_ = false;
    std::chrono::steady_clock::time_point asked_last_ = std::chrono::steady_clock::now();
};

std::expected<void, std::string> remove_stale_socket(const std::filesystem::path& path) {
    struct stat status{};
    if (lstat(path.c_str(), &status) != 0) return {};
    if (!S_ISSOCK(status.st_mode)) {
        return std::unexpected(path.string() +
                               " exists and is not a socket: remove it, or set control_socket");
    }
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const bool refused =
        connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
        errno == ECONNREFUSED;
    close(fd);
    if (!refused) {
        return std::unexpected("another daemon answers on " + path.string() +
                               ": stop it first, or set control_socket");
    }
    unlink(path.c_str());
    return {};
}

uint64_t inode_of(const std::filesystem::path& path) {
    struct stat status{};
    return lstat(path.c_str(), &status) == 0 ? status.st_ino : 0;
}

}  // namespace

struct Server::State : std::enable_shared_from_this<Server::State> {
    State(asio::io_context& context, std::filesystem::path file, Handler handler,
          std::chrono::milliseconds may_be_silent)
        : silence(may_be_silent),
          acceptor(context),
          pause(context),
          path(std::move(file)),
          registry(std::make_shared<Registry>()) {
        registry->handler = std::move(handler);
    }

    void accept() {
        acceptor.async_accept(
            [self = shared_from_this()](ErrorCode error, Protocol::socket socket) {
                if (!self->acceptor.is_open()) return;
                if (error) return self->accept_later();
                self->admit(std::move(socket));
                self->accept();
            });
    }

    // Out of file descriptors, most likely: trying again at once would only spin.
    void accept_later() {
        pause.expires_after(std::chrono::milliseconds(100));
        pause.async_wait([self = shared_from_this()](ErrorCode error) {
            if (!error && self->acceptor.is_open()) self->accept();
        });
    }

    void admit(Protocol::socket socket) {
        auto session = std::make_shared<Session>(std::move(socket), registry);
        if (registry->sessions.size() >= kClientsMax && !make_room()) {
            session->refuse(encode_error("too many clients: 16 are served at once, try again"));
            return;
        }
        registry->sessions.insert(session);
        session->start();
    }

    // False: all of them have just asked.
    bool make_room() {
        const auto silent = std::ranges::min_element(
            registry->sessions, {}, [](const auto& session) { return session->asked_last(); });
        if (std::chrono::steady_clock::now() - (*silent)->asked_last() < silence) return false;
        (*silent)->close();
        return true;
    }

    std::chrono::milliseconds silence;
    Protocol::acceptor acceptor;
    asio::steady_timer pause;
    std::filesystem::path path;
    uint64_t inode = 0;
    std::shared_ptr<Registry> registry;
};

std::expected<Server, std::string> Server::listen(asio::io_context& context,
                                                  const std::filesystem::path& path,
                                                  Handler handler,
                                                  std::chrono::milliseconds silence) {
    if (path.native().size() >= sizeof(sockaddr_un::sun_path)) {
        return std::unexpected("control_socket '" + path.string() +
                               "' is too long: a socket path has at most 107 bytes");
    }
    std::error_code directory_error;
    if (path.has_parent_path()) {
        std::filesystem::create_directories(path.parent_path(), directory_error);
    }
    if (directory_error) {
        return std::unexpected("cannot create " + path.parent_path().string() + ": " +
                               directory_error.message());
    }
    if (auto removed = remove_stale_socket(path); !removed) return std::unexpected(removed.error());

    auto state = std::make_shared<State>(context, path, std::move(handler), silence);
    ErrorCode error;
    const mode_t old_mask = umask(0117);  // the file is made with mode 0660, never wider
    state->acceptor.open(Protocol(), error);
    if (!error) state->acceptor.bind(Protocol::endpoint(path.string()), error);
    umask(old_mask);
    if (!error) state->acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
        return std::unexpected("cannot listen on " + path.string() + ": " + error.message());
    }
    state->inode = inode_of(path);
    state->accept();
    return Server(std::move(state));
}

Server::Server(std::shared_ptr<State> state) : state_(std::move(state)) {}
Server::Server(Server&&) noexcept = default;

Server::~Server() {
    if (!state_) return;
    ErrorCode ignored;
    state_->acceptor.close(ignored);
    state_->pause.cancel();
    for (const auto& session : std::set(state_->registry->sessions)) session->close();
    if (inode_of(state_->path) == state_->inode) unlink(state_->path.c_str());
}

}  // namespace sallyport::rpc
