// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "control/xfrm/messages.h"
#include "dataplane/exchange/events.h"

namespace sallyport::control {

// One event of RFC 4303 section 4 for the log.
inline std::string audit_text(const event::Audit& record) {
    return std::string(label(record.reason)) + " spi=" + xfrm::to_text(record.spi) +
           " source=" + to_string(record.source) + " destination=" + to_string(record.destination) +
           " sequence=" + std::to_string(record.sequence);
}

}  // namespace sallyport::control
