// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// The whole burst at once, as the crypto library likes it. Each job then says whether it is
// authentic; the text of one that is not has been wiped.
inline void decrypt(const InboundContext& context, const Burst& burst) {
    crypto::JobLanes jobs;
    for (Packet* packet : burst.alive()) jobs.add(packet->job);
    context.aead.open(jobs);
}

}  // namespace sallyport::stages
