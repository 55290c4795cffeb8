// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// After the ICV: only now may the window move. Asks again, because a copy of this packet may have
// been accepted earlier in the same burst.
[[gnu::always_inline]] inline DropReason commit_replay(InboundContext& /*context*/,
                                                       Packet& packet) {
    switch (packet.inbound_sa->replay.commit(packet.sequence)) {
        case ReplayVerdict::fresh:
            return DropReason::none;
        case ReplayVerdict::replayed:
            return DropReason::replayed;
        case ReplayVerdict::before_window:
            return DropReason::before_window;
    }
    return DropReason::replayed;
}

}  // namespace sallyport::stages
