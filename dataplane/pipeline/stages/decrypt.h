// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include "dataplane/pipeline/burst.h"
#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

// The whole burst at once, as the crypto library likes it. Each job then says whether it is
// authentic; the text of one that is not has been wiped.
inline void decrypt(const InboundContext& context, const Burst& burst) {
    std::array<crypto::AeadJob*, kBurstMax> jobs;
    const auto alive = burst.alive();
    for (size_t i = 0; i < alive.size(); ++i) jobs[i] = &alive[i]->job;
    context.aead.open({jobs.data(), alive.size()});
}

}  // namespace sallyport::stages
