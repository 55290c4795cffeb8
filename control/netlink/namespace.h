// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace sallyport::netlink {

// Names this boot and the network namespace of the calling thread. A note on disk about settings of
// the kernel begins with it: one of another boot or namespace says nothing about this one.
std::string namespace_identity();

}  // namespace sallyport::netlink
