// SPDX-License-Identifier: Apache-2.0
#pragma once

// A descriptor that one thread makes readable and another polls (eventfd).

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace sallyport {

// Throws std::system_error when the system has no more file descriptors.
inline int make_event_fd() {
    const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    return fd;
}

inline void signal_event_fd(int fd) {
    const uint64_t one = 1;
    // Fails only when the counter is full, and then the other side is awake anyway.
    (void)!write(fd, &one, sizeof one);
}

inline void drain_event_fd(int fd) {
    uint64_t count = 0;
    (void)!read(fd, &count, sizeof count);
}

}  // namespace sallyport
