// SPDX-License-Identifier: Apache-2.0
#pragma once

// Something that is to be done a little later, once, however often it is asked for meanwhile.
//
// Owner: control thread.

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <utility>

namespace sallyport::control {

class Later {
  public:
    Later(boost::asio::io_context& context, std::function<void()> what)
        : timer_(context), what_(std::move(what)) {}

    // Not later than in `delay`.
    void in(std::chrono::milliseconds delay) {
        const auto at = std::chrono::steady_clock::now() + delay;
        if (stopped_ || (due_ && timer_.expiry() <= at)) return;
        due_ = true;
        timer_.expires_at(at);
        timer_.async_wait([this](boost::system::error_code error) {
            if (error || stopped_) return;
            due_ = false;
            what_();
        });
    }
    // It is done, now and for ever.
    void stop() {
        stopped_ = true;
        timer_.cancel();
    }

  private:
    boost::asio::steady_timer timer_;
    std::function<void()> what_;
    bool due_ = false;
    bool stopped_ = false;
};

}  // namespace sallyport::control
