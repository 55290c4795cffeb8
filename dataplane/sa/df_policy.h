// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace sallyport {

// The DF bit of outer IPv4 headers (RFC 4301 8.1): that of the inner packet, or always this.
enum class DfPolicy : uint8_t { copy, set, clear };

}  // namespace sallyport
