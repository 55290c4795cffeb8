// SPDX-License-Identifier: Apache-2.0
#include "dataplane/io/tap.h"

#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

#include "dataplane/base/unique_fd.h"

namespace sallyport::io {

namespace {

constexpr MacAddress kTapMac = {0x02, 0x53, 0x50, 0x00, 0x01, 0x00};
constexpr uint32_t kEthernetBytes = 14;

std::string reason() {
    return std::strerror(errno);
}

// One RTM_NEWLINK message for an existing device.
class LinkRequest {
  public:
    explicit LinkRequest(int ifindex) {
        message_.header.nlmsg_type = RTM_NEWLINK;
        message_.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
        message_.header.nlmsg_len = NLMSG_LENGTH(sizeof(ifinfomsg));
        message_.info.ifi_index = ifindex;
    }
    void set_flags(unsigned flags) {
        message_.info.ifi_flags |= flags;
        message_.info.ifi_change |= flags;
    }
    void add(uint16_t type, const void* value, size_t bytes) {
        rtattr* attribute = begin(type);
        std::memcpy(RTA_DATA(attribute), value, bytes);
        message_.header.nlmsg_len += static_cast<uint32_t>(RTA_SPACE(bytes));
        attribute->rta_len = static_cast<uint16_t>(RTA_LENGTH(bytes));
    }
    // Opens an attribute that holds those added until end().
    rtattr* begin_nested(uint16_t type) {
        rtattr* attribute = begin(type);
        message_.header.nlmsg_len += RTA_LENGTH(0);
        return attribute;
    }
    void end(rtattr* attribute) {
        const auto* end = reinterpret_cast<const char*>(&message_) + message_.header.nlmsg_len;
        attribute->rta_len = static_cast<uint16_t>(end - reinterpret_cast<char*>(attribute));
    }
    // 0 or the kernel's errno.
    int apply() {
        const UniqueFd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
        if (!netlink) return errno;
        if (send(netlink.get(), &message_, message_.header.nlmsg_len, 0) < 0) return errno;
        struct {
            nlmsghdr header;
            nlmsgerr error;
            char rest[1024];
        } answer{};
        const ssize_t bytes = recv(netlink.get(), &answer, sizeof answer, 0);
        if (bytes < 0) return errno;
        if (bytes < static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr))) ||
            answer.header.nlmsg_type != NLMSG_ERROR) {
            return EPROTO;
        }
        return -answer.error.error;
    }

  private:
    rtattr* begin(uint16_t type) {
        auto* attribute = reinterpret_cast<rtattr*>(reinterpret_cast<char*>(&message_) +
                                                    message_.header.nlmsg_len);
        attribute->rta_type = type;
        return attribute;
    }

    struct {
        nlmsghdr header{};
        ifinfomsg info{};
        char attributes[256]{};
    } message_;
};

// Without an address of its own the device sends no router solicitations and no neighbour
// discovery, which a worker would only have to drop. A kernel without IPv6 has nothing to switch
// off.
bool disable_ipv6_addresses(int ifindex) {
    LinkRequest request(ifindex);
    rtattr* per_family = request.begin_nested(IFLA_AF_SPEC);
    rtattr* v6 = request.begin_nested(AF_INET6);
    const uint8_t mode = IN6_ADDR_GEN_MODE_NONE;
    request.add(IFLA_INET6_ADDR_GEN_MODE, &mode, sizeof mode);
    request.end(v6);
    request.end(per_family);
    const int error = request.apply();
    errno = error;
    return error == 0 || error == EAFNOSUPPORT;
}

// /dev/net/tun is open to everybody, and a device without owner and group lets everybody attach a
// queue: read what the kernel routes into it, write frames that no policy was asked about.
bool keep_others_out(int fd) {
    return ioctl(fd, TUNSETOWNER, static_cast<unsigned long>(geteuid())) == 0 &&
           ioctl(fd, TUNSETGROUP, static_cast<unsigned long>(getegid())) == 0;
}

bool configure(int ifindex, uint32_t mtu) {
    LinkRequest request(ifindex);
    request.add(IFLA_ADDRESS, kTapMac.data(), kTapMac.size());
    request.add(IFLA_MTU, &mtu, sizeof mtu);
    // No neighbour resolution: behind sp0 are tunnels, and nobody there would answer.
    request.set_flags(IFF_UP | IFF_NOARP);
    errno = request.apply();
    return errno == 0;
}

}  // namespace

TapQueue::TapQueue(TapQueue&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

TapQueue& TapQueue::operator=(TapQueue&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
}

TapQueue::~TapQueue() {
    if (fd_ >= 0) close(fd_);
}

uint32_t TapQueue::read(std::span<std::byte* const> buffers, std::span<Frame> out) const {
    const size_t limit = std::min(buffers.size(), out.size());
    uint32_t count = 0;
    while (count < limit) {
        std::byte* data = buffers[count];
        const auto room = static_cast<size_t>(frame_base(data) + kFrameBytes - data);
        const ssize_t bytes = ::read(fd_, data, room);
        if (bytes <= 0) break;  // EAGAIN: no more; the device down: nothing to read either
        out[count++] = Frame{.data = data, .bytes = static_cast<uint32_t>(bytes)};
    }
    return count;
}

std::expected<Tap, std::string> Tap::create(const std::string& name, uint16_t queues,
                                            uint32_t mtu) {
    if (name.empty() || name.size() >= IFNAMSIZ) {
        return std::unexpected("'" + name + "' is no device name: 1 to 15 characters are allowed");
    }
    if (mtu + kEthernetBytes > kFrameDataBytesMax) {
        return std::unexpected(name + ": an MTU of " + std::to_string(mtu) +
                               " does not fit a frame; the largest is " +
                               std::to_string(kFrameDataBytesMax - kEthernetBytes));
    }
    Tap tap;
    for (uint16_t index = 0; index < queues; ++index) {
        UniqueFd fd(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
        if (!fd) {
            return std::unexpected("cannot open /dev/net/tun: " + reason() +
                                   "; the kernel needs CONFIG_TUN and this program CAP_NET_ADMIN");
        }
        ifreq request{};
        std::memcpy(request.ifr_name, name.c_str(), name.size());
        unsigned flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE;
        if (index == 0) flags |= IFF_TUN_EXCL;  // refuse to join a device that exists already
        request.ifr_flags = static_cast<short>(flags);
        if (ioctl(fd.get(), TUNSETIFF, &request) != 0) {
            if (index == 0 && (errno == EBUSY || errno == EINVAL || errno == EEXIST) &&
                if_nametoindex(name.c_str()) != 0) {
                return std::unexpected(
                    "a device " + name +
                    " exists already: another gateway runs here, or choose another name with "
                    "[gateway] device");
            }
            return std::unexpected("cannot create the TAP device " + name + " (queue " +
                                   std::to_string(index) + " of " + std::to_string(queues) +
                                   "): " + reason());
        }
        if (!keep_others_out(fd.get())) {
            return std::unexpected("cannot keep other users from " + name + ": " + reason());
        }
        // The default lets the kernel refuse writes while frames wait in its queues.
        const int unlimited = INT_MAX;
        if (ioctl(fd.get(), TUNSETSNDBUF, &unlimited) != 0) {
            return std::unexpected("cannot lift the send limit of " + name + ": " + reason());
        }
        tap.queues_.emplace_back(fd.release());
    }

    tap.ifindex_ = if_nametoindex(name.c_str());
    tap.mac_ = kTapMac;
    const int ifindex = static_cast<int>(tap.ifindex_);
    if (!disable_ipv6_addresses(ifindex)) {
        return std::unexpected("cannot switch off IPv6 addresses on " + name + ": " + reason());
    }
    if (!configure(ifindex, mtu)) {
        return std::unexpected("cannot set address and MTU of " + name + ": " + reason());
    }
    return tap;
}

std::expected<void, std::string> Tap::choose_queues_by(int program_fd) {
    if (ioctl(queues_.front().fd(), TUNSETSTEERINGEBPF, &program_fd) != 0) {
        return std::unexpected("the kernel does not let a program choose the queue of the TAP: " +
                               reason());
    }
    return {};
}

}  // namespace sallyport::io
