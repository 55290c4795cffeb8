// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace sallyport::io {

// How AF_XDP sockets get their frames; automatic: zero-copy where the driver can.
enum class Bind : uint8_t { automatic, copy, zero_copy };

}  // namespace sallyport::io
