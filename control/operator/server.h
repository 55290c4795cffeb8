// SPDX-License-Identifier: Apache-2.0
#pragma once

// The UNIX socket that sallyportctl talks to (docs/rpc.md).
//
// Limits, because clients are not trusted to behave: a request line, the answers that wait for a
// slow client, and the number of clients at once. Who breaks one is disconnected; the others and
// the daemon do not notice. Where all places are taken, the client that has been silent longest
// gives its own to a new one. Access is by file mode: owner and group of the daemon.
//
// Owner: control thread; everything runs in handlers of its io_context.

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstddef>
#include <expected>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "control/operator/request.h"

namespace sallyport::rpc {

// A client that sends more without the end of a line is sent away.
inline constexpr size_t kRequestBytesMax = size_t{64} << 10;
// Answers that a client has not read yet; beyond it the client is sent away.
inline constexpr size_t kWaitingBytesMax = size_t{1} << 20;
// At a time. Fewer lock a monitoring system out that asks in parallel; each costs its buffers.
inline constexpr size_t kClientsMax = 16;
// Who has asked within this time keeps its place.
inline constexpr std::chrono::seconds kSilence{1};

class Server {
  public:
    using Handler =
        std::function<std::expected<boost::json::value, std::string>(const Request& request)>;

    // Listens on `path` (mode 0660). A socket file that nobody listens on any more is replaced; one
    // that answers belongs to a running daemon and is refused.
    static std::expected<Server, std::string> listen(boost::asio::io_context& context,
                                                     const std::filesystem::path& path,
                                                     Handler handler,
                                                     std::chrono::milliseconds silence = kSilence);
    Server(Server&&) noexcept;
    Server& operator=(Server&&) = delete;
    ~Server();  // disconnects everybody and removes the file

  private:
    struct State;
    explicit Server(std::shared_ptr<State> state);
    std::shared_ptr<State> state_;
};

}  // namespace sallyport::rpc
