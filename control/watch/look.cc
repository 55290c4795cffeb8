// SPDX-License-Identifier: Apache-2.0
#include "control/watch/look.h"

#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "config/system.h"
#include "dataplane/base/unique_fd.h"

namespace sallyport::watch {

DeviceNow look_at(uint32_t ifindex) {
    DeviceNow now;
    ifreq request{};
    if (if_indextoname(ifindex, request.ifr_name) == nullptr) return now;
    now.name = request.ifr_name;
    const UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd) return now;
    now.ifindex = ifindex;
    if (ioctl(fd.get(), SIOCGIFFLAGS, &request) == 0) now.up = (request.ifr_flags & IFF_UP) != 0;
    if (ioctl(fd.get(), SIOCGIFMTU, &request) == 0) {
        now.mtu = static_cast<uint32_t>(request.ifr_mtu);
    }
    if (ioctl(fd.get(), SIOCGIFHWADDR, &request) == 0) {
        std::memcpy(now.mac.data(), request.ifr_hwaddr.sa_data, now.mac.size());
    }
    now.queues = config::device_queue_count(now.name).value_or(0);
    return now;
}

}  // namespace sallyport::watch
