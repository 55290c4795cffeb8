// SPDX-License-Identifier: Apache-2.0
#include "control/host/identity.h"

#include <sys/stat.h>

#include <fstream>

namespace sallyport::host {

uint64_t namespace_inode() {
    struct stat status{};
    return stat("/proc/thread-self/ns/net", &status) == 0 ? status.st_ino : 0;
}

std::string namespace_identity() {
    const uint64_t inode = namespace_inode();
    if (inode == 0) return "unknown";
    std::ifstream in("/proc/sys/kernel/random/boot_id");
    std::string boot;
    std::getline(in, boot);
    return boot + " " + std::to_string(inode);
}

}  // namespace sallyport::host
