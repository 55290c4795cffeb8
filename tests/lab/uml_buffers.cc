// SPDX-License-Identifier: Apache-2.0
//
// For user-mode Linux, by LD_PRELOAD: room for what arrives while its process does not run.
//
// Its network devices are AF_PACKET sockets with the host's default for a receive buffer, 208 KB:
// some ninety frames. One write of iperf3 is more, and on a busy machine the guest may not run for
// as long as its scheduler pleases. What is lost there no counter of the guest or of a device tells
// of.

#include <dlfcn.h>
#include <sys/socket.h>

namespace {

// Bytes; the kernel counts the memory of a frame, so this is room for some 1800 of 1500 bytes. Less
// loses frames, more is a queue that TCP would notice.
constexpr int kReceiveBuffer = 4 << 20;

const auto libc_socket = reinterpret_cast<int (*)(int, int, int)>(dlsym(RTLD_NEXT, "socket"));

}  // namespace

// As in socket(2).
extern "C" int socket(int domain, int type, int protocol) noexcept {
    const int fd = libc_socket(domain, type, protocol);
    // Refused, the socket is as it was without: fewer frames, no fault.
    if (fd >= 0 && domain == AF_PACKET) {
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof(kReceiveBuffer));
    }
    return fd;
}
