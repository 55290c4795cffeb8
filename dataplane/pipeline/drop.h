// SPDX-License-Identifier: Apache-2.0
#pragma once

// The end of a packet that a stage found a reason against: counted for the worker and for the SA,
// and, where the RFCs want it on record, told to control (an event).

#include "dataplane/base/drop_reason.h"
#include "dataplane/pipeline/context.h"
#include "dataplane/pipeline/packet.h"

namespace sallyport {

void drop_inbound(InboundContext& context, const Packet& packet, DropReason reason);
void drop_outbound(OutboundContext& context, const Packet& packet, DropReason reason);

}  // namespace sallyport
