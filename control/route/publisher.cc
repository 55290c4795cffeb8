// SPDX-License-Identifier: Apache-2.0
#include "control/route/publisher.h"

#include <chrono>

namespace sallyport::control {

using ErrorCode = boost::system::error_code;

std::expected<std::unique_ptr<NextHopControl>, std::string> NextHopControl::start(
    boost::asio::io_context& context, Log& log, std::vector<uint32_t> port_ifindexes,
    std::vector<EgressFilter> filters, Publish publish) {
    auto socket = route::RouteSocket::open();
    if (!socket) return std::unexpected(socket.error());
    route::RouteMirror mirror(std::move(port_ifindexes));
    if (auto dumped = socket->dump(mirror); !dumped) return std::unexpected(dumped.error());
    std::unique_ptr<NextHopControl> control(
        new NextHopControl(context, log, std::move(*socket), std::move(mirror), std::move(filters),
                           std::move(publish)));
    control->publish_(control->mirror_.build(control->filters_));
    control->wait_for_changes();
    return control;
}

NextHopControl::NextHopControl(boost::asio::io_context& context, Log& log,
                               route::RouteSocket socket, route::RouteMirror mirror,
                               std::vector<EgressFilter> filters, Publish publish)
    : log_(log),
      socket_(std::move(socket)),
      mirror_(std::move(mirror)),
      filters_(std::move(filters)),
      publish_(std::move(publish)),
      readable_(context, dup(socket_.fd())),
      coalesce_(context),
      read_again_(context) {}

void NextHopControl::stop() {
    ErrorCode ignored;
    readable_.close(ignored);
    coalesce_.cancel();
    read_again_.cancel();
}

void NextHopControl::wait_for_changes() {
    readable_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](ErrorCode error) {
        if (error) return;
        on_readable();
        wait_for_changes();
    });
}

void NextHopControl::on_readable() {
    const auto effect = socket_.receive(mirror_);
    if (effect && *effect == route::Effect::none) return;
    if (!effect) log_.warning("routes are read again: " + effect.error());
    if (!effect || *effect == route::Effect::resync) return read_again();
    publish_soon();
}

void NextHopControl::read_again() {
    const auto dumped = socket_.dump(mirror_);
    if (dumped) return publish_soon();
    // The picture has a hole until then.
    log_.error("routes for direct egress may be out of date, they are read again in " +
               std::to_string(kReadAgainSeconds) + " s: " + dumped.error());
    read_again_.expires_after(std::chrono::seconds(kReadAgainSeconds));
    read_again_.async_wait([this](ErrorCode error) {
        if (!error) read_again();
    });
}

void NextHopControl::publish_soon() {
    if (publish_due_) return;
    publish_due_ = true;
    coalesce_.expires_after(std::chrono::milliseconds(kCoalesceMs));
    coalesce_.async_wait([this](ErrorCode error) {
        if (error) return;
        publish_due_ = false;
        publish_(mirror_.build(filters_));
    });
}

}  // namespace sallyport::control
