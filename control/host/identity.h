// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace sallyport::host {

// The network namespace of the calling thread; unique while it lives. 0: unknown.
uint64_t namespace_inode();

// Names this boot and that namespace. A note on disk about settings of the kernel begins with it:
// one of another boot or namespace says nothing about this one.
std::string namespace_identity();

}  // namespace sallyport::host
