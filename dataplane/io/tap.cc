// SPDX-License-Identifier: Apache-2.0
#include "dataplane/io/tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <thread>
#include <utility>

#include "dataplane/base/unique_fd.h"

namespace sallyport::io {

namespace {

// 20 ms were seen on an idle machine. Longer, and a name that is taken for good is told that late.
constexpr std::chrono::seconds kLeaveMax{2};
constexpr std::chrono::milliseconds kLookAgain{5};

std::string reason() {
    return std::strerror(errno);
}

// /dev/net/tun is open to everybody, and a device without owner and group lets everybody attach a
// queue: read what the kernel routes into it, write frames that no policy was asked about.
bool keep_others_out(int fd) {
    return ioctl(fd, TUNSETOWNER, static_cast<unsigned long>(geteuid())) == 0 &&
           ioctl(fd, TUNSETGROUP, static_cast<unsigned long>(getegid())) == 0;
}

enum class Attach : uint8_t { create, join };

// A queue of the device, in the network namespace of the calling thread.
std::expected<UniqueFd, std::string> attach(const std::string& name, Attach how) {
    UniqueFd fd(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!fd) {
        return std::unexpected("cannot open /dev/net/tun: " + reason() +
                               "; the kernel needs CONFIG_TUN and this program CAP_NET_ADMIN");
    }
    ifreq request{};
    std::memcpy(request.ifr_name, name.c_str(), name.size());
    unsigned flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE;
    if (how == Attach::create) flags |= IFF_TUN_EXCL;  // refuse to join what exists already
    request.ifr_flags = static_cast<short>(flags);
    if (ioctl(fd.get(), TUNSETIFF, &request) != 0) {
        return std::unexpected("cannot " + std::string(how == Attach::create ? "create" : "join") +
                               " the TAP device " + name + ": " + reason());
    }
    if (!keep_others_out(fd.get())) {
        return std::unexpected("cannot keep other users from " + name + ": " + reason());
    }
    // The default lets the kernel refuse writes while frames wait in its queues.
    const int unlimited = INT_MAX;
    if (ioctl(fd.get(), TUNSETSNDBUF, &unlimited) != 0) {
        return std::unexpected("cannot lift the send limit of " + name + ": " + reason());
    }
    return fd;
}

// The device of a process that was killed stays until the kernel has closed the last of its queues,
// which io_uring does on its own time: a gateway that is started again at once meets it.
bool is_gone_soon(const std::string& name) {
    const auto end = std::chrono::steady_clock::now() + kLeaveMax;
    while (if_nametoindex(name.c_str()) != 0) {
        if (std::chrono::steady_clock::now() >= end) return false;
        std::this_thread::sleep_for(kLookAgain);
    }
    return true;
}

// The device has no owner at first, and who asks often enough is in before it has one. So it is
// made where nobody else is, in a network namespace that only a thread of ours has ever seen, and
// moved here with its owner.
std::expected<UniqueFd, std::string> create_alone(const std::string& name,
                                                  const Tap::MoveDevice& move) {
    const UniqueFd here(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    if (!here) return std::unexpected("cannot open /proc/thread-self/ns/net: " + reason());
    std::expected<UniqueFd, std::string> made;
    std::thread([&] {
        if (unshare(CLONE_NEWNET) != 0) {
            made =
                std::unexpected("cannot make a network namespace, in which " + name +
                                " is created: " + reason() + "; this program needs CAP_SYS_ADMIN");
            return;
        }
        made = attach(name, Attach::create);
        if (!made) return;
        if (auto moved = move(name, here.get()); !moved) {
            made =
                std::unexpected("cannot move " + name + " out of the namespace in which it was " +
                                "created: " + moved.error());
        }
    }).join();
    return made;
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
                                            const MoveDevice& move) {
    if (name.empty() || name.size() >= IFNAMSIZ) {
        return std::unexpected("'" + name + "' is no device name: 1 to 15 characters are allowed");
    }
    if (!is_gone_soon(name)) {
        return std::unexpected("a device " + name +
                               " exists already: another gateway runs here, or choose another name "
                               "with [gateway] device");
    }
    Tap tap;
    for (uint16_t index = 0; index < queues; ++index) {
        auto fd = index == 0 ? create_alone(name, move) : attach(name, Attach::join);
        if (!fd) return std::unexpected(fd.error());
        tap.queues_.emplace_back(fd->release());
    }

    tap.ifindex_ = if_nametoindex(name.c_str());
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
