// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who is asked to be rekeyed, and when.
//
// A key that has had two senders should be replaced soon (handover.h, "Never a nonce twice"). Where
// the kernel goes on sending for a group beside the worker, each successor has two senders too:
// without a limit it would be rekeyed for ever. So a group is asked for a few within kPause; what
// is about to end (`always`) is asked for whatever was before. The requests leave at most
// kPerSecond. One that is not obeyed is made again (Feedback::kAskAgain).
//
// Owner: control thread.

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>

#include "control/xfrm/values.h"
#include "dataplane/base/ids.h"

namespace sallyport::control {

class RekeyPacer {
  public:
    using Time = std::chrono::steady_clock::time_point;
    enum class When : uint8_t { paced, always };
    // Each request makes an IKE daemon do a Diffie-Hellman exchange. More, and ten thousand SAs
    // that come back at once keep it from answering DPD; fewer, and keys with two senders live
    // longer.
    static constexpr size_t kPerSecond = 100;
    // A group is asked only a few times in this. Shorter, and a group whose kernel keeps sending is
    // rekeyed without end; longer, and a real second sender waits for its new key.
    static constexpr std::chrono::minutes kPause{10};

    // Per-CPU SAs of a group come at once, one for each worker and the fallback, each with its
    // predecessor.
    explicit RekeyPacer(size_t workers) : asked_max_(2 * (workers + 1)) {}

    // False: the group has been asked for often enough of late. One that is waiting goes on.
    bool ask(const xfrm::SaName& name, PolicyId group, Time now, When when);
    // In the order in which they were asked for.
    std::optional<xfrm::SaName> next();
    [[nodiscard]] size_t waiting() const { return queue_.size(); }

  private:
    struct Pace {
        Time since;
        size_t asked = 0;
    };
    size_t asked_max_;
    std::map<PolicyId, Pace> paces_;
    std::deque<xfrm::SaName> queue_;
    std::set<xfrm::SaName> queued_;  // the same
};

}  // namespace sallyport::control
