// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// The whole burst at once, as the crypto library likes it. Cannot fail.
inline void encrypt(const OutboundContext& context, const Burst& burst) {
    std::array<crypto::AeadJob*, kBurstMax> jobs;
    const auto alive = burst.alive();
    for (size_t i = 0; i < alive.size(); ++i) jobs[i] = &alive[i]->job;
    context.aead.seal({jobs.data(), alive.size()});
}

}  // namespace sallyport::stages
