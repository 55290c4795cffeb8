// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "dataplane/pipeline/context.h"

namespace sallyport::stages {

inline DropReason check_icv(InboundContext& /*context*/, Packet& packet) {
    return packet.job.authentic ? DropReason::none : DropReason::icv_mismatch;
}

}  // namespace sallyport::stages
