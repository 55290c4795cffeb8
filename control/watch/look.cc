// SPDX-License-Identifier: Apache-2.0
#include "control/watch/look.h"

#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <cstring>

#include "config/system.h"

namespace sallyport::watch {

DeviceNow look_at(uint32_t ifindex) {
    DeviceNow now;
    ifreq request{};
    if (if_indextoname(ifindex, request.ifr_name) == nullptr) return now;
    now.name = request.ifr_name;
    const auto ask = [&](unsigned long question) {
        return config::ask_device(now.name, question, request);
    };
    if (!ask(SIOCGIFFLAGS)) return now;  // gone meanwhile
    now.up = (request.ifr_flags & IFF_UP) != 0;
    if (!ask(SIOCGIFMTU)) return now;
    now.mtu = static_cast<uint32_t>(request.ifr_mtu);
    if (!ask(SIOCGIFHWADDR)) return now;
    std::memcpy(now.mac.data(), request.ifr_hwaddr.sa_data, now.mac.size());
    now.ifindex = ifindex;
    now.queues = config::device_queue_count(now.name).value_or(0);
    return now;
}

}  // namespace sallyport::watch
