// SPDX-License-Identifier: Apache-2.0
#include "control/netlink/namespace.h"

#include <sys/stat.h>

#include <fstream>

namespace sallyport::netlink {

std::string namespace_identity() {
    struct stat status{};
    if (stat("/proc/thread-self/ns/net", &status) != 0) return "unknown";
    std::ifstream in("/proc/sys/kernel/random/boot_id");
    std::string boot;
    std::getline(in, boot);
    return boot + " " + std::to_string(status.st_ino);
}

}  // namespace sallyport::netlink
