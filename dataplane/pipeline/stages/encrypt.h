// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// The whole burst at once, as the crypto library likes it. Cannot fail.
inline void encrypt(const OutboundContext& context, const Burst& burst) {
    crypto::JobLanes jobs;
    for (Packet* packet : burst.alive()) jobs.add(packet->job);
    context.aead.seal(jobs);
}

}  // namespace sallyport::stages
